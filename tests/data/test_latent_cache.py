"""Cached latents: what the tokenizer encodes to, in a file with the same checks as that of codes."""

import math

import pytest
import torch
from data_kit import CLASSES, pictures
from safetensors.torch import load_file, save_file

from gentok.data.augment import Augment
from gentok.data.datasets import MemoryDataset
from gentok.data.sharded_encoding import encode_together
from gentok.data.token_cache import encode_set, join, share_path
from gentok.data.token_dataset import TokenDataset
from gentok.errors import FormatError
from gentok.interfaces import Tokenizer
from gentok.rng import RowRNG
from gentok.types import Latents, Raster, TokenSpec


class Thirds(Tokenizer):
    """Two latents of each pixel, of which most are no float16 numbers."""

    def __init__(self, fingerprint="aaaa"):
        super().__init__()
        self.spec = TokenSpec((), Raster(4, 4), width=2, media_shape=(1, 4, 4), encode_fingerprint=fingerprint)

    def encode(self, media, lengths=None, rng=None):
        return Latents(torch.cat((media, media / 3), 1).flatten(2), self.spec)


def encoded(path, data=None, tokenizer=None, **options):
    return encode_set(tokenizer or Thirds(), data or pictures(), path / "t.safetensors", batch_size=4, progress=False, **options)


def test_latents_come_back_as_they_were_with_their_conditions(tmp_path):
    path, data = encoded(tmp_path, views=2, augment=Augment(shift=1), seed=5), pictures()
    stored = load_file(path)
    assert stored["latents"].shape == (11, 2, 2, 16) and stored["latents"].dtype == torch.float32 and "codes" not in stored
    batch = TokenDataset(path, Thirds().spec).__getitems__([0, 1, 7])
    assert isinstance(batch.tokens, Latents) and batch.tokens.spec == Thirds().spec and batch.media is None
    media = data.__getitems__(list(range(11))).media
    views = [Thirds().encode(m).values for m in (media, Augment(shift=1)(media, RowRNG.of(5, range(11), step=1)))]
    view = TokenDataset(path).view_of(torch.tensor([0, 1, 7]), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(batch.tokens.values, torch.stack([views[v][i] for i, v in zip((0, 1, 7), view.tolist())]))
    assert batch.condition.parts["class"].ids.tolist() == [0, 1, 1]


def test_shares_of_several_processes_are_the_file_of_one(tmp_path):
    whole = encoded(tmp_path / "one").read_bytes()
    path = tmp_path / "two" / "t.safetensors"
    for rank in range(2):
        encode_set(Thirds(), pictures(), path, batch_size=4, progress=False, rank=rank, world=2)
        assert share_path(path, rank, 2).is_file()
    assert join(path, 2).read_bytes() == whole
    again = encode_together(Thirds(), pictures(), tmp_path / "three.safetensors", rank=0, world=1, batch_size=4, progress=False)
    assert again.read_bytes() == whole


def test_another_tokenizers_latents_are_refused_in_a_line_with_both_fingerprints(tmp_path):
    path = encoded(tmp_path)
    with pytest.raises(FormatError, match="aaaa.*bbbb") as error:
        TokenDataset(path, Thirds("bbbb").spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("harm", ["nan", "narrow", "missing"])
def test_a_damaged_file_is_refused_in_a_line(tmp_path, harm):
    import json

    path = encoded(tmp_path)
    stored, header = load_file(path), TokenDataset(path).header
    if harm == "nan":
        stored["latents"][3, 0, 1, 2] = math.nan
    elif harm == "narrow":
        stored["latents"] = stored["latents"][:, :, :1].contiguous()
    else:
        stored["codes"] = stored.pop("latents")
    save_file(stored, path, metadata={"gentok": json.dumps(header)})
    with pytest.raises(FormatError, match="is damaged.*latents|is damaged.*finite") as error:
        TokenDataset(path)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_not_cached(tmp_path):
    media = pictures().media.clone()
    media[2] = math.inf
    with pytest.raises(ValueError, match="latents of row 2 are not finite"):
        encoded(tmp_path, MemoryDataset(media, torch.zeros(11, dtype=torch.int64), CLASSES, {"data": "toy"}))
