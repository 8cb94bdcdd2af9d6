"""gentok: tokenizers that turn images and sound into tokens, generators over those tokens, exact samplers, one codebook interface.

    model = gentok.load("mnist5k_ar")                      # a bundle, a training checkpoint, or a model that ships with gentok
    images = model.sample(n=16, condition=7, guidance=1.5)
    tokens = model.encode(images)
    again = model.decode(tokens)

What users need is here; every component is imported from its room (gentok.codebooks.vq, gentok.samplers.maskgit, ...). Importing gentok
alone imports nothing else: a name is imported when it is first used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gentok.moved import MovedModules

if TYPE_CHECKING:
    from gentok.bundle import Bundle as Bundle
    from gentok.bundle import from_pretrained as from_pretrained
    from gentok.bundle import load as load
    from gentok.certification import certify as certify
    from gentok.data.own_dataset import OwnData as OwnData
    from gentok.errors import ConfigError as ConfigError
    from gentok.errors import FormatError as FormatError
    from gentok.interfaces import Codebook as Codebook
    from gentok.interfaces import Generator as Generator
    from gentok.interfaces import Tokenizer as Tokenizer
    from gentok.rng import RowRNG as RowRNG
    from gentok.samplers.base import Sampler as Sampler
    from gentok.sampling import Samples as Samples
    from gentok.sampling import sample as sample
    from gentok.training.own_data import train as train
    from gentok.types import ABSENT as ABSENT
    from gentok.types import UNKNOWN as UNKNOWN
    from gentok.types import Batch as Batch
    from gentok.types import Condition as Condition
    from gentok.types import ConditionSpec as ConditionSpec
    from gentok.types import Latents as Latents
    from gentok.types import Tokens as Tokens
    from gentok.types import TokenSpec as TokenSpec

__version__ = "0.1.0"

_PUBLIC = {
    "load": "gentok.bundle", "from_pretrained": "gentok.bundle", "Bundle": "gentok.bundle", "ConfigError": "gentok.errors",
    "FormatError": "gentok.errors",
    "Codebook": "gentok.interfaces", "Generator": "gentok.interfaces", "Tokenizer": "gentok.interfaces", "RowRNG": "gentok.rng",
    "Sampler": "gentok.samplers.base", "Samples": "gentok.sampling", "sample": "gentok.sampling",
    "certify": "gentok.certification", "train": "gentok.training.own_data", "OwnData": "gentok.data.own_dataset",
    **dict.fromkeys(
        ("ABSENT", "UNKNOWN", "Batch", "Condition", "ConditionSpec", "Latents", "Tokens", "TokenSpec"), "gentok.types"
    ),
}  # fmt: skip
"""Public name -> the module that it is imported from."""
__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'gentok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])


sys.meta_path.append(MovedModules())  # last, so that it costs nothing where a module is found
