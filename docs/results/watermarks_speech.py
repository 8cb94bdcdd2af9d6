"""The part of watermarks.md about why speech loses its marks, and what the edit distance finds of sounds of which a part was cut out.

    python docs/results/watermarks_speech.py [n=8] [seed=0] [keys=99]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from evidence import Store, figures, table
from torch import Tensor
from watermarks_kit import DAMAGE, KEY, LEVEL, LEVELS, MODELS, POSITIONS, SENTENCES, encoded, share_found

from gentok.bundle import load
from gentok.cli import compose
from gentok.rng import RowRNG
from gentok.sampling import key_mark, pick_sampler
from gentok.sampling_plan import SamplingPlan
from gentok.types import ABSENT, Tokens
from gentok.watermarks.base import KeyMark

FRAME, MIDDLE = 320, 20
"""Samples of a frame, and the frame before which something is cut out."""


def _without(x: Tensor, begin: int, end: int) -> Tensor:
    return torch.cat((x[..., :begin], x[..., end:]), -1)


SOUNDS = {
    **{name: DAMAGE["speech"][name] for name in ("again", "frames", "cut")},
    "middle": ("2 frames cut out of the middle", lambda media: _without(media, MIDDLE * FRAME, (MIDDLE + 2) * FRAME)),
}
CODES = {
    "codes": ("codes", lambda codes: codes),
    "codes_middle": ("codes, 2 frames cut out of the middle", lambda codes: _without(codes, MIDDLE, MIDDLE + 2)),
    "codes_three": ("codes, 3 single frames cut out", lambda codes: _without(_without(_without(codes, 32, 33), 20, 21), 9, 10)),
}
ALIGNMENTS = {"shift": None, "edit": 3.0}
"""Their names, and the gap penalty of the edit distance."""


class Listening(KeyMark):
    """A mark that notes the entropy of every cell of the first level, in bits."""

    entropy: Tensor

    def choose(self, logits: Tensor, rng: RowRNG, level: Tensor, position: Tensor) -> Tensor:
        bits = torch.distributions.Categorical(logits=logits.double()).entropy() / torch.log(torch.tensor(2.0))
        level, position = (x.expand(bits.shape) for x in (level, position))
        row = rng.row_numbers.view(-1, *[1] * (bits.dim() - 1)).expand(bits.shape)
        here = (level == 0) & (position >= 0)
        self.entropy[row[here], position[here]] = bits[here]
        return super().choose(logits, rng, level, position)


def listening(mark: KeyMark, items: int, positions: int) -> Listening:
    mark.__class__ = Listening
    mark.entropy = torch.full((items, positions), torch.nan, dtype=torch.float64)
    return mark


def measure(store: Store, n: int, seed: int, keys: int) -> None:
    began, bundle = time.monotonic(), load(MODELS["speech"])
    levels, positions = LEVELS["speech"], POSITIONS["speech"][0]
    mark = key_mark(compose("sample", [f"ckpt={MODELS['speech']}", "watermark=exp"])["watermark"], KEY, bundle)
    mark = listening(mark, n, bundle.spec.positions)
    sampler = pick_sampler(None, type(bundle.generator))
    plan = SamplingPlan(bundle, sampler, n=n, condition=[SENTENCES[i % len(SENTENCES)] for i in range(n)], seed=seed, mark=mark)
    samples = plan.draw(plan.parts[0])
    found: dict[str, Any] = {}

    def ask(name: str, tokens: Tokens) -> None:
        for alignment, gap in ALIGNMENTS.items():
            found[f"{name}/{alignment}"] = share_found(mark, tokens, positions, levels, keys, gap)

    for name, (_, change) in CODES.items():
        ask(name, Tokens(_padded(change(samples.tokens.codes), bundle.spec.positions), bundle.spec))
    for name, (_, change) in SOUNDS.items():
        lost = samples.media.shape[-1] - change(samples.media[:1]).shape[-1]
        tokens = encoded(bundle, change(samples.media), samples.lengths, lost)
        ask(name, tokens)
        if name == "again":
            found |= _survivors(samples.tokens.codes[:, 0], tokens.codes[:, 0], mark.entropy)
    how = f"python docs/results/watermarks_speech.py n={n} seed={seed} keys={keys}"
    about = {"n": n, "keys": keys, "gap": ALIGNMENTS["edit"]}
    store.add(figures("speech_edit", found, how, seed, time.monotonic() - began), {"speech_edit": about})
    print({k: round(v, 3) for k, v in found.items()}, flush=True)


def _padded(codes: Tensor, positions: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, positions - codes.shape[-1]), value=ABSENT)


def _survivors(codes: Tensor, again: Tensor, entropy: Tensor) -> dict[str, float]:
    """The mean entropy of positions whose ids come back, and of those whose do not; int64 [B, N] and float [B, N] of the first level."""
    size = min(codes.shape[1], again.shape[1])
    codes, again, entropy = codes[:, :size], again[:, :size], entropy[:, :size]
    there, same = (codes >= 0) & (again >= 0), codes == again
    kept, lost = entropy[there & same], entropy[there & ~same]
    return {"bits_of_kept": float(kept.mean()), "bits_of_lost": float(lost.mean()), "share_kept": float(same[there].double().mean()),
            "share_of_bits_kept": float(kept.sum() / (kept.sum() + lost.sum()))}  # fmt: skip


def section(store: Store) -> str:
    """The part of the page; "" where nothing was measured."""
    about = store.protocols.get("speech_edit")
    if about is None:
        return ""
    rows = [("EXP, items found", "by shift", "by edit distance")]
    for name, (title, _) in {**CODES, **SOUNDS}.items():
        rows.append((title, *(store.percent(f"speech_edit/{name}/{alignment}") for alignment in ALIGNMENTS)))
    return f"""## Speech of which a part was cut out

{about["n"]} marked items of `{MODELS["speech"]}`, found with p ≤ {LEVEL} among {about["keys"]} keys by the first level: with the item beginning anywhere in the key
(`alignment=shift`), and by edit distance (`alignment=edit gap={about["gap"]:g}`).

{table(rows)}

Of the ids of the first level {store.percent("speech_edit/share_kept")} come back from a sound that is encoded again. The model was uncertain by {store.value("speech_edit/bits_of_kept", ".2f")} bits in the mean
where they do, and by {store.value("speech_edit/bits_of_lost", ".2f")} bits where they do not: those that come back carry {store.percent("speech_edit/share_of_bits_kept")} of the entropy, which is what a mark is made of.
"""


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    given = {key: int(value) for key, value in (word.split("=", 1) for word in words)}
    measure(Store("watermarks"), given.get("n", 8), given.get("seed", 0), given.get("keys", 99))


if __name__ == "__main__":
    main(sys.argv[1:])
