"""task=tokenizer with discriminators: two optimizers, so Lightning's manual optimisation, and a step that is
still one step.

A step is one update of the tokenizer, as in the other tasks: only its optimizer is counted in `global_step`,
so steps, schedules, rng, logs, budgets, validation and checkpoints mean what they mean elsewhere. Both losses
see the reconstruction of one forward pass, and both networks are updated after both gradients are known; an
update gathers trainer.accumulate batches. Until the first discriminator starts, the run is bit for bit the
run without discriminators.

Discriminators are `Unregistered`: neither averaged, nor wrapped by DistributedDataParallel (which would wait
for gradients of parts that a backward pass does not reach), nor in the bundle. Their gradients are averaged
over ranks here, their weights and optimizer go into the checkpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gentok.build import build, resolve
from gentok.distributed import all_sum, world_size
from gentok.errors import ConfigError, nearest_name
from gentok.losses.adversarial import Adversaries
from gentok.training.module import Unregistered
from gentok.training.tokenizer_task import TokenizerTask
from gentok.types import Batch, TokenizerOutput

__all__ = ["AdversarialTokenizerTask", "build_adversaries"]


def build_adversaries(config: Mapping[str, Any], channels: int, trust: list[str]) -> Adversaries:
    """Builds config["discriminator"].

    Args:
        config: with `adversaries` and the settings of Adversaries.
        channels: of the media, for networks whose own are null.
        trust: packages whose components may be built.

    Returns:
        The discriminators, with fresh weights.
    """
    parts = {}
    for name, part in config["adversaries"].items():
        network = part["network"]
        if network.get("channels") is None and "channels" in inspect.signature(resolve(network["_target_"], trust)).parameters:
            network = {**network, "channels": channels}
        parts[name] = {**part, "network": network}
    return build({**config, "adversaries": parts}, trust=trust, where="discriminator")


class AdversarialTokenizerTask(TokenizerTask):
    """Trains config["tokenizer"] against config["discriminator"] (gentok.losses.adversarial.Adversaries)."""

    automatic_optimization = False

    def configure_model(self) -> None:
        if hasattr(self, "discriminators"):  # Lightning calls this before every stage
            return
        super().configure_model()  # first: its initialisation draws what it draws without discriminators
        channels = self.config["tokenizer"]["media_shape"][0]
        self.discriminators = Unregistered(build_adversaries(self.config["discriminator"], channels, self.config["trust"]))
        self._reconstruction: Tensor | None = None
        adaptive = [name for name, part in self.adversaries.parts.items() if part.adaptive is not None]
        last_layer = self.tokenizer.last_layer
        if adaptive and (last_layer is None or not last_layer.requires_grad):
            raise ConfigError(
                f"discriminator.adversaries.{adaptive[0]}.adaptive needs a tokenizer with a `last_layer` that is trained; "
                f"{type(self.tokenizer).__name__} {'does not name one' if last_layer is None else 'has it frozen'}: set adaptive=null"
            )
        if self.balancer is not None:
            self._check_balancer(adaptive)

    def _check_balancer(self, adaptive: list[str]) -> None:
        if adaptive:
            raise ConfigError(f"discriminator.adversaries.{adaptive[0]}.adaptive and a balancer do the same: set adaptive=null")
        missing = [name for name in self.adversaries.names() if name not in self.balancer.weights]
        if missing:
            raise ConfigError(f"balancer.weights does not name {missing[0]}{nearest_name(missing[0], self.balancer.weights)}")

    @property
    def adversaries(self) -> Adversaries:
        return self.discriminators.module

    # ------------------------------------------------------------------------------------------------------- optimizers

    def configure_optimizers(self) -> Any:
        own = super().configure_optimizers()
        adversaries = self.adversaries
        adversaries.load_state_dict(self.trainer.strategy.broadcast(adversaries.state_dict()))
        self.trainer.precision_plugin.convert_module(adversaries)
        optimizer = adversaries.to(self.device).optimizer(adversaries)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self._schedule = build(self.config["schedule"], where="schedule")
        return [own, {"optimizer": optimizer}]

    def on_train_start(self) -> None:
        super().on_train_start()
        # Lightning refuses to be told of accumulation before a manual run, but without knowing of it, it counts batches as steps in the
        # logs and clears half-gathered gradients at every validation.
        self.trainer.accumulate_grad_batches = self.config["trainer"]["accumulate"]

    def on_train_end(self) -> None:
        super().on_train_end()
        self.trainer.accumulate_grad_batches = 1

    # -------------------------------------------------------------------------------------------------------- the step

    def terms(self, batch: Batch, output: TokenizerOutput) -> dict[str, Tensor]:
        terms, active = super().terms(batch, output), self.adversaries.active(self.global_step)
        self._reconstruction = output.reconstruction if active else None
        if not active:
            return terms
        if output.reconstruction is None:
            raise ValueError(f"{type(self.tokenizer).__name__} has no reconstruction for a discriminator: set discriminator=none")
        own = torch.stack(list(terms.values())).sum()
        last_layer = self.tokenizer.last_layer
        weighted = self.balancer is None
        added, weights = self.adversaries.tokenizer_loss(output.reconstruction, batch.media, own, last_layer, self.global_step, weighted)
        if weighted:
            self._log_at_interval({f"adversarial/{name}_weight": value for name, value in weights.items()})
        return {**terms, **added}

    def ramps(self) -> dict[str, float]:
        return {name: part.ramp_at(self.global_step) for name, part in self.adversaries.names().items()}

    def training_step(self, batch: Batch, step: int) -> Tensor:
        loss = super().training_step(batch, step)
        accumulate = self.config["trainer"]["accumulate"]
        complete = (step + 1) % accumulate == 0 or self.trainer.is_last_batch
        # ranks need to agree only when an update is due; only strategies of several processes have the method
        unsynchronised = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        with nullcontext() if complete else unsynchronised():
            self.manual_backward(loss / accumulate)
        if self._reconstruction is not None and self.adversaries.trained_at(self.global_step, self.config["seed"]):
            for name, part in self.adversaries.active(self.global_step).items():
                terms = part.discriminator_loss(batch.media, self._reconstruction)
                # not manual_backward: what prepares DistributedDataParallel for a backward pass knows the tokenizer alone
                (terms["loss"] / accumulate).backward()
                self._log_at_interval({f"adversarial/{name}_{key}": value.detach() for key, value in terms.items()})
        self._reconstruction = None
        if complete:
            self._update()
        return loss.detach()

    def _update(self) -> None:
        own, theirs = self.optimizers()
        self.configure_gradient_clipping(own.optimizer)  # first: what stops the run there leaves both networks as they were
        self._update_adversaries(theirs.optimizer)
        own.step()  # counted: global_step is one further from here on
        own.zero_grad()
        self.lr_schedulers().step()

    def _update_adversaries(self, optimizer: torch.optim.Optimizer) -> None:
        active = list(self.adversaries.active(self.global_step).values())
        parameters = [p for part in active for p in part.parameters() if p.grad is not None]
        if not parameters:
            return
        if world_size() > 1:
            mean = all_sum(torch.cat([p.grad.flatten() for p in parameters])) / world_size()
            for p, gradient in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
                p.grad.copy_(gradient.view_as(p))
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.adversaries.clip or float("inf"))
        self._log_at_interval({"adversarial/gradient_norm": norm})
        logged = self.global_step % self.config["trainer"]["log_every"] == 0
        if (logged or norm.device.type == "cpu") and not norm.isfinite():  # elsewhere, to ask is to wait
            raise ValueError(
                f"the discriminators' gradient is not finite at step {self.global_step}: lower discriminator.optimizer.lr, or set "
                "trainer.precision=32-true"
            )
        factor = self._schedule(self.progress, self.global_step - min(part.start for part in active))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.trainer.strategy.optimizer_step(optimizer, lambda: None)  # of the strategy, not of Lightning's wrapper: it is not counted
        optimizer.zero_grad()

    def _log_at_interval(self, values: Mapping[str, Any]) -> None:
        if self.global_step % self.config["trainer"]["log_every"] == 0:
            for name, value in values.items():
                self.log(name, value, sync_dist=True)

    # ------------------------------------------------------------------------------------------------------- checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["discriminator_state"] = self.adversaries.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "discriminator_state" not in checkpoint:
            raise ConfigError("this checkpoint holds no discriminator: go on with discriminator=none, or begin a new run from its weights")
        try:
            self.adversaries.load_state_dict(checkpoint["discriminator_state"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(f"the checkpoint's discriminator does not fit the configured one: {reason}") from error
