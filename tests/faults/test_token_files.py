"""Cached tokens that were damaged: refused when the file is opened, in a line that says what to do."""

import json

import numpy as np
import pytest

from gentok.data.tensor_file import _checksum, read_layout, write_arrays
from gentok.data.token_dataset import TokenDataset
from gentok.errors import FormatError

SPEC = {"vocab_sizes": [32], "grid": {"kind": "line", "n": 6, "nested": False}, "media_shape": [1, 4, 4]}
HEADER = {
    "format": 1, "kind": "tokens", "spec": SPEC, "condition_spec": {"class": {"names": ["a", "b"], "kind": "class"}}, "views": 2,
    "augment": None, "seed": 0, "data": {"split": "train"}, "items": 9,
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {"codes": draw.integers(1, 33, (9, 2, 1, 6)).astype("uint8"), "index": np.arange(9), "condition.class": np.arange(9) % 2}
    return write_arrays(tmp_path / "t.safetensors", {name: [value[:4], value[4:]] for name, value in arrays.items()}, HEADER)


def parts(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewritten(path, change, checksum=True):
    """The file after change(table, header), with the right checksum, or as a file of an earlier version."""
    table, data = parts(path)
    header = json.loads(table["__metadata__"]["gentok"])
    change(table, header)
    table["__metadata__"] = {"gentok": json.dumps(header)}
    if checksum:
        table["__metadata__"]["checksum"] = _checksum(table, [data])
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


def refused(path, says="damaged|no token file"):
    with pytest.raises(FormatError, match=says) as error:
        TokenDataset(path)
    assert "\n" not in str(error.value)


def test_every_flipped_bit_is_noticed(file):
    good = file.read_bytes()
    for at in range(0, len(good), 37):
        data = bytearray(good)
        data[at] ^= 2
        file.write_bytes(bytes(data))
        if data[at : at + 1].isspace() and good[at : at + 1].isspace():
            continue
        refused(file)


def test_pieces_of_any_size_give_the_same_file(file, tmp_path):
    maps = read_layout(file, "tokens", 1, "token file").maps()
    again = write_arrays(tmp_path / "again.safetensors", {name: [np.array(value)] for name, value in maps.items()}, HEADER)
    assert again.read_bytes() == file.read_bytes()


def test_a_file_without_a_checksum_is_read_and_its_codes_are_checked(file):
    good = TokenDataset(file).__getitems__(list(range(18)))
    rewritten(file, lambda table, header: None, checksum=False)
    old = TokenDataset(file).__getitems__(list(range(18)))
    assert old.tokens.codes.equal(good.tokens.codes) and old.condition.parts["class"].ids.equal(good.condition.parts["class"].ids)
    data = bytearray(file.read_bytes())
    data[-3] = 250  # codes are the last
    file.write_bytes(bytes(data))
    refused(file, "codes beyond .* of 32.*delete it, and it is made anew")


@pytest.mark.parametrize(
    "change",
    [
        lambda table, header: header.update(items=10),
        lambda table, header: header.update(items="9"),
        lambda table, header: header.update(views=0),
        lambda table, header: header.update(views=1),
        lambda table, header: header.update(spec=3),
        lambda table, header: header["spec"]["grid"].update(n=7),
        lambda table, header: header["spec"].update(vocab_sizes=[32, 32]),
        lambda table, header: header.update(condition_spec=[1]),
        lambda table, header: header["condition_spec"].update(text={"kind": "ids", "alphabet": ["a"], "max_length": 3}),
        lambda table, header: header.pop("data"),
        lambda table, header: table["codes"].update(shape=[9, 2, 1, 10**12]),
        lambda table, header: table["codes"].update(dtype="F64"),
        lambda table, header: table["codes"].update(data_offsets=[0, 108]),
        lambda table, header: table["codes"].update(data_offsets=[-8, 100]),
        lambda table, header: table["index"].update(shape="9"),
        lambda table, header: table.update(index=7),
        lambda table, header: table.pop("condition.class"),
    ],
)
def test_a_header_of_other_content_is_one_line(file, change):
    refused(rewritten(file, change))


def test_a_damaged_file_of_kept_figures_is_made_anew(tmp_path):
    import torch

    from gentok.metrics.cache import cached

    calls, value, path = [], torch.arange(100.0), tmp_path / "x.safetensors"

    def compute():
        calls.append(1)
        return {"value": value}

    for damaged, made in ((False, 1), (False, 1), (True, 2)):
        if damaged:
            path.write_bytes(path.read_bytes()[:-2] + b"\x00\x00")
        tensors, problem = cached("x", compute, tmp_path)
        assert problem is None and tensors["value"].equal(value) and len(calls) == made


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-40])])
def test_a_file_that_changes_before_a_worker_maps_it_is_named_in_a_line(file, change):
    data = TokenDataset(file)
    change(file)
    with pytest.raises(OSError, match=r"t\.safetensors has disappeared or changed") as error:
        data.__getitems__([0])
    assert "\n" not in str(error.value)
