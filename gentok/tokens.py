"""The words that every part of gentok speaks: tokens, latents, conditions, batches, and the Protocols of the parts.

Axes, used in every name, docstring and shape comment:
    B batch · K codebook levels, coarse to fine · N positions · M latent positions (N but for a pyramid) · V vocabulary of a
    level · D feature width · S sequence step · G slots of a step · C media channels · H, W image · T samples of audio

This file needs torch alone and imports nothing of gentok but `noise`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentok.noise import Noise

__all__ = [
    "ABSENT", "UNKNOWN", "NULL_CLASS", "FormatError", "Raster", "Line", "Frames", "Pyramid", "TokenSpec", "Tokens", "Latents",
    "Class", "Ids", "Vectors", "Condition", "ClassSpec", "IdsSpec", "VectorsSpec", "ConditionSpec", "Batch", "Quantized",
    "TokenizerOutput", "LossOutput", "Noise", "Codebook", "Tokenizer", "Generator", "Streams", "fingerprint",
]  # fmt: skip

ABSENT = -1
"""A cell that is not there: a dropped level, beyond a row's length, or one that the spec does not have."""
UNKNOWN = -2
"""A hole: a cell that a sampler is to fill."""
NULL_CLASS = -1
"""The class id of "no class": what classifier-free guidance contrasts with."""


class FormatError(ValueError):
    """A file or a dictionary was written by a newer or another format; the message says what was expected and what came."""


# ------------------------------------------------------------------------------------------------------------------ grids


@dataclass(frozen=True)
class Raster:
    """An image's tokens, row by row: position n is (n // w, n % w)."""

    h: int
    w: int

    @property
    def positions(self) -> int:
        return self.h * self.w


@dataclass(frozen=True)
class Line:
    """An ordered list of n tokens without a place; `nested` when every prefix is a valid code (FlexTok yes, TiTok no)."""

    n: int
    nested: bool = False

    @property
    def positions(self) -> int:
        return self.n


@dataclass(frozen=True)
class Frames:
    """Tokens along time, `rate_hz` per second. `n` is the number of frames of the longest item, None where unbounded."""

    rate_hz: float
    n: int | None = None

    @property
    def positions(self) -> int | None:
        return self.n


@dataclass(frozen=True)
class Pyramid:
    """Square scales, coarse to fine: position n lies in scale s where sum(sides[:s]²) <= n (VAR, TokenFlow)."""

    sides: tuple[int, ...]

    @property
    def positions(self) -> int:
        return sum(side * side for side in self.sides)


Grid = Raster | Line | Frames | Pyramid
_GRIDS = {"raster": Raster, "line": Line, "frames": Frames, "pyramid": Pyramid}


def _strict(cls: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`values` as constructor arguments of `cls`; an unknown key is a newer format and stops with a line."""
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise FormatError(f"{what} has the unknown key {unknown[0]!r}: it was written by a newer gentok; upgrade gentok to read it")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def fingerprint(*parts: Any) -> str:
    """16 hex digits over tensors (dtype, shape, bytes), state dicts and JSON-able settings, in the order given."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            value = part.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for key in sorted(part):
                digest.update(key.encode())
                digest.update(fingerprint(part[key]).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- TokenSpec


@dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens are: enough to model, store, check and decode them, and nothing of how they were made.

    vocab_sizes: V of each level, coarse to fine; empty for Latents, which have a `width` instead.
    strides: level k exists at positions n % strides[k] == 0 (SNAC); default 1 everywhere.
    latent_positions: M, where it differs from N (a pyramid). nested_levels: coarse levels alone are a valid code.
    parts: named id ranges (name, start, stop) of a mixed vocabulary, for example text | speech.
    media_shape: (C, H, W) or (C,), what decode returns. sample_rate in Hz, for audio.
    encode_fingerprint: hash of every tensor and setting that codes depend on; decode_fingerprint: of the rest.
    """

    vocab_sizes: tuple[int, ...]
    grid: Grid
    strides: tuple[int, ...] | None = None
    latent_positions: int | None = None
    width: int | None = None
    nested_levels: bool = False
    parts: tuple[tuple[str, int, int], ...] = ()
    modality: str = "image"
    media_shape: tuple[int, ...] | None = None
    sample_rate: int | None = None
    encode_fingerprint: str = ""
    decode_fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.vocab_sizes and self.width is None:
            raise ValueError("a TokenSpec needs vocab_sizes (tokens) or a width (latents); it has neither")
        if any(v < 1 for v in self.vocab_sizes):
            raise ValueError(f"every level needs a vocabulary of at least 1; vocab_sizes = {self.vocab_sizes}")
        if self.strides is not None and len(self.strides) != self.levels:
            raise ValueError(f"strides must name one stride per level: {self.levels} levels, strides = {self.strides}")

    @property
    def levels(self) -> int:
        """K."""
        return len(self.vocab_sizes)

    @property
    def positions(self) -> int:
        """N, of the longest item where items differ. Raises ValueError where the grid has no bound."""
        if self.grid.positions is None:
            raise ValueError("these tokens have no fixed number of positions: set the grid's n (the longest item's frames)")
        return self.grid.positions

    @property
    def vocab(self) -> int:
        """The largest level's V: the width of every logits tensor."""
        return max(self.vocab_sizes)

    @property
    def bits(self) -> float:
        """Bits of one item: the sum over its cells of log2 V."""
        exists = self.exists()
        return sum(float(exists[k].sum()) * torch.log2(torch.tensor(float(v))).item() for k, v in enumerate(self.vocab_sizes))

    def exists(self, positions: int | None = None) -> Tensor:
        """bool [K, N]: the cells that the spec has (all of them unless there are strides)."""
        n = torch.arange(self.positions if positions is None else positions)
        return torch.stack([n % stride == 0 for stride in self.strides or (1,) * self.levels])

    def same_codes(self, other: TokenSpec) -> bool:
        """Whether both specs mean the same codes: everything but the decoder's fingerprint agrees."""
        return replace(self, decode_fingerprint="") == replace(other, decode_fingerprint="")

    def describe(self) -> str:
        """One phrase for messages: '64 positions x 1 level of 512 (raster 8x8), fingerprint 12ab...'."""
        kind = type(self.grid).__name__.lower()
        sizes = f"{self.levels} level(s) of {', '.join(map(str, sorted(set(self.vocab_sizes))))}" if self.levels else f"width {self.width}"
        return f"{self.grid.positions} positions x {sizes} ({kind}), fingerprint {self.encode_fingerprint or 'none'}"

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["grid"] = {"kind": type(self.grid).__name__.lower(), **dataclasses.asdict(self.grid)}
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenSpec:
        values = _strict(cls, values, "the token spec")
        grid = dict(values["grid"])
        kind = grid.pop("kind", None)
        if kind not in _GRIDS:
            raise FormatError(f"the token spec has a grid of kind {kind!r}; this gentok knows {', '.join(_GRIDS)}")
        values["grid"] = _GRIDS[kind](**_strict(_GRIDS[kind], grid, f"the {kind} grid"))
        values["parts"] = tuple(tuple(part) for part in values.get("parts", ()))
        return cls(**values)


# ------------------------------------------------------------------------------------------------------ Tokens and Latents


@dataclass
class Tokens:
    """The single currency: codes int64 [B, K, N] with values 0..V_k-1, ABSENT or UNKNOWN; lengths int64 [B] in positions, or None."""

    codes: Tensor
    spec: TokenSpec
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int64 or self.codes.dim() != 3:
            raise ValueError(f"codes must be int64 [B, K, N]; got {self.codes.dtype} {tuple(self.codes.shape)}")
        if self.codes.shape[1] != self.spec.levels:
            raise ValueError(f"codes have {self.codes.shape[1]} levels, their spec {self.spec.levels}")

    @property
    def batch(self) -> int:
        return self.codes.shape[0]

    @property
    def present(self) -> Tensor:
        """bool [B, K, N]: cells that hold a code."""
        return self.codes >= 0

    @property
    def holes(self) -> Tensor:
        """bool [B, K, N]: cells that are UNKNOWN."""
        return self.codes == UNKNOWN

    @classmethod
    def unknown(cls, spec: TokenSpec, batch: int, lengths: Tensor | None = None, device: torch.device | str = "cpu") -> Tokens:
        """All holes, ABSENT where the spec has no cell and beyond each row's length."""
        codes = torch.full((batch, spec.levels, spec.positions), UNKNOWN, dtype=torch.int64, device=device)
        codes[:, ~spec.exists().to(device)] = ABSENT
        if lengths is not None:
            beyond = torch.arange(spec.positions, device=device) >= lengths.to(device)[:, None]
            codes.masked_fill_(beyond[:, None], ABSENT)
        return cls(codes, spec, lengths)

    def validate(self) -> Tokens:
        """Raises ValueError on a code outside its level's vocabulary or a cell that the spec does not have; returns itself."""
        top = torch.tensor(self.spec.vocab_sizes, device=self.codes.device)[:, None]
        bad = (self.codes >= top) | (self.codes < UNKNOWN)
        if bad.any():
            b, k, n = bad.nonzero()[0].tolist()
            raise ValueError(f"code {int(self.codes[b, k, n])} at row {b}, level {k}, position {n}: level {k} has ids 0..{int(top[k]) - 1}")
        missing = ~self.spec.exists(self.codes.shape[2]).to(self.codes.device)
        if (self.codes[:, missing] >= 0).any():
            raise ValueError("a code stands in a cell that the spec does not have (see TokenSpec.strides)")
        return self

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.codes.to(device), self.spec, None if self.lengths is None else self.lengths.to(device))

    def rows(self, index: Tensor | slice | Sequence[int]) -> Tokens:
        return Tokens(self.codes[index], self.spec, None if self.lengths is None else self.lengths[index])

    def truncate(self, levels: int | None = None, positions: int | None = None) -> Tokens:
        """Later levels and positions made ABSENT: a coarser code of the same item, for nested levels and nested lines."""
        codes = self.codes.clone()
        if levels is not None:
            codes[:, levels:] = ABSENT
        if positions is not None:
            codes[:, :, positions:] = ABSENT
        return Tokens(codes, self.spec, self.lengths)


@dataclass
class Latents:
    """Continuous codes: values float [B, D, N] of a spec without vocabulary; only Entities generators accept them."""

    values: Tensor
    spec: TokenSpec
    lengths: Tensor | None = None


# ------------------------------------------------------------------------------------------------------------- Conditions


@dataclass
class Class:
    """Class ids int64 [B]; NULL_CLASS means no class."""

    ids: Tensor

    def null(self) -> Class:
        return Class(torch.full_like(self.ids, NULL_CLASS))

    def drop(self, rows: Tensor) -> Class:
        return Class(self.ids.masked_fill(rows, NULL_CLASS))

    def select(self, index: Any) -> Class:
        return Class(self.ids[index])

    def to(self, device: Any) -> Class:
        return Class(self.ids.to(device))

    @staticmethod
    def concat(items: Sequence[Class]) -> Class:
        return Class(torch.cat([i.ids for i in items]))


@dataclass
class Ids:
    """Symbol ids int64 [B, L] (characters, phonemes), ABSENT beyond each row's end; an empty row is the null condition."""

    ids: Tensor

    def null(self) -> Ids:
        return Ids(torch.full_like(self.ids, ABSENT))

    def drop(self, rows: Tensor) -> Ids:
        return Ids(self.ids.masked_fill(rows[:, None], ABSENT))

    def select(self, index: Any) -> Ids:
        return Ids(self.ids[index])

    def to(self, device: Any) -> Ids:
        return Ids(self.ids.to(device))

    @staticmethod
    def concat(items: Sequence[Ids]) -> Ids:
        return Ids(torch.cat([i.ids for i in items]))


@dataclass
class Vectors:
    """Vectors x float [B, L, D] of a frozen encoder, mask bool [B, L] True where there is one; an empty row is the null condition."""

    x: Tensor
    mask: Tensor

    def null(self) -> Vectors:
        return Vectors(self.x, torch.zeros_like(self.mask))

    def drop(self, rows: Tensor) -> Vectors:
        return Vectors(self.x, self.mask & ~rows[:, None])

    def select(self, index: Any) -> Vectors:
        return Vectors(self.x[index], self.mask[index])

    def to(self, device: Any) -> Vectors:
        return Vectors(self.x.to(device), self.mask.to(device))

    @staticmethod
    def concat(items: Sequence[Vectors]) -> Vectors:
        return Vectors(torch.cat([i.x for i in items]), torch.cat([i.mask for i in items]))


Part = Class | Ids | Vectors


@dataclass
class Condition:
    """Named parts, one row per item. No parts: an unconditional model."""

    parts: dict[str, Part] = field(default_factory=dict)

    def _map(self, function: Any) -> Condition:
        return Condition({name: function(part) for name, part in self.parts.items()})

    def null(self) -> Condition:
        """The same rows with every part dropped: the other side of classifier-free guidance."""
        return self._map(lambda part: part.null())

    def drop(self, rows: Tensor) -> Condition:
        """Every part of the rows where `rows` (bool [B]) is True becomes null, as in training with condition dropout."""
        return self._map(lambda part: part.drop(rows))

    def rows(self, index: Any) -> Condition:
        return self._map(lambda part: part.select(index))

    def to(self, device: Any) -> Condition:
        return self._map(lambda part: part.to(device))

    @staticmethod
    def concat(conditions: Sequence[Condition]) -> Condition:
        """Rows of several conditions with the same parts, one after the other."""
        first = conditions[0]
        return Condition({name: type(part).concat([c.parts[name] for c in conditions]) for name, part in first.parts.items()})


@dataclass(frozen=True)
class ClassSpec:
    """Class names in the order of their ids."""

    names: tuple[str, ...]
    kind: str = "class"

    def parse(self, values: Sequence[Any], name: str) -> Class:
        return Class(torch.tensor([self._one(value, name) for value in values], dtype=torch.int64))

    def _one(self, value: Any, name: str) -> int:
        if value is None or str(value) == "null":
            return NULL_CLASS
        if str(value) in self.names:
            return self.names.index(str(value))
        if str(value).lstrip("-").isdigit() and 0 <= int(value) < len(self.names):
            return int(value)
        shown = ", ".join(self.names[:12]) + (", ..." if len(self.names) > 12 else "")
        raise ValueError(
            f"{name}={value} is no class of this model; it has {len(self.names)}: {shown} (or an id 0..{len(self.names) - 1}, or null)"
        )


@dataclass(frozen=True)
class IdsSpec:
    """Symbols in the order of their ids, and the longest row."""

    alphabet: tuple[str, ...]
    max_length: int
    kind: str = "ids"

    def parse(self, values: Sequence[Any], name: str) -> Ids:
        out = torch.full((len(values), self.max_length), ABSENT, dtype=torch.int64)
        for row, value in enumerate(values):
            text = "" if value is None else str(value)
            foreign = sorted({c for c in text if c not in self.alphabet})
            if foreign:
                raise ValueError(
                    f"{name}={text!r} has symbols that the model never saw: {foreign}; its alphabet is {''.join(self.alphabet)!r}"
                )
            if len(text) > self.max_length:
                raise ValueError(f"{name}={text!r} has {len(text)} symbols; this model takes at most {self.max_length}")
            out[row, : len(text)] = torch.tensor([self.alphabet.index(c) for c in text], dtype=torch.int64)
        return Ids(out)


@dataclass(frozen=True)
class VectorsSpec:
    """Width, longest row and the name of the frozen encoder that made the vectors."""

    width: int
    max_length: int
    encoder: str = ""
    kind: str = "vectors"

    def parse(self, values: Sequence[Any], name: str) -> Vectors:
        x = torch.zeros(len(values), self.max_length, self.width)
        mask = torch.zeros(len(values), self.max_length, dtype=torch.bool)
        for row, value in enumerate(values):
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.dim() != 2 or value.shape[1] != self.width or len(value) > self.max_length:
                came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name} must be a float tensor [L <= {self.max_length}, {self.width}] made by "
                    f"{self.encoder or 'its encoder'}; got {came}"
                )
            x[row, : len(value)], mask[row, : len(value)] = value.float(), True
        return Vectors(x, mask)


_CONDITIONS = {"class": ClassSpec, "ids": IdsSpec, "vectors": VectorsSpec}


@dataclass(frozen=True)
class ConditionSpec:
    """What a generator is conditioned on: (name, part spec) pairs; lies in bundles and in the header of token shards."""

    parts: tuple[tuple[str, ClassSpec | IdsSpec | VectorsSpec], ...] = ()

    def parse(self, value: Any, batch: int) -> Condition:
        """A user's `condition=7`, `condition=horse`, `condition={class: [3, 4], text: "seven"}` as a Condition of `batch` rows.

        A scalar goes to the only part, or to the part named `class`; a list gives the rows in turn, repeated to fill the batch;
        None is null everywhere. Raises ValueError, naming what the model understands.
        """
        names = [name for name, _ in self.parts]
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            target = "class" if "class" in names else names[0] if len(names) == 1 else None
            if target is None:
                raise ValueError(
                    f"condition={value}: this model is {'unconditional' if not names else 'conditioned on ' + ', '.join(names)}"
                )
            value = {target: value}
        for name in value:
            if name not in names:
                raise ValueError(f"condition.{name}: this model is conditioned on {', '.join(names) or 'nothing'}")
        parts: dict[str, Part] = {}
        for name, spec in self.parts:
            given = value.get(name)
            row_values = list(given) if isinstance(given, (list, tuple)) else [given]
            parts[name] = spec.parse([row_values[i % len(row_values)] for i in range(batch)], f"condition.{name}")
        return Condition(parts)

    def to_dict(self) -> dict[str, Any]:
        return {name: json.loads(json.dumps(dataclasses.asdict(spec))) for name, spec in self.parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConditionSpec:
        parts = []
        for name, part in values.items():
            kind = part.get("kind")
            if kind not in _CONDITIONS:
                raise FormatError(f"the condition {name!r} is of kind {kind!r}; this gentok knows {', '.join(_CONDITIONS)}")
            parts.append((name, _CONDITIONS[kind](**_strict(_CONDITIONS[kind], part, f"the condition {name!r}"))))
        return cls(tuple(parts))


# -------------------------------------------------------------------------------------------------------------- Batches


@dataclass
class Batch:
    """What data gives to training: media float [B, C, H, W] in [-1, 1] or [B, C, T] (or None: cached tokens), and what goes with it.

    index int64 [B] is the global sample number, `targets` what a supervised tokenizer needs, `tokens` the cached codes.
    """

    media: Tensor | None
    index: Tensor
    condition: Condition = field(default_factory=Condition)
    lengths: Tensor | None = None
    targets: Any = None
    tokens: Tokens | None = None

    def to(self, device: Any) -> Batch:
        def move(value: Any) -> Any:
            return value.to(device) if hasattr(value, "to") else value

        return Batch(*(move(getattr(self, f.name)) for f in dataclasses.fields(self)))


@dataclass
class Quantized:
    """What a codebook returns. vectors float32 [B, D, M], straight-through to its input; codes int64 [B, K, N], ABSENT where a
    level was dropped; losses: named scalars to be added to the tokenizer's; usage float [K]: share of rows hit in this call."""

    vectors: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    usage: Tensor


@dataclass
class TokenizerOutput:
    """tokens; losses: named, already weighted scalars, to be summed; reconstruction like the media, None for a generative decoder."""

    tokens: Tokens | Latents
    losses: dict[str, Tensor]
    reconstruction: Tensor | None


@dataclass
class LossOutput:
    """loss: scalar mean; count: what it was averaged over (ranks and accumulation weight by it); nll float [B]: nats of each row's
    tokens under the model, or None where the loss is no likelihood; terms: named scalars for the log."""

    loss: Tensor
    count: Tensor
    nll: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- Protocols


@runtime_checkable
class Codebook(Protocol):
    """Vectors to codes and back; float32 inside, also under autocast. A frozen one is what code-vector generators are handed.

    Laws: eval changes no buffer; lookup(forward(z).codes) == forward(z).vectors; nearest(lookup(c)) == c where `invertible` and
    rows differ; identical rows on every rank after every step; bf16 autocast uses as many codes as float32.
    """

    in_width: int
    """Channels that forward takes: what the encoder must emit."""
    width: int
    """D, channels of the vectors that forward and lookup return: what the decoder gets."""
    levels: int
    """K."""
    vocab_sizes: tuple[int, ...]
    invertible: bool
    nested_levels: bool
    """Whether the sum of the first k levels is a valid code for every k."""
    parts: dict[str, slice]
    """Named ranges of forward's channels (a dual codebook's halves); {} for most."""

    def forward(self, z: Tensor, *, keep: Tensor | None = None, noise: Noise | None = None) -> Quantized:
        """z float [B, D_in, M] -> Quantized. keep int64 [B]: levels to use in each row (residual books). noise: row streams for
        everything random (level dropout, revival, sampled bits); None: nothing random happens."""

    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, N] -> vectors float32 [B, D, M]; absent levels add nothing."""

    def nearest(self, vectors: Tensor, given: Tensor | None = None) -> Tensor:
        """vectors float [B, D, M], in the space that lookup returns -> codes [B, K, N]; with `given`, fills only its UNKNOWN cells."""

    def table(self, level: int = 0) -> Tensor:
        """float32 [V_k, D]: the rows as lookup adds them, output projection applied."""

    def accumulate(self, codes: Tensor, scales: Sequence[int]) -> Tensor:
        """Vectors summed up to each scale, at the next scale's size (pyramids only)."""


@runtime_checkable
class Tokenizer(Protocol):
    """media -> Tokens -> media. Images float [-1, 1] [B, C, H, W]; audio float [B, C, T]."""

    spec: TokenSpec
    codebook: Any

    def encode(self, media: Tensor, lengths: Tensor | None = None, noise: Noise | None = None) -> Tokens | Latents: ...

    def decode(self, tokens: Tokens | Latents, noise: Noise | None = None, **options: Any) -> Tensor: ...

    def forward(self, batch: Batch, noise: Noise | None = None) -> TokenizerOutput: ...


@runtime_checkable
class Streams(Protocol):
    """A tokenizer that works chunk by chunk. latency_samples: how far its output lags behind its input."""

    latency_samples: int

    def stream(self, batch: int) -> Any: ...

    def encode_chunk(self, media: Tensor, state: Any) -> Tokens: ...

    def decode_chunk(self, tokens: Tokens, state: Any) -> Tensor: ...

    def flush(self, state: Any) -> Any: ...


@runtime_checkable
class Generator(Protocol):
    """A model of tokens. Its capabilities (generators/base.py) are all that a sampler may use of it."""

    spec: TokenSpec
    condition_spec: ConditionSpec

    def loss(self, tokens: Tokens, condition: Condition, noise: Noise) -> LossOutput: ...
