"""VAR: logits and greedy samples are those of its own code; other tokens, conditions and files are refused."""

import pytest
import torch
from generator_kit import CLASSES, EVERYTHING, RASTER, randomise
from released_kit import recorded, released
from released_laws import FIVE, check_likelihood_is_that_of_logits_and_a_training_step_lowers_it, classes

from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.var import VAR
from gentok.rng import RowRNG
from gentok.samplers.guided import guided
from gentok.samplers.next_scale import NextScaleSampler
from gentok.types import ClassSpec, ConditionSpec, Pyramid, Tokens, TokenSpec

SPEC = TokenSpec((64,), Pyramid((1, 2, 3, 4)), latent_positions=16)
SMALL = {"width": 48, "depth": 2, "heads": 3}
"""As the record was made."""


def book():
    """That of the recorded tokenizer."""
    codebook, state = PyramidCodebook(VQ(64, 8, normalize=False), (1, 2, 3, 4), phi=4), released("var", "vq")
    with torch.no_grad():
        codebook.book.weight.copy_(state["quantize.embedding.weight"])
        for i, phi in enumerate(codebook.phi):
            phi.load_state_dict({t: state[f"quantize.quant_resi.qresi_ls.{i}.{t}"] for t in ("weight", "bias")})
    return codebook


def stored(tmp_path, **changes):
    torch.save(released("var", "gpt", **changes), tmp_path / "var.pth")
    return str(tmp_path / "var.pth")


@torch.no_grad()
def test_logits_are_those_of_the_release_also_with_a_cache(tmp_path):
    model = VAR(SPEC, FIVE, book(), weights=stored(tmp_path), **SMALL).eval()
    given, labels, wanted = recorded("var", "gpt", "codes", "labels", "logits")
    tokens, condition = Tokens(given, SPEC), classes(*(int(label) if label < 5 else -1 for label in labels))  # their null is id 5
    assert (model(tokens, condition) - wanted).abs().max() < 1e-5
    cache = model.init_cache(condition, 3)
    assert (torch.cat([model.logits(given, range(s, s + 1), cache) for s in range(4)], 1) - wanted).abs().max() < 1e-5
    # mutants: keys that are not brought to length 1 in the release's way, an exact GELU, another null, parts of a modulation as they lie
    block = model.transformer.blocks[0]
    block.mlp.bend, bend = torch.nn.functional.gelu, block.mlp.bend
    assert (model(tokens, condition) - wanted).abs().max() > 1e-4
    block.mlp.bend, block.attention.qk_eps = bend, 1e-2
    assert (model(tokens, condition) - wanted).abs().max() > 1e-4
    block.attention.qk_eps = 1e-12
    assert (model(tokens, classes(3, 0, 0)) - wanted).abs().max() > 1e-2
    block.modulation.weight.copy_(released("var", "gpt")["blocks.0.ada_lin.1.weight"])
    assert (model(tokens, condition) - wanted).abs().max() > 1e-2


@torch.no_grad()
def test_guided_greedy_samples_are_those_of_the_release(tmp_path):
    model = VAR(SPEC, FIVE, book(), weights=stored(tmp_path), **SMALL).eval()
    drawn = NextScaleSampler(top_k=1)(guided(model, 2.5, "linear"), classes(3, 1), rng=RowRNG.of(0, range(2)))
    assert torch.equal(drawn.tokens.codes, recorded("var", "gpt", "greedy")[0])


def test_the_likelihood_is_that_of_the_logits_and_a_training_step_lowers_it():
    model = randomise(VAR(SPEC, CLASSES, book(), width=16, depth=2, heads=2), 0.2)
    check_likelihood_is_that_of_logits_and_a_training_step_lowers_it(model, model)


@pytest.mark.parametrize("depth, millions", [(16, 310), (20, 601), (24, 1033), (30, 2010)])
def test_it_has_its_published_size(depth, millions):
    spec = TokenSpec((4096,), Pyramid((1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), latent_positions=256)
    with torch.device("meta"):
        codebook = PyramidCodebook(VQ(4096, 32, normalize=False), spec.grid.sides, phi=4)
        model = VAR(spec, ConditionSpec((("class", ClassSpec(tuple(map(str, range(1000)))),),)), codebook, depth=depth)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


def test_other_tokens_conditions_and_files_are_refused_in_one_line(tmp_path):
    four = ConditionSpec((("class", ClassSpec(tuple("0123"))),))
    for spec, given, changes, line in (
        (RASTER, FIVE, None, "next_scale models the scales of a pyramid"),
        (SPEC, EVERYTHING, None, r"var takes one class as its condition; here it is class \(class\), text \(ids\), voice \(vectors\)"),
        (SPEC, None, None, "here it is none"),
        (SPEC, FIVE, {"pos_1LC": None}, "holds no VAR model"),
        (SPEC, FIVE, {"blocks.1.attn.q_bias": None}, r"lacks 1 tensor, such as blocks\.1\.attn\.q_bias"),
        (SPEC, FIVE, {"pos_start": None}, "lacks 1 tensor, such as pos_start"),
        (SPEC, FIVE, {"pos_start": torch.zeros(1, 2, 48)}, r"pos_start is \(1, 2, 48\) there and \(1, 1, 48\) here"),
        (SPEC, FIVE, {"spare": torch.zeros(1)}, "beyond this model, 1 tensor, such as spare"),
        (SPEC, FIVE, {"pos_1LC": torch.zeros(1, 14, 48)}, r"pos_1LC is \(14, 48\) there and \(30, 48\) here"),
        (SPEC, four, {}, r"class_emb\.weight is \(6, 48\) there and \(5, 48\) here"),
        (SPEC, FIVE, {"shared_ada_lin.1.weight": torch.zeros(1)}, "blocks share their modulation"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            VAR(spec, given, book(), weights=None if changes is None else stored(tmp_path, **changes), **SMALL)
        assert "\n" not in str(error.value)
