"""Any tokenizer with any generator and any sampler that fits: each pairing learns sixteen images by heart and gives them back.

The images are conditioned on their number, so that a confident sampler has one right answer per row.
"""

import math

import pytest
import torch

from gentok.bundle import build_generator, build_tokenizer
from gentok.cli import compose
from gentok.metrics.image import psnr
from gentok.rng import RowRNG
from gentok.samplers.base import fitting, sampler_name
from gentok.sampling import pick_sampler, sample_tokens
from gentok.training.config_check import check_config
from gentok.types import Batch, Class, ClassSpec, Condition, ConditionSpec

ITEMS = 16
CLASSES = ConditionSpec((("class", ClassSpec(tuple(map(str, range(ITEMS))))),))
CODEBOOKS = {
    "vq": {"vocab_size": 64, "dim": 8, "width": 16},
    "residual": {"levels": 2, "level_dropout": 0.0, "width": 16},
    "fsq": {"values": [5, 5, 5], "width": 16},
    "lfq": {"bits": 7, "width": 16},
    "library": {"width": 16},
    "bae": {"bits": 8, "levels": 2, "width": 16},
    "dual": {"vocab_size": 64, "semantic": 8, "pixel": 8},
    "pyramid": {"sides": [1, 2, 4], "width": 16, "scale_dropout": 0.0},
}
GENERATORS = {
    "autoregressive": {"width": 64, "depth": 2, "heads": 2},
    "causal_masked": {"width": 64, "depth": 2, "heads": 2},
    "mixed_objectives": {"width": 64, "depth": 2, "heads": 2},
    "early_exits": {"width": 64, "depth": 3, "heads": 2, "exits": [1]},
    "depth": {"width": 64, "depth": 2, "heads": 2, "level_width": 64, "level_heads": 2},
    "masked": {"width": 64, "depth": 2, "heads": 2, "zero_init_head": False},  # with it, bae is half learnt after 160 steps
    "any_order": {"width": 64, "depth": 2, "heads": 2},
    "self_speculative": {"width": 64, "depth": 2, "heads": 2},
    "resgen": {"width": 64, "depth": 2, "heads": 2, "components": 64, "rank": 8},
    "next_scale": {"width": 64, "depth": 2, "heads": 2},
    "coarse_to_fine": {
        "width": 64, "depth": 2, "heads": 2, "refiner_width": 64, "refiner_depth": 2, "refiner_heads": 2, "clusters": 8,
    },
    "xar": {"width": 64, "depth": 2, "heads": 2},
    "xar, few vectors": {
        "width": 64, "depth": 6, "heads": 2, "density": {"_target_": "gentok.nn.density.Density", "rate": 0.75, "sparse": 1},
    },
    "distilled": {"solver_steps": 4},
}
"""Name, and after a comma what is told of it -> its settings."""
STEPS = {("resgen", "residual"): 320, ("masked", "bae"): 320}
"""Of training, where 160 are too few: a regression takes longer than a choice, and bits that none must get wrong longer still."""
DRAWS, RATE, TEACHER = {"xar": 4}, {"xar": 1e-2}, {"distilled": "autoregressive"}
"""Of each item in a step, where what a step teaches depends on noise; a learning rate; and who is trained first, to be learned from."""
ONLY = {
    "resgen": ("residual",), "next_scale": ("pyramid",), "xar": tuple(name for name in CODEBOOKS if name != "bae"),
    "distilled": tuple(name for name in CODEBOOKS if name not in ("residual", "bae")),
}  # fmt: skip
"""Generators that need something of a codebook, and the codebooks that have it; every other pairing is refused in one line."""


def images() -> torch.Tensor:
    """Sixteen smooth images, float [16, 1, 16, 16]."""
    coarse = torch.rand(ITEMS, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")


def fit(module, loss, steps, lr):
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, weight_decay=0.0, fused=True)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizers():
    """name -> a tokenizer of the codebook of that name, trained on the images; made once, when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            config = compose("config", [f"codebook={name}"])["tokenizer"]
            config.update(media_shape=[1, 16, 16], width=16)
            config["codebook"].update(CODEBOOKS[name])
            if "codebook" in config["codebook"]:
                config["codebook"]["codebook"]["vocab_size"] = 64
            tokenizer = build_tokenizer(config, training=True)
            media, index = images(), torch.arange(ITEMS)
            fit(tokenizer, lambda step: sum(tokenizer(Batch(media, index), RowRNG.of(0, index, step)).losses.values()), 150, 4e-3)
            made[name] = tokenizer
        return made[name]

    return get


QUICK = {
    "autoregressive": ("fsq",), "masked": ("pyramid",), "resgen": ("fsq",), "next_scale": ("pyramid",),
}  # fmt: skip
"""Generator -> the codebooks that the quick suite trains it with: codes in an order, in any order and in scales; of resgen, which needs
levels, the refusal."""


@pytest.mark.parametrize(
    ("generator_name", "codebook"),
    [
        pytest.param(g, c, marks=[] if c in QUICK.get(g, ()) else [pytest.mark.slow])
        for g in GENERATORS
        for c in CODEBOOKS
    ],
)
def test_a_pairing_learns_sixteen_items_and_every_fitting_sampler_gives_them_back(tokenizers, codebook, generator_name):
    tokenizer, settings = tokenizers(codebook), GENERATORS[generator_name]
    generator_name = generator_name.partition(",")[0]
    config = {**compose("config", [f"generator={generator_name}"])["generator"], **settings}
    if generator_name in TEACHER:
        first = TEACHER[generator_name]
        config["teacher"] = {**compose("config", [f"generator={first}"])["generator"], **GENERATORS[first]}
    if codebook not in ONLY.get(generator_name, CODEBOOKS):
        with pytest.raises(ValueError, match=f"{generator_name} models .* {ONLY[generator_name][0]}") as error:
            build_generator(config, tokenizer, CLASSES)
        assert "\n" not in str(error.value)
        return
    media, index = images(), torch.arange(ITEMS)
    tokens, condition = tokenizer.encode(media), Condition({"class": Class(index)})
    own = (psnr(tokenizer.decode(tokens), media) - 1.0).clamp(max=35.0)  # above 35 dB a code of the finest level is a decibel by itself

    torch.manual_seed(1)
    generator = build_generator(config, tokenizer, CLASSES)
    if generator_name in TEACHER:
        teacher = build_generator(config["teacher"], tokenizer, CLASSES)
        generator.take_inner(fit(teacher, lambda step: teacher.loss(tokens, condition, RowRNG.of(1, index, step)).loss, 160, 5e-3))
    steps = STEPS.get((generator_name, codebook), 160)
    drawn = index.repeat(DRAWS.get(generator_name, 1))
    items, given, number = tokens.rows(drawn), condition.rows(drawn), torch.arange(len(drawn))
    fit(generator, lambda step: generator.loss(items, given, RowRNG.of(1, number, step)).loss, steps, RATE.get(generator_name, 5e-3))

    if generator.has_nll:
        nats = generator.nll_bound(tokens, condition, RowRNG.of(2, index)).sum() / tokens.present.sum()
        assert nats < 0.3 * math.log(tokenizer.spec.vocab)

    samplers = fitting(generator)
    assert samplers
    for cls in samplers:
        # SoundStorm's later steps: these generators are trained in any order, not by level.
        options = {"SoundStorm": {"later_steps": 16, "later_temperature": 0.1}, "EntitiesSampler": {"solver": "heun", "steps": 20}}
        options = options.get(cls.__name__, {})
        sampler = pick_sampler({"_target_": f"{cls.__module__}.{cls.__name__}", "temperature": 0.1, **options}, type(generator))
        output = sample_tokens(generator, condition, sampler, rng=RowRNG.of(3, index))
        drawn = tokenizer.decode(output.tokens)
        close = torch.stack([psnr(drawn[i].expand_as(media), media) >= own for i in range(ITEMS)]).any(1)
        assert close.double().mean() >= 0.9, f"{sampler_name(cls)}: {int(close.sum())} of {ITEMS}"


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["generator=autoregressive", "sampler=maskgit"], ["maskgit", "Masked", "fit it: autoregressive"]),
        (["generator=masked", "sampler=autoregressive"], ["autoregressive", "Causal", "maskgit"]),
        (["generator=any_order", "sampler=maskgit"], ["maskgit", "Masked", "any_order, any_subset"]),
        (["generator=masked", "sampler=any_subset"], ["any_subset", "AnyOrder", "maskgit"]),
        (["generator=next_scale", "sampler=autoregressive"], ["autoregressive", "Causal", "is NextScale", "fit it: next_scale"]),
        (["generator=autoregressive", "sampler=next_scale"], ["next_scale", "NextScale", "fit it: autoregressive"]),
        (["generator=coarse_to_fine", "sampler=autoregressive"], ["autoregressive", "Causal", "fit it: coarse_to_fine"]),
        (["generator=coarse_to_fine", "sampler=coarse_to_fine", "sampler@sampler.coarse=maskgit"], ["coarse=maskgit", "autoregressive"]),
    ],
)
def test_an_impossible_pair_is_refused_before_anything_is_built(overrides, expected):
    config = compose("config", ["task=generator", "tokenizer=from_bundle", "tokenizer.ckpt=nowhere", "steps=1", *overrides])
    with pytest.raises(ValueError) as error:
        check_config(config)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in expected), str(error.value)


def test_a_layout_that_does_not_fit_is_refused_with_those_that_do(tokenizers):
    tokenizer = tokenizers("residual")
    with torch.device("meta"), pytest.raises(ValueError, match="position_major"):
        build_generator({**compose("config", [])["generator"], "layout": "raster"}, tokenizer, CLASSES)
