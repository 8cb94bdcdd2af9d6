"""`gentok export ckpt=BUNDLE out=FOLDER`: a tokenizer's encoder (media -> codes) and decoder (codes -> media) for other programs.

    format=onnx          encoder.onnx, decoder.onnx        for ONNX Runtime and what reads ONNX; needs onnx and onnxscript
    format=torch_export  encoder.pt2, decoder.pt2          for `torch.export.load`, without gentok

The batch may have any size, and so has the length of sounds, in whole frames; images have the model's own size. Codes below 0 add nothing:
the first levels of a nested code alone are the others set to -1. Each file says what it is (`metadata`), and is compared with the
tokenizer on another batch, of another length, before it takes its place.

Deviation from `Bundle.encode` and `decode`: nothing is checked inside. Media that are not finite, or codes beyond the vocabulary, are
whatever the runtime makes of them.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok import __version__
from gentok.atomic import replacing
from gentok.bundle import Bundle, load
from gentok.errors import ConfigError, check_choice
from gentok.interfaces import Tokenizer
from gentok.types import Frames, Latents, Tokens, TokenSpec

__all__ = ["export", "export_tokenizer", "main", "metadata"]

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
PARTS = ("encoder", "decoder")
_DIFFERENT = {"codes": 0.01, "media": 1e-3, "latents": 1e-3}
"""What a file may differ by at most: the share of codes, which near ties may turn; the largest difference of numbers."""
_METADATA = "gentok.json"


class _Encoder(nn.Module):
    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, media: Tensor) -> Tensor:
        tokens = self.tokenizer.encode(media)
        return tokens.values if isinstance(tokens, Latents) else tokens.codes


class _Decoder(nn.Module):
    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        spec = self.tokenizer.spec
        return self.tokenizer.decode(Tokens(codes, spec) if spec.vocab_sizes else Latents(codes, spec))


@dataclass(frozen=True)
class _Way:
    """One of the two ways through a tokenizer.

    Attributes:
        part: "encoder" or "decoder".
        takes, gives: what goes in and what comes out: media, codes or latents.
        per_unit: how long the last axis of each is for one unit of the dynamic length; None: it is fixed.
    """

    part: str
    module: nn.Module
    takes: str
    gives: str
    per_unit: tuple[int, int] | None

    def sizes(self, per_unit: int | None, dims: int) -> list[int | str]:
        """The sizes that an ONNX file says: names of those that vary; 0 for the others."""
        length = {1: "frames"}.get(per_unit or 0, f"{per_unit}*frames") if per_unit else 0
        return ["batch", *[0] * (dims - 2), length]


def export(config: Mapping[str, Any]) -> list[Path]:
    """Writes the files and prints what they are.

    Args:
        config: a resolved conf/export.yaml.

    Returns:
        The files.

    Raises:
        ValueError: the configuration does not fit, or the tokenizer cannot be exported.
        OSError: the model cannot be read, or a file not be written.
        ImportError: a package is not installed.
    """
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"])
    return export_tokenizer(bundle, config["out"], format=config["format"], parts=config["parts"])


def export_tokenizer(bundle: Bundle, folder: str | Path, *, format: str = "onnx", parts: Sequence[str] = PARTS) -> list[Path]:
    """A bundle's tokenizer as files of another format.

    Args:
        bundle: of a tokenizer, or of a generator, whose tokenizer is taken.
        folder: where encoder and decoder go; files of an earlier call are replaced.
        format: "onnx" or "torch_export".
        parts: "encoder", "decoder".

    Returns:
        The files, in the order of `parts`.

    Raises:
        ConfigError: there is no such format or part, or the tokenizer has a step that cannot be exported; the message says which.
        ImportError: a package is not installed.
        OSError: a file cannot be written.
    """
    check_choice("format", format, SUFFIX)
    for part in parts:
        check_choice("part", part, PARTS)
    if not hasattr(torch.compiler, "is_exporting"):
        raise ConfigError(f"exporting needs torch 2.7 or newer; this is {torch.__version__}")
    if format == "onnx":
        _onnx()
    written = []
    for part in parts:
        way = _way(bundle, part)
        path = Path(folder).expanduser() / f"{part}{SUFFIX[format]}"
        with replacing(path, setting="out") as temporary:
            program = _traced(way, bundle)
            about = metadata(bundle.spec, part)
            different = (_write_onnx if format == "onnx" else _write_torch)(way, bundle, program, about, temporary)
        said = "not compared, for which onnxruntime is needed" if different is None else f"{_unit(way)} {different:.2g}"
        print(f"{path}: {way.takes} -> {way.gives}, {said}")
        written.append(path)
    return written


def metadata(spec: TokenSpec, part: str) -> dict[str, str]:
    """What a file says about itself, names and texts.

    Args:
        spec: of the tokens.
        part: "encoder" or "decoder".

    Returns:
        gentok (its version), part, spec (JSON), encode_fingerprint, decode_fingerprint, and of sound sample_rate (Hz) and hop (samples of a
        frame).
    """
    own = {"gentok": __version__, "part": part, "spec": json.dumps(spec.to_dict())}
    prints = {"encode_fingerprint": spec.encode_fingerprint, "decode_fingerprint": spec.decode_fingerprint}
    sound = {} if spec.sample_rate is None else {"sample_rate": str(spec.sample_rate), "hop": str(_hop(spec))}
    return {**own, **prints, **sound}


def _hop(spec: TokenSpec) -> int:
    assert isinstance(spec.grid, Frames) and spec.sample_rate is not None
    return round(spec.sample_rate / spec.grid.rate_hz)


def _way(bundle: Bundle, part: str) -> _Way:
    """The part of a tokenizer that is exported. Raises ConfigError where it is none of networks alone."""
    tokenizer, spec = copy.copy(bundle.tokenizer).cpu().eval(), bundle.spec
    name = type(tokenizer).__name__
    if tokenizer.written_condition.parts:
        raise ConfigError(f"{name} writes more than media into its codes, and cannot be exported: export the tokenizer inside it")
    if part == "decoder" and tokenizer.generative:
        raise ConfigError(f"the decoder of {name} draws what it makes, step by step, and cannot be exported: export parts=[encoder]")
    per_unit = None
    if isinstance(spec.grid, Frames):
        tokenizer.spec = replace(spec, grid=replace(spec.grid, n=None))  # of any length
        per_unit = (_hop(spec) * spec.frame_multiple, spec.frame_multiple)
    codes = "codes" if spec.vocab_sizes else "latents"
    if part == "encoder":
        return _Way(part, _Encoder(tokenizer).eval(), "media", codes, per_unit)
    return _Way(part, _Decoder(tokenizer).eval(), codes, "media", per_unit and per_unit[::-1])


@torch.no_grad()
def _example(way: _Way, bundle: Bundle, batch: int, units: int) -> Tensor:
    """What the part takes: noise, or the codes of noise."""
    shape = tuple(bundle.spec.media_shape or ())
    if way.per_unit is not None:
        shape = (shape[0], max(way.per_unit) * units)
    media = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch)) * 2 - 1
    return media if way.part == "encoder" else _Encoder(way.module.tokenizer)(media)


def _traced(way: _Way, bundle: Bundle) -> Any:
    """The part as a program of torch.export. Raises ConfigError where it does what cannot be traced."""
    dim = torch.export.Dim
    sizes: dict[int, Any] = {0: dim("batch", min=1)}
    example = _example(way, bundle, 2, 24)
    if way.per_unit is not None:
        unit = dim("frames", min=2, max=1 << 24)
        sizes[example.dim() - 1] = way.per_unit[0] * unit if way.per_unit[0] > 1 else unit
    with _quietly():
        try:
            with torch.no_grad():
                return torch.export.export(way.module, (example,), dynamic_shapes=(sizes,), strict=False)
        except Exception as error:  # whatever a network does that torch.export does not know, the answer is the same
            raise ConfigError(f"{_whose(way)} cannot be exported: {_reason(error)}") from error


def _whose(way: _Way) -> str:
    return f"the {way.part} of {type(way.module.tokenizer).__name__}"


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{' '.join(lines)[:300]}"


def _write_torch(way: _Way, bundle: Bundle, program: Any, about: Mapping[str, str], path: Path) -> float:
    torch.export.save(program, path, extra_files={_METADATA: json.dumps(about)})
    again = torch.export.load(path).module()
    return _compared(way, bundle, again)


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"format=onnx needs the package {error.name}: pip install 'gentok[export]'") from error
    return onnx_ir


def _write_onnx(way: _Way, bundle: Bundle, program: Any, about: Mapping[str, str], path: Path) -> float | None:
    ir, example = _onnx(), _example(way, bundle, 2, 24)
    with _quietly():
        try:
            made = torch.onnx.export(program, (example,), dynamo=True, input_names=[way.takes], output_names=[way.gives], verbose=False)
        except Exception as error:  # an operation without a form in ONNX
            raise ConfigError(f"{_whose(way)} cannot be written as ONNX: {_reason(error)}; format=torch_export may do") from error
        for value, unit in zip((made.model.graph.inputs[0], made.model.graph.outputs[0]), way.per_unit or (None, None)):
            named = way.sizes(unit, len(value.shape))
            value.shape = ir.Shape([name or size for name, size in zip(named, value.shape)])
        made.model.metadata_props.update(about)
        made.save(path)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _compared(way, bundle, lambda x: torch.from_numpy(session.run(None, {way.takes: x.numpy()})[0]))


def _unit(way: _Way) -> str:
    return "share of codes that differ on noise:" if way.gives == "codes" else "largest difference on noise:"


@torch.no_grad()
def _compared(way: _Way, bundle: Bundle, run: Callable[[Tensor], Tensor]) -> float:
    """How far a file is from the tokenizer, on batches of one and of three, of other lengths. Raises ConfigError where it is too far."""
    far = 0.0
    for batch, units in ((1, 17), (3, 40)):
        given = _example(way, bundle, batch, units)
        expected, found = way.module(given), run(given)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ConfigError(f"{_whose(way)} was exported to something else: {tuple(found.shape)} where {tuple(expected.shape)} is right")
        apart = (found != expected).double().mean() if way.gives == "codes" else (found - expected).abs().max()
        far = max(far, float(apart))
    if not far <= _DIFFERENT[way.gives]:
        raise ConfigError(f"{_whose(way)} was exported to something else: {_unit(way)} {far:.3g}, allowed are {_DIFFERENT[way.gives]}")
    return far


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes of torch's exporters, which are for their own developers."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main() -> None:
    """`gentok export`."""
    from gentok.cli import run

    run("export", export)


if __name__ == "__main__":
    main()
