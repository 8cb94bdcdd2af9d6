"""Laws of the sets of sounds: what a draw is, what a piece is, who is held out, and what broken files do."""

import json
import logging
import pickle
import shutil

import pytest
import torch
from sound_kit import choir, encoded_sound, sing, sound_shard
from torch.utils.data import DataLoader

from gentok.cli import compose
from gentok.data.datasets import identity
from gentok.data.file_index import DataError
from gentok.data.fsdd import FSDD
from gentok.data.sound_files import part_step
from gentok.data.sound_folder import SoundFolder
from gentok.data.sound_manifest import SoundManifest
from gentok.data.sound_shards import SoundShards
from gentok.data.spoken_digits import WORDS
from gentok.data.subset import Subset
from gentok.training.loader import training_loader


@pytest.fixture(autouse=True)
def indices(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def same(one, other):
    return torch.equal(one.media, other.media) and torch.equal(one.lengths, other.lengths) and torch.equal(one.index, other.index)


# ------------------------------------------------------------------------------------------------------------------ draws


def test_a_batch_is_padded_with_zeros_and_says_how_long_its_rows_are(tmp_path):
    data = SoundFolder(choir(tmp_path / "c"), crop=None, held_out=0.2)
    assert data.sample_rate == 16000 and data.media_shape == (1, data.longest_item) == (1, round((0.2 + 0.013 * 9) * 16000))
    batch = data.train.__getitems__([0, 5, 3])
    assert batch.media.dtype == torch.float32 and batch.lengths.dtype == torch.int64
    assert batch.media.shape == (3, 1, int(batch.lengths.max())) and batch.lengths.tolist() == data.train.lengths[[0, 5, 3]].tolist()
    for row, length in zip(batch.media, batch.lengths.tolist()):
        assert row[:, length:].abs().sum() == 0 and row[:, :length].abs().max() > 0.2
    assert [spec.names for _, spec in data.condition_spec.parts] == [("high", "low")]


def test_a_row_is_a_function_of_its_draw_alone(tmp_path):
    data = SoundFolder(choir(tmp_path / "c"), crop=0.1, held_out=0.2).train
    together = data.__getitems__([3, 19, 35, 7])
    for row, draw in enumerate((3, 19, 35, 7)):
        alone = data[draw]
        assert torch.equal(alone.media[0], together.media[row]) and alone.lengths == together.lengths[row]
    assert not torch.equal(data[3].media, data[3 + len(data)].media)  # another epoch, another piece
    other = SoundFolder(tmp_path / "c", crop=0.1, held_out=0.2, crop_seed=1).train
    assert not torch.equal(data[3].media, other[3].media)


@pytest.mark.parametrize("rate", [8000, 16000, 11025])
def test_a_piece_lies_inside_its_item_and_all_of_the_item_is_seen(tmp_path, rate):
    path = choir(tmp_path / "c", 3, rate=rate)
    pieces, items = (SoundFolder(path, crop=crop, held_out=0.3).train for crop in (0.1, None))
    starts = {i: set() for i in range(len(items))}
    step = part_step(rate, 16000)
    for draw in range(30 * len(items)):
        batch, i = pieces[draw], draw % len(items)
        assert batch.lengths.tolist() == [1600] and batch.media.shape == (1, 1, 1600)
        whole, piece = items[i].media[0, 0], batch.media[0, 0]
        start = int((whole.unfold(0, 16, step) - piece[:16]).abs().amax(1).argmin()) * step
        assert (whole[start : start + 1600] - piece).abs().max() < 1e-5
        starts[i].add(start)
    for i, seen in starts.items():
        room = int(items.lengths[i]) - 1600
        assert min(seen) <= 0.1 * room and max(seen) >= 0.9 * room - step and len(seen) >= 3


def test_a_short_item_is_whole_in_a_piece_and_followed_by_silence(tmp_path):
    data = SoundFolder(choir(tmp_path / "c"), crop=0.25, held_out=0.2).train
    short = int(data.lengths.argmin())
    batch, whole = data[short], data.whole()[short]
    length = int(whole.lengths)
    assert batch.media.shape[2] == 4000 == int(batch.lengths) > length
    assert torch.equal(batch.media[..., :length], whole.media) and batch.media[..., length:].abs().sum() == 0


def test_an_epoch_has_every_item_once_and_two_processes_see_what_one_sees(tmp_path):
    data = SoundFolder(choir(tmp_path / "c"), crop=0.1, held_out=0.2).train
    one = iter(training_loader(data, 4, seed=3))
    whole = [next(one) for _ in range(8)]
    assert sorted(torch.cat([b.index for b in whole[:4]]).tolist()) == list(range(16))
    ranks = [iter(training_loader(data, 4, seed=3, workers=r, rank=r, world=2, start=3)) for r in range(2)]
    for batch in whole[3:7]:
        halves = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([h.media for h in halves]), batch.media)
        assert torch.equal(torch.cat([h.lengths for h in halves]), batch.lengths)


def test_memory_changes_nothing(tmp_path):
    path = choir(tmp_path / "c", rate=8000)
    for options in ({"crop": 0.1}, {"crop": None, "longest": 0.25}, {"crop": 0.1, "normalize": "peak", "channels": 2}):
        lazy, kept = (SoundFolder(path, held_out=0.2, in_memory=m, **options) for m in (False, True))
        for one, other in ((lazy.train, kept.train), (lazy.held_out, kept.held_out), (lazy.train.whole(), kept.train.whole())):
            draws = [0, len(one) - 1, len(one) + 2]
            a, b = one.__getitems__(draws), other.__getitems__(draws)
            assert torch.equal(a.lengths, b.lengths) and (a.media - b.media).abs().max() < 1e-5
            assert one.description == other.description


def test_a_set_can_be_sent_to_a_worker(tmp_path):
    data = SoundShards(str(sound_shard(tmp_path / "s.tar", 12)), held_out=0.2, crop=0.05).train
    data[0]
    sent = pickle.loads(pickle.dumps(data))
    assert same(sent[5], data[5])
    seen = list(DataLoader(data, batch_size=3, collate_fn=identity, num_workers=2))
    assert torch.cat([b.index for b in seen]).tolist() == list(range(len(data)))


# ---------------------------------------------------------------------------------------------------------- whole and cut


def test_whole_items_are_those_of_a_set_without_pieces_and_are_cut_at_longest(tmp_path, caplog):
    path = choir(tmp_path / "c")
    pieces = SoundFolder(path, crop=0.1, longest=0.25, held_out=0.2)
    items = SoundFolder(path, crop=None, longest=0.25, held_out=0.2)
    assert "are longer than data.longest and are cut there" in caplog.text
    assert pieces.train.whole().description == items.train.description != pieces.train.description
    assert same(pieces.train.whole().__getitems__(range(16)), items.train.__getitems__(range(16)))
    assert items.train.lengths.max() == items.longest_item == 4000 and items.held_out.lengths.max() <= 4000
    long = SoundFolder(path, crop=None, held_out=0.2).train
    i = int(long.lengths.argmax())
    assert torch.equal(items.train[i].media, long[i].media[..., :4000])


def test_what_changes_the_waves_changes_the_description(tmp_path):
    def word(data):
        return data.train.description["content"], data.held_out.description["content"]

    path = choir(tmp_path / "c")
    seen = [
        word(SoundFolder(path, held_out=0.2, **options))
        for options in ({}, {"sample_rate": 8000}, {"channels": 2}, {"normalize": "rms"}, {"longest": 0.3})
    ]
    assert len(set(seen)) == 5
    sing(path / "low" / "000.wav", seconds=0.3)
    assert word(SoundFolder(path, held_out=0.2)) != seen[0]


def test_waves_stay_within_their_range(tmp_path):
    import numpy as np
    import soundfile

    loud = np.random.default_rng(0).standard_normal((4000, 1)).astype(np.float32)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", loud, 8000, subtype="FLOAT")
    batch = SoundFolder(tmp_path, held_out=0.3, crop=None).train[0]
    assert batch.media.abs().max() == 1.0 and loud.max() > 2


# ------------------------------------------------------------------------------------------------------------------ split


def test_the_split_is_disjoint_and_new_files_leave_the_others_where_they_are(tmp_path):
    path = choir(tmp_path / "c", 20)
    data = SoundFolder(path, held_out=0.2)
    train, held = set(data.train.names), set(data.held_out.names)
    assert not train & held and len(train | held) == 40 and len(held) == 8
    sing(path / "high" / "000_new.flac", seconds=0.2)  # before all others
    again = SoundFolder(path, held_out=0.2)
    assert len(set(again.held_out.names) ^ held) <= 2 and train <= set(again.train.names) | set(again.held_out.names)
    assert set(SoundFolder(path, held_out=0.2, split_seed=1).held_out.names) != held
    first = sorted(again.held_out.names)[0]
    open(first, "wb").close()  # one that breaks
    assert set(SoundFolder(path, held_out=0.2, max_broken=0.1).held_out.names) == set(again.held_out.names) - {first}


# ----------------------------------------------------------------------------------------------------------------- broken


def test_broken_files_are_skipped_counted_and_listed(tmp_path, caplog):
    path = choir(tmp_path / "c", 20)
    good = (path / "low" / "004.wav").read_bytes()
    bad = {"cut.wav": good[: len(good) // 2], "empty.wav": encoded_sound(seconds=0.0), "text.ogg": b"hello", "nothing.flac": b""}
    for name, data in bad.items():
        (path / "low" / name).write_bytes(data)
    (path / "low" / "cut.flac").write_bytes(encoded_sound("FLAC", seconds=0.4)[:2000])  # its header is fine
    sing(path / "low" / "silent.wav", level=0.0)
    with caplog.at_level(logging.WARNING):
        data = SoundFolder(path, held_out=0.2, max_broken=0.2, crop=None)
        assert "4 of 46 sounds in" in caplog.text and all(name in caplog.text for name in bad)
        for part in (data.train, data.held_out):
            batch = part.__getitems__(range(len(part)))
            assert len(batch.media) == len(part)
    broken = {name.rsplit("/", 1)[1] for name in data.train.broken + data.held_out.broken}
    assert broken == {*bad, "cut.flac"} and data.train.skipped["count"] + data.held_out.skipped["count"] == 5
    with pytest.raises(DataError, match="4 of 46 sounds cannot be read, more than the share data.max_broken=0.01") as error:
        SoundFolder(path, held_out=0.2)
    assert "\n" not in str(error.value)


def test_a_sound_that_breaks_leaves_the_piece_of_its_neighbour_to_the_neighbours_length(tmp_path):
    path = choir(tmp_path / "c", 10)
    data = SoundFolder(path, held_out=0.2, max_broken=0.2, crop=0.1).train
    (path / "high" / data.names[2].rsplit("/", 1)[1]).write_bytes(b"gone")
    batch = data.__getitems__([2, 3])
    assert batch.index.tolist() == [3, 3] and batch.lengths.tolist() == [1600, 1600]
    assert torch.equal(data.condition(batch.index).parts["class"].ids, batch.condition.parts["class"].ids)


def test_places_without_sounds_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for call, line in (
        (lambda: SoundFolder(tmp_path / "gone"), "there is no folder .*gone; give the folder that holds your sounds"),
        (lambda: SoundFolder(tmp_path / "empty"), r"holds no sounds; files ending in \.wav, \.flac, \.ogg, \.mp3, .* are read"),
        (lambda: SoundFolder(choir(tmp_path / "c", 3), sample_rate=0), "sample_rate=0: expected"),
        (lambda: SoundFolder(tmp_path / "c", channels=3), "channels=3: expected"),
        (lambda: SoundFolder(tmp_path / "c", crop=0), "crop=0: expected"),
        (lambda: SoundFolder(tmp_path / "c", normalize="loud"), "normalize=loud: expected 'peak' or 'rms'"),
        (lambda: SoundShards(str(tmp_path / "gone.tar")), "there is no shard"),
    ):
        with pytest.raises((ValueError, OSError), match=line) as error:
            call()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- manifests and shards


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_gives_classes_and_texts_and_a_missing_file_is_broken(tmp_path, kind):
    choir(tmp_path / "c", 10)
    rows = [{"path": f"c/{n}/{i:03d}.wav", "label": n, "text": f"{n} {i}"} for n in ("low", "high") for i in range(10)]
    rows.append({"path": "c/low/gone.wav", "label": "low", "text": "gone"})
    path = tmp_path / f"m.{kind}"
    if kind == "csv":
        path.write_text("path,label,text\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SoundManifest(path, captions="ids", held_out=0.2, max_broken=0.1, crop=None)
    parts = dict(data.condition_spec.parts)
    assert parts["class"].names == ("high", "low") and len(data.train) + len(data.held_out) == 20
    batch = data.train.__getitems__(range(len(data.train)))
    for row, name in enumerate(data.train.names):
        folder, number = name.removesuffix(".wav").split("/")[-2:]
        said = "".join(parts["text"].alphabet[c] for c in batch.condition.parts["text"].ids[row].tolist() if c >= 0)
        assert said == f"{folder} {int(number)}" and parts["class"].names[batch.condition.parts["class"].ids[row]] == folder
        assert batch.lengths[row] == round((0.2 + 0.013 * int(number)) * 16000)
    assert any("gone.wav" in name for name in data.train.broken + data.held_out.broken)


def test_shards_of_sounds_beside_shards_of_pictures_have_an_index_of_their_own(tmp_path):
    from data_kit import encoded_picture

    from gentok.data.shards import Shards

    path = sound_shard(tmp_path / "s.tar", 10, more=lambda i: {"png": encoded_picture(seed=i), "json": json.dumps({"n": i}).encode()})
    sounds, pictures = SoundShards(str(path), held_out=0.2, crop=None), Shards(str(path), held_out=0.2)
    assert pictures.media_shape == (3, 12, 12) and sounds.media_shape[0] == 1
    for name, batch in ((n, sounds.train[i]) for i, n in enumerate(sounds.train.names)):
        number = int(name.rsplit(":", 1)[1].removesuffix(".flac"))
        assert batch.lengths == round((0.1 + 0.02 * number) * 16000) and batch.condition.parts["class"].ids == number % 2
    assert same(SoundShards(str(path), held_out=0.2, crop=None).train[3], sounds.train[3])  # from the index


def test_fsdd_reads_its_fields_and_says_where_its_band_ends(tmp_path, caplog):
    def more(i):
        return {"json": json.dumps({"digit": i % 10, "text": WORDS[i % 10]}).encode()}

    paths = [str(sound_shard(tmp_path / f"{name}.tar", 20, kind="WAV", more=more)) for name in ("train", "test")]
    data = FSDD(*paths, captions="ids")
    assert data.band_limit == 4000 and "recorded at 8000 Hz" in caplog.text and data.media_shape == (1, 7680)
    batch = data.held_out.__getitems__([3, 12])
    assert batch.condition.parts["class"].ids.tolist() == [3, 2]
    assert FSDD(*paths, sample_rate=8000).band_limit is None


@pytest.mark.parametrize("name", ["sound_folder", "sound_manifest", "sound_shards", "fsdd", "spoken_digits"])
def test_every_configuration_of_sounds_names_what_its_class_takes(name):
    from gentok.build import _parameters, resolve

    required = {"sound_folder": ["path"], "sound_manifest": ["path"], "sound_shards": ["shards"], "fsdd": ["shards", "held_out"]}
    words = [f"data={name}", "seed=1", *(f"data.{key}=x" for key in required.get(name, []))]
    config = dict(compose("config", words)["data"])
    parameters, _ = _parameters(resolve(config.pop("_target_")))
    assert set(config) == set(parameters)
    for key, value in config.items():
        assert value == "x" or parameters[key].default == value


def test_the_first_items_of_sounds_are_sounds(tmp_path):
    data = SoundFolder(choir(tmp_path / "c"), held_out=0.2, crop=0.1)
    few = Subset(data, 5)
    assert few.sample_rate == 16000 and few.longest_item >= few.train.whole().data.lengths[:5].max()
    assert len(few.train.whole()) == 5 and few.train.whole().description != few.train.description
    assert same(few.train.whole()[2], data.train.whole()[2])
    shutil.rmtree(tmp_path / "c")
