"""`gentok push ckpt=BUNDLE repo=OWNER/NAME`: a model on the Hugging Face Hub, from where `gentok.load("hf://OWNER/NAME")` has it.

A model card is written beside it. Absolute paths in the notes of the bundle are cut to their last names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.bundle import load
from gentok.bundle.publishing import hub_address
from gentok.errors import ConfigError

__all__ = ["main", "push"]


def push(config: Mapping[str, Any]) -> str:
    """Uploads a model, or writes what would be uploaded.

    Args:
        config: a resolved conf/push.yaml.

    Returns:
        The address of the commit, or the folder.

    Raises:
        ValueError: the configuration, the model or a file for its card does not fit.
        OSError: the hub cannot be reached or refuses, or a file cannot be read or written.
        ImportError: huggingface_hub is not installed.
    """
    if config["repo"] is None and config["folder"] is None:
        raise ConfigError("where to? repo=OWNER/NAME on the Hugging Face Hub, or folder=FOLDER to look at what would be uploaded")
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"])
    picture = _newest_picture(Path(config["ckpt"])) if config["picture"] == "auto" else config["picture"]
    card = {"dtype": config["dtype"], "license": config["license"], "picture": picture, "report": config["report"]}
    where = ""
    if config["folder"] is not None:
        where = str(bundle.save_pretrained(config["folder"], **card))
        print(f"written to {where}")
    if config["repo"] is not None:
        commit = {key: config[key] for key in ("private", "revision", "message")}
        where = bundle.push_to_hub(config["repo"], **commit, card=config["card"], **card)
        print(f"{where}\nnext:   gentok.load('{hub_address(config['repo'], config['revision'])}')")
    return where


def _newest_picture(ckpt: Path) -> Path | None:
    """Of the run whose bundle or checkpoint this is; None where there is none."""
    runs = [folder for folder in (ckpt.parent, ckpt.parent.parent) if (folder / "config.yaml").is_file()]
    found = [path for run in runs for path in (run / "pictures").glob("[!.]*.png") if not path.name.startswith("codes_")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def main() -> None:
    """`gentok push`."""
    from gentok.cli import run

    run("push", push)


if __name__ == "__main__":
    main()
