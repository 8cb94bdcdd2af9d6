"""A run's folder: one run at a time, and nothing in it is lost unasked.

A fresh start into a folder that holds a run is refused without overwrite=true. What a failed start leaves of a folder is what was there
before: config.yaml is written, and an earlier run deleted, when training begins.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from gentok.atomic import replacing, sweep
from gentok.errors import ConfigError
from gentok.folder_lock import folder_lock

__all__ = ["Begin", "claimed"]

_FILES = ("config.yaml", "metrics.csv", "metrics.json", "profile.txt", "report.html", "events.out.tfevents.*", "hparams.yaml")
_FOLDERS = ("checkpoints", "bundle", "pictures", "sounds")


@contextlib.contextmanager
def claimed(run: Path, config: Mapping[str, Any], ckpt: Path | None) -> Iterator[None]:
    """`with claimed(...):` this process alone trains in the folder. The system frees the lock of a killed one.

    Args:
        run: the folder; made where it is missing, and removed again where nothing was written into it.
        config: of the run.
        ckpt: what is resumed, or None.

    Raises:
        ConfigError: the folder holds a run that would be overwritten, or one that trains now.
        OSError: it cannot be written.
    """
    run, new = run.resolve(), not run.exists()
    with contextlib.ExitStack() as stack:
        if new:
            stack.callback(_remove_if_empty, run)
        stack.enter_context(_lock(run))
        _check_free(run, config, ckpt)
        sweep(run)
        yield


def _check_free(run: Path, config: Mapping[str, Any], ckpt: Path | None) -> None:
    own = ckpt is not None and ckpt.resolve().is_relative_to(run)
    there = [name for name in ("metrics.json", "bundle/bundle.json", "checkpoints/last.ckpt") if (run / name).exists()]
    if own or not there or config.get("overwrite", False):
        return
    state = "a finished run" if "metrics.json" in there else "a run that has not ended"
    raise ConfigError(
        f"{run} holds {state}, which would be lost: choose another folder with paths.run=FOLDER, go on with resume=auto "
        f"(more steps or budget than before), or begin anew with overwrite=true"
    )


@contextlib.contextmanager
def _lock(run: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(run, "another run trains in", "paths.run=FOLDER"))
        except OSError as error:
            raise OSError(f"the run's folder {run} cannot be written ({error.strerror or error}): set paths.root or paths.run") from error
        yield


def _remove_if_empty(run: Path) -> None:
    with contextlib.suppress(OSError):
        run.rmdir()


class Begin(Callback):
    """When training begins: deletes what an earlier run left in the folder, if this is a fresh start, and writes config.yaml.

    Args:
        run: the folder.
        config: the resolved configuration.
        ckpt: what is resumed; None: a fresh start.
    """

    def __init__(self, run: Path, config: Mapping[str, Any], ckpt: Path | None):
        self.run, self.config = run.resolve(), config
        fresh = ckpt is None or not ckpt.resolve().is_relative_to(self.run)
        self.old = [path for name in (*_FOLDERS, *_FILES) for path in self.run.glob(name)] if fresh else []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Raises OSError where the folder cannot be written."""
        from omegaconf import OmegaConf

        if not trainer.is_global_zero:
            return
        for path in self.old:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with replacing(self.run / "config.yaml", setting="paths.run") as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(self.config))))
