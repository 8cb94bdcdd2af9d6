"""Released weights in gentok's own networks: a file is read without running its code, and put in, or refused with the reason."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gentok.errors import counted
from gentok.nn.torchscript import read_torchscript

__all__ = ["channels_outermost", "fill", "find_file", "read_state", "take"]


def find_file(path: str | Path, model: str, files: Sequence[str]) -> Path:
    """The file at `path`, or the one that a folder there holds; arguments and errors are those of `read_state`."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = [file for name in files for file in sorted(path.glob(name))]
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no {model} weights: none of {', '.join(files)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there are no {model} weights at {path}")
    return path


def read_state(path: str | Path, model: str, files: Sequence[str], known: re.Pattern[str], released_by: str) -> dict[str, Tensor]:
    """The tensors of a file under the names there. No code of the file is run.

    Args:
        path: the file, or the folder that holds it.
        model: its name, for messages.
        files: patterns of the names that it may have in a folder, the preferred first.
        known: the names of tensors that only such a model has.
        released_by: whose files are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or would have to run code.
    """
    path = find_file(path, model, files)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif path.suffix == ".jit":
            state = read_torchscript(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the settings that trainers store beside the weights
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own on a file that is something else
        raise ValueError(f"{path} holds no weights that can be read without running its code: it is damaged, or something else") from error
    if isinstance(state, Mapping):
        state = next((state[inside] for inside in ("ema", "state_dict", "best_state", "model", "module") if inside in state), state)
    if not isinstance(state, Mapping) or not any(known.fullmatch(str(key)) for key in state):
        raise ValueError(f"{path} holds no {model} model: expected the weights of {released_by}")
    return dict(state)


def _other(path: str | Path, model: str, why: str) -> ValueError:
    return ValueError(f"{path} is not the {model} that is configured here: {why}")


def _refuse(keys: Collection[str], how: str, path: str | Path, model: str) -> None:
    if keys:
        raise _other(path, model, f"it {how} {counted(len(keys), 'tensor')}, such as {min(keys)}")


def take(state: dict[str, Tensor], shapes: Mapping[str, Sequence[int]], path: str | Path, model: str) -> list[Tensor]:
    """Takes tensors out of `state` that are not put in as they are. path, model: for messages.

    Raises:
        ValueError: one is missing, or of another shape; the message names it.
    """
    _refuse(shapes.keys() - state.keys(), "lacks", path, model)
    for name, shape in shapes.items():
        there = tuple(state[name].shape)
        if there != tuple(shape):
            raise _other(path, model, f"{name} is {there} there and {tuple(shape)} here")
    return [state.pop(name) for name in shapes]


@torch.no_grad()
def fill(
    network: nn.Module,
    sources: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
    path: str | Path,
    model: str,
    ignored: Collection[str] = (),
) -> None:
    """Puts released tensors into a network whose own names differ.

    Args:
        network: its tensors that are no key of `sources` stay as they are; on the meta device nothing is put.
        sources: own name -> the released tensors that it is made of, one below the other. Axes of length 1 behind the own ones (of
            convolutions over one cell) are left out.
        state: the released tensors, in any floating type.
        path: where they were read, for messages.
        model: the model's name, for messages.
        ignored: released names that may be there, and are not needed.

    Raises:
        ValueError: they are those of another configuration; the message names a released tensor that is missing, too many, or of
            another shape.
    """
    own, wanted = network.state_dict(), {name for names in sources.values() for name in names}
    found = state.keys() - set(ignored)
    _refuse(wanted - found, "lacks", path, model)
    _refuse(found - wanted, "has, beyond this model,", path, model)
    for target, names in sources.items():
        here = own[target]
        shape = (len(here) // len(names), *here.shape[1:])
        for name in names:
            there = tuple(state[name].shape)
            if there[: len(shape)] != shape or any(n > 1 for n in there[len(shape) :]):
                raise _other(path, model, f"{name} is {there} there and {shape} here")
        if not here.is_meta:
            here.copy_(torch.cat([state[name].view(shape) for name in names]))


@torch.no_grad()
def channels_outermost(layer: nn.Module, side: int, axis: Literal[0, 1] = 0) -> None:
    """Reorders a layer's outputs (axis 1: its inputs) from (row, column, channel) of squares of side x side pixels to (channel, row,
    column), in place."""
    for tensor in (layer.weight, layer.bias)[: 2 - axis]:
        if not tensor.is_meta:
            tensor.copy_(tensor.unflatten(axis, (side, side, -1)).movedim(axis + 2, axis).flatten(axis, axis + 2))
