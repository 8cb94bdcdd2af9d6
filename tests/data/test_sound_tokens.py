"""Cached tokens of sounds: rows of unequal length come back as they were encoded, alone, in batches and by several processes."""

import pytest
import torch
from sound_kit import LevelTokenizer, choir

from gentok.data.sound_folder import SoundFolder
from gentok.data.token_cache import cache_name, encode_set, join
from gentok.data.token_dataset import TokenDataset
from gentok.types import ABSENT


@pytest.fixture
def sounds(tmp_path):
    return SoundFolder(choir(tmp_path / "c", 6), held_out=0.2, crop=None)


def right(path, data, tokenizer):
    """Whether every row of the file is what the item alone is encoded to, and says its length."""
    cached = TokenDataset(path, tokenizer.spec)
    for i in range(len(data)):
        item, row = data[i], cached[i]
        alone = tokenizer.encode(item.media)
        n = alone.codes.shape[2]
        same = torch.equal(row.tokens.codes[..., :n], alone.codes) and bool((row.tokens.codes[..., n:] == ABSENT).all())
        if not same or row.lengths.tolist() != [n] or row.tokens.lengths.tolist() != [n]:
            return False
        assert torch.equal(row.condition.parts["class"].ids, item.condition.parts["class"].ids)
    return len(cached) == len(data)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_of_unequal_length_come_back_as_they_were(tmp_path, sounds, batch_size):
    data, tokenizer = sounds.train, LevelTokenizer().bounded(-(-sounds.longest_item // 100))
    assert len(data.lengths.unique()) > 4
    assert right(encode_set(tokenizer, data, tmp_path / "t.safetensors", batch_size=batch_size, progress=False), data, tokenizer)


def test_mutant_that_encodes_the_padding_of_a_batch(tmp_path, sounds):
    data, tokenizer = sounds.train, LevelTokenizer().bounded(-(-sounds.longest_item // 100))
    encode = tokenizer.encode
    tokenizer.encode = lambda media, lengths=None: encode(media)
    path = encode_set(tokenizer, data, tmp_path / "t.safetensors", batch_size=3, progress=False)
    tokenizer.encode = encode
    assert not right(path, data, tokenizer)


def test_shares_of_several_processes_are_the_file_of_one(tmp_path, sounds):
    data, tokenizer = sounds.train, LevelTokenizer().bounded(-(-sounds.longest_item // 100))
    one = encode_set(tokenizer, data, tmp_path / "one.safetensors", batch_size=4, progress=False)
    for rank in range(3):
        encode_set(tokenizer, data, tmp_path / "all.safetensors", batch_size=2, progress=False, rank=rank, world=3)
    assert join(tmp_path / "all.safetensors", 3).read_bytes() == one.read_bytes()


def test_broken_sounds_are_left_out_with_their_lengths(tmp_path, sounds):
    data, tokenizer = sounds.train, LevelTokenizer().bounded(-(-sounds.longest_item // 100))
    data.max_broken = 0.5
    with open(data.names[2], "wb") as file:
        file.write(b"gone")
    cached = TokenDataset(encode_set(tokenizer, data, tmp_path / "t.safetensors", batch_size=3, progress=False))
    frames = -(-data.lengths // 100)
    assert cached.__getitems__(range(len(cached))).lengths.tolist() == [n for i, n in enumerate(frames.tolist()) if i != 2]


def test_a_grid_that_is_too_short_or_has_no_bound_is_one_line(tmp_path, sounds):
    with pytest.raises(ValueError, match=r"an item of \d+ positions does not fit a grid of 9 "):
        encode_set(LevelTokenizer().bounded(9), sounds.train, tmp_path / "t.safetensors", progress=False)
    with pytest.raises(ValueError, match="no fixed number of positions"):
        encode_set(LevelTokenizer(), sounds.train, tmp_path / "t.safetensors", progress=False)


def test_pieces_and_whole_items_are_never_taken_for_each_other(tmp_path):
    path, spec = choir(tmp_path / "c", 6), LevelTokenizer().bounded(40).spec
    pieces = SoundFolder(path, held_out=0.2, crop=0.1).train
    assert cache_name(pieces, spec) != cache_name(pieces.whole(), spec)
    assert cache_name(pieces.whole(), spec) == cache_name(SoundFolder(path, held_out=0.2, crop=None).train, spec)
