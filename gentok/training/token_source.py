"""Where a generator's cached tokens come from: its tokenizer encodes the data, or its teacher makes them of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentok.build import build
from gentok.bundle import Bundle, build_generator, load
from gentok.data.token_dataset import TokenDataset
from gentok.data.trajectory_set import TaughtItems, TeacherCodes, TrajectoryDataset
from gentok.generators.distilled import DistilledTransformer
from gentok.types import ConditionSpec, fingerprint

__all__ = ["Encoded", "Taught", "built_generator", "token_source"]


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
        if isinstance(model, DistilledTransformer) and model.taught:
            return Taught(model)
    return Encoded(tokenizer, config["task"]["augment"], config["trust"])
