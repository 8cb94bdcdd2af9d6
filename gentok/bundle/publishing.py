"""Bundles that are handed on: as a folder with a model card, or on the Hugging Face Hub.

    model.push_to_hub("OWNER/NAME")                  # or model.save_pretrained(FOLDER), to look at first
    model = gentok.load("hf://OWNER/NAME")           # or gentok.from_pretrained("OWNER/NAME")

A bundle says how it was made. Of places of the machine that it was made on, in its notes, nothing is handed on but the last names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.bundle.card import card
from gentok.bundle.hub import HubAddress, upload
from gentok.bundle.model import Bundle, load
from gentok.bundle.places import in_zoo
from gentok.errors import ConfigError, FormatError, check_choice
from gentok.types.documents import read

__all__ = ["from_pretrained", "hub_address", "push_to_hub", "save_pretrained"]

_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
_PLACE = re.compile(r"""(?<![\w/.:~])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'",=]+[/\\])*(?=[^/\\\s'",=])""")


def save_pretrained(
    bundle: Bundle,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    license: str | None = None,
    picture: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    place: str | None = None,
) -> Path:
    """Writes a bundle as it is handed on, with a model card.

    Args:
        bundle: the model.
        folder: where it goes; a bundle that is there is replaced.
        dtype: of the weights, "float32" or "bfloat16"; "auto": bfloat16 where that loses nothing.
        license: the hub's name of the weights' licence, such as "apache-2.0"; None: what the bundle says, if anything.
        picture: an image that the card shows.
        report: a JSON file of `gentok evaluate` whose figures the card shows; None: those of the training run.
        place: what the card's examples load; None: a folder.

    Returns:
        The folder.

    Raises:
        ConfigError: the picture or the report is none.
        FormatError: the report is damaged.
        ValueError: there is no such dtype, or `folder` is something else than a bundle.
        OSError: a file cannot be read or written.
    """
    check_choice("dtype", dtype, ("auto", "float32", "bfloat16"))
    figures, image = _report(report), None if picture is None else _picture(Path(picture).expanduser())
    meta = _without_places({**bundle.meta, **({} if license is None else {"license": license})})
    path = replace(bundle, meta=meta).save(folder, _lossless_dtype(bundle) if dtype == "auto" else dtype)
    document = read(path / "bundle.json")
    name = None if image is None else f"picture{image.suffix.lower()}"
    if image is not None and name is not None:
        shutil.copyfile(image, path / name)
    given = {} if place is None else {"place": place}
    (path / "README.md").write_text(card(document, picture=name, report=figures, **given), encoding="utf-8")
    return path


def push_to_hub(
    bundle: Bundle,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "A gentok bundle",
    card: bool = True,
    **options: Any,
) -> str:
    """Uploads a bundle to the Hugging Face Hub, as one commit.

    Args:
        bundle: the model.
        repo: "OWNER/NAME", or an address hf://OWNER/NAME@REVISION/FOLDER; made where it is not there.
        private: whether a repository that is made now is private; None: what the account's settings say.
        revision: the branch; made where it is not there. None: the main one.
        message: of the commit.
        card: False: README.md of the repository stays as it is.
        options: of `save_pretrained`: dtype, license, picture, report.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        ConfigError: `repo` is no name of a repository, or names another revision.
        OSError: the hub cannot be reached, or refuses.
    """
    address = hub_address(repo, revision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(bundle, Path(temporary) / "bundle", place=str(address), **options)
        return upload(folder, address, private=private, message=message, card=card)


def from_pretrained(name: str | os.PathLike[str], *, revision: str | None = None, subfolder: str = "", **options: Any) -> Bundle:
    """A trained model by the words of other libraries.

    Args:
        name: "OWNER/NAME" or an address of the hub; what is there as a folder, or as a model of gentok's, is loaded as by `gentok.load`.
        revision: a branch, a tag or a commit of the hub.
        subfolder: of the repository.
        options: of `gentok.load`: trust, device, ema.

    Returns:
        The model.

    Raises:
        What `gentok.load` raises.
    """
    given = str(name)
    here = in_zoo(given) is not None or Path(given).expanduser().exists()
    local = not HubAddress.is_one(given) and (here or not HubAddress.is_name(given))
    if local and (revision is not None or subfolder):
        raise ConfigError(f"{given} is no repository of the hub: revision and subfolder are of one")
    return load(name if local else str(hub_address(given, revision, subfolder)), **options)


def hub_address(repo: str, revision: str | None, folder: str = "") -> HubAddress:
    """The address that a name or an address of the hub and what is given beside it make. Raises ConfigError where they disagree."""
    address = HubAddress.parse(repo)
    for key, given, own in (("revision", revision, address.revision), ("subfolder", folder, address.folder)):
        if given and own not in (None, "", given):
            raise ConfigError(f"{repo} says {key} {own}, but {key}={given} is given: leave one out")
    whole = HubAddress(address.repo, revision or address.revision, folder or address.folder)
    return HubAddress.parse(str(whole))


def _lossless_dtype(bundle: Bundle) -> str:
    """bfloat16 where all weights are what it can hold, as those of a bundle that was stored in it."""
    modules = [module for module in (bundle.tokenizer, bundle.generator) if module is not None]
    numbers: list[Tensor] = [value for module in modules for value in module.state_dict().values() if value.is_floating_point()]
    return "bfloat16" if all(torch.equal(value.bfloat16().to(value.dtype), value) for value in numbers) else "float32"


def _without_places(value: Any) -> Any:
    """Notes whose absolute paths are PATH/LAST_NAME."""
    if isinstance(value, str):
        return _PLACE.sub("PATH/", value)
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    return [_without_places(item) for item in value] if isinstance(value, (list, tuple)) else value


def _report(path: str | os.PathLike[str] | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        report = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"the report {path} is no JSON file ({error})") from error
    if not isinstance(report, Mapping) or not isinstance(report.get("metrics"), Mapping):
        raise ConfigError(f"the report {path} has no metrics: expected a JSON file that `gentok evaluate` wrote, or a run's metrics.json")
    return report


def _picture(path: Path) -> Path:
    if path.suffix.lower() not in _PICTURES:
        raise ConfigError(f"the picture {path} is none that a card shows: expected a file {', '.join(_PICTURES)}")
    if not path.is_file():
        raise ConfigError(f"there is no picture {path}")
    return path
