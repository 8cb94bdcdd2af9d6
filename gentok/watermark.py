"""`python -m gentok.watermark detect ckpt=BUNDLE key=FILE PATHS...`: which images, sounds or codes carry the watermark of a key.

Images and sounds are encoded again by the tokenizer of the bundle; codes.safetensors of sample.py are taken as they are. One line per item
with its p-value, and a JSON file of them all (out=FILE). `watermark=KIND` and its settings are those that the samples were made with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gentok.atomic import whole_file
from gentok.bundle import Bundle, load
from gentok.bundle.files import neighbours
from gentok.data.image_decoding import IMAGE_SUFFIXES
from gentok.data.image_files import read_image
from gentok.data.sound_files import SOUND_SUFFIXES, FullScale, read_sound
from gentok.devices import chosen_device
from gentok.errors import ConfigError, FormatError, counted
from gentok.sampling import key_mark, watermark_report
from gentok.types import ABSENT, Tokens, TokenSpec
from gentok.watermarks.base import KeyMark, PlacedWatermark
from gentok.watermarks.detection import detect

__all__ = ["main", "run"]

def run(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Asks every item whether it is marked, and prints what was found.

    Args:
        config: a resolved conf/watermark_detect.yaml.

    Returns:
        {"file", "p", "tokens", "statistic"} of each item.

    Raises:
        ValueError: the configuration, the tokenizer, the key or a file does not fit.
        OSError: a file cannot be read or written.
    """
    if config["command"] != "detect":
        raise ConfigError(f"gentok watermark does: detect ckpt=BUNDLE key=FILE PATHS...; got {config['command']}")
    if config["watermark"] is None:
        raise ConfigError("watermark=none: name the kind that the samples were made with, such as watermark=exp")
    device = chosen_device(config["device"])
    bundle = load(config["ckpt"], trust=config["trust"], ema=config["ema"], device=device)
    paths = list(_files(config["inputs"], bundle.spec))
    if not paths:
        raise ConfigError("gentok watermark detect ckpt=BUNDLE key=FILE PATHS...: name images, sounds, their folders, or codes.safetensors")
    levels = bundle.spec.levels if config["levels"] is None else config["levels"]
    if not 1 <= levels <= bundle.spec.levels:
        raise ConfigError(f"levels={levels}: this tokenizer has 1 to {bundle.spec.levels}")
    mark, found = key_mark(config["watermark"], config["key"], bundle, config["trust"]), []
    gap = _gap(config, mark)
    for path in paths:
        tokens = _tokens(path, bundle).to("cpu")
        tokens.codes[:, levels:] = ABSENT
        for i, answer in enumerate(detect(mark, tokens, config["keys"], config["seed"], gap)):
            name = f"{path}[{i}]" if path.suffix == ".safetensors" else str(path)
            found.append({"file": name, "p": answer.p, "tokens": answer.tokens, "statistic": answer.statistic})
            print(f"{name}: p = {answer.p:.3g}, {counted(answer.tokens, 'token')}", flush=True)
    asked = {"watermark": watermark_report(config["watermark"], config["trust"]), "keys": config["keys"], "gap": gap}
    about = {"ckpt": str(config["ckpt"]), **asked}
    with whole_file(Path(config["out"]).expanduser(), "out=FILE") as file:
        file.write((json.dumps({**about, "found": found}, indent=1) + "\n").encode())
    return found


def _gap(config: Mapping[str, Any], mark: KeyMark) -> float | None:
    """The gap penalty of alignment=edit; None: alignment=shift. Raises ConfigError where the settings do not fit each other."""
    gap = config["gap"]
    if config["alignment"] != "edit":
        if gap is not None:
            raise ConfigError(f"gap={gap} is a setting of alignment=edit: set that too, or leave gap out")
        return None
    if not isinstance(mark.watermark, PlacedWatermark):
        raise ConfigError("alignment=edit is for watermarks whose numbers belong to places (exp, its, cluster): set alignment=shift")
    return mark.watermark.gap if gap is None else gap


def _files(paths: Sequence[str], spec: TokenSpec) -> Iterator[Path]:
    """The files that are meant; of a folder all sounds, or all images but the grid of sample.py."""
    suffixes = SOUND_SUFFIXES if spec.modality == "audio" else IMAGE_SUFFIXES
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.glob("[!.]*") if p.suffix.lower() in suffixes and p.name != "grid.png")
            if not inside:
                raise ConfigError(f"{path} holds no {'sound' if spec.modality == 'audio' else 'image'}")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise FileNotFoundError(f"there is no file {path}{neighbours(path)}")


def _tokens(path: Path, bundle: Bundle) -> Tokens:
    """Codes of a file, of one image or sound as they are encoded."""
    spec = bundle.spec
    if path.suffix == ".safetensors":
        return _codes(path, spec)
    channels, *size = spec.media_shape or (1,)
    if spec.modality == "audio":
        media = FullScale()(read_sound(path, spec.sample_rate, channels), str(path))
    else:
        media = read_image(path, channels=channels, size=size)
    tokens = bundle.tokenizer.encode(media[None].to(bundle.device))
    if not isinstance(tokens, Tokens):
        raise ConfigError(f"{bundle.path} makes latents, and a watermark is one of tokens")
    return tokens


def _codes(path: Path, spec: TokenSpec) -> Tokens:
    """What sample.py has written. Raises FormatError where it is no such file, or of other tokens."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            codes = file.get_tensor("codes")
            made_by = TokenSpec.from_dict(json.loads((file.metadata() or {})["spec"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"{path} is no codes.safetensors of sample.py ({error})") from None
    if not made_by.same_codes(spec) or codes.dim() != 3 or codes.dtype != torch.int64:
        raise ValueError(f"{path} holds tokens of {made_by.describe()}; this model's are {spec.describe()}")
    return Tokens(codes, spec).validate()


def main(argv: Sequence[str] | None = None) -> None:
    """The command `detect ckpt=PATH key=FILE PATHS...`. argv: the words behind its name; None: those of this process."""
    from gentok.cli import conf_dir
    from gentok.cli import run as run_config

    keys = {*yaml.safe_load((conf_dir() / "watermark_detect.yaml").read_text(encoding="utf-8")), "watermark"}
    plain, words = [], []
    for word in sys.argv[1:] if argv is None else argv:
        key, equals, _ = word.partition("=")
        option = word.startswith("-") or (equals and key.lstrip("+~").split(".")[0] in keys)  # a file's name may have a sign, too
        (words if option else plain).append(word)
    quoted = ["'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in plain]
    sys.argv[1:] = [*words, *(f"command={word}" for word in quoted[:1]), *([f"inputs=[{','.join(quoted[1:])}]"] if quoted[1:] else [])]
    run_config("watermark_detect", run)


if __name__ == "__main__":
    main()
