"""What a stored model computes of fixed media, in integers: for tests/test_golden.py. `python tests/golden_kit.py` writes its file anew.

That file and the models in tests/golden were made by version 0.1.0 and are to be read by all that follow, so there should be no reason to
write them again. tests/golden/README.md has the commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recording import fixed_media
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d

import gentok

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
FILE = GOLDEN / "golden.json"
CONDITIONS = {"class": [3, 7], "text": "three six four"}
POOL = 8
"""Over how many pixels of a side, or hundreds of samples, decoded media are averaged."""


def models() -> dict[str, Path]:
    """Every bundle of docs/zoo, and the bundles and training checkpoints beside golden.json."""
    zoo = {f"zoo/{path.parent.name}": path.parent for path in sorted((ROOT / "docs" / "zoo").glob("*/bundle.json"))}
    own = {path.name: path for path in sorted(GOLDEN.iterdir()) if path.suffix == ".ckpt" or (path / "bundle.json").is_file()}
    return {**zoo, **own}


def encoded(bundle: Any) -> dict[str, Tensor]:
    """codes int64 [2, K, N] of two media (of continuous latents: in hundredths), and what they decode to, averaged, in hundredths."""
    sound = bundle.spec.sample_rate is not None
    media = 0.3 * fixed_media((1, 8000), 2) if sound else fixed_media(tuple(bundle.spec.media_shape), 2)
    tokens = bundle.tokenizer.encode(media)
    decoded = bundle.tokenizer.decode(tokens)
    means = avg_pool1d(decoded.abs(), 100 * POOL) if sound else avg_pool2d(decoded, POOL)
    return {"codes": tokens.codes if bundle.spec.levels else hundredths(tokens.values), "decoded": hundredths(means)}


def hundredths(values: Tensor) -> Tensor:
    return (100 * values).round().long()


def sampled(bundle: Any) -> Tensor:
    """codes int64 [2, K, N] (of continuous latents: in hundredths) of two conditioned samples, drawn by the
    model in float64, where machines do not differ enough to matter."""
    bundle.tokenizer.double()
    bundle.generator.double()
    seen, decode = [], bundle.tokenizer.decode
    bundle.tokenizer.decode = lambda tokens, **options: (seen.append(tokens), decode(tokens, **options))[1]
    condition = next(CONDITIONS[name] for name, _ in bundle.condition_spec.parts)
    bundle.sample(n=2, condition=condition, guidance=1.5, seed=0)
    (tokens,) = seen
    return tokens.codes if bundle.spec.levels else hundredths(tokens.values)


def observed(path: Path) -> dict[str, Tensor]:
    bundle = gentok.load(path)
    found = encoded(bundle)
    return found if bundle.generator is None else {**found, "sampled": sampled(bundle)}


if __name__ == "__main__":
    rows = []
    for name, path in models().items():
        fields = {key: value.tolist() for key, value in observed(path).items()}
        rows.append(f"{json.dumps(name)}: {json.dumps(fields, separators=(',', ':'))}")
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
