import pytest
import torch

from gentok.metrics.classifier import SmallCNN, classifier, predict, train_classifier, warp
from gentok.metrics.generation import MINIMUM, accuracy, copying, variety
from gentok.rng import RowRNG


def rows(seed, n=600, width=8):
    return RowRNG.of(seed, range(n)).normal(width).float()


def test_samples_of_the_right_distribution_are_as_good_as_training_items():
    out = variety(rows(0), rows(1), rows(2))
    assert out["recall_share"] == pytest.approx(1, abs=0.05) and abs(out["precision"] - out["training_precision"]) < 0.05
    assert abs(out["kid"]) < 0.02 and abs(out["training_kid"]) < 0.02


def test_collapsed_samples_lose_recall_and_blurred_ones_precision_or_kid():
    collapsed = variety(rows(0) * 0.1, rows(1), rows(2))
    assert collapsed["recall"] < 0.1 and collapsed["precision"] > 0.95 and collapsed["kid"] > 10 * abs(collapsed["training_kid"])
    wild = variety(rows(0) * 3, rows(1), rows(2))
    assert wild["precision"] < 0.3 < wild["training_precision"]


def test_training_items_are_compared_in_the_samples_number():
    out = variety(rows(0), rows(1), torch.cat([rows(2), rows(3) * 50]))
    assert out["training_precision"] == variety(rows(0), rows(1), rows(2))["training_precision"]


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match=f"need {MINIMUM}.*100, 600 and 100"):
        variety(rows(0, 100), rows(1), rows(2))
    assert "recall" in variety(rows(0, 100), rows(1), rows(2), few=True)


def test_copies_of_training_items_are_seen():
    train, held_out = rows(0), rows(1)
    assert copying(train[:50], held_out, train)["nearest_training_ratio"] < 1e-3
    assert copying(held_out, held_out, train)["nearest_training_ratio"] == pytest.approx(1)


def test_accuracy_counts_every_class_for_itself():
    share, per_class = accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), ("a", "b", "c"))
    assert share == 0.75 and per_class == {"a": 1.0, "b": pytest.approx(2 / 3)}


# -------------------------------------------------------------------------------------------------------------- the small eval classifier


def bars(n, seed=0):
    """Horizontal and vertical bars at random places, 16 x 16."""
    labels = torch.arange(n) % 2
    media = torch.full((n, 1, 16, 16), -1.0)
    for i, place in enumerate((RowRNG.of(seed, range(n)).uniform() * 10 + 3).long().tolist()):
        if labels[i]:
            media[i, :, place] = 1
        else:
            media[i, :, :, place] = 1
    return media, labels


def test_the_classifier_learns_and_is_the_same_every_time():
    media, labels = bars(256)
    torch.manual_seed(1)
    first = train_classifier(media, labels, 2, steps=30)
    torch.manual_seed(2)
    second = train_classifier(media, labels, 2, steps=30)
    held_out, held_labels = bars(100, seed=1)
    predicted, features = predict(first, held_out)
    assert (predicted == held_labels).double().mean() > 0.95 and features.shape == (100, 128)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_the_classifier_is_cached_by_its_data_and_written_whole(tmp_path, monkeypatch):
    media, labels = bars(64)
    first, protocol = classifier(media, labels, 2, steps=3, cache=tmp_path)
    again, cached = classifier(media, labels, 2, steps=3, cache=tmp_path)
    assert cached["fingerprint"] == protocol["fingerprint"] and cached["seconds"] == 0
    assert torch.equal(first(media), again(media))
    file = next(tmp_path.iterdir())
    _, other = classifier(media[1:], labels[1:], 2, steps=3, cache=tmp_path)
    assert other["fingerprint"] != protocol["fingerprint"]
    file.write_bytes(file.read_bytes()[:100])  # a damaged file is made anew
    mended, _ = classifier(media, labels, 2, steps=3, cache=tmp_path)
    assert torch.equal(first(media), mended(media))

    def full_disk(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    _, protocol = classifier(media, labels, 2, steps=4, cache=tmp_path)
    assert "No space left" in protocol["cache"] and len(list(tmp_path.iterdir())) == 2


def test_a_warped_row_alone_is_as_in_a_batch_and_no_warp_is_identity():
    media = torch.rand(4, 1, 16, 16)
    batch = warp(media, RowRNG.of(0, range(4)))
    assert torch.allclose(warp(media[2:3], RowRNG.of(0, [2]))[0], batch[2], atol=1e-6) and not torch.allclose(batch, media, atol=0.05)
    assert torch.allclose(warp(media, RowRNG.of(0, range(4)), 0, 0, 0, 0), media, atol=1e-5)


def test_the_classifier_takes_any_size_from_8_pixels():
    model = SmallCNN(3, 5).eval()
    for side in (8, 16, 32, 100):
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 5)
