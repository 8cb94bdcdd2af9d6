"""One training run: checks everything that can be checked, then task, Trainer, data, and at the end a bundle and metrics.json.

RUN/config.yaml           the resolved configuration          RUN/checkpoints/last.ckpt   to resume from and to sample from
RUN/metrics.csv, events*  logs                                RUN/bundle                  the model, with averaged weights
RUN/pictures/*.png        reconstructions or samples          RUN/metrics.json            the last validation
RUN/sounds/*/*.wav        the same, of sounds
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentok.build import build, check, identify, resolve
from gentok.bundle import Bundle, build_generator, load, nest_inner, pretrained, save, stamp
from gentok.errors import ConfigError
from gentok.sampling import pick_sampler
from gentok.training.data_checks import bind_to_data, check_media, fit_to_items
from gentok.training.loggers import check_loggers, loggers
from gentok.training.module import CLOCKS, GentokModule, Unregistered, seconds
from gentok.training.processes import check_devices, is_first, running, strategy

__all__ = ["train", "precision"]

FOLDER = "GENTOK_RUN_FOLDER"
"""The environment variable by which a run tells the processes that it starts where it is."""
_log = logging.getLogger("gentok.training")


def precision(choice: str, accelerator: str) -> str:
    """Lightning's precision for "auto": bf16 mixed where the hardware computes in it, else float32."""
    if choice != "auto":
        if choice not in ("bf16-mixed", "32-true"):
            raise ConfigError(
                f"trainer.precision={choice}: choose auto, bf16-mixed or 32-true (float16 needs loss scaling, which gentok does not do)"
            )
        return choice
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpu = torch.cpu
    fast = any(getattr(cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16-mixed" if fast else "32-true"


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ConfigError on what can be known to fail before anything is built, data included."""
    kind, trust = config["task"]["name"], config["trust"]
    if kind not in ("tokenizer", "generator"):
        raise ConfigError(f"task={kind}: there are tokenizer and generator")
    seconds(config["budget"])
    if config["clock"] not in CLOCKS:
        raise ConfigError(f"clock={config['clock']}: what the budget is measured by is {' or '.join(CLOCKS)}")
    counts = {"steps": 1 if config["steps"] is None else config["steps"], "batch_size": config["batch_size"]}
    for key in ("log_every", "validate_every", "checkpoint_every", "accumulate"):
        counts[f"trainer.{key}"] = config["trainer"][key]
    if config["trainer"]["validate_batches"] is not None:
        counts["trainer.validate_batches"] = config["trainer"]["validate_batches"]
    for key, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key}={value}: a whole number, at least 1")
    if isinstance(config["freeze"], str):
        raise ConfigError(f"freeze={config['freeze']}: a list of parts, such as freeze=[{config['freeze']}]")
    check_devices(config["trainer"], config["batch_size"])
    check(config["optimizer"], where="optimizer")
    check(config["schedule"], where="schedule")
    check_loggers(config["logger"])
    if kind == "tokenizer":
        if "_target_" not in config["tokenizer"]:
            raise ConfigError("task=tokenizer trains a tokenizer: choose one, such as tokenizer=vqgan (not tokenizer=from_bundle)")
        check(config["tokenizer"], trust=trust, where="tokenizer", given=("media_shape", "condition_spec"))
        if config.get("discriminator"):
            check(config["discriminator"], trust=trust, where="discriminator")
        if config.get("balancer"):
            check(config["balancer"], where="balancer")
    else:
        check(config["generator"], trust=trust, where="generator", given=("spec", "condition_spec", "codebook"))
        if config.get("discriminator"):
            raise ConfigError("a discriminator belongs to task=tokenizer: set discriminator=none")
        if config.get("balancer"):
            raise ConfigError("a balancer belongs to task=tokenizer: set balancer=none")
        pick_sampler(config["sampler"], resolve(config["generator"]["_target_"], trust), trust)


def train(config: dict[str, Any]) -> Path:
    """Runs conf/config.yaml as a plain dict; returns the run's folder. Raises ValueError or OSError with one line for the user."""
    check_config(config)
    if config["describe"]:
        from gentok.describe import describe

        describe(config)
        return Path(config["paths"]["run"])
    if config["steps"] is None and config["budget"] is None:
        raise ConfigError("how long? set steps=2000, or budget=6min (wall-clock time), or both")

    import lightning as L

    from gentok.training.checkpoint import Stopped
    from gentok.training.resume import check_same_run, find, read

    if config["print_config"] and is_first():
        from gentok.training.config_tree import show_config

        show_config(config)
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start.*")  # frozen parts are
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its greetings and tips are not ours
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist.*")  # they are summed over processes before
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    run = config["paths"]["run"] = os.environ.pop(FOLDER, config["paths"]["run"])
    run = Path(run)
    ckpt = find(config["resume"], run)
    _open_folder(run, config, ckpt)
    config.update(identify(config))  # what is stored names components by their ids
    L.seed_everything(config["seed"], verbose=False)  # for components of your own; gentok draws from gentok.rng
    data = build(config["data"], trust=config["trust"], where="data")
    if config["overfit"] or config["limit_items"] is not None:
        from gentok.data.subset import Subset

        data = Subset(data, config["batch_size"] if config["overfit"] else config["limit_items"], config["overfit"])
    task = (_tokenizer_task if config["task"]["name"] == "tokenizer" else _generator_task)(config, data)
    task.items, start = len(data.train), 0
    if ckpt is not None:
        checkpoint = read(ckpt)
        check_same_run(checkpoint, config, task.items, ckpt, task.fingerprint)
        start = int(checkpoint["global_step"])
    trainer = _trainer(config, run, task, start)
    train_set, held_out = _sets(config, data, task)
    task.sets = Unregistered((train_set, held_out))

    from gentok.training.loader import held_out_loader, training_loader

    place = {"rank": trainer.global_rank, "world": trainer.world_size}
    consumed = start * config["trainer"]["accumulate"]
    loader = training_loader(train_set, config["batch_size"], config["seed"], config["trainer"]["workers"], **place, start=consumed)
    validation = held_out_loader(held_out, config["task"].get("encode_batch", 250), **place)
    os.environ[FOLDER] = str(run)  # for the processes that `fit` starts
    L.seed_everything(config["seed"], verbose=False)  # the same start of the weights, whatever was built, encoded or launched before
    try:
        trainer.fit(task, loader, validation, ckpt_path=ckpt, weights_only=True)
    except Stopped as stopped:
        if trainer.is_global_zero:
            print(f"{stopped}, saved. To go on: {_command(run)}", flush=True)
            raise SystemExit(stopped.status) from None
        return run
    finally:
        os.environ.pop(FOLDER, None)
    metrics = _last_validation(trainer, task, validation)
    skipped = _skipped(data, trainer.strategy.root_device)
    if trainer.is_global_zero:
        _finish(config, run, task, metrics, skipped)
    return run


def _open_folder(run: Path, config: Mapping[str, Any], ckpt: Path | None) -> None:
    """Raises OSError with a line where the folder cannot be written. config.yaml is of the last start."""
    if not is_first():
        return
    if ckpt is None and (run / "checkpoints" / "last.ckpt").is_file():
        _log.warning("%s holds a run already, which is overwritten; resume=auto would have gone on with it", run)
    if ckpt is None and config["resume"] == "auto":
        print(f"resume=auto: there is no checkpoint in {run} yet, a new run begins (a run goes on in its own folder: paths.run=FOLDER)")
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(_yaml(config))
    except OSError as error:
        raise OSError(f"the run's folder {run} cannot be written ({error.strerror or error}): set paths.root or paths.run") from error


def _command(run: Path) -> str:
    """The command line that goes on with this run."""
    words = [w for w in sys.argv[1:] if not w.startswith(("resume=", "paths.run="))]
    return shlex.join(["python", "train.py", *words, f"paths.run={run}", "resume=auto"])


def _tokenizer_task(config: dict[str, Any], data: Any) -> GentokModule:
    from gentok.training.tokenizer_task import TokenizerTask

    check_media(config["tokenizer"], data, config["trust"])
    config["tokenizer"] = bind_to_data(config["tokenizer"], data, config["trust"])
    if config["tokenizer"].get("media_shape") is None:
        config["tokenizer"]["media_shape"] = list(data.media_shape)
    config["tokenizer"], inner = nest_inner(config["tokenizer"], config["trust"])
    if inner is not None:
        config["inner_from"] = list(inner)
    if config.get("discriminator"):
        from gentok.training.adversarial_task import AdversarialTokenizerTask

        return AdversarialTokenizerTask(config)
    return TokenizerTask(config)


def _generator_task(config: dict[str, Any], data: Any) -> GentokModule:
    from gentok.training.generator_task import GeneratorTask

    if "_target_" in config["tokenizer"]:
        check_media(config["tokenizer"], data, config["trust"])
        tokenizer = pretrained(bind_to_data(config["tokenizer"], data, config["trust"]), data.media_shape, config["trust"])
    else:
        tokenizer = load(config["tokenizer"]["ckpt"], trust=config["trust"])
    fit_to_items(tokenizer, data)
    if not tokenizer.spec.encode_fingerprint:  # a training checkpoint
        stamp(tokenizer.tokenizer, tokenizer.tokenizer_config)
    with torch.device("meta"):  # what does not fit these tokens is refused before an hour is spent on encoding
        build_generator(config["generator"], tokenizer.tokenizer, data.condition_spec, config["trust"])
    return GeneratorTask(config, tokenizer, data.condition_spec)


def _sets(config: Mapping[str, Any], data: Any, task: GentokModule) -> tuple[Any, Any]:
    """(train, held out): media, or for a generator that trains from cached tokens these, encoded where they are not there yet."""
    settings = config["task"]
    if settings["name"] == "tokenizer" or not settings["views"]:
        return data.train, data.held_out
    from gentok.data.datasets import whole_items
    from gentok.data.sharded_encoding import encode_together
    from gentok.data.token_cache import TokenDataset, cache_name

    tokenizer = task.frozen.module
    augment = build(settings["augment"], trust=config["trust"], where="task.augment")
    rank, world, device = running()
    if config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available():
        device = "cpu"
    sets = []
    for split, views in ((whole_items(data.train), settings["views"]), (data.held_out, 1)):
        how = {"views": views, "augment": augment if views > 1 else None, "seed": config["seed"]}
        path = Path(config["paths"]["cache"]) / cache_name(split, tokenizer.spec, **how)
        if not path.is_file():
            model = tokenizer.to(device).tokenizer
            encode_together(model, split, path, rank=rank, world=world, batch_size=settings["encode_batch"], device=device, **how)
        sets.append(TokenDataset(path, tokenizer.spec, seed=config["seed"]))
    return sets[0], sets[1]


def _trainer(config: Mapping[str, Any], run: Path, task: GentokModule, start: int = 0) -> Any:
    """start: the step that a resumed run goes on from."""
    import lightning as L
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from gentok.training.callbacks import Budget, ImageLogger, ProgressBar, SoundLogger
    from gentok.training.checkpoint import Saver, WholeFiles
    from gentok.training.ema import EMA

    settings, shown = config["trainer"], "reconstructions" if config["task"]["name"] == "tokenizer" else "samples"
    callbacks: list[Any] = [
        Budget(),
        ImageLogger(run / "pictures", shown, _columns(config)),
        SoundLogger(run / "sounds", shown),
        Saver(run / "checkpoints", settings["checkpoint_every"]),
    ]
    if config["callbacks"]["ema"] is not None:
        callbacks.append(EMA(config["callbacks"]["ema"]))
    if settings["progress_bar"]:
        callbacks.append(ProgressBar())
    if config["profile"] is not None:
        from gentok.training.profile import Profile

        callbacks.append(Profile(run, config["profile"]))
    plugins: list[Any] = [WholeFiles()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # signals are the Saver's
    return L.Trainer(
        accelerator=settings["accelerator"], devices=settings["devices"], num_nodes=settings["num_nodes"], strategy=strategy(settings),
        plugins=plugins,
        precision=precision(settings["precision"], settings["accelerator"]),
        accumulate_grad_batches=settings["accumulate"] if task.automatic_optimization else 1,  # a manual task accumulates by itself
        max_steps=config["steps"] or -1, max_epochs=-1, callbacks=callbacks,
        logger=loggers(config["logger"], run, start) or False, log_every_n_steps=settings["log_every"],
        limit_val_batches=settings["validate_batches"] or 1.0,
        val_check_interval=settings["validate_every"], check_val_every_n_epoch=None, num_sanity_val_steps=0,
        default_root_dir=run, use_distributed_sampler=False,
        enable_progress_bar=settings["progress_bar"], enable_model_summary=False,
    )  # fmt: skip


def _columns(config: Mapping[str, Any]) -> int:
    """A row of originals over a row of reconstructions; samples in tens, a class each where there are ten."""
    return config["task"]["pictures"] if config["task"]["name"] == "tokenizer" else 10


def _last_validation(trainer: Any, task: GentokModule, loader: Any) -> dict[str, float]:
    results = trainer.validate(task, loader, verbose=False)
    return {key: value for key, value in results[0].items() if math.isfinite(value)} if results else {}


def _skipped(data: Any, device: torch.device) -> dict[str, Any]:
    """What could not be read, of each split that had such items; to be called by all processes."""
    out = {}
    for name in ("train", "held_out"):
        split = getattr(data, name)
        if hasattr(split, "agree"):
            split.agree(device)
        found = getattr(split, "skipped", None)
        if found and found["count"]:
            out[name] = found
    return out


def _finish(config: dict[str, Any], run: Path, task: GentokModule, metrics: dict[str, float], skipped: dict[str, Any]) -> None:
    document = task.document()
    meta = {
        **document["meta"],
        "step": task.steps_done,
        "seconds": round(task.seconds_done, 1),
        "seed": config["seed"],
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "metrics": {k: round(v, 5) for k, v in metrics.items()},
    }
    kwargs: dict[str, Any] = {}
    if document["kind"] == "generator":
        frozen: Bundle = task.frozen.module
        tokenizer, tokenizer_config = frozen.tokenizer, frozen.tokenizer_config
        kwargs = {"generator": task.generator, "generator_config": config["generator"], "condition_spec": task.condition_spec}
        meta["guidance"] = task.guidance
    else:
        tokenizer, tokenizer_config = task.tokenizer, config["tokenizer"]
        stamp(tokenizer, tokenizer_config)
    dtype = config["bundle_dtype"]
    bundle = save(run / "bundle", tokenizer=tokenizer.cpu(), tokenizer_config=tokenizer_config, meta=meta, dtype=dtype, **kwargs)
    # names of a user's files are for the run's folder, not for a bundle that is handed on
    (run / "metrics.json").write_text(json.dumps({**meta, "skipped": skipped}, indent=1) + "\n")
    for split, files in skipped.items():
        print(f"{files['count']} of {files['of']} items of {split} could not be read and were skipped: listed in {run / 'metrics.json'}")
    shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    print(f"{meta['step']} steps in {task.seconds_done:.0f} s: {shown}\nbundle: {bundle}")


def _yaml(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))
