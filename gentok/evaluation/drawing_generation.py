"""protocol=generation and protocol=reconstruction of drawings (tokenizer=icon): what a generator draws, given the words of held-out items,
and what the grid rounds off."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.data.datasets import batches
from gentok.data.image_files import save_grid
from gentok.evaluation.context import Context, in_words
from gentok.evaluation.likelihood import likelihood, nll_in_words
from gentok.metrics.drawings import nearest_picture, overlap, shares
from gentok.types import Ids, Tokens

__all__ = ["measure", "reconstruction"]

NEAR = 0.05
"""Distance below which two pictures count as the same drawing."""


@dataclass
class _Items:
    """Drawings of a set: their SVG documents, pictures float [n, 1, H, W], those before the grid, words, and the ids of all together."""

    drawings: list[str]
    pictures: Tensor
    media: Tensor
    texts: list[str]
    ids: int


@torch.no_grad()
def measure(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Samples drawings, measures them, draws samples.png and writes samples.json and the first ones as SVG files.

    Returns:
        metrics, protocol.
    """
    bundle, n = context.bundle, context.config["n"]
    train, held_out = _read(context, "train"), _read(context, "held_out")
    asked = [held_out.texts[i % len(held_out.texts)] for i in range(n)]
    samples = context.sample(n, context.held_out_conditions(n), context.guidance)
    whole = _whole(samples.tokens)
    drawings = bundle.tokenizer.drawings(samples.tokens)
    inked = (samples.media < 0).flatten(1).any(1).tolist()
    metrics: dict[str, Any] = {"samples": n, "guidance": context.guidance}
    metrics |= shares(drawings, [a and b for a, b in zip(whole, inked)], train.drawings)
    metrics |= {"cut": 1 - sum(whole) / n, "blank": 1 - sum(inked) / n}
    (distance, index), (real, real_index) = (nearest_picture(media, train.pictures) for media in (samples.media, held_out.pictures))
    for name, value in (("", distance), ("held_out_", real)):
        metrics[f"{name}nearest_training"] = value.mean().item()
        metrics[f"{name}nearest_training_below_{NEAR}"] = (value < NEAR).double().mean().item()
    if any(asked):
        metrics["word_shared"] = _word_shared(asked, [train.texts[i] for i in index])
        metrics["word_shared_by_chance"] = _word_shared(asked, [train.texts[i] for i in index.roll(1)])
        metrics["held_out_word_shared"] = _word_shared(held_out.texts, [train.texts[i] for i in real_index])
    metrics["held_out_overlap"] = overlap(held_out.pictures, held_out.media).mean().item()
    metrics |= likelihood(context)
    metrics["ids_per_sample"] = int(samples.tokens.present.sum()) / n
    metrics["held_out_ids_per_item"] = held_out.ids / len(held_out.drawings)
    metrics["calls_per_sample"] = samples.calls.double().mean().item()
    metrics["tokens_per_second"] = int(samples.tokens.present.sum()) / max(samples.seconds, 1e-9)
    protocol = {
        "what": in_words("drawing_generation", n=n, near=NEAR),
        **context.sampling_protocol(samples),
        "nll": nll_in_words(bundle.generator),
    }
    save_grid(samples.media[:100], out / "samples.png", 10)
    rows = [
        {"asked": text, "valid": a and b, "nearest_training_item": train.texts[i], "distance": round(d, 3)}
        for text, a, b, i, d in zip(asked, whole, inked, index.tolist(), distance.tolist())
    ]
    (out / "samples.json").write_text(json.dumps(rows, indent=0) + "\n")
    for i, drawing in enumerate(drawings[:100]):
        (out / f"{i:04d}.svg").write_text(drawing, encoding="utf-8")
    return metrics, protocol


@torch.no_grad()
def reconstruction(context: Context, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encodes and decodes held-out drawings, and draws both into reconstructions.png. Returns metrics, protocol."""
    items = _read(context, "held_out")
    alike = overlap(items.pictures, items.media)
    metrics = {"items": len(items.drawings), "overlap": alike.mean().item(), "overlap_least": alike.min().item()}
    metrics["ids_per_item"] = items.ids / len(items.drawings)
    save_grid(torch.stack([items.media[:50], items.pictures[:50]], 1).flatten(0, 1), out / "reconstructions.png", 10)
    return metrics, {"what": in_words("drawing_reconstruction")}


def _read(context: Context, split: str) -> _Items:
    """The items that are used of a split, encoded."""
    tokenizer, spec = context.bundle.tokenizer, dict(context.data.condition_spec.parts).get("text")
    out, rows = _Items([], torch.zeros(0), torch.zeros(0), [], 0), context.rows(split)
    media, pictures = [], []
    with context.progress(f"encoding {split}", len(rows), least=5001) as advance:
        for batch in batches(getattr(context.data, split), context.config["batch_size"], rows=rows):
            tokens = tokenizer.encode_batch(batch)
            out.drawings += tokenizer.drawings(tokens)
            pictures.append(tokenizer.decode(tokens).float().cpu())
            media.append(batch.media)
            text = batch.condition.parts.get("text")
            texts = text.ids.tolist() if isinstance(text, Ids) else [[]] * len(batch.index)
            out.texts += [spec.text(row) for row in texts]  # type: ignore[union-attr]
            out.ids += int(tokens.present.sum())
            advance(len(batch.index))
    out.media, out.pictures = torch.cat(media), torch.cat(pictures)
    return out


def _whole(tokens: Tokens) -> list[bool]:
    """Whether each row has come to its end, and was not cut at the longest row."""
    last = (tokens.present[:, 0] * torch.arange(1, tokens.codes.shape[2] + 1)).amax(1)
    end = tokens.spec.part("end").start
    return [bool(row[n - 1] == end) if n else False for row, n in zip(tokens.codes[:, 0], last.tolist())]


def _word_shared(asked: list[str], found: list[str]) -> float:
    """The share of texts that have a word in common with the other one."""
    return sum(bool(set(a.split()) & set(b.split())) for a, b in zip(asked, found)) / max(len(asked), 1)
