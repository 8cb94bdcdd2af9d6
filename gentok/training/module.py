"""What both training tasks share: progress by steps or by the clock, optimizer and schedule, logs, health, and a checkpoint that loads by
itself and goes on exactly.

A task holds its configuration as a plain dict (so that checkpoints load with weights_only) and builds its parts in `configure_model`,
after the process group exists. Frozen parts lie in `Outside`: no child of the module, so neither optimised, averaged nor saved with it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gentok import __version__
from gentok.build import build
from gentok.bundle import FORMAT, load
from gentok.distributed import all_sum, rank, world_size
from gentok.durations import seconds
from gentok.errors import ConfigError, nearest_name
from gentok.interfaces import Generator
from gentok.rng import RowRNG
from gentok.training.blocks import set_blocks
from gentok.training.nan_check import bad_gradient, find_first
from gentok.training.resume import check_optimizer
from gentok.training.sharding import full_state, gather, gradient_norm, is_sharded, reshard, scale, share_gradients
from gentok.types import Batch

__all__ = ["CLOCKS", "Unregistered", "GentokModule"]


CLOCKS = {"wall": "monotonic", "cpu": "process_time"}
"""What `budget` is measured by, and its function in `time`: the clock on the wall, or the processor time of this process (all its
threads), which a busy machine does not shorten."""


class Unregistered:
    """Holds a frozen module outside the registered children; copies of its owner share it."""

    def __init__(self, module: Any):
        self.module = module

    def __deepcopy__(self, memo: dict) -> Unregistered:
        return self


class GentokModule(L.LightningModule):
    """Base of the tasks. Subclasses build in `configure_model`, idempotently, and pass the model that is trained through `prepared`.

    Args:
        config: the resolved configuration of the run, a plain dict.
    """

    part: str
    """The attribute that holds the model that is trained, and its part of a bundle: "tokenizer" or "generator"."""
    main_metric = "loss"
    """The name of the figure that a run is known by."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        self.save_hyperparameters({"config": self.config})
        self.budget, self.steps = seconds(config["budget"]), config["steps"]
        self.data: dict[str, Any] = {}  # which items are trained on: `gentok.training.resume.data_identity`
        self.begun = False  # true when the first batch is done: what was restored works
        self.steps_done, self.seconds_done = 0, 0.0
        self._started: float | None = None
        self._before = 0.0  # seconds of training before a resume
        self._shared: float | None = None  # the first process's elapsed time, where there are several
        self._seen: dict[str, Any] = {}
        self._clock, self._waited = time.perf_counter(), 0.0
        self._count: Tensor | None = None
        self._last: tuple[bool, Callable[[], Any]] | None = None

    # ----------------------------------------------------------------------------------------------------- the model

    def prepared(self, model: nn.Module) -> nn.Module:
        """The new model with the weights of init_from and the parts named in freeze frozen: no gradient, and in eval mode, so that
        statistics do not move either; its blocks do as the trainer's settings say. Raises ConfigError or ValueError with a line."""
        if self.config["init_from"] is not None:
            self._take_weights(model, self.config["init_from"])
        for name in self.config["freeze"]:
            try:
                part = model.get_submodule(name)
            except AttributeError:
                names = [n for n, m in model.named_modules() if n and n.count(".") == name.count(".") and any(True for _ in m.parameters())]
                raise ConfigError(f"freeze: the {self.part} has no part {name!r}{nearest_name(name, names)}") from None
            part.requires_grad_(False).eval()
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(f"freeze={list(self.config['freeze'])} leaves nothing of the {self.part} to train")
        set_blocks(model, self.config["trainer"], self.part)
        return model

    def _take_weights(self, model: nn.Module, path: str) -> None:
        bundle = load(path, trust=self.config["trust"])
        source = getattr(bundle, self.part)
        if source is None:
            raise ConfigError(f"init_from={path} is a {bundle.kind}: it has no {self.part} to start from")
        try:
            theirs = model.begin_as(source) if isinstance(model, Generator) else source.state_dict()
        except ValueError as error:
            raise ConfigError(f"init_from={path} {error}") from None
        ours = model.state_dict()
        for name in dict.fromkeys((*ours, *theirs)):
            had, has = (tuple(state[name].shape) if name in state else "nothing" for state in (theirs, ours))
            if had != has:
                raise ValueError(f"init_from={path} does not fit this {self.part}: {name} is {had} there and {has} here")
        model.load_state_dict(theirs)

    def assemble(self) -> None:
        """After training: makes the model one that the first process has whole, where it was sharded. To be called by all processes."""
        if not is_sharded(self):
            return
        weights = full_state(getattr(self, self.part))
        if self.trainer.is_global_zero:
            delattr(self, self.part)
            self.configure_model()
            getattr(self, self.part).load_state_dict(weights)

    def train(self, mode: bool = True) -> GentokModule:
        super().train(mode)
        model = getattr(self, self.part, None)  # configure_model makes it
        if model is not None:
            for name in self.config["freeze"]:
                model.get_submodule(name).eval()
        return self

    # ------------------------------------------------------------------------------------------------------ progress

    def _now(self) -> float:
        return getattr(time, CLOCKS[self.config["clock"]])()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._before + (0.0 if self._started is None else self._now() - self._started)

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1], by whichever of steps and budget is further on; the same on all processes."""
        by_steps = self.global_step / self.steps if self.steps else 0.0
        by_clock = 0.0
        if self.budget:
            by_clock = (self.elapsed if self._shared is None else self._shared) / self.budget
        return min(1.0, max(by_steps, by_clock))

    def is_over(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of the end of this run."""
        by_steps = self.steps is not None and checkpoint["global_step"] >= self.steps
        return by_steps or (self.budget is not None and checkpoint["training"]["elapsed"] >= self.budget)

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            check_optimizer(optimizer)
        self._started = self._now()
        self._restart_clock()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Noise is by row and step. What still draws from the global streams (quantizers of the library, components of your own) draws what
        # it would have drawn without a resume, and whatever was validated in between.
        word = (int(self.config["seed"]) << 40) ^ (batch_idx << 12) ^ rank()
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed  # the latter asks every backend
        seed(word & 0x7FFF_FFFF_FFFF_FFFF)
        random.seed(word)
        if self.budget and world_size() > 1:
            self._shared = float(all_sum(torch.tensor(0.0 if rank() else self.elapsed, dtype=torch.float64, device=self.device)))

    def on_train_batch_end(self, *args: Any) -> None:
        self.begun = True

    @property
    def fingerprint(self) -> str:
        """Of the frozen tokenizer whose codes are modelled, where there is one."""
        return ""

    def on_train_end(self) -> None:
        self._before, self._started = self.elapsed, None

    def on_fit_end(self) -> None:  # also where the run that was resumed had ended already
        self.steps_done, self.seconds_done = self.global_step, self.elapsed

    def rng(self, batch: Batch, purpose: str) -> RowRNG:
        """Row streams by (run seed, step, global index): the same for any split over processes."""
        return RowRNG.of(self.config["seed"], batch.index, self.global_step).fork(purpose)

    # --------------------------------------------------------------------------------------------- optimizer and logs

    def configure_optimizers(self) -> Any:
        optimizer = build(self.config["optimizer"], where="optimizer")(self)
        schedule = build(self.config["schedule"], where="schedule")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(self.progress, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def by_count(self, loss: Tensor, count: Tensor) -> Tensor:
        """A mean over `count` things as it enters the backward pass: every thing weighs the same in an update, however they are spread over
        processes and accumulated batches. Where there is only one batch, the loss itself; else a sum, and gradients are divided by the
        number of all things when they are complete."""
        if world_size() == 1 and self.config["trainer"]["accumulate"] == 1:
            return loss
        count = count.detach().to(loss)
        self._count = count if self._count is None else self._count + count
        return loss * count * self.config["trainer"]["accumulate"]  # which Lightning divides by

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the global norm to trainer.clip (null: not at all) and logs what it was. Here and not in Lightning, which under mixed
        precision refuses fused optimizers for the sake of float16 scaling, which gentok does not use."""
        if is_sharded(self):
            share_gradients(self.parameters())
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self._count is not None:
            total, self._count = all_sum(self._count), None
            scale(gradients, world_size() / total.clamp(min=1))
        norm = gradient_norm(gradients)
        logged = self.global_step % self.config["trainer"]["log_every"] == 0
        if (logged or norm.device.type == "cpu") and not norm.isfinite():  # elsewhere, to ask is to wait
            self._stop_with_the_reason()
        if self.config["trainer"]["clip"]:
            scale(gradients, (self.config["trainer"]["clip"] / (norm + 1e-6)).clamp(max=1.0))
        self._last = None
        if logged:
            self.log("gradient_norm", norm)
            self.log("lr", optimizer.param_groups[0]["lr"])

    def log_step(self, loss: Tensor, terms: Mapping[str, Tensor], amounts: Mapping[str, Any], again: Callable[[], Any]) -> None:
        """The training curves. amounts: {unit: how many of it this step has seen}, numbers or tensors, of which the speeds are logged.
        again: the forward pass once more, for finding out where a loss that is not finite comes from."""
        good = self._last is None or self._last[0]
        if good:
            self._last = (loss.device.type != "cpu" or bool(loss.isfinite()), again)
        for unit, count in amounts.items():
            self._seen[unit] = self._seen.get(unit, 0) + count
        if self.global_step % self.config["trainer"]["log_every"]:
            return
        now = time.perf_counter()
        passed = max(now - self._clock, 1e-9)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        for i, (unit, count) in enumerate(self._seen.items()):
            self.log(f"{unit}_per_second", float(count) * world_size() / passed, prog_bar=i == 0)
        waited = getattr(self.trainer.train_dataloader, "waited", None)  # of gentok's own loader
        if waited is not None:
            self.log("data_wait", (waited - self._waited) / passed)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), sync_dist=True)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._seen, self._clock = {}, time.perf_counter()
        self._waited = getattr(self.trainer.train_dataloader, "waited", 0.0)

    def on_validation_epoch_start(self) -> None:
        gather(self)

    def on_validation_epoch_end(self) -> None:
        reshard(self)

    def on_validation_end(self) -> None:
        self._restart_clock()  # validation is not training speed

    def _stop_with_the_reason(self) -> None:
        """Raises ValueError: where the first number that is none came from. On all processes, which all see a gradient that is none."""
        gather(self)
        with self.trainer.precision_plugin.forward_context():
            found = find_first(self, self._last[1]) if self._last else None
        reshard(self)
        found = found or bad_gradient(self.named_parameters()) or "the loss itself"
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, found)
            found = next((f for f in everyone if not f.startswith("the gradient")), found)
        saver = self.trainer.checkpoint_callback
        kept = f"; {saver.last_good()}" if hasattr(saver, "last_good") else ""  # gentok's own callback, if there is one
        raise ValueError(
            f"training broke at step {self.global_step}: the first that is not finite any more is {found}; lower optimizer.lr or "
            f"trainer.clip, or set trainer.precision=32-true{kept}"
        )

    # ---------------------------------------------------------------------------------------------------- checkpoint

    def document(self) -> dict[str, Any]:
        """The bundle.json of the model as it stands."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gentok"] = {"format": FORMAT, "gentok": __version__, **self.document()}
        checkpoint["training"] = {"elapsed": self.elapsed, **self.data}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._before = float(checkpoint["training"]["elapsed"])
