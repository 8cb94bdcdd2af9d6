"""task=generator: a model of the codes (or latents) of a frozen tokenizer, from cached tokens or from media."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gentok.build import build, resolve
from gentok.bundle import Bundle
from gentok.data.code_maps import code_maps
from gentok.errors import ConfigError
from gentok.generators.base import Jumps
from gentok.rng import RowRNG
from gentok.sampling import load_generator, pick_sampler, sample_tokens
from gentok.training.modality import modality
from gentok.training.module import GentokModule, Unregistered
from gentok.training.token_source import Encoded, Taught, built_generator, token_source
from gentok.types import Batch, Condition, ConditionSpec, Frames, Latents, LossOutput, Tokens

__all__ = ["GeneratorTask"]


class GeneratorTask(GentokModule):
    """Trains config["generator"].

    Args:
        config: the resolved configuration of the run.
        tokenizer: the loaded bundle whose tokens are modelled.
        condition_spec: what the generator is conditioned on.
    """

    part = "generator"

    def __init__(self, config: dict[str, Any], tokenizer: Bundle, condition_spec: ConditionSpec):
        super().__init__(config)
        self.frozen = Unregistered(tokenizer)
        self.condition_spec = condition_spec.without(tokenizer.tokenizer.written_condition)

    @property
    def fingerprint(self) -> str:
        return self.frozen.module.spec.encode_fingerprint

    @property
    def guidance(self) -> float:
        """Of the logged samples, and what the bundle recommends: task.guidance, or 1 where there is no condition to be guided by, or the
        guidance is in what the model has learned."""
        own = issubclass(resolve(self.config["generator"]["_target_"], self.config["trust"]), Jumps)
        return self.config["task"]["guidance"] if self.condition_spec.parts and not own else 1.0

    def token_source(self) -> Encoded | Taught:
        """What makes the tokens that are cached."""
        return token_source(self.config, self.frozen.module, self.condition_spec)

    def configure_model(self) -> None:
        if hasattr(self, "generator"):  # Lightning calls this before every stage
            return
        tokenizer = self.frozen.module.tokenizer
        self.generator = self.prepared(built_generator(self.config, tokenizer, self.condition_spec))
        self.generator.with_models(load_generator)
        if self.generator.own_items is not None and not self.config["task"]["views"]:
            raise ConfigError("this generator trains on items that it has drawn before training: set task.views to 1 or more, per item of the data")
        self.sampler = pick_sampler(self.config["sampler"], type(self.generator), self.config["trust"])
        self.augment = build(self.config["task"]["augment"], where="task.augment")
        self.modality = modality(tokenizer.spec)
        self.main_metric = "held_out_bits_per_token" if self.generator.has_nll else "held_out_loss"
        self.pictures: Tensor | None = None
        self.code_maps: Tensor | None = None
        self.sounds: list[tuple[str, Tensor]] | None = None

    def tokens(self, batch: Batch, augmented: bool) -> Tokens | Latents:
        """The batch's cached tokens, or those of its media."""
        if batch.tokens is not None:
            return batch.tokens
        media = self.augment(batch.media, self.rng(batch, "augment")) if augmented else batch.media
        return self.frozen.module.to(self.device).encode_batch(replace(batch, media=media), self.rng(batch, "encoding"))

    def training_step(self, batch: Batch, step: int) -> Tensor:
        tokens = self.tokens(batch, augmented=True)
        self.generator.progress = self.progress

        def loss() -> LossOutput:
            return self.generator.loss(tokens, batch.condition, self.rng(batch, "generator"))

        output = loss()
        self.log_step(output.loss, output.terms, self._amounts(tokens), again=loss)
        return self.by_count(output.loss, output.count)

    def _amounts(self, tokens: Tokens | Latents) -> dict[str, Any]:
        if tokens.lengths is None:
            return {"tokens": tokens.present.numel()}
        out = {"tokens": tokens.present.sum()}
        grid = tokens.spec.grid
        return {**out, "seconds_of_sound": tokens.lengths.sum() / grid.rate_hz} if isinstance(grid, Frames) else out

    def validation_step(self, batch: Batch, step: int) -> None:
        tokens = self.tokens(batch, augmented=False)
        rng = RowRNG.of(self.config["seed"], batch.index).fork("held out")  # the same at every validation: curves are comparable
        if self.generator.has_nll:
            nats, count = self.generator.nll_bound(tokens, batch.condition, rng), int(tokens.present.sum())
            value = nats.sum() / math.log(2) / count
        else:
            output = self.generator.loss(tokens, batch.condition, rng)
            value, count = output.loss, int(output.count)
        self.log(self.main_metric, value, batch_size=count, prog_bar=True, sync_dist=True)
        if step == 0 and self.config["task"]["pictures"] and self.trainer.is_global_zero:
            self._draw_pictures(tokens, batch.condition)

    @torch.no_grad()
    def _draw_pictures(self, tokens: Tokens | Latents, condition: Condition) -> None:
        """The same seeds and conditions every time; here and not later, since the averaged weights are in place only while validating.

        Items of unequal length have the conditions and lengths of the first held-out items; others all classes in turn or, where there
        are none, the conditions of these items.
        """
        n, options = self.config["task"]["pictures"], {}
        if tokens.lengths is None:
            classes = {name: list(spec.names) for name, spec in self.condition_spec.parts if spec.kind == "class"}
            if classes or not self.condition_spec.parts:
                condition = self.condition_spec.parse(classes or None, n).to(self.device)
            else:
                n = min(n, tokens.batch)
                condition = condition.rows(torch.arange(n, device=self.device))
        else:
            n = min(n, tokens.batch)
            condition, options["lengths"] = condition.rows(torch.arange(n, device=self.device)), tokens.lengths[:n]
            if tokens.spec.grammar:  # says what the held-out items say, and ends as it ends
                options = {"known": self.frozen.module.tokenizer.prompt(condition, None)}
        output = sample_tokens(
            self.generator,
            condition,
            self.sampler,
            rng=RowRNG.of(0, torch.arange(n, device=self.device)),
            guidance=self.guidance,
            **options,
        )
        tokenizer = self.frozen.module.to(self.device).tokenizer
        media = tokenizer.decode(output.tokens)
        ends = tokenizer.samples_of(output.tokens, media, least=1)
        ends = None if ends is None else ends.cpu()
        self.pictures = self.modality.pictures(media, ends)
        self.code_maps = code_maps(output.tokens) if isinstance(output.tokens, Tokens) else None
        self.sounds = self.modality.waves({"sample": media}, ends, self.config["task"].get("sounds", 0))

    def document(self) -> dict[str, Any]:
        bundle = self.frozen.module
        return {
            "kind": "generator",
            "tokenizer": {"config": bundle.tokenizer_config, "spec": bundle.spec.to_dict()},
            "generator": {"config": self.generator.portable(self.config["generator"]), "spec": self.generator.spec.to_dict()},
            "condition_spec": self.condition_spec.to_dict(),
            "meta": {"step": self.global_step, "data": self.config["data"] or None},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_state"] = {k: v.cpu() for k, v in self.frozen.module.tokenizer.state_dict().items()}
