"""Defective forms of the sets of sounds: each breaks a property that is tested elsewhere, and must be rejected."""

import contextlib
import multiprocessing

import pytest
import test_sound_sets as sets
import test_spoken_digits as spoken

from gentok.data import file_index, sound_dataset, spoken_digits
from gentok.data.sound_dataset import SoundDataset
from gentok.rng import RowRNG

indices, voice = sets.indices, spoken.voice


def falls(test, *args):
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        test(*args)


def test_pieces_that_depend_on_the_place_in_the_batch(tmp_path, monkeypatch):
    class ByRow(RowRNG):
        of = classmethod(lambda cls, seed, index, step=0: RowRNG.of(seed, range(len(index)), step))

    monkeypatch.setattr(sound_dataset, "RowRNG", ByRow)
    falls(sets.test_a_row_is_a_function_of_its_draw_alone, tmp_path)


def test_pieces_that_are_the_same_in_every_epoch(tmp_path, monkeypatch):
    class ByItem(RowRNG):
        of = classmethod(lambda cls, seed, index, step=0: RowRNG.of(seed, index % 16, step))

    monkeypatch.setattr(sound_dataset, "RowRNG", ByItem)
    falls(sets.test_a_row_is_a_function_of_its_draw_alone, tmp_path)


@pytest.mark.parametrize("shift", ["first", "last"])
def test_pieces_of_one_end_of_the_item(tmp_path, monkeypatch, shift):
    part = SoundDataset._part
    monkeypatch.setattr(SoundDataset, "_part", lambda self, i, u: part(self, i, u * 0.5 + (0.0 if shift == "first" else 0.5)))
    falls(sets.test_a_piece_lies_inside_its_item_and_all_of_the_item_is_seen, tmp_path, 8000)


def test_pieces_that_reach_beyond_the_item(tmp_path, monkeypatch):
    part = SoundDataset._part
    monkeypatch.setattr(SoundDataset, "_part", lambda self, i, u: (part(self, i, 0.999)[0] + 200, self.crop))
    falls(sets.test_a_piece_lies_inside_its_item_and_all_of_the_item_is_seen, tmp_path, 8000)


def test_memory_that_begins_a_sample_late(tmp_path, monkeypatch):
    decode = SoundDataset.decode
    monkeypatch.setattr(SoundDataset, "decode", lambda self, i, start, n: decode(self, i, start + 2 * (self._memory is not None), n))
    falls(sets.test_memory_changes_nothing, tmp_path)


def test_a_split_by_place_in_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "_held_out", lambda names, labels, share, seed: list(range(seed, len(names), round(1 / share))))
    falls(sets.test_the_split_is_disjoint_and_new_files_leave_the_others_where_they_are, tmp_path)


def test_a_broken_file_that_moves_the_split(tmp_path, monkeypatch):
    honest = file_index.split

    def late(found, held_out, max_broken, seed):
        return honest(found.without_broken(max_broken), held_out, max_broken, seed)

    monkeypatch.setattr(sound_dataset, "split", late)
    falls(sets.test_the_split_is_disjoint_and_new_files_leave_the_others_where_they_are, tmp_path)


def test_utterances_that_are_written_in_place(tmp_path, voice, monkeypatch):
    @contextlib.contextmanager
    def in_place(path):
        with open(path, "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr(spoken_digits, "whole_file", in_place)
    falls(spoken.test_a_kill_leaves_nothing_that_is_taken_for_the_set, tmp_path, voice)


def test_processes_that_all_speak(tmp_path, voice, monkeypatch):
    everybody, plan = multiprocessing.get_context("fork").Barrier(3), spoken_digits._plan

    @contextlib.contextmanager
    def no_lock(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield

    def planned(*args):
        everybody.wait(timeout=300)  # all three have found twice that the file is missing, and none has spoken yet
        return plan(*args)

    monkeypatch.setattr(spoken_digits, "_alone", no_lock)
    monkeypatch.setattr(spoken_digits, "_plan", planned)
    falls(spoken.test_of_several_processes_one_speaks_and_the_others_wait, tmp_path, voice)
    assert len(spoken.said(voice)) == 3 * 18
