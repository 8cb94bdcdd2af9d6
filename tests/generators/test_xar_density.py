"""xAR with a token density: nothing leaks between entities, caches and single passes agree, and misfits are refused in one line."""

import pytest
import torch
from test_xar_generator import classes, rows

from gentok.generators.xar import XAR, _clean_context
from gentok.nn.density import Density
from gentok.nn.density_blocks import Side
from gentok.nn.linear import quantize
from gentok.samplers.entities import EntitiesSampler
from gentok.types import Class, ClassSpec, Condition, ConditionSpec, Latents, Raster, TokenSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b", "c"))),))
SPEC = TokenSpec((), Raster(4, 8), width=3)
KINDS = ("cell", "subsample", "scale", "image")
DENSITY = Density(rate=0.75, pool=1, groups=1, sparse=1)


def model_of(entity="cell", density=DENSITY, dtype=torch.float64, depth=6, **options):
    torch.manual_seed(0)
    model = XAR(SPEC, CLASSES, entity=entity, width=16, depth=depth, heads=2, density=density, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.to(dtype).eval()


def latents(batch, dtype=torch.float64):
    return Latents(torch.randn(batch, 3, 32, generator=torch.Generator().manual_seed(2), dtype=dtype), SPEC)


def leaks(model, sees=None) -> list[tuple[int, int]]:
    """(entity, input): pairs of which the first depends on the second by its gradient, of one pass over all entities or `sees` of them."""
    sizes = model.sizes if sees is None else [*model.sizes[:-1], *model.sizes]
    groups = range(len(model.sizes)) if sees is None else [*range(len(model.sizes) - 1), *range(len(model.sizes))]
    x = torch.randn(2, sum(sizes), 3, dtype=torch.float64, requires_grad=True)
    times = torch.rand(2, len(sizes), dtype=torch.float64)
    out = model.network(x, times, model.conditioner(classes(2), 2).vector, groups, sees).split(list(sizes), 1)
    found = []
    for i, part in enumerate(out):
        (gradient,) = torch.autograd.grad(part.square().sum(), x, retain_graph=True)
        found += [(i, j) for j, piece in enumerate(gradient.split(list(sizes), 1)) if bool((piece != 0).any())]
    return found


@pytest.mark.parametrize("entity", KINDS)
def test_an_entity_depends_on_itself_and_those_before_it_alone(entity):
    model = model_of(entity)
    count = len(model.sizes)
    assert leaks(model) == [(i, j) for i in range(count) for j in range(i + 1)]


def test_beside_a_clean_context_a_noisy_entity_depends_on_clean_ones_before_it_and_itself():
    model = model_of("cell", entity_side=2)
    sees = _clean_context(len(model.sizes))
    assert leaks(model, sees) == [tuple(pair) for pair in sees.nonzero().tolist()]


@pytest.mark.parametrize("mutant", ["pooling", "few tokens"])
def test_means_and_few_tokens_of_all_entities_are_found_out(mutant, monkeypatch):
    if mutant == "pooling":
        reach = model_of().network.__class__._reach
        monkeypatch.setattr("gentok.nn.entity_transformer.EntityTransformer._reach",
                            lambda *a: reach(*a)._replace(sees=torch.ones_like(reach(*a).sees)))  # fmt: skip
    else:
        monkeypatch.setattr(Side, "view", lambda self, of, sees: None)
    assert (0, 1) in leaks(model_of("cell"))


# What is drawn is float32; in a float32 network rounding grows over the passes.
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-6), (torch.float32, 2e-3)])
@pytest.mark.parametrize("entity", KINDS)
def test_cached_sampling_is_a_loop_over_uncached_passes(entity, dtype, close):
    model, steps = model_of(entity, dtype=dtype), 2
    out = EntitiesSampler(solver="euler", steps=steps)(model, classes(2), rng=rows(2)).tokens
    rng, done = rows(2), []
    vector = model.conditioner(classes(2), 2).vector
    with torch.no_grad():
        for i, size in enumerate(model.sizes):
            x = rng.normal(size, 3)
            for step in range(steps):
                times = torch.zeros(2, i + 1, dtype=torch.float64)
                times[:, -1] = 1 - step / steps
                v = model.network(torch.cat([*done, x.to(dtype)], 1), times, vector, range(i + 1))[:, -size:]
                x = x - v / steps
            done.append(x.to(dtype))
    wanted, _ = model._map.join(done)
    torch.testing.assert_close(out.values.double(), wanted.double(), atol=close, rtol=close)


def test_one_pass_with_a_clean_context_has_the_velocity_of_a_pass_per_entity():
    model, data = model_of("cell", context="clean", dtype=torch.float32, entity_side=2), latents(2, torch.float32)
    out = model.loss(data, classes(2), rows(2))
    rng = rows(2)
    t, x = model.times(rng), model._map.split(data.values)
    noise = rng.normal(*x.shape[1:]).to(x)
    errors, vector = [], model.conditioner(classes(2), 2).vector
    parts, noises = x.split(model.sizes, 1), noise.split(model.sizes, 1)
    for i, (part, eps) in enumerate(zip(parts, noises)):
        times = torch.zeros(2, i + 1, dtype=torch.float64)
        times[:, -1] = t[:, i]
        at = t[:, i, None, None].to(x)
        given = torch.cat([*parts[:i], (1 - at) * part + at * eps], 1)
        errors.append(model.network(given, times, vector, range(i + 1))[:, -part.shape[1] :] - (eps - part))
    torch.testing.assert_close(out.loss.detach(), torch.cat(errors, 1).square().mean().detach(), atol=1e-4, rtol=1e-4)


def test_half_precision_and_integers_are_near():
    model, data, condition = model_of("cell", dtype=torch.float32), latents(2, torch.float32), classes(2)
    plain = model(data, condition).detach()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(data, condition).float(), plain, atol=0.3 * float(plain.abs().max()), rtol=0)
    torch.testing.assert_close(quantize(model)(data, condition), plain, atol=0.2 * float(plain.abs().max()), rtol=0)


def test_it_learns_from_its_beginning():
    torch.manual_seed(0)
    model = XAR(SPEC, CLASSES, width=32, depth=6, heads=2, density=DENSITY)
    data, optimizer, losses = latents(8, torch.float32), torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(25):
        loss = model.loss(data, Condition({"class": Class(torch.arange(8) % 3)}), rows(8)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(bool(p.any()) for name, p in model.named_parameters() if "coarse" in name or "out.weight" in name)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"density": Density(0.5, noise_rate=0.9)}, "set density.noise_rate to null"),
        ({"entity": "token"}, "leaves all tokens of a grid of 1 x 1"),
        ({"depth": 4}, "the network has 4"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        XAR(SPEC, CLASSES, **{"width": 16, "depth": 6, "heads": 2, "density": DENSITY, **options})
    assert "\n" not in str(error.value)

