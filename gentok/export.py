"""`gentok export ckpt=BUNDLE out=FOLDER`: a tokenizer's encoder (media -> codes) and decoder (codes -> media) for other programs.

    format=onnx          encoder.onnx, decoder.onnx        for ONNX Runtime and what reads ONNX; needs onnx and onnxscript
    format=torch_export  encoder.pt2, decoder.pt2          for `torch.export.load`, without gentok

The batch may have any size, and so has the length of sounds, in whole frames; images have the model's own size. Codes below 0 add nothing:
the first levels of a nested code alone are the others set to -1. Each file says what it is (`metadata`), and is compared with the
tokenizer on another batch, of another length, before it takes its place (gentok/tracing.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gentok import __version__
from gentok.atomic import replacing
from gentok.bundle import Bundle, load
from gentok.errors import ConfigError, check_choice
from gentok.tracing import PARTS, Part, hop_of, part_of, quietly, reason
from gentok.types import TokenSpec

__all__ = ["export", "export_tokenizer", "main", "metadata"]

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
_METADATA = "gentok.json"


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
    return export_tokenizer(bundle, config["out"], format=config["format"], parts=config["parts"], frames=config["frames"])


def export_tokenizer(
    bundle: Bundle, folder: str | Path, *, format: str = "onnx", parts: Sequence[str] = PARTS, frames: int | None = None
) -> list[Path]:
    """A bundle's tokenizer as files of another format.

    Args:
        bundle: of a tokenizer, or of a generator, whose tokenizer is taken.
        folder: where encoder and decoder go; files of an earlier call are replaced.
        format: "onnx" or "torch_export".
        parts: "encoder", "decoder".
        frames: of sounds, the one length that the files are for; None: any.

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
    if bundle.device.type != "cpu" or bundle.tokenizer.training:
        bundle = copy.deepcopy(bundle).to("cpu").eval()
    chosen = [part_of(bundle.tokenizer, name, frames) for name in parts]
    written = []
    for part in chosen:
        path = Path(folder).expanduser() / f"{part.name}{SUFFIX[format]}"
        with replacing(path, setting="out") as temporary:
            write = _write_onnx if format == "onnx" else _write_torch
            different = write(part, part.traced(), metadata(bundle.spec, part.name), temporary)
        said = "not compared, for which onnxruntime is needed" if different is None else f"{part.difference} {different:.2g}"
        print(f"{path}: {part.takes} -> {part.gives}, {said}")
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
    sound = {} if spec.sample_rate is None else {"sample_rate": str(spec.sample_rate), "hop": str(hop_of(spec))}
    return {**own, **prints, **sound}


def _write_torch(part: Part, program: Any, about: Mapping[str, str], path: Path) -> float:
    torch.export.save(program, path, extra_files={_METADATA: json.dumps(about)})
    return part.compared(torch.export.load(path).module())


def _onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"format=onnx needs the package {error.name}: pip install 'gentok[export]'") from error
    return onnx_ir


def _write_onnx(part: Part, program: Any, about: Mapping[str, str], path: Path) -> float | None:
    ir = _onnx()
    names = {"input_names": [part.takes], "output_names": [part.gives]}
    with quietly():
        try:
            made = torch.onnx.export(program, (part.example(),), dynamo=True, verbose=False, **names)
        except Exception as error:  # an operation without a form in ONNX
            raise ConfigError(f"{part.whose} cannot be written as ONNX: {reason(error)}{part.hint}") from error
        for value, unit in zip((made.model.graph.inputs[0], made.model.graph.outputs[0]), part.per_unit or (None, None)):
            named = part.sizes(unit, len(value.shape))
            value.shape = ir.Shape([name or size for name, size in zip(named, value.shape)])
        made.model.metadata_props.update(about)
        made.save(path)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return part.compared(lambda x: torch.from_numpy(session.run(None, {part.takes: x.numpy()})[0]))


def main() -> None:
    """`gentok export`."""
    from gentok.cli import run

    run("export", export)


if __name__ == "__main__":
    main()
