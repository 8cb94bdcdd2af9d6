"""task=tokenizer: media -> codes (or latents) -> media, trained by the tokenizer's own losses, added or balanced.

Validation encodes and decodes all held-out items. A tokenizer that decodes by many network calls (`generative`) decodes only the first
task.decode_items of them, and its losses are measured on all, as averages over items: with the same draws at every validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gentok.build import build
from gentok.bundle import build_tokenizer, load
from gentok.data.code_maps import code_maps
from gentok.data.remote_files import cache_folder
from gentok.distributed import all_sum, rank
from gentok.errors import ConfigError
from gentok.interfaces import Consistency
from gentok.metrics.codebook import CodebookHealth, share_given_back
from gentok.rng import RowRNG
from gentok.training.feature_cache import map_bytes, remember
from gentok.training.modality import modality
from gentok.training.module import GentokModule
from gentok.training.nan_check import Collapse
from gentok.types import Batch, ConditionSpec, Latents, TokenizerOutput, Tokens

__all__ = ["TokenizerTask"]


class TokenizerTask(GentokModule):
    """Trains config["tokenizer"], whose `media_shape` is filled in."""

    part = "tokenizer"

    def configure_model(self) -> None:
        if hasattr(self, "tokenizer"):  # Lightning calls this before every stage
            return
        tokenizer = build_tokenizer(self.config["tokenizer"], self.config["trust"], training=True)
        if self.config.get("inner_from"):  # before `init_from`, which brings its own
            name, path = self.config["inner_from"]
            getattr(tokenizer, name).load_state_dict(load(path, trust=self.config["trust"]).tokenizer.state_dict())
        self.tokenizer = self.prepared(tokenizer)
        self._check_frozen()
        self.augment = build(self.config["task"]["augment"], where="task.augment")
        self.balancer = build(self.config["balancer"], where="balancer") if self.config.get("balancer") else None
        self.consistency = None
        if self.config.get("consistency"):
            self.consistency = build(self.config["consistency"], trust=self.config["trust"], where="consistency", role=Consistency)
        watched = self.config["callbacks"]
        self.collapse = Collapse(watched["collapse_below"], watched["collapse_steps"], _settings(self.config["tokenizer"].get("codebook")))
        sizes = self.tokenizer.spec.vocab_sizes  # none of latents, which have no codebook to be healthy
        self.health = {part: CodebookHealth(sizes) for part in ("train", "held_out")} if sizes else {}
        self.modality = modality(self.tokenizer.spec)
        self.main_metric = self.modality.measured[0]
        heard, meant = self.config["data"].get("sample_rate"), self.tokenizer.spec.sample_rate
        if heard and meant and heard != meant:
            raise ConfigError(f"data.sample_rate={heard}, but this tokenizer takes {meant} Hz: set data.sample_rate={meant}")
        self.pictures: Tensor | None = None
        self.code_maps: Tensor | None = None
        self.sounds: list[tuple[str, Tensor]] | None = None

    def _check_frozen(self) -> None:
        frozen = set(self.config["freeze"])
        book = self.tokenizer.codebook
        if "codebook" in frozen and "encoder" not in frozen and book is not None and not book.gradient_when_frozen:
            raise ConfigError("freeze=[codebook]: this codebook hands no gradient to the encoder when frozen; freeze it too")

    def on_fit_start(self) -> None:
        for health in self.health.values():
            health.to(self.device)
        self._remember_teachers()

    def _remember_teachers(self) -> None:
        """Frozen networks that the tokenizer asks about every picture are asked once (task.teacher_maps GB at most)."""
        limit = (self.config["task"].get("teacher_maps") or 0) * 1e9
        if not limit:
            return
        networks = self.tokenizer.feature_networks()
        grid = tuple(n // self.tokenizer.stride for n in self.tokenizer.spec.media_shape[1:]) if networks else ()
        for name, network in networks.items():
            settings = self.config["tokenizer"].get(name)
            if settings is None or not network.frozen or self.augment.shift:  # shifted pictures are too many
                continue
            sets = self.sets.module
            if map_bytes(sum(map(len, sets)), network.width, grid) <= limit:
                remember(network, settings, sets, grid, cache_folder(self.config["paths"]["cache"]), self.device)

    def training_step(self, batch: Batch, step: int) -> Tensor:
        batch.media = self.augment(batch.media, self.rng(batch, "augment"))

        def forward() -> TokenizerOutput:
            return self.tokenizer(batch, self.rng(batch, "tokenizer"))

        output = forward()
        terms = self.terms(batch, output)
        loss = torch.stack(list(terms.values())).sum() if self.balancer is None else self._balanced(terms, output)
        self._count_codes("train", output.tokens)
        self.log_step(loss, terms, self.modality.amounts(batch.media, batch.lengths, output.tokens), again=forward)
        if self.global_step % self.config["trainer"]["log_every"] == 0 and self.global_step:
            self._log_health("train")
        return loss

    def terms(self, batch: Batch, output: TokenizerOutput) -> dict[str, Tensor]:
        """What the loss is made of, {name: weighted scalar}."""
        if self.consistency is None:
            return output.losses
        return {**output.losses, **self.consistency(self.tokenizer, output, batch.lengths, self.rng(batch, "consistency"))}

    def ramps(self) -> dict[str, float]:
        """Factors of the balancer's weights, where they are not 1."""
        return {}

    def _balanced(self, terms: Mapping[str, Tensor], output: TokenizerOutput) -> Tensor:
        if output.reconstruction is None or not output.reconstruction.requires_grad:
            reason = "makes no reconstruction" if output.reconstruction is None else "has its decoder and encoder frozen"
            raise ValueError(f"a balancer compares gradients at the reconstruction, and {type(self.tokenizer).__name__} {reason}: "
                             "set balancer=none")  # fmt: skip
        loss, norms = self.balancer(terms, output.reconstruction, self.ramps(), self.config["trainer"]["accumulate"])
        if self.global_step % self.config["trainer"]["log_every"] == 0:
            for name, value in norms.items():
                self.log(f"balancer/{name}_norm", value)
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._sums: dict[str, Tensor] = {}
        if self.health:
            self.health["held_out"].reset()

    def validation_step(self, batch: Batch, step: int) -> None:
        media, lengths = batch.media, batch.lengths
        if self.tokenizer.generative:
            output = self.tokenizer(batch, RowRNG.of(self.config["seed"], batch.index).fork("held_out"))
            self._add({f"held_out/{name}": value.expand(len(media)) for name, value in output.losses.items()})
            self._count_codes("held_out", output.tokens)
            chosen = batch.index < self.config["task"]["decode_items"]
            media, lengths = media[chosen], None if lengths is None else lengths[chosen]
            if not len(media):
                self._add({name: media.new_zeros(0) for name in self.modality.measured})  # all processes must name the same sums
                return
            tokens = self._encode(media, lengths)
        else:
            tokens = self._encode(media, lengths)
            self._count_codes("held_out", tokens)
        reconstruction = self.modality.decode(self.tokenizer, tokens, media, lengths)
        if isinstance(tokens, Latents):
            self.log("latent_std", tokens.values.float().std(), batch_size=len(batch.media), sync_dist=True)
        self._add(self.modality.measure(reconstruction, media, lengths))
        self._add(self.tokenizer.scores(batch, tokens))
        if self.consistency is not None:
            share = share_given_back(tokens, self._encode(reconstruction, lengths))
            self._add({"ids_given_back": share[share.isfinite()]})  # a sound without a frame has none
        if step == 0:
            self._show(media, tokens, reconstruction, lengths)

    def _encode(self, media: Tensor, lengths: Tensor | None) -> Tokens | Latents:
        return self.tokenizer.encode(media) if lengths is None else self.tokenizer.encode(media, lengths)

    def _show(self, media: Tensor, tokens: Tokens | Latents, reconstruction: Tensor, lengths: Tensor | None) -> None:
        if n := self.config["task"]["pictures"]:
            self.code_maps = code_maps(tokens.rows(slice(n))) if isinstance(tokens, Tokens) else None
            ends = None if lengths is None else lengths[:n]
            self.pictures = torch.cat([self.modality.pictures(part[:n], ends) for part in (media, reconstruction)])
        both = {"original": media, "reconstruction": reconstruction}
        self.sounds = self.modality.waves(both, lengths, self.config["task"].get("sounds", 0))

    def _add(self, values: Mapping[str, Tensor]) -> None:
        """Values float [b], one per item, of which the mean over all held-out items is logged."""
        for name, value in values.items():
            total = torch.stack([value.double().sum(), value.new_tensor(len(value), dtype=torch.float64)])
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_health("held_out")
        names = sorted(self._sums)
        sums = all_sum(torch.stack([self._sums[name] for name in names]))
        for name, (total, count) in zip(names, sums.unbind()):
            self.log(name, (total / count).float(), prog_bar=name == self.modality.measured[0])

    def _count_codes(self, part: str, tokens: Tokens | Latents) -> None:
        if isinstance(tokens, Tokens):
            self.health[part].update(tokens.codes)

    def _log_health(self, part: str) -> None:
        if not self.health:
            return
        health = self.health[part].compute()
        for name, value in health.scalars(f"codebook/{part}_").items():
            self.log(name, value)
        if part == "train":
            self.collapse.update(health, self.global_step)
            self.health[part].reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        counts = {}
        if self.health:
            counts = {key: [all_sum(c) for c in value] for key, value in self.health["train"].state_dict().items()}  # of all processes
        checkpoint["training"] |= {"health": counts, "collapse": self.collapse.state_dict()}
        if self.balancer is not None:
            checkpoint["training"]["balancer"] = self.balancer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.health and rank() == 0:  # which then counts for all
            self.health["train"].load_state_dict(checkpoint["training"]["health"])
        self.collapse.load_state_dict(checkpoint["training"]["collapse"])
        if self.balancer is not None:
            if "balancer" not in checkpoint["training"]:
                raise ConfigError("this checkpoint holds no balancer: go on with balancer=none, or begin a new run from its weights")
            self.balancer.load_state_dict(checkpoint["training"]["balancer"])

    def document(self) -> dict[str, Any]:
        return {
            "kind": "tokenizer",
            "tokenizer": {"config": self.tokenizer.portable(self.config["tokenizer"]), "spec": self.tokenizer.spec.to_dict()},
            "condition_spec": ConditionSpec().to_dict(),
            "meta": {"step": self.global_step, "data": self.config["data"] or None},
        }


def _settings(codebook: Any) -> set[str]:
    """The names of a codebook's settings, and of the codebook inside, where it is made of one."""
    if not isinstance(codebook, Mapping):
        return set()
    return set(codebook) | _settings(codebook.get("codebook"))
