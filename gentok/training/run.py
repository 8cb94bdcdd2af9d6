"""One training run: checks everything that can be checked, then task, Trainer, data, and at the end a bundle and metrics.json.

RUN/config.yaml           the resolved configuration          RUN/checkpoints/last.ckpt   to resume from and to sample from
RUN/metrics.csv, events*  logs                                RUN/bundle                  the model, with averaged weights
RUN/pictures/*.png        reconstructions or samples          RUN/metrics.json            the last validation
RUN/sounds/*/*.wav        the same, of sounds
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from gentok.build import build, identify
from gentok.bundle import build_generator, load, nest_inner, nest_teacher, pretrained, stamp
from gentok.errors import ConfigError
from gentok.interfaces import MediaData
from gentok.sampling import load_generator
from gentok.training.config_check import check_config
from gentok.training.data_checks import bind_to_data, check_media, fit_to_items
from gentok.training.finish import command_line, last_validation, skipped_items, write_results
from gentok.training.module import GentokModule, Unregistered
from gentok.training.processes import is_first, local_devices, lost_process, running
from gentok.training.run_folder import Begin, claimed
from gentok.training.trainer import build_trainer

__all__ = ["train"]

FOLDER = "GENTOK_RUN_FOLDER"
"""The environment variable by which a run tells the processes that it starts where it is."""


def train(config: dict[str, Any], data: MediaData | None = None) -> Path:
    """Trains, and writes everything into the run's folder.

    Args:
        config: conf/config.yaml as a plain dict.
        data: instead of what the configuration describes.

    Returns:
        The run's folder.

    Raises:
        ValueError, OSError: with one line for the person at the keyboard.
    """
    if data is not None:
        config["data"] = {}
    check_config(config)
    if config["describe"]:
        from gentok.describe import describe

        describe(config)
        return Path(config["paths"]["run"])
    if config["steps"] is None and config["budget"] is None:
        raise ConfigError("how long? set steps=2000, or budget=6min (wall-clock time), or both")

    from gentok.training.resume import find

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
    ckpt = find(config["resume"], run, config.get("overwrite", False))
    with claimed(run, config, ckpt) if is_first() else nullcontext():
        return _train(config, run, ckpt, data)


def _train(config: dict[str, Any], run: Path, ckpt: Path | None, data: MediaData | None) -> Path:
    import lightning as L

    from gentok.training.checkpoint import Stopped
    from gentok.training.resume import check_same_run, data_identity, read

    config.update(identify(config))  # what is stored names components by their ids
    L.seed_everything(config["seed"], verbose=False)  # for components of your own; gentok draws from gentok.rng
    data = build(config["data"], trust=config["trust"], where="data") if data is None else data
    if config["overfit"] or config["limit_items"] is not None:
        from gentok.data.subset import Subset

        data = Subset(data, config["batch_size"] if config["overfit"] else config["limit_items"], config["overfit"])
    task = (_tokenizer_task if config["task"]["name"] == "tokenizer" else _generator_task)(config, data)
    task.data, start = data_identity(data), 0
    if ckpt is not None:
        checkpoint = read(ckpt)
        check_same_run(checkpoint, config, task.data, ckpt, task.fingerprint)
        start = int(checkpoint["global_step"])
        if is_first() and task.is_over(checkpoint):
            print(f"{run} has ended at step {start}; more steps=... or budget=... than before goes on with it")
    elif config["resume"] == "auto" and is_first():
        print(f"resume=auto: there is no checkpoint in {run} yet, a new run begins (a run goes on in its own folder: paths.run=FOLDER)")
    trainer = build_trainer(config, run, task, start, Begin(run, config, ckpt))
    train_set, held_out = _sets(config, data, task)
    task.sets = Unregistered((train_set, held_out))

    from gentok.training.loader import held_out_loader, training_loader

    place = {"rank": trainer.global_rank, "world": trainer.world_size}
    consumed = start * config["trainer"]["accumulate"]
    window = config["task"].get("length_window", 1)
    loader = training_loader(
        train_set, config["batch_size"], config["seed"], config["trainer"]["workers"], **place, start=consumed, window=window
    )
    validation = held_out_loader(held_out, config["task"].get("encode_batch", 250), **place)
    os.environ[FOLDER] = str(run)  # for the processes that `fit` starts
    L.seed_everything(config["seed"], verbose=False)  # the same start of the weights, whatever was built, encoded or launched before
    try:
        trainer.fit(task, loader, validation, ckpt_path=ckpt, weights_only=True)
    except Stopped as stopped:
        if trainer.is_global_zero:
            print(f"{stopped}, saved. To go on: {command_line(f'paths.run={run}', 'resume=auto')}", flush=True)
            raise SystemExit(stopped.status) from None
        return run
    except Exception as error:
        restored = ckpt is not None and not task.begun
        reason = lost_process(error) or (f"the run cannot go on from the checkpoint {ckpt}: {error}" if restored else "")
        if isinstance(error, (ValueError, OSError, torch.OutOfMemoryError)) or not reason:
            raise
        raise OSError(" ".join(reason.split())) from error
    finally:
        os.environ.pop(FOLDER, None)
    metrics = last_validation(trainer, task, validation)
    skipped = skipped_items(data, trainer.strategy.root_device)
    task.assemble()
    if trainer.is_global_zero:
        write_results(config, run, task, metrics, skipped)
    return run


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
    conditions = data.condition_spec.without(tokenizer.tokenizer.written_condition)
    config["generator"], inner = nest_teacher(config["generator"], tokenizer.spec, config["trust"], conditions)
    if inner is not None:
        config["inner_from"] = list(inner)
    with torch.device("meta"):  # what does not fit these tokens is refused before an hour is spent on encoding
        model = build_generator(config["generator"], tokenizer.tokenizer, data.condition_spec, config["trust"])
    if model.goes_on_from and config["init_from"] is None:
        raise ConfigError(f"{type(model).__name__} goes on from {model.goes_on_from}: give it, init_from=BUNDLE")
    model.with_models(load_generator)
    return GeneratorTask(config, tokenizer, data.condition_spec)


def _sets(config: Mapping[str, Any], data: Any, task: GentokModule) -> tuple[Any, Any]:
    """(train, held out): media, or for a generator that trains from cached tokens these, encoded where they are not there yet."""
    settings = config["task"]
    if settings["name"] == "tokenizer" or not settings["views"]:
        return data.train, data.held_out
    from gentok.data.encoding_processes import MANY, encode_by_processes
    from gentok.data.remote_files import cache_folder, fetched, named_copy, store
    from gentok.data.sharded_encoding import encode_together
    from gentok.data.token_cache import cache_name

    source = task.token_source()
    rank, world, device = running()
    devices = local_devices(config["trainer"])
    if config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available():
        device = "cpu"
    sets = []
    for split, views in ((source.items(data.train.whole()), settings["views"]), (source.items(data.held_out), 1)):
        how = {"views": views, "augment": source.augment if views > 1 else None, "seed": config["seed"]}
        cache, name = config["paths"]["cache"], cache_name(split, task.frozen.module.spec, **how)
        path = cache_folder(cache) / name
        if not fetched(cache, name):
            how |= {"batch_size": settings["encode_batch"]}
            if world == 1 and len(devices) > 1 and len(split) * views >= MANY:  # the others are started behind this
                encode_by_processes(source.encoder(split, "cpu"), split, path, devices, **how)
            else:
                encode_together(source.encoder(split, device), split, path, rank=rank, world=world, device=device, **how)
            if rank == 0:
                store(cache, name)
        with named_copy(cache, name):
            sets.append(source.read(path, split, config["seed"]))
    return sets[0], sets[1]
