"""Bundles: what is saved is what is loaded, and nothing that is not a sound bundle gets further than one line."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

import gentok
from gentok.bundle import build_generator, build_tokenizer, load, save, stamp
from gentok.types import ClassSpec, ConditionSpec

CLASSES = ConditionSpec((("class", ClassSpec(("a", "b"))),))
GENERATOR = {"_target_": "gentok.generators.autoregressive.Autoregressive", "width": 16, "depth": 1, "heads": 2}


def tokenizer_config(codebook=None):
    return {
        "_target_": "gentok.tokenizers.vqgan.VQGAN",
        "media_shape": [1, 8, 8],
        "width": 8,
        "codebook": codebook or {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 4, "width": 8},
        "losses": {"_target_": "gentok.losses.reconstruction.Reconstruction"},
    }


FSQ = {"_target_": "gentok.codebooks.fsq.FSQ", "values": [3, 3], "width": 8}


def make_tokenizer(seed=0, codebook=None):
    torch.manual_seed(seed)
    config = tokenizer_config(codebook)
    tokenizer = build_tokenizer(config).eval()
    stamp(tokenizer, config)
    return tokenizer, config


@pytest.fixture
def bundle(tmp_path):
    tokenizer, config = make_tokenizer()
    generator = build_generator(GENERATOR, tokenizer, CLASSES).eval()
    path = save(
        tmp_path / "model", tokenizer=tokenizer, tokenizer_config=config, generator=generator, generator_config=GENERATOR,
        condition_spec=CLASSES, meta={"seed": 0},
    )  # fmt: skip
    return path, tokenizer, generator


def refused(path, *words):
    with pytest.raises((ValueError, OSError)) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def edit(path, change):
    document = json.loads((path / "bundle.json").read_text())
    change(document)
    (path / "bundle.json").write_text(json.dumps(document))


def test_a_bundle_gives_back_its_model(bundle):
    path, tokenizer, generator = bundle
    loaded = gentok.load(path)
    assert loaded.kind == "generator" and loaded.spec == tokenizer.spec and loaded.condition_spec == CLASSES and loaded.meta["seed"] == 0
    for module, other in ((tokenizer, loaded.tokenizer), (generator, loaded.generator)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in module.state_dict().items())
        assert not other.training and not any(p.requires_grad for p in other.parameters())
    media = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(tokenizer.encode(media).codes, loaded.tokenizer.encode(media).codes)
    assert "losses" not in loaded.tokenizer_config


def test_samples_come_from_the_bundle_alone(bundle):
    images = gentok.load(bundle[0]).sample(n=3, condition="b", seed=1)
    assert images.shape == (3, 1, 8, 8) and images.abs().max() <= 1
    assert torch.equal(images[:2], gentok.load(bundle[0]).sample(n=2, condition="b", seed=1)), "item i depends on (seed, i) alone"
    assert not torch.equal(images, gentok.load(bundle[0]).sample(n=3, condition="b", seed=2))


def test_a_rounded_bundle_describes_its_rounded_weights(tmp_path):
    tokenizer, config = make_tokenizer()
    path = save(tmp_path / "small", tokenizer=tokenizer, tokenizer_config=config, dtype="bfloat16")
    loaded = load(path)
    assert loaded.spec.encode_fingerprint != tokenizer.spec.encode_fingerprint
    again = load(loaded.save(tmp_path / "again", dtype="bfloat16"))
    assert again.spec == loaded.spec, "rounding twice is rounding once"


def test_fingerprints_tell_encoders_apart_and_decoders_separately():
    (one, config), (two, _) = make_tokenizer(0, FSQ), make_tokenizer(1, FSQ)
    assert one.spec.encode_fingerprint != two.spec.encode_fingerprint, "a constant codebook tells nothing: the encoder does"
    before = one.spec
    with torch.no_grad():
        next(one.decoder.parameters()).add_(1.0)
    after = stamp(one, config)
    assert after.encode_fingerprint == before.encode_fingerprint and after.decode_fingerprint != before.decode_fingerprint
    assert before.same_codes(after)
    assert stamp(one, {**config, "losses": None}) == after, "losses are no part of a model"


def test_hostile_and_foreign_files_are_refused_with_a_line(bundle, tmp_path):
    path = bundle[0]

    def fresh():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(path, tmp_path / "copy")

    copy = fresh()
    edit(copy, lambda d: d["tokenizer"]["config"].update({"_target_": "os.system", "command": f"touch {tmp_path}/owned"}))
    refused(copy, "os.system", "not allowed")
    copy = fresh()
    edit(copy, lambda d: d["tokenizer"]["config"]["codebook"].update({"_target_": "subprocess.Popen"}))
    refused(copy, "subprocess.Popen", "not allowed")
    copy = fresh()
    edit(copy, lambda d: d.update(format=99))
    refused(copy, "format 99", "upgrade")

    class Owned:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    copy = fresh()
    (copy / "tokenizer" / "model.safetensors").write_bytes(pickle.dumps(Owned()))
    refused(copy, "no safetensors file")
    for name, payload in (("plain.ckpt", lambda p: p.write_bytes(pickle.dumps(Owned()))), ("torch.ckpt", lambda p: torch.save(Owned(), p))):
        payload(tmp_path / name)
        refused(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as z:
        z.writestr("hello", "world")
    refused(tmp_path / "zip.ckpt", "refused")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "no checkpoint of gentok")
    assert not (tmp_path / "owned").exists()


def test_damaged_bundles_are_refused_with_a_line(bundle, tmp_path):
    path = bundle[0]
    copy = shutil.copytree(path, tmp_path / "copy")
    weights = copy / "generator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(copy, "model.safetensors")
    weights.unlink()
    refused(copy, "lacks")
    copy = shutil.copytree(path, tmp_path / "swapped")
    other, config = make_tokenizer(seed=5)
    foreign = save(tmp_path / "foreign", tokenizer=other, tokenizer_config=config)
    shutil.copy(foreign / "tokenizer" / "model.safetensors", copy / "tokenizer" / "model.safetensors")
    refused(copy, "changed or damaged")
    copy = shutil.copytree(path, tmp_path / "cut")
    (copy / "bundle.json").write_text((copy / "bundle.json").read_text()[:200])
    refused(copy, "no JSON")
    refused(tmp_path / "modle", "did you mean")
    refused(tmp_path, "bundles inside it")
    refused(path / "bundle.json", "give the folder")


def test_a_kill_between_the_renames_leaves_the_last_good_bundle(bundle):
    path, tokenizer, _ = bundle
    os.replace(path, path.with_name(".model.last_good"))
    assert load(path).spec == tokenizer.spec


def test_a_failed_write_leaves_the_last_good_bundle(bundle, monkeypatch):
    path, tokenizer, _ = bundle
    import safetensors.torch

    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    other, config = make_tokenizer(seed=5)
    with pytest.raises(OSError):
        save(path, tokenizer=other, tokenizer_config=config)
    assert load(path).spec == tokenizer.spec


def test_saving_over_something_else_is_refused(tmp_path):
    tokenizer, config = make_tokenizer()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(ValueError, match="no bundle"):
        save(tmp_path / "thesis", tokenizer=tokenizer, tokenizer_config=config)


def test_a_generator_refuses_another_tokenizer(tmp_path):
    (one, config), (two, _) = make_tokenizer(0, FSQ), make_tokenizer(1, FSQ)
    generator = build_generator(GENERATOR, one, CLASSES)
    with pytest.raises(ValueError, match="fingerprint"):
        save(tmp_path / "x", tokenizer=two, tokenizer_config=config, generator=generator, generator_config=GENERATOR)
