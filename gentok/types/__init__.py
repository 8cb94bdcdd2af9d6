"""The words that every part of gentok speaks: tokens, latents, conditions, batches, and the Protocols of the parts.

Axes, used in every name, docstring and shape comment:
    B batch · K codebook levels, coarse to fine · N positions · M latent positions (N but for a pyramid) · V vocabulary of a
    level · D feature width · S sequence step · G slots of a step · C media channels · H, W image · T samples of audio

The words themselves are defined in gentok/types, a file per kind; everything else imports them from here. They need torch alone.
"""

from gentok.rng import RowRNG
from gentok.types.condition_specs import ClassSpec, ConditionSpec, IdsSpec, VectorsSpec
from gentok.types.conditions import NULL_CLASS, Class, Condition, Ids, Kept, Part, Vectors
from gentok.types.formats import fingerprint
from gentok.types.grids import Frames, Grid, Line, Pyramid, Raster
from gentok.types.kept_text import KEEP_TEXT, TEXT
from gentok.types.outputs import Batch, LossOutput, Quantized, TokenizerOutput
from gentok.types.token_spec import TokenSpec
from gentok.types.tokens import ABSENT, UNKNOWN, Latents, Tokens
from gentok.types.trajectories import Trajectories

__all__ = [
    "ABSENT", "UNKNOWN", "NULL_CLASS", "Grid", "Raster", "Line", "Frames", "Pyramid", "TokenSpec", "Tokens", "Latents",
    "KEEP_TEXT", "TEXT", "Class", "Ids", "Vectors", "Kept", "Part", "Condition", "ClassSpec", "IdsSpec", "VectorsSpec", "ConditionSpec",
    "Batch", "Quantized", "TokenizerOutput", "LossOutput", "RowRNG", "Trajectories", "fingerprint",
]  # fmt: skip
