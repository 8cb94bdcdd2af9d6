"""gentok: tokenizers that turn images and sound into tokens, generators over those tokens, exact samplers, one codebook interface.

`gentok.load(path)` gives a trained model from a bundle folder or a training checkpoint; everything else is imported from its room
(gentok.codebooks.vq, gentok.samplers.maskgit, ...). Importing gentok imports nothing else.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from gentok.bundle import load

        return load
    raise AttributeError(f"module 'gentok' has no attribute {name!r}")
