"""Measures masked diffusion: writes masked.json, masked.md and the pictures beside it.

    python docs/results/masked.py float32 [seed=0]        entropy of samples against steps, with float32 noise and with gentok's
    python docs/results/masked.py page                    the page anew, from the figures that are there

and, of trained models (masked_models.py): train, measure, regions, subsets, seconds, levels.

float32: every cell is drawn from one known distribution, p(rank r) proportional to 1 / r over 50,257 ids, so that whatever a sampler adds is its own.
Curves are closed forms (gentok/metrics/truncation.py), points are samples: "surprise" is the mean of -log p(id) of what was drawn, which is
the entropy of p where the draws are exact.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import masked_models
import numpy as np
import torch
from evidence import HERE, Store, figures, machine, table
from torch import Tensor

from gentok.generators.base import Masked
from gentok.metrics.truncation import entropy, masked_race, truncated_race
from gentok.rng import RowRNG
from gentok.samplers.ancestral import Ancestral
from gentok.samplers.first_hitting import FirstHitting
from gentok.types import Condition, ConditionSpec, Line, Tokens, TokenSpec

VOCAB = 50_257
STEPS = (16, 64, 256, 1024, 4096, 10_000)
RACED = {16: 2400, 64: 3600, 256: 1200}
"""Steps -> cells drawn by the float32 race, whose cost is V random numbers per cell and step."""
CELLS = 4096
BITS = {"float32": 24, "float32_grid": 25}
"""Closed forms: noise cut off where float32 ends, and one bit more, near which numbers on the float32 grid lie."""


def zipf() -> np.ndarray:
    p = 1 / np.arange(1.0, VOCAB + 1)
    return p / p.sum()


class OneLaw(Masked):
    """Every cell has the distribution p, whatever else is known."""

    uses_time, condition_spec = False, ConditionSpec()

    def __init__(self, p: np.ndarray, cells: int):
        self.spec, self.log_p = TokenSpec((len(p),), Line(cells)), torch.tensor(p).log()

    def logits(self, tokens: Tokens, condition: Condition, t: Tensor | None = None) -> Tensor:
        return self.log_p.expand(*tokens.codes.shape, -1)


def surprise(codes: np.ndarray, p: np.ndarray) -> dict[str, float]:
    nats = -np.log(p[codes.ravel()])
    return {"surprise_nats": nats.mean(), "surprise_standard_error": nats.std() / math.sqrt(nats.size)}


def raced(p: np.ndarray, steps: int, cells: int, seed: int) -> np.ndarray:
    """MDLM's sampler as it is written: float32 probabilities of "stay masked" and of all ids, divided by float32 exponentials; int64 [cells]."""
    generator = torch.Generator().manual_seed(seed)
    law, codes, masked = torch.tensor(p), torch.zeros(cells, dtype=torch.int64), torch.ones(cells, dtype=torch.bool)
    for n in range(steps, 0, -1):
        now = torch.cat((law / n, torch.tensor([1 - 1 / n], dtype=torch.float64))).float()
        for rows in masked.nonzero()[:, 0].split(64):
            rng = 1e-10 - (torch.rand(len(rows), len(now), generator=generator) + 1e-10).log()
            codes[rows] = (now / rng).argmax(1)
        masked = masked & (codes == len(p))
    return codes.numpy()


def float32(store: Store, seed: int) -> None:
    """Closed forms for all STEPS; samples of the float32 race for the steps that it can be run for; samples of gentok for all."""
    p = zipf()
    command = f"python docs/results/masked.py float32 seed={seed}"

    def put(name: str, values: dict[str, float], began: float) -> None:
        store.add(figures(f"float32/{name}", values, command, seed, time.monotonic() - began))
        print(name, values, flush=True)

    put("law", {"entropy_nats": entropy(p), "vocab": VOCAB}, time.monotonic())
    for name, bits in BITS.items():
        began = time.monotonic()
        for steps, law in masked_race(p, STEPS, bits).items():
            put(f"{name}/steps{steps}/closed", {"entropy_nats": entropy(law), "surprise_nats": float(-(law * np.log(p)).sum())}, began)
        for steps in STEPS:
            law = truncated_race(np.append(p * 2 / steps, 1 - 2 / steps), bits)
            share = law[:-1].sum()
            put(f"{name}/steps{steps}/half_way", {"entropy_nats": entropy(law[:-1] / share), "reveal_rate": share * steps / 2}, began)
    for steps, cells in RACED.items():
        began = time.monotonic()
        put(f"float32/steps{steps}/samples", {"cells": cells, **surprise(raced(p, steps, cells, seed), p)}, began)
    model, rows = OneLaw(p, 64), CELLS // 64

    def ours(sampler: Callable[..., object], step: int) -> np.ndarray:
        return np.concatenate(
            [sampler(model, Condition(), rng=RowRNG.of(seed, [row], step)).tokens.codes.numpy().ravel() for row in range(rows)]
        )  # fmt: skip

    for steps in STEPS:
        began = time.monotonic()
        put(f"gentok/steps{steps}/samples", {"cells": CELLS, **surprise(ours(Ancestral(steps=steps), steps), p)}, began)
    began = time.monotonic()
    put("gentok/first_hitting/samples", {"cells": CELLS, **surprise(ours(FirstHitting(), 0), p)}, began)


def draw_float32(store: Store) -> None:
    """masked_float32.png: entropy of the distribution that is drawn from, and surprise of what was drawn, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def of(key: str, steps: tuple[int, ...]) -> list[float]:
        return [store.figures[f"float32/{key.format(steps=s)}"]["value"] for s in steps]

    truth = store.figures["float32/law/entropy_nats"]["value"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharex=True, sharey=True)
    for axes, what in ((left, "entropy_nats"), (right, "surprise_nats")):
        axes.axhline(truth, color="black", lw=1, ls="--", label="the distribution itself")
        axes.plot(STEPS, of(f"float32/steps{{steps}}/closed/{what}", STEPS), color="C3", label="float32 race, closed form")
        axes.plot(STEPS, of(f"float32_grid/steps{{steps}}/closed/{what}", STEPS), color="C3", ls=":", label="the same with one bit more")
        axes.set_xscale("log")
        axes.set_xlabel("steps")
    points = {
        "float32/steps{steps}": (tuple(RACED), "C3", "float32 race, samples"),
        "gentok/steps{steps}": (STEPS, "C0", "gentok, samples"),
    }
    for name, (steps, color, label) in points.items():
        error = [2 * e for e in of(f"{name}/samples/surprise_standard_error", steps)]
        right.errorbar(steps, of(f"{name}/samples/surprise_nats", steps), error, fmt="o", ms=4, color=color, label=label)
    left.set_title("entropy of the distribution that is drawn from, nats")
    right.set_title("mean of -log p(id) of what is drawn, nats")
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "masked_float32.png", dpi=110)
    plt.close(figure)


def section_float32(store: Store) -> str:
    value = store.value

    def row(name: str, key: str, form: str = ".2f") -> tuple[str, ...]:
        return (name, *(value(f"float32/{key.format(steps=s)}", form) for s in STEPS))

    def spread(name: str) -> tuple[str, ...]:
        at = "float32/" + name + "/steps{}/samples/surprise_"
        cells = (value(at.format(s) + "nats", ".2f") + " ± " + value(at.format(s) + "standard_error", ".2f") for s in STEPS)
        return tuple(cell if cell != "– ± –" else "–" for cell in cells)

    rows = [
        ("steps", *(f"{s:,}" for s in STEPS)),
        row("entropy of the distribution drawn from: float32 race, closed form", "float32/steps{steps}/closed/entropy_nats"),
        row("the same with one bit more", "float32_grid/steps{steps}/closed/entropy_nats"),
        row("surprise: float32 race, closed form", "float32/steps{steps}/closed/surprise_nats"),
        row("the same with one bit more", "float32_grid/steps{steps}/closed/surprise_nats"),
        ("surprise: float32 race, samples", *spread("float32")),
        ("surprise: gentok's ancestral, samples", *spread("gentok")),
        row("at half time: entropy of what is revealed, closed form", "float32/steps{steps}/half_way/entropy_nats"),
        row("at half time: reveals, of what should be", "float32/steps{steps}/half_way/reveal_rate"),
    ]
    return f"""## float32 noise and the entropy of samples

A masked diffusion may let "stay masked" and all ids race for a cell in every step. With float32 noise an exponential is never below 2⁻²⁴, so ids of
probability p / steps that lie far below the dominant one start late, and the rare ones are lost: the more steps, the less diverse the samples, and the
better they look by any measure that does not see diversity (Zheng et al., arXiv 2409.02908). Here each cell has one known distribution, p(rank r) ∝ 1 / r over
{value("float32/law/vocab", ",.0f")} ids, whose entropy is {value("float32/law/entropy_nats")} nats. *Surprise* is the mean of −log p(id), which is that entropy where draws are exact.

{table(rows)}

gentok decides whether a cell is revealed apart from its id, and draws ids in float64: its samples keep the entropy at any number of steps (first-hitting,
which has none, gives {value("float32/gentok/first_hitting/samples/surprise_nats", ".2f")} ± {value("float32/gentok/first_hitting/samples/surprise_standard_error", ".2f")}). The closed form takes noise as continuous above its cut; numbers on
the float32 grid lose less, nearly what the closed form says with one bit more (tests/metrics/test_truncation.py has their exact distribution for small cases).

![Entropy and surprise against steps](masked_float32.png)
"""


SECTIONS: dict[str, Callable[[Store], str]] = {"float32/law/entropy_nats": section_float32}
"""A figure that a section needs -> the section's text."""


def page(store: Store) -> str:
    head = f"""# Masked diffusion

This page is made by `python docs/results/masked.py`; every figure, with its command, seed, seconds and machine, lies in
[masked.json](masked.json). Machine: {machine()}.
"""
    own = [section(store) for needed, section in SECTIONS.items() if needed in store.figures]
    return "\n".join([head, *own, *filter(None, (section(store) for section in masked_models.SECTIONS))])


def main() -> None:
    what, *rest = sys.argv[1:] or ["nothing"]
    names, words = [w for w in rest if "=" not in w], dict(w.partition("=")[::2] for w in rest if "=" in w)
    store = Store("masked")
    if not masked_models.run(what, names, words, store):
        if what == "float32" and not names and set(words) <= {"seed"}:
            float32(store, int(words.get("seed", 0)))
        elif what != "page" or rest:
            sys.exit(
                "masked.py takes float32 [seed=N], page, train MODEL ..., measure ROW ..., regions SET, subsets SET, seconds SET or levels; "
                f"got {' '.join(sys.argv[1:])}"
            )
    if "float32/law/entropy_nats" in store.figures:
        draw_float32(store)
    (HERE / "masked.md").write_text(page(store))
    print(f"written to {HERE / 'masked.md'}")


if __name__ == "__main__":
    main()
