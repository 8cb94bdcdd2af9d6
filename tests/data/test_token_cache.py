import dataclasses
import json
import pickle
import resource

import pytest
import torch
from data_kit import CLASSES, PixelTokenizer, pictures
from safetensors.torch import load_file, save_file

from gentok.data.augment import Augment
from gentok.data.datasets import MemoryDataset
from gentok.data.token_cache import cache_name, encode_set
from gentok.data.token_dataset import FORMAT, TokenDataset
from gentok.errors import FormatError
from gentok.rng import RowRNG
from gentok.types import ABSENT, UNKNOWN, Batch, Class, Condition, ConditionSpec, Tokens


def encoded(path, data=None, tokenizer=None, **options):
    return encode_set(tokenizer or PixelTokenizer(), data or pictures(), path / "t.safetensors", batch_size=4, progress=False, **options)


@pytest.mark.parametrize("vocab, stored", [(255, torch.uint8), (256, torch.uint16), (65535, torch.uint16), (65536, torch.int32)])
def test_codes_come_back_as_they_were_in_the_smallest_type(tmp_path, vocab, stored):
    tokenizer, data = PixelTokenizer(vocab, levels=2), pictures()
    data.media[0], data.media[1] = 1.0, -1.0  # the largest and the smallest code
    path = encoded(tmp_path, data, tokenizer)
    assert load_file(path)["codes"].dtype == stored
    batch = TokenDataset(path, tokenizer.spec).__getitems__([0, 1, 7])
    expected = tokenizer.encode(data.__getitems__([0, 1, 7]).media).codes
    assert batch.media is None and torch.equal(batch.tokens.validate().codes, expected)
    assert int(expected.max()) == vocab - 1 and (expected == ABSENT).any()
    assert batch.condition.parts["class"].ids.tolist() == [0, 1, 1] and batch.index.tolist() == [0, 1, 7]


def test_view_0_is_the_item_itself_and_the_others_are_functions_of_seed_index_and_view(tmp_path):
    data, tokenizer, augment = pictures(), PixelTokenizer(), Augment(shift=1)
    codes = load_file(encoded(tmp_path, views=3, augment=augment, seed=5))["codes"].long() - 1
    media = data.__getitems__(list(range(len(data)))).media
    for view in range(3):
        seen = media if view == 0 else augment(media, RowRNG.of(5, range(len(data)), step=view))
        assert torch.equal(codes[:, view], tokenizer.encode(seen).codes)
    assert not torch.equal(codes[:, 1], codes[:, 2])


def test_the_view_of_a_draw_is_deterministic_and_each_view_is_seen_once_in_a_turn(tmp_path):
    path = encoded(tmp_path, views=4, augment=Augment(shift=1))
    index, epochs = torch.arange(11), torch.arange(8)
    views = torch.stack([TokenDataset(path, seed=1).view_of(index, torch.full_like(index, e)) for e in epochs.tolist()])  # [8, 11]
    for turn in (views[:4], views[4:]):
        assert torch.equal(turn.sort(0).values, torch.arange(4)[:, None].expand(4, 11))
    data = TokenDataset(path, seed=1)
    draws = [int(e) * 11 + int(i) for e in epochs for i in index]
    assert torch.equal(data.view_of(index.repeat(8), epochs.repeat_interleave(11)), views.flatten())
    assert torch.equal(data.__getitems__(draws).tokens.codes[::7], torch.cat([data[d].tokens.codes for d in draws[::7]]))
    other = torch.stack([TokenDataset(path, seed=2).view_of(index, torch.full_like(index, e)) for e in epochs.tolist()])
    assert not torch.equal(views, other) and len(views[0].unique()) > 1


def test_a_token_set_can_be_sent_to_a_worker(tmp_path):
    data = TokenDataset(encoded(tmp_path))
    first = data[3].tokens.codes
    sent = pickle.dumps(data)
    assert len(sent) < 5000 and torch.equal(pickle.loads(sent)[3].tokens.codes, first)


def test_the_header_says_what_is_inside(tmp_path):
    data = TokenDataset(encoded(tmp_path, views=2, augment=Augment(shift=1), seed=9))
    assert data.spec == PixelTokenizer().spec and data.condition_spec == CLASSES and data.media_shape == (1, 4, 4)
    header = data.header
    assert header["format"] == FORMAT and header["views"] == 2 and header["seed"] == 9 and header["items"] == len(data) == 11
    assert header["augment"] == {"shift": 1, "flip": False, "fill": "edge"} and header["data"] == pictures().description


def test_the_name_of_a_cache_differs_with_whatever_its_codes_depend_on():
    data, spec = pictures(), PixelTokenizer().spec
    names = {
        cache_name(data, spec),
        cache_name(pictures(10), spec),
        cache_name(data, PixelTokenizer(fingerprint="bbbb").spec),
        cache_name(data, spec, views=2, augment=Augment(1)),
        cache_name(data, spec, views=2, augment=Augment(2)),
        cache_name(data, spec, views=2, augment=Augment(1), seed=1),
    }
    assert len(names) == 6
    assert cache_name(data, spec) == cache_name(data, dataclasses.replace(spec, decode_fingerprint="x"), seed=1, augment=Augment(1))


def test_another_tokenizers_codes_are_refused_in_a_line_with_both_fingerprints(tmp_path):
    path = encoded(tmp_path)
    with pytest.raises(FormatError, match="aaaa.*bbbb") as error:
        TokenDataset(path, PixelTokenizer(fingerprint="bbbb").spec)
    assert "\n" not in str(error.value)
    with pytest.raises(FormatError, match="level.* of 16 .*level.* of 17 "):
        TokenDataset(path, PixelTokenizer(vocab=17).spec)
    TokenDataset(path, dataclasses.replace(PixelTokenizer().spec, decode_fingerprint="another decoder"))


def test_a_file_that_is_cut_short_foreign_or_newer_is_one_clear_line(tmp_path):
    path = encoded(tmp_path)
    good = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for cut in (len(good) - 1, len(good) // 2, 100, 4, 0):
        bad.write_bytes(good[:cut])
        with pytest.raises(FormatError, match="cut short|no token file"):
            TokenDataset(bad)
    bad.write_bytes(b"PK\x03\x04 something else entirely " * 40)
    with pytest.raises(FormatError, match="no token file"):
        TokenDataset(bad)
    save_file({"codes": torch.zeros(2)}, bad)
    with pytest.raises(FormatError, match="no token file"):
        TokenDataset(bad)
    header = {**TokenDataset(path).header, "format": FORMAT + 1}
    save_file(load_file(path), bad, metadata={"gentok": json.dumps(header)})
    with pytest.raises(FormatError, match="upgrade gentok"):
        TokenDataset(bad)
    with pytest.raises(FileNotFoundError, match="there is no token file"):
        TokenDataset(tmp_path / "missing.safetensors")


def test_an_interrupt_and_a_full_disk_leave_the_last_good_file(tmp_path):
    path = encoded(tmp_path)
    good = path.read_bytes()

    class Dying(PixelTokenizer):
        calls = 0

        def encode(self, media, lengths=None, rng=None):
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().encode(media)

    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, tokenizer=Dying())

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # no file may grow beyond: as on a full disk, writing fails half-way
        with pytest.raises(OSError, match="could not be written.*free some space") as error:
            encoded(tmp_path, tokenizer=PixelTokenizer(fingerprint="bbbb"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_items_that_the_set_cannot_read_are_left_out(tmp_path):
    class Patchy(MemoryDataset):
        """Items 0 and 4..7 (a whole batch) cannot be read: the next readable one stands in."""

        def __getitems__(self, draws):
            batch = super().__getitems__([{0: 1}.get(i, 8 if 4 <= i < 8 else i) for i in draws])
            return Batch(batch.media, batch.index, batch.condition)

    source = pictures()
    data = Patchy(source.media, source.labels, CLASSES, {"data": "patchy"})
    tokens = TokenDataset(encoded(tmp_path, data))
    assert len(tokens) == 6
    expected = source.__getitems__([1, 2, 3, 8, 9, 10])
    batch = tokens.__getitems__(range(6))
    assert torch.equal(batch.tokens.codes, PixelTokenizer().encode(expected.media).codes)
    assert torch.equal(batch.condition.parts["class"].ids, expected.condition.parts["class"].ids)


def test_what_cannot_be_cached_is_said_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="views=2"):
        encoded(tmp_path, views=2)

    class Holes(PixelTokenizer):
        def encode(self, media, lengths=None, rng=None):
            return Tokens(torch.full((len(media), 1, 16), UNKNOWN), self.spec)

    with pytest.raises(ValueError, match="UNKNOWN"):
        encoded(tmp_path, tokenizer=Holes())
    assert not list(tmp_path.iterdir())


def test_lengths_and_conditions_of_every_kind_come_back(tmp_path):
    from gentok.types import Ids, IdsSpec, Vectors, VectorsSpec

    spec = ConditionSpec((("text", IdsSpec(tuple("ab"), 3)), ("voice", VectorsSpec(2, 2, "toy"))))
    ids = torch.tensor([[0, 1, ABSENT], [1, 1, 1]])
    voice = Vectors(torch.arange(8.0).reshape(2, 2, 2), torch.tensor([[True, False], [True, True]]))

    class Spoken(PixelTokenizer):
        def encode(self, media, lengths=None, rng=None):
            tokens = super().encode(media)
            tokens.codes[0, :, 9:] = ABSENT
            return Tokens(tokens.codes[:, :, :12], tokens.spec, torch.tensor([9, 12]))  # shorter than the spec's longest

    class Talk(MemoryDataset):
        def __getitems__(self, draws):
            batch = super().__getitems__(draws)
            return Batch(batch.media, batch.index, Condition({"text": Ids(ids), "voice": voice}).rows(batch.index))

    data = Talk(pictures(2).media, None, spec, {"data": "talk"})
    batch = TokenDataset(encoded(tmp_path, data, Spoken())).__getitems__([1, 0])
    assert batch.tokens.lengths.tolist() == [12, 9] and batch.tokens.codes.shape == (2, 1, 16)
    assert (batch.tokens.codes[1, 0] >= 0).sum() == 9 and (batch.tokens.codes[0, 0] >= 0).sum() == 12
    assert torch.equal(batch.condition.parts["text"].ids, ids[[1, 0]])
    heard = batch.condition.parts["voice"]
    assert torch.equal(heard.x, voice.x[[1, 0]]) and torch.equal(heard.mask, voice.mask[[1, 0]])
    assert isinstance(TokenDataset(encoded(tmp_path))[0].condition.parts["class"], Class)
