"""Where a generator's cached tokens come from: its tokenizer encodes the data, or another model draws them for their conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentok.build import build, resolve
from gentok.bundle import Bundle, build_generator, load
from gentok.data.token_dataset import TokenDataset
from gentok.data.trajectory_set import TaughtItems, TeacherCodes, TrajectoryDataset
from gentok.generators.base import Jumps
from gentok.interfaces import Generator
from gentok.rng import RowRNG
from gentok.sampling import load_generator
from gentok.types import Batch, ConditionSpec, Tokens, fingerprint

__all__ = ["Drawn", "Encoded", "Taught", "built_generator", "token_source"]


class Encoded:
    """The data, encoded by the tokenizer.

    Args:
        tokenizer: the frozen one.
        augment: the configuration of what makes the views differ.
        trust: packages beside gentok whose components may be built.
    """

    def __init__(self, tokenizer: Bundle, augment: Any, trust: Any):
        self.tokenizer, self.augment = tokenizer, build(augment, trust=trust, where="task.augment")

    def items(self, split: Any) -> Any:
        """A split as it is encoded."""
        return split

    def encoder(self, split: Any, device: Any) -> Any:
        """What encodes it, on a device."""
        return self.tokenizer.to(device).tokenizer

    def read(self, path: Path, split: Any, seed: int) -> TokenDataset:
        """The encoded split."""
        return TokenDataset(path, self.tokenizer.spec, seed=seed)


class Taught:
    """What a teacher makes of noise, for the conditions of the data.

    Args:
        model: the distilled generator, with its teacher.
    """

    augment = None

    def __init__(self, model: Any):
        self.model = model
        self.about = {"teacher": fingerprint(model.teacher.state_dict()), **model.way}

    def items(self, split: Any) -> TaughtItems:
        """As Encoded.items."""
        return TaughtItems(split, self.about)

    def encoder(self, split: Any, device: Any) -> TeacherCodes:
        """As Encoded.encoder."""
        return TeacherCodes(self.model.to(device), _name(split))

    def read(self, path: Path, split: Any, seed: int) -> TrajectoryDataset:
        """As Encoded.read."""
        return TrajectoryDataset(path, self.model, self.about, _name(split), seed)


class Drawn(Encoded):
    """What the generator draws itself, an item in the place of each of the data's (Generator.draw_items).

    Args:
        tokenizer, augment, trust: as of Encoded.
        model: the generator, which was given its models.
    """

    def __init__(self, tokenizer: Bundle, augment: Any, trust: Any, model: Generator):
        super().__init__(tokenizer, augment, trust)
        self.model = model

    def items(self, split: Any) -> TaughtItems:
        """As Encoded.items."""
        return TaughtItems(split, self.model.own_items or {})

    def encoder(self, split: Any, device: Any) -> _Drawer:
        """As Encoded.encoder."""
        return _Drawer(super().encoder(split, device), self.model, _name(split))


class _Drawer:
    """A generator that draws items like those that the tokenizer encodes, in the tokenizer's place."""

    draws = True

    def __init__(self, tokenizer: Any, model: Generator, split: str):
        self.tokenizer, self.model, self.split = tokenizer, model, split
        self.spec, self.written_condition = tokenizer.spec, tokenizer.written_condition

    def to(self, device: Any) -> _Drawer:
        self.tokenizer.to(device)
        return self

    def encode_batch(self, batch: Batch, rng: RowRNG) -> Tokens:
        return self.model.draw_items(self.tokenizer.encode_batch(batch, rng), batch.condition, rng.fork(f"drawn {self.split}"))


def _name(split: Any) -> str:
    return str(split.description.get("split", "set"))


def built_generator(config: dict[str, Any], tokenizer: Any, condition_spec: ConditionSpec) -> Any:
    """The generator of a run, with the weights of the trained one inside it, where there is one."""
    generator = build_generator(config["generator"], tokenizer, condition_spec, config["trust"])
    if config.get("inner_from"):
        generator.take_inner(load(config["inner_from"][1], trust=config["trust"]).generator)
    return generator


def token_source(config: dict[str, Any], tokenizer: Bundle, condition_spec: ConditionSpec) -> Encoded | Taught:
    """What makes the cached tokens of a run."""
    if config.get("inner_from"):
        model = built_generator(config, tokenizer.tokenizer, condition_spec).eval()
        if isinstance(model, Jumps) and model.taught:
            return Taught(model)
    encoded = tokenizer, config["task"]["augment"], config["trust"]
    if resolve(config["generator"]["_target_"], config["trust"]).own_items is not Generator.own_items:
        model = built_generator(config, tokenizer.tokenizer, condition_spec)
        model.with_models(load_generator)
        if model.own_items is not None:
            return Drawn(*encoded, model)
    return Encoded(*encoded)
