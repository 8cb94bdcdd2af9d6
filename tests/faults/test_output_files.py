"""Outputs: of two calls they do not mix, nothing is replaced unasked, and a device stays a device."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import gentok
from gentok.atomic import replacing, sweep, whole_file
from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.folder_lock import folder_lock
from gentok.sample_files import sample_to_folder

ROOT = Path(__file__).resolve().parents[2]


def sampled(out, *words):
    sample_to_folder(compose("sample", ["ckpt=mnist5k_masked", "sampler=maskgit", "sampler.steps=1", f"out={out}", *words]))
    return sorted(path.name for path in out.iterdir())


def command(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("gentok:")], done


# ------------------------------------------------------------------------------------------------------- samples

OF = ["0000.png", "0001.png", "codes.safetensors", "grid.png", "samples.json"]


def test_samples_of_two_calls_do_not_mix(tmp_path):
    out = tmp_path / "out"
    assert sampled(out, "n=4", "condition=3") == sorted([*OF, "0002.png", "0003.png"])
    (out / "notes.txt").write_text("mine")
    assert sampled(out, "n=2", "condition=7") == sorted([*OF, "notes.txt"])
    report = json.loads((out / "samples.json").read_text())
    assert report["files"] == ["grid.png", "codes.safetensors", "samples.json", "0000.png", "0001.png"] and report["condition"] == 7


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_and_codes_may_be_read_by_whom_the_user_lets_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        sampled(tmp_path / "out", "n=2")
        gentok.load("mnist5k_vq").save(tmp_path / "bundle")
    finally:
        os.umask(before)
    for path in (*tmp_path.rglob("*.safetensors"), tmp_path / "bundle" / "bundle.json"):
        assert path.stat().st_mode & 0o777 == mode, path


def test_only_what_was_listed_is_replaced(tmp_path):
    names = sampled(tmp_path, "n=1")
    (tmp_path / "0007.png").write_text("mine")
    with pytest.raises(ConfigError, match="0007.png.*out=FOLDER$"):
        sampled(tmp_path, "n=1")
    (tmp_path / "0007.png").unlink()
    (tmp_path / "precious").write_text("")
    report = json.loads((tmp_path / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps({**report, "files": [*report["files"], "precious", "../precious"]}))
    assert sampled(tmp_path, "n=1") == sorted([*names, "precious"])


def test_samples_of_an_earlier_version_are_replaced_by_their_number(tmp_path):
    sampled(tmp_path, "n=3")
    report = json.loads((tmp_path / "samples.json").read_text())
    del report["files"]
    (tmp_path / "samples.json").write_text(json.dumps(report))
    assert sampled(tmp_path, "n=2") == OF


def test_a_second_call_for_a_folder_is_refused_while_the_first_samples(tmp_path):
    out = tmp_path / "out"
    with folder_lock(out, "another call samples into", "out=FOLDER"), pytest.raises(ConfigError, match="samples into .*out.*out=FOLDER$"):
        sampled(out, "n=1")
    assert sampled(out, "n=1") == ["0000.png", "codes.safetensors", "grid.png", "samples.json"]


def test_a_call_that_fails_leaves_no_folder_and_loses_nothing(tmp_path):
    with pytest.raises(ValueError, match="horse"):
        sampled(tmp_path / "new", "condition=horse")
    assert not (tmp_path / "new").exists()
    names = sampled(tmp_path / "out", "n=1")
    with pytest.raises(ValueError, match="horse"):
        sampled(tmp_path / "out", "condition=horse")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.slow
def test_every_job_of_a_sweep_has_a_folder_of_its_own(tmp_path):
    words = ["sample.py", "-m", "ckpt=mnist5k_masked", "sampler=maskgit", "sampler.steps=1", "n=1", "seed=0,1", f"out={tmp_path / 'out'}"]
    status, _, done = command(*words, cwd=ROOT)
    assert status == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1"]
    seeds = [json.loads((tmp_path / "out" / job / "samples.json").read_text())["seed"] for job in "01"]
    assert seeds == [0, 1]


# --------------------------------------------------------------------------------------------------------- codec


@pytest.fixture
def sound(tmp_path):
    soundfile.write(tmp_path / "in.wav", torch.sin(torch.arange(8000) / 9).numpy() / 2, 8000)
    return tmp_path


def codec(*words):
    """The command, in this process: its line, or None."""
    from gentok import codec as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gentok codec"])
        try:
            module.main([*words, "ckpt=spoken_digits_codec", "progress=false"])
        except SystemExit as stopped:
            return stopped.code
    return 0


def test_options_may_stand_anywhere_and_names_may_have_an_equals_sign(sound, monkeypatch, capsys):
    monkeypatch.chdir(sound)
    shutil.copy("in.wav", "a=1 it's.wav")
    assert codec("levels=2", "compress", "chunk=0.5", "a=1 it's.wav", "x.gtk") == 0
    assert codec("decompress", "x.gtk", "device=cpu", "back.flac") == 0
    assert soundfile.info("back.flac").duration == soundfile.info("in.wav").duration


@pytest.mark.parametrize(
    "words, says",
    [
        (["compress", "in.wav"], "output"),
        (["compress"], "input"),
        (["compress", "in.wav", "in.wav"], "is the input"),
        (["compress", "in.wav", "link.wav"], "is the input"),
        (["compress", "in.wav", "there.gtk"], "there already.*overwrite=true"),
        (["compress", "input=[a]", "output=x.gtk"], "input"),
        (["compress", "in.wav", "output={a: 1}"], "output"),
        (["compress", "nowhere.wav", "x.gtk"], "no file nowhere.wav"),
        (["decompress", "in.wav", "x.wav"], "no file of gentok.codec"),
        (["explode", "in.wav", "x.wav"], "expected 'compress', 'decompress' or 'resynthesize'"),
    ],
)
def test_what_would_lose_or_cannot_mean_something_is_one_line(sound, monkeypatch, capsys, words, says):
    monkeypatch.chdir(sound)
    Path("there.gtk").write_text("precious")
    Path("link.wav").symlink_to("in.wav")
    before = {path.name: path.read_bytes() for path in sound.iterdir()}
    assert codec(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gentok:")]
    assert len(lines) == 1 and __import__("re").search(says, lines[0]), lines
    assert {path.name: path.read_bytes() for path in sound.iterdir()} == before


def test_an_output_is_replaced_when_asked(sound, monkeypatch):
    monkeypatch.chdir(sound)
    Path("x.gtk").write_text("old")
    assert codec("compress", "in.wav", "x.gtk", "overwrite=true") == 0
    assert Path("x.gtk").read_bytes()[:4] == b"GTK2"


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pressed")
    soundfile.write(folder / "in.wav", torch.sin(torch.arange(8000) / 9).numpy() / 2, 8000)
    assert codec("compress", str(folder / "in.wav"), str(folder / "x.gtk"), "chunk=0.25") == 0
    return (folder / "x.gtk").read_bytes()


def decompressed(data, folder, capsys, out="back.wav"):
    (folder / "x.gtk").write_bytes(data)
    (folder / out).unlink(missing_ok=True)
    capsys.readouterr()
    status = codec("decompress", str(folder / "x.gtk"), str(folder / out))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gentok:")]
    assert len(lines) == (status != 0) and (folder / out).exists() == (status == 0)
    return status


def test_every_flipped_bit_of_a_compressed_sound_is_refused(pressed, tmp_path, capsys):
    assert decompressed(pressed, tmp_path, capsys) == 0
    for at in range(0, len(pressed), max(1, len(pressed) // 6)):
        data = bytearray(pressed)
        data[at] ^= 4
        assert decompressed(bytes(data), tmp_path, capsys) == 2, at
    assert decompressed(pressed + b"x", tmp_path, capsys) == 2
    assert decompressed(pressed[:-12], tmp_path, capsys) == 2


def test_a_compressed_sound_of_an_earlier_version_gives_the_same(pressed, tmp_path, capsys):
    import struct

    from gentok.types.documents import parse

    assert decompressed(pressed, tmp_path, capsys) == 0
    new = (tmp_path / "back.wav").read_bytes()
    (length,) = struct.unpack("<I", pressed[4:8])
    header = {key: value for key, value in parse(pressed[8 : 8 + length], "header").items() if key != "checksum"}
    text, at = json.dumps(header).encode(), 8 + length
    old = b"GTK1" + struct.pack("<I", len(text)) + text
    while at < len(pressed):
        _, size = struct.unpack("<II", pressed[at : at + 8])
        old, at = old + pressed[at : at + 8 + size], at + 12 + size
    assert decompressed(old, tmp_path, capsys) == 0 and (tmp_path / "back.wav").read_bytes() == new


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("action", ["compress", "decompress"])
def test_a_full_disk_is_one_line(pressed, sound, capsys, action, monkeypatch):
    (sound / "x.gtk").write_bytes(pressed)
    target = sound / "out.wav"
    real = open

    def full(path, *args, **options):  # the temporary file lies on a disk that is full
        return real("/dev/full" if ".part" in str(path) else path, *args, **options)

    monkeypatch.setattr("gentok.atomic.open", full, raising=False)
    assert codec(action, str(sound / ("in.wav" if action == "compress" else "x.gtk")), str(target)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gentok:")]
    assert len(lines) == 1 and "No space left on device" in lines[0] and "paths.cache" not in lines[0] and not target.exists()


def test_a_compressed_sound_may_go_to_a_device(sound):
    assert codec("compress", str(sound / "in.wav"), "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


# ---------------------------------------------------------------------------------------------------- whole files


def test_what_is_no_plain_file_is_written_to_and_stays_what_it_is(tmp_path):
    import threading

    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as file:
        file.write(b"content")
    reader.join()
    assert got == [b"content"] and pipe.is_fifo()
    with pytest.raises(OSError, match="is a folder"), whole_file(tmp_path) as file:
        pass


def test_a_link_stays_a_link_to_the_new_file(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_what_killed_writers_left_is_swept_and_what_others_write_is_not(tmp_path):
    import platform
    import re

    host = re.sub(r"\W", "-", platform.node())
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = process.pid, os.getppid()
    left = [f".a.png.{host}.{dead}.part", f".0000.{dead}.writing.png", f".model.{dead}.writing"]
    kept = [f".a.png.{host}.{alive}.part", f".a.png.elsewhere.{dead}.part", f".0000.{alive}.writing.png", ".profile", "a.writing.png"]
    for name in (*left[:2], *kept):
        (tmp_path / name).write_text("")
    (tmp_path / left[2]).mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(OSError, match=r"x could not be written \(No space left on device\): free some space"), whole_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_bundle_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Every file is synced, and its folder, before the rename."""
    import gentok.bundle.writing as writing

    done, real = [], os.replace
    monkeypatch.setattr(writing, "sync", lambda path: done.append(Path(path).name))
    monkeypatch.setattr(os, "replace", lambda *args: (done.append("rename"), real(*args))[1])
    gentok.load("mnist5k_vq").save(tmp_path / "model")
    before = done[: done.index("rename")]
    assert {"bundle.json", "README.md", "model.safetensors"} <= set(before) and done[-1] == tmp_path.name
