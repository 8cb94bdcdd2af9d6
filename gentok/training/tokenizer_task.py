"""task=tokenizer: media -> codes -> media, trained by the tokenizer's own losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentok.build import build
from gentok.bundle import build_tokenizer
from gentok.metrics.codebook import CodebookHealth
from gentok.metrics.image import psnr
from gentok.tokens import Batch, ConditionSpec, TokenizerOutput
from gentok.training.module import GentokModule

__all__ = ["TokenizerTask"]


class TokenizerTask(GentokModule):
    """Trains config["tokenizer"], whose `media_shape` is filled in."""

    def configure_model(self) -> None:
        if hasattr(self, "tokenizer"):
            return
        self.tokenizer = build_tokenizer(self.config["tokenizer"], self.config["trust"], training=True)
        self.augment = build(self.config["task"]["augment"], where="task.augment")
        self.health = {part: CodebookHealth(self.tokenizer.spec.vocab_sizes) for part in ("train", "held_out")}
        self.pictures: Tensor | None = None

    def training_step(self, batch: Batch, step: int) -> Tensor:
        batch.media = self.augment(batch.media, self.noise(batch, "augment"))
        output = self.tokenizer(batch, self.noise(batch, "tokenizer"))
        terms = self.terms(batch, output)
        loss = torch.stack(list(terms.values())).sum()
        self.health["train"].update(output.tokens.codes)
        self.log_step(loss, terms, len(batch.media), "images")
        if self.global_step % self.config["trainer"]["log_every"] == 0 and self.global_step:
            self._log_health("train")
        return loss

    def terms(self, batch: Batch, output: TokenizerOutput) -> dict[str, Tensor]:
        """What the loss is the sum of, {name: weighted scalar}."""
        return output.losses

    def on_validation_epoch_start(self) -> None:
        self.health["held_out"].reset()

    def validation_step(self, batch: Batch, step: int) -> None:
        tokens = self.tokenizer.encode(batch.media)
        reconstruction = self.tokenizer.decode(tokens)
        self.health["held_out"].update(tokens.codes)
        self.log("psnr", psnr(reconstruction, batch.media).mean(), batch_size=len(batch.media), prog_bar=True, sync_dist=True)
        if step == 0:
            n = self.config["task"]["pictures"]
            pairs = torch.stack([batch.media[:n].float(), reconstruction[:n].float()])
            self.pictures = pairs.flatten(0, 1).cpu()

    def on_validation_epoch_end(self) -> None:
        self._log_health("held_out")

    def _log_health(self, part: str) -> None:
        for name, value in self.health[part].compute().scalars(f"codebook/{part}_").items():
            self.log(name, value)
        if part == "train":
            self.health[part].reset()

    def document(self) -> dict[str, Any]:
        return {
            "kind": "tokenizer",
            "tokenizer": {"config": self.config["tokenizer"], "spec": self.tokenizer.spec.to_dict()},
            "condition_spec": ConditionSpec().to_dict(),
            "meta": {"step": self.global_step, "data": self.config["data"]},
        }
