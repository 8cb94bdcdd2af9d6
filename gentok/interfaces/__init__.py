"""What components are: the base classes of every role, with each hook that the rest of gentok uses and its default.

A component of gentok or of a package of your own subclasses one of them. The base class of samplers is gentok.samplers.base.Sampler.
"""

from gentok.interfaces.codebook import Codebook
from gentok.interfaces.component import Component, LocalPath, component_ids
from gentok.interfaces.dataset import MediaDataset
from gentok.interfaces.generator import Generator
from gentok.interfaces.parts import (
    Adversary,
    Augmentation,
    Balancer,
    Consistency,
    Discriminator,
    FeatureNetwork,
    Guidance,
    Layer,
    Loss,
    MediaData,
    Optimizer,
    Schedule,
    TimeDistribution,
)
from gentok.interfaces.tokenizer import StreamingTokenizer, Tokenizer, TokenizerStream

__all__ = [
    "Adversary", "Augmentation", "Balancer", "Codebook", "Component", "Consistency", "Discriminator", "FeatureNetwork", "Generator",
    "Guidance", "Layer", "LocalPath", "Loss", "MediaData", "MediaDataset", "Optimizer", "Schedule", "StreamingTokenizer",
    "TimeDistribution", "Tokenizer", "TokenizerStream", "component_ids",
]  # fmt: skip
