"""The model card of a bundle, README.md: what a person, and the Hugging Face Hub, read about it.

Its header is the hub's (YAML between two lines of dashes): licence, library, tags, and figures as a model index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from gentok.types import ConditionSpec, TokenSpec

__all__ = ["card"]

_FOLDER = "path/to/this/folder"
_TASKS = {"image": {"vectors": "text-to-image", "ids": "text-to-image"}, "audio": {"vectors": "text-to-audio", "ids": "text-to-speech"}}
_ENCODING = {"image": "image-feature-extraction", "audio": "feature-extraction"}


def card(document: Mapping[str, Any], *, place: str = _FOLDER, picture: str | None = None, report: Mapping[str, Any] | None = None) -> str:
    """The text of README.md.

    Args:
        document: bundle.json.
        place: what `gentok.load` is given in the examples.
        picture: the name of an image beside README.md.
        report: of an evaluation, {"metrics": {name: number}, ...}; None: the figures of the training run, `meta["metrics"]`.

    Returns:
        Markdown behind a YAML header.
    """
    spec, meta = TokenSpec.from_dict(document["tokenizer"]["spec"]), document["meta"]
    figures = _figures((report or meta).get("metrics"))
    header = yaml.safe_dump(_header(document, spec, figures, place), sort_keys=False, allow_unicode=True, width=140)
    bits = f"{spec.bits_per_second:.0f} bits per second" if spec.grid.positions is None else f"{spec.bits:.0f} bits per item"
    media = "sounds" if spec.modality == "audio" else "images"
    use = [f"{media} = model.sample(n=16)"] if document["kind"] == "generator" else []
    use += [f"tokens = model.encode({media})", "again = model.decode(tokens)"]
    command = "sample" if document["kind"] == "generator" else "evaluate"
    lines = [
        "---", header.rstrip(), "---", "",
        f"# A gentok {document['kind']}", "",
        f"Tokens: {spec.describe()}; {bits}.", "",
        *([f"![what it makes]({picture})", ""] if picture else []),
        "```python", "import gentok", f'model = gentok.load("{place}")', *use, "```", "",
        "```bash", f"gentok {command} ckpt={place}", "```", "",
    ]  # fmt: skip
    if figures:
        lines += ["| figure | value |", "|---|---|", *(f"| {name} | {value:.5g} |" for name, value in figures.items()), ""]
    lines += [f"* {key}: {json.dumps(value)}" for key, value in meta.items() if key != "metrics"]
    return "\n".join(lines) + "\n"


def _header(document: Mapping[str, Any], spec: TokenSpec, figures: Mapping[str, float], place: str) -> dict[str, Any]:
    kind, meta = document["kind"], document["meta"]
    task = _task(document, spec)
    parts = [document[part]["config"].get("_target_", "") for part in ("tokenizer", "generator") if part in document]
    header: dict[str, Any] = {"license": meta["license"]} if meta.get("license") else {}
    header["library_name"] = "gentok"
    if task is not None:
        header["pipeline_tag"] = task
    header["tags"] = ["gentok", spec.modality, kind, *(part.rpartition("/")[2] for part in parts)]
    data = meta.get("data")
    data = data.get("_target_") if isinstance(data, Mapping) else None
    if figures and isinstance(data, str):
        name = data.rpartition("/")[2]
        results = {
            "task": {"type": task or "other"},
            "dataset": {"type": name, "name": name},
            "metrics": [{"type": name, "value": value} for name, value in figures.items()],
        }
        header["model-index"] = [{"name": place.removeprefix("hf://") if place != _FOLDER else f"gentok {kind}", "results": [results]}]
    return header


def _task(document: Mapping[str, Any], spec: TokenSpec) -> str | None:
    """The hub's name of what the model does; None where the hub has none, as of images of a class."""
    if document["kind"] == "tokenizer":
        return _ENCODING.get(spec.modality)
    kinds = {part.kind for _, part in ConditionSpec.from_dict(document["condition_spec"]).parts}
    if not kinds and spec.modality == "image":
        return "unconditional-image-generation"
    return next((task for kind, task in _TASKS.get(spec.modality, {}).items() if kind in kinds), None)


def _figures(metrics: Any) -> dict[str, float]:
    """The finite numbers among `metrics`, without those of single levels of a codebook."""
    items = metrics.items() if isinstance(metrics, Mapping) else ()
    numbers = {str(name): value for name, value in items if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return {name: value for name, value in numbers.items() if math.isfinite(value) and not name.rpartition("_")[2].isdigit()}
