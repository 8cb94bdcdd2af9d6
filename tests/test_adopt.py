"""A released generator and its tokenizer become one bundle, which is sampled and measured like any."""

import pytest
import torch
from released_kit import images, released

from gentok import load
from gentok.adopt import adopt
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.sampling import sample
from gentok.types import Class, Condition, Tokens


@pytest.fixture
def config(tmp_path):
    """A resolved conf/adopt.yaml of small released files, of images of 32 x 32 pixels and 4 x 4 codes."""
    vocabulary = {"tok_embeddings.weight": torch.randn(64, 48), "output.weight": torch.randn(64, 48) / 7}
    torch.save({"model": released("llamagen", "vq8")}, tmp_path / "vq.pt")
    torch.save({**released("llamagen", "gpt"), **vocabulary}, tmp_path / "c2i.pt")
    words = f"""tokenizer=llamagen_vq tokenizer.weights={tmp_path}/vq.pt tokenizer.width=32 tokenizer.multipliers=[1,2,2,4]
        tokenizer.codebook.vocab_size=64 tokenizer.codebook.dim=4 tokenizer.codebook.width=32 media_shape=[3,32,32]
        generator=llamagen generator.weights={tmp_path}/c2i.pt generator.width=48 generator.depth=2 generator.heads=3 generator.hidden=128
        classes=5 guidance=2 out={tmp_path}/bundle"""
    return compose("adopt", words.split())


def test_a_released_generator_and_its_tokenizer_become_a_bundle(config, tmp_path, capsys):
    path = adopt(config)
    assert "LlamaGen: " in capsys.readouterr().out and str(tmp_path) not in (path / "bundle.json").read_text()
    (tmp_path / "vq.pt").unlink()
    (tmp_path / "c2i.pt").rename(tmp_path / "moved.pt")
    model = load(path)
    assert model.meta["guidance"] == 2.0 and len(dict(model.condition_spec.parts)["class"].names) == 5
    tokens = Tokens(torch.arange(32).view(2, 1, 16) * 2, model.spec)
    condition = Condition({"class": Class(torch.tensor([3, -1]))})
    own = model.generator(tokens, condition)[:, :, 0].log_softmax(-1).gather(2, tokens.codes[:, 0, :, None]).sum((1, 2))
    torch.testing.assert_close(model.generator.nll_bound(tokens, condition), -own)
    for sampler in ("autoregressive", "jacobi", "speculative"):
        drawn = model.sample(2, 3, sampler=sampler, guidance=1.5)
        assert drawn.shape == (2, 3, 32, 32) and torch.equal(drawn, model.sample(3, 3, sampler=sampler, guidance=1.5)[:2])
    known = images(32, 32)[0]
    filled = sample(model, n=2, condition=3, known=known, keep="top-half").tokens.codes
    assert torch.equal(filled[:, :, :8], model.encode(known[None]).codes[:, :, :8].expand(2, -1, -1))
    # a generator over the tokenizer of a bundle
    config = {**config, "tokenizer": {"ckpt": str(path)}, "out": str(tmp_path / "again")}
    config["generator"] = {**config["generator"], "weights": str(tmp_path / "moved.pt")}
    again = load(adopt(config))
    assert torch.equal(again.generator(tokens, condition), model.generator(tokens, condition))


def test_a_generator_without_weights_is_refused(config):
    config["generator"]["weights"] = None
    with pytest.raises(ConfigError, match="LlamaGen as configured has random weights"):
        adopt(config)
