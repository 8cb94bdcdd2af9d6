"""Processes that are started to encode a set: the file is that of one process, and what goes wrong is one line."""

import os
import signal
import sys
from types import ModuleType

import pytest
from data_kit import PixelTokenizer, pictures

from gentok.data.encoding_processes import _failure, encode_by_processes
from gentok.data.token_cache import encode_set
from gentok.training.processes import local_devices

QUIET = {"batch_size": 4, "progress": False}


class Broken(PixelTokenizer):
    def encode(self, media, lengths=None, rng=None):
        raise ValueError("no codes\ntoday")


class Dying(PixelTokenizer):
    def encode(self, media, lengths=None, rng=None):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_file_is_byte_for_byte_that_of_one_process(tmp_path):
    one = encode_set(PixelTokenizer(), pictures(), tmp_path / "one.safetensors", **QUIET)
    many = encode_by_processes(PixelTokenizer(), pictures(), tmp_path / "many.safetensors", ["cpu", "cpu"], **QUIET)
    assert many.read_bytes() == one.read_bytes() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokenizer, error, says", [(Broken, ValueError, "^no codes today$"), (Dying, OSError, r"process \d of 2 .* killed by signal 9")]
)
def test_what_fails_in_one_of_them_is_one_line(tmp_path, tokenizer, error, says):
    with pytest.raises(error, match=says):
        encode_by_processes(tokenizer(), pictures(), tmp_path / "t.safetensors", ["cpu", "cpu"], **QUIET)
    assert not (tmp_path / "t.safetensors").exists()


def test_what_cannot_be_sent_is_encoded_here(tmp_path):
    class Local(PixelTokenizer):
        pass

    main = sys.modules["__main__"]
    path = encode_by_processes(Local(), pictures(), tmp_path / "t.safetensors", ["cpu", "cpu"], **QUIET)
    assert path.is_file() and sys.modules["__main__"] is main and isinstance(main, ModuleType)


def test_a_failure_says_who(tmp_path):
    class Silent:
        @staticmethod
        def empty():
            return True

    assert "process 1 of 3 that encoded the set was killed by signal 9" in str(_failure(1, 3, -9, Silent))
    assert "has failed" in str(_failure(1, 3, 1, Silent))


@pytest.mark.parametrize("devices, found", [(1, ["cpu"]), (3, ["cpu"] * 3), ("auto", ["cpu"]), ("2", ["cpu"] * 2)])
def test_devices_of_this_machine(devices, found):
    assert local_devices({"accelerator": "cpu", "devices": devices}) == found
