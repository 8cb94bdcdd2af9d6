"""The eval classifier of photographs: its views, that it learns and is the same every time, and the file that
it is kept in."""

import json

import pytest
import torch

from gentok import eval_classifier as command
from gentok.cli import compose
from gentok.metrics import eval_classifier as module
from gentok.metrics.classifier import predict
from gentok.metrics.eval_classifier import (
    STORED,
    PhotoCNN,
    find_eval_classifier,
    load_eval_classifier,
    save_eval_classifier,
    train_eval_classifier,
    views,
)
from gentok.rng import RowRNG

TINY = {"epochs": 4, "batch": 30, "widths": (8, 8, 8)}


def halves(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, brighter above or below: uint8 [n, 3, 16, 16] and which."""
    labels = torch.arange(n) % 2
    media = RowRNG.of(seed, range(n)).uniform(3, 16, 16) * 150
    for i in range(n):
        media[i, :, 8 * labels[i] :][:, :8] += 100
    return media.to(torch.uint8), labels


@pytest.fixture(scope="module")
def trained():
    return train_eval_classifier(*halves(240), 2, **TINY)


def floats(media):
    return media.float() / 127.5 - 1


def test_a_view_is_the_image_or_its_mirror_shifted_and_its_own_whatever_the_batch():
    media = torch.arange(4 * 36.0).view(4, 1, 6, 6)
    rng = RowRNG.of(3, range(64))
    seen = views(media[:1].expand(64, -1, -1, -1), rng, shift=0)
    mirrored = (seen == media[:1].flip(3)).flatten(1).all(1)
    assert ((seen == media[:1]).flatten(1).all(1) ^ mirrored).all() and 16 < mirrored.sum() < 48
    batch = views(media, RowRNG.of(0, range(4)))
    alone = views(media[2:3], RowRNG.of(0, [2]))
    assert torch.equal(batch[2:3], alone) and batch.shape == media.shape
    inside = views(media[:1].expand(64, -1, -1, -1), rng, shift=1)[:, 0, 1:-1, 1:-1]
    rows = {int(v) // 6 for v in inside[:, 0, 0]}
    assert rows == {0, 1, 2}, "shifts by -1, 0 and 1"


def test_the_first_layer_whitens_what_it_has_seen():
    media = floats(halves(200)[0])
    model = PhotoCNN(3, 2, (8, 8, 8))
    model.fit_whitening(media, epsilon=0.0)
    out = model.whiten(media)
    covariance = torch.cov(out[:, :12].permute(1, 0, 2, 3).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(out[:, :12], -out[:, 12:])
    assert not any(p.requires_grad for p in model.whiten.parameters())


def test_it_learns_and_is_the_same_every_time(trained):
    media, labels = halves(60, seed=1)
    predicted, features = predict(trained, floats(media))
    assert (predicted == labels).double().mean() > 0.9 and features.shape == (60, 8)
    torch.manual_seed(7)
    again = train_eval_classifier(*halves(240), 2, **TINY)
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values()))


def test_its_loss_begins_at_that_of_a_guess():
    first = []
    train_eval_classifier(*halves(60), 2, epochs=1, batch=60, widths=(8, 8, 8), report=lambda epoch, loss, share: first.append(loss))
    assert first[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=0.15)


def test_a_file_gives_back_the_classifier_and_its_description(trained, tmp_path):
    about = {"classes": ["above", "below"], "channels": 3, "size": [16, 16], "widths": [8, 8, 8], "held_out_accuracy": 0.9}
    save_eval_classifier(trained, tmp_path / "classifier.safetensors", about)
    model, described = load_eval_classifier(tmp_path / "classifier.safetensors")
    assert {k: described[k] for k in about} == about and not model.training
    media = floats(halves(40, seed=2)[0])
    torch.testing.assert_close(model(media), trained(media), atol=0.02, rtol=0.02)
    save_eval_classifier(model, tmp_path / "again.safetensors", about)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "classifier.safetensors").read_bytes()


def test_what_is_no_eval_classifier_is_a_one_line_error(tmp_path, trained):
    (tmp_path / "x").write_text("no eval classifier")
    with pytest.raises(ValueError, match="no eval classifier"):
        load_eval_classifier(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="there is no eval classifier"):
        load_eval_classifier(tmp_path / "y")
    with pytest.raises(ValueError, match="at least 500"):
        train_eval_classifier(*halves(60), 2, epochs=1)
    about = {"classes": ["above", "below"], "channels": 3, "size": [16, 16], "widths": [8, 8, 8], "held_out_accuracy": 0.9}
    save_eval_classifier(trained, tmp_path / "j", {**about, "version": 0})
    with pytest.raises(ValueError, match="version 0"):
        load_eval_classifier(tmp_path / "j")


def test_the_stored_classifier_is_found_by_classes_channels_and_size(trained, tmp_path, monkeypatch):
    about = {"classes": ["above", "below"], "channels": 3, "size": [16, 16], "widths": [8, 8, 8], "held_out_accuracy": 0.9}
    about |= {"what": "x", "seed": 0, "command": "x", "epochs": 1}
    save_eval_classifier(trained, tmp_path / "a.safetensors", about)
    monkeypatch.setattr(module, "STORED", tmp_path)
    assert find_eval_classifier("auto", ("above", "below"), (3, 16, 16))[1]["own_held_out_accuracy"] == 0.9
    assert find_eval_classifier("auto", ("below", "above"), (3, 16, 16)) is None
    assert find_eval_classifier("auto", ("above", "below"), (3, 32, 32)) is None
    assert find_eval_classifier("small", ("above", "below"), (3, 16, 16)) is None
    named = str(tmp_path / "a.safetensors")
    assert find_eval_classifier(named, ("above", "below"), (3, 32, 32)) is not None
    with pytest.raises(ValueError, match="above, below.*a, b"):
        find_eval_classifier(named, ("a", "b"), (3, 16, 16))


def test_the_command_trains_writes_and_measures_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "WIDTHS", (8, 8, 8))
    overrides = ["data=noise", "data.items=500", "data.held_out=50", "data.size=16", "epochs=1"]
    overrides += [f"out={tmp_path / 'new' / 'classifier.safetensors'}"]
    about = command.train(compose("eval_classifier", [*overrides, "precision=32-true", "device=cpu"]))
    stored = load_eval_classifier(tmp_path / "new" / "classifier.safetensors")[1]
    assert stored["held_out_accuracy"] == about["held_out_accuracy"] and 0 <= about["held_out_accuracy"] < 0.5
    assert stored["train"]["items"] == 500 and "held-out items recognised" in capsys.readouterr().out
    assert json.dumps(stored)


@pytest.mark.parametrize("path", sorted(STORED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_eval_classifiers_of_the_package_are_small_and_good(path):
    model, about = load_eval_classifier(path)
    assert path.stat().st_size <= 6e6 and about["held_out_accuracy"] >= 0.85 and about["command"].startswith("python -m gentok.")
    assert model(torch.zeros(2, about["channels"], *about["size"])).shape == (2, len(about["classes"]))


def test_a_damaged_file_and_one_that_claims_other_sizes_are_one_line(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path, about = tmp_path / "x.safetensors", {"channels": 3, "classes": ["a", "b"], "widths": [8, 8, 8]}
    save_eval_classifier(PhotoCNN(3, 2, (8, 8, 8)), path, about)
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 8]) + good[-8:])
    with pytest.raises(ValueError, match="changed or damaged"):
        load_eval_classifier(path)
    path.write_bytes(good)
    with safe_open(path, "pt") as file:
        ((key, header),) = file.metadata().items()
    for change in ({"widths": [10**6, 8, 8]}, {"channels": "3"}, {"classes": 7}):
        save_file(load_file(path), tmp_path / "y.safetensors", metadata={key: json.dumps({**json.loads(header), **change})})
        with pytest.raises(ValueError) as error:
            load_eval_classifier(tmp_path / "y.safetensors")
        assert "\n" not in str(error.value)
