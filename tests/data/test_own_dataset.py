"""Data sets of a program's own: what becomes of each kind of item, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

import gentok
from gentok.data.own_dataset import OwnData
from gentok.types.media import as_batch, as_media

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    "item",
    [GREY, GREY[..., None], torch.from_numpy(GREY)[None], Image.fromarray(GREY), torch.from_numpy(GREY).float()[None] / 127.5 - 1],
    ids=["HW", "HWC", "CHW", "PIL", "float"],
)
def test_every_kind_of_image_is_the_same_media(item):
    media = as_media(item)
    assert media.shape == (1, 8, 8) and media.dtype == torch.float32
    assert torch.allclose(media, torch.from_numpy(GREY).float()[None] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "item, line",
    [
        (torch.rand(3, 8, 8) * 255, r"float media lie in \[-1, 1\]; got"),
        (torch.full((1, 4, 4), torch.nan), "float media lie in"),
        ("a.png", "got str"),
        (torch.zeros(2, 3, 8, 8), r"got torch.float32 \[2, 3, 8, 8\]"), (torch.zeros(8, 8, dtype=torch.int64), "int64"),
    ],
)  # fmt: skip
def test_items_that_are_none_are_one_line(item, line):
    with pytest.raises(ValueError, match=line) as error:
        as_media(item)
    assert "\n" not in str(error.value)


class Squares(torch.utils.data.Dataset):
    def __init__(self, n, label=lambda i: i % 3):
        self.n, self.label = n, label

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        return np.full((8, 8, 1), i * 5, dtype=np.uint8), self.label(i)


def test_a_torch_data_set_with_labels():
    data = OwnData(Squares(40), Squares(9))
    assert data.media_shape == (1, 8, 8) and data.condition_spec.parts[0][1].names == ("0", "1", "2")
    batch = data.train.__getitems__([1, 40 + 2, -1])
    assert batch.index.tolist() == [1, 2, 39] and batch.condition.parts["class"].ids.tolist() == [1, 2, 0]
    assert torch.equal(batch.media[:, 0, 0, 0], torch.tensor([5, 10, 195]) / 127.5 - 1)
    assert OwnData(Squares(40)).held_out.description["items"] == 2


def test_names_of_classes_iterables_and_changed_items():
    named = OwnData(list(Squares(6)), iter(Squares(3)), classes=["cat", "dog", "owl"])
    assert named.held_out.__getitems__([2]).condition.parts["class"].ids.tolist() == [2]
    assert named.condition_spec.parts[0][1].names == ("cat", "dog", "owl")
    words = OwnData([(GREY, "dog"), (GREY, "cat")], [(GREY, "dog")])
    assert words.train.__getitems__([0, 1]).condition.parts["class"].ids.tolist() == [1, 0]
    with pytest.raises(ValueError, match="the label 'owl' is no class; there are 2: cat, dog"):
        OwnData([(GREY, "dog"), (GREY, "owl")], [(GREY, "dog")], classes=["cat", "dog"])
    with pytest.raises(ValueError, match="1 of 2 items of train have a label"):
        OwnData([(GREY, 1), GREY], [GREY])
    with pytest.raises(ValueError, match="several sizes"):
        OwnData([GREY, GREY[:4]], [GREY])
    assert OwnData([GREY], [GREY]).train.description != OwnData([GREY + 1], [GREY]).train.description


def test_sounds_of_several_lengths():
    data = OwnData([torch.full((1, n), 0.5) for n in (100, 300)], [torch.zeros(1, 50)], sample_rate=8000)
    batch = data.train.__getitems__([0, 1])
    assert data.media_shape == (1, 300) and batch.lengths.tolist() == [100, 300]
    assert batch.media.shape == (2, 1, 300) and float(batch.media[0, 0, 99:101].sum()) == 0.5
    with pytest.raises(ValueError, match="sample_rate=HZ"):
        OwnData([torch.zeros(1, 50)], [torch.zeros(1, 50)])


def test_a_tokenizer_and_a_generator_train_on_them(tmp_path):
    class Digits(Squares):
        def __getitem__(self, i):
            return torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1, i % 3

    sets = (Digits(48), Digits(16))
    short = ("budget=null", "steps=2", "print_config=false", "batch_size=8", f"paths.cache={tmp_path}/cache", "trainer.progress_bar=false")
    run = gentok.train("experiment=mnist5k/vq", *short, f"paths.run={tmp_path}/vq", data=sets)
    model = gentok.load(run / "bundle")
    assert model.encode(sets[0][0][0][None]).codes.shape[2] == 64
    words = ("experiment=mnist5k/ar", f"tokenizer.ckpt={run}/bundle", f"paths.run={tmp_path}/ar", "generator.depth=1")
    run = gentok.train(*words, *short, data=OwnData(*sets))
    assert gentok.load(run / "bundle").sample(n=2, condition=1, seed=0).shape == (2, 1, 32, 32)


def test_a_model_takes_images_as_a_program_has_them():
    grey = np.kron(GREY, np.ones((4, 4), np.uint8)) * 3
    model, right = gentok.load("mnist5k_vq"), torch.from_numpy(grey).float()[None, None] / 127.5 - 1
    codes = model.encode(right).codes
    pil = Image.fromarray(grey)
    for given in (right[0], right.numpy(), right[0].numpy(), pil, pil.convert("RGB"), [pil], grey, grey[None, ..., None], [grey, pil][:1]):
        assert torch.equal(model.encode(given).codes, codes)
    assert model.encode([grey, pil, right[0]]).codes.shape[0] == 3
    with pytest.raises(ValueError, match=r"media are floats in \[-1, 1\]"):
        model.encode(right * 127)
    with pytest.raises(ValueError, match="one size"):
        model.encode([grey, grey[:16]])
    assert as_batch(torch.zeros(1, 400), (1,)).shape == (1, 1, 400)
