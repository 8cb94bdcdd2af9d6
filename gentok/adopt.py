"""`python -m gentok.adopt tokenizer=janus_vq tokenizer.path=FOLDER out=BUNDLE`: a pretrained model as a
bundle.

media_shape=[3,256,256] is what the tokens' spec names. The bundle is then like one of gentok's own:
`gentok.load(BUNDLE)`, `tokenizer.ckpt=BUNDLE` for a generator, and `python -m gentok.evaluate ckpt=BUNDLE
data=folder data.path=IMAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentok.bundle import pretrained
from gentok.errors import check_choice

__all__ = ["adopt", "main"]


def adopt(config: Mapping[str, Any]) -> Path:
    """Saves a pretrained tokenizer as a bundle.

    Args:
        config: a resolved conf/adopt.yaml.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: the configuration, or the released files, do not fit.
        OSError: files are missing, or the folder cannot be written.
        ImportError: the package of the released model is not installed.
    """
    check_choice("dtype", config["dtype"], ("float32", "bfloat16"))
    bundle = pretrained(config["tokenizer"], config["media_shape"], config["trust"])
    bundle.meta = {"from": str(config["tokenizer"].get("path"))}
    path = bundle.save(config["out"], config["dtype"])
    print(f"{type(bundle.tokenizer).__name__}: {bundle.spec.describe()}\nbundle: {path}")
    return path


def main() -> None:
    """`python -m gentok.adopt`."""
    from gentok.cli import run

    run("adopt", adopt)


if __name__ == "__main__":
    main()
