"""The words that every part of gentok speaks: tokens, latents, conditions, batches, and the Protocols of the parts.

Axes, used in every name, docstring and shape comment:
    B batch · K codebook levels, coarse to fine · N positions · M latent positions (N but for a pyramid) · V vocabulary of a
    level · D feature width · S sequence step · G slots of a step · C media channels · H, W image · T samples of audio

The words themselves are defined in gentok/words, a file per kind; everything else imports them from here. They need torch alone.
"""

from gentok.noise import Noise
from gentok.words.condition_specs import ClassSpec, ConditionSpec, IdsSpec, VectorsSpec
from gentok.words.conditions import NULL_CLASS, Class, Condition, Ids, Part, Vectors
from gentok.words.formats import FormatError, fingerprint
from gentok.words.grids import Frames, Grid, Line, Pyramid, Raster
from gentok.words.items import ABSENT, UNKNOWN, Latents, Tokens
from gentok.words.protocols import Codebook, Generator, Streams, Tokenizer, encoding
from gentok.words.results import Batch, LossOutput, Quantized, TokenizerOutput
from gentok.words.spec import TokenSpec

__all__ = [
    "ABSENT", "UNKNOWN", "NULL_CLASS", "FormatError", "Grid", "Raster", "Line", "Frames", "Pyramid", "TokenSpec", "Tokens", "Latents",
    "Class", "Ids", "Vectors", "Part", "Condition", "ClassSpec", "IdsSpec", "VectorsSpec", "ConditionSpec", "Batch", "Quantized",
    "TokenizerOutput", "LossOutput", "Noise", "Codebook", "Tokenizer", "Generator", "Streams", "encoding", "fingerprint",
]  # fmt: skip
