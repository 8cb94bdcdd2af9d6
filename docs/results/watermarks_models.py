"""The part of watermarks.md about tokenizers that were trained to give their ids back: docs/zoo/mnist5k_vq tuned for equal processor seconds,
with the consistency of re-encoding and without. What docs/zoo/mnist5k_ar draws is decoded and encoded by each of them.

    python docs/results/watermarks_models.py train NAME ... [seed=0]
    python docs/results/watermarks_models.py measure NAME ... [seed=0]

Models go into outputs/watermarks/NAME_SEED, and are left alone where they are done.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from evidence import ROOT, Store, figures, table, train_once
from torch import Tensor
from watermarks_kit import DAMAGE, KEY, KINDS, LEVEL, MODELS, share_found, share_same

from gentok.bundle import load
from gentok.cli import compose
from gentok.data.mnist5k import MNIST5k
from gentok.metrics.image import psnr
from gentok.sampling import key_mark, sample

RUNS, ZOO = ROOT / "outputs" / "watermarks", "docs/zoo/mnist5k_vq"
TUNED = (
    f"experiment=mnist5k/vq init_from={ZOO} batch_size=16 optimizer.lr=2e-3 schedule.warmup=20 callbacks.ema=null budget=40s clock=cpu trainer=cpu"
)
CONSISTENT = "consistency=reencoding consistency.weight=4 consistency.damage.noise=0.1 consistency.damage.blur=0.5"
VARIANTS = {
    "zoo": ("as in docs/zoo", ""),
    "plain": ("tuned without the term", f"{TUNED} freeze=[codebook]"),
    "decoder": ("tuned with it, the decoder alone", f"{TUNED} freeze=[encoder,codebook] {CONSISTENT}"),
    "both": ("tuned with it, decoder and encoder", f"{TUNED} freeze=[codebook] {CONSISTENT}"),
}
MARKS = ("exp", "cluster")
DAMAGES = ("again", "jpeg", "noise")
N, KEYS, HELD_OUT = 32, 99, 200


def train(name: str, seed: int) -> Path:
    return Path(ZOO) if name == "zoo" else train_once(RUNS / f"{name}_{seed}", [*VARIANTS[name][1].split(), f"seed={seed}"])


def measure(store: Store, names: list[str], seed: int) -> None:
    media = MNIST5k().held_out.media[:HELD_OUT].float() / 127.5 - 1
    first, generator = load(ZOO).tokenizer, load(MODELS["digits"])
    ids = first.encode(media)
    marked = {}
    for kind in MARKS:
        config = compose("sample", [f"ckpt={MODELS['digits']}", *KINDS[kind][1].split()])["watermark"]
        classes = [i % 10 for i in range(N)]
        tokens = sample(generator, n=N, condition=classes, seed=seed, watermark=config, key=KEY).tokens
        marked[kind] = key_mark(config, KEY, generator), tokens
    for name in names:
        began, bundle = time.monotonic(), load(train(name, seed))
        own, found = bundle.tokenizer, {"steps": bundle.meta["step"]}
        again = own.encode(media)
        found["psnr_db"] = _decibel(own.decode(again), media)
        found["old_ids_psnr_db"] = _decibel(own.decode(ids), media)
        found["old_ids_same"] = share_same(ids, again, 1, None)
        for damage in DAMAGES:
            change = DAMAGE["digits"][damage][1]
            found[f"{damage}/held_out_same"] = share_same(again, own.encode(change(own.decode(again))), 1, None)
            for kind, (mark, tokens) in marked.items() if name != "zoo" else ():  # measured by watermarks.py, of the same items
                back = own.encode(change(own.decode(tokens)))
                found[f"{damage}/{kind}_same"] = share_same(tokens, back, 1, mark.groups)
                found[f"{damage}/{kind}_found"] = share_found(mark, back, 64, 1, KEYS)
        how = f"python docs/results/watermarks_models.py measure {name} seed={seed}"
        if name != "zoo":
            how += f", after: python train.py {VARIANTS[name][1]} seed={seed}"
        store.add(figures(f"tuned/{name}", found, how, seed, time.monotonic() - began), {"tuned": {"n": N, "keys": KEYS, "held_out": len(media)}})
        print(name, {k: round(v, 3) for k, v in found.items()}, flush=True)


def _decibel(made: Tensor, media: Tensor) -> float:
    return float(psnr(made, media).mean())


def section(store: Store) -> str:
    """The part of the page; "" where nothing was measured."""
    about = store.protocols.get("tuned")
    if about is None:
        return ""
    titles = {damage: DAMAGE["digits"][damage][0] for damage in DAMAGES}
    share = [("tokenizer", "steps", "PSNR", "PSNR of the old ids", "old ids of images", *(f"ids: {title}" for title in titles.values()))]
    power = [("tokenizer", *(f"{KINDS[kind][0]}: {title}" for kind in MARKS for title in titles.values()))]
    for name, (title, _) in VARIANTS.items():
        key = f"tuned/{name}"
        if f"{key}/psnr_db" not in store.figures:
            continue
        decibel = [f"{store.value(f'{key}/{figure}', '.2f')} dB" for figure in ("psnr_db", "old_ids_psnr_db")]
        old = store.percent(f"{key}/old_ids_same")
        share.append((title, store.value(f"{key}/steps", ".0f"), *decibel, old, *(store.percent(f"{key}/{d}/held_out_same") for d in DAMAGES)))
        found = "digits/{kind}/{d}/found" if name == "zoo" else key + "/{d}/{kind}_found"
        power.append((title, *(store.percent(found.format(kind=kind, d=d)) for kind in MARKS for d in DAMAGES)))
    return f"""## A tokenizer that was trained to give its ids back

`docs/zoo/mnist5k_vq` was tuned for 40 processor seconds with the consistency of re-encoding (`consistency=reencoding`, conf/consistency), and without, on
the same batches, with a frozen codebook. {about["held_out"]} held-out digits; "ids" is the share of ids of their reconstructions that come back. "PSNR of the old ids": what
the new decoder makes of the ids that the first tokenizer gives, as of those of a generator that knows no other. "Old ids of images": the share of a digit's
ids that the first tokenizer gives as well.

{table(share)}

No generator was trained anew. Found with p ≤ {LEVEL} among {about["keys"]} keys, of the same {about["n"]} marked items of `docs/zoo/mnist5k_ar` for each tokenizer, in all their 64 tokens:

{table(power)}
"""


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    names, seed = [word for word in words[1:] if "=" not in word] or list(VARIANTS), int(given.get("seed", 0))
    if words[0] == "train":
        for name in names:
            train(name, seed)
    else:
        measure(Store("watermarks"), names, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
