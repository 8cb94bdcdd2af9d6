"""Text to image on captioned digits: docs/results/captions.json and .md.

    train [seed=0]      into outputs/captions/ar_SEED, left alone where it is done
    measure [seed=0]    what is read back from ITEMS samples of each of the 90 captions
    page                captions.md alone
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from evidence import HERE, ROOT, Store, figures, held_by_tests, table, train_once
from torch import Tensor

from gentok.bundle import load
from gentok.data.captioned_digits import CaptionedDigits, attributes, caption
from gentok.data.image_files import save_grid
from gentok.metrics.classifier import classifier, predict
from gentok.sampling import configured_sampler, sample

RUNS = ROOT / "outputs" / "captions"
WORDS = "experiment=mnist5k/captions tokenizer.ckpt=docs/zoo/mnist5k_vq budget=10min clock=cpu bundle_dtype=bfloat16"
ITEMS, GUIDANCE, SEEDS = 10, (1, 1.5, 2), (0, 1)
CAPTIONS = [(digit, width, slant) for digit in range(10) for width in (-1, 0, 1) for slant in (-1, 0, 1)]
SHOWN = [(digit, width, slant) for digit in (2, 4, 7) for width, slant in ((-1, -1), (-1, 1), (0, 0), (1, -1), (1, 1))]
LAWS = {"captions are of the digit and its measures, which are those of bars of known width and slant": "data/test_captioned_digits"}
READ = {
    "digit": "digit", "width": "thin, thick or neither", "slant": "tilted left, right or neither", "width_side": "thin or thick, by the middle",
    "slant_side": "tilted left or right, by the middle", "all_side": "digit and all named attributes, by the middle",
}  # fmt: skip


def train(seed: int) -> Path:
    return train_once(RUNS / f"ar_{seed}", [*WORDS.split(), f"seed={seed}"])


def read_back(media: Tensor, asked: Tensor, data: CaptionedDigits) -> dict[str, float]:
    """Shares of images float [n, 1, 32, 32] in which the asked digit, width and slant, int64 [n, 3], are read again.

    `width` and `slant`: the image lies in the third that its caption says (nothing said: the middle one). `..._side`, of images whose caption
    names the attribute: it lies on that side of the middle of all digits. `all_side`: the digit is recognised and every named attribute so read.
    """
    model, _ = classifier(data.train.media.float() / 127.5 - 1, data.train.labels, 10)
    found = attributes(media)
    sides = torch.where(found > data.bounds.mean(1), 1, -1)
    named, right = asked[:, 1:] != 0, predict(model, media)[0] == asked[:, 0]
    on_side = (sides == asked[:, 1:]) | ~named
    third = data.named(found) == asked[:, 1:]
    return {
        "digit": float(right.double().mean()), "width": float(third[:, 0].double().mean()), "slant": float(third[:, 1].double().mean()),
        "width_side": float(on_side[named[:, 0], 0].double().mean()), "slant_side": float(on_side[named[:, 1], 1].double().mean()),
        "all_side": float((right & on_side.all(1)).double().mean()),
    }  # fmt: skip


def measure(store: Store, seed: int) -> None:
    data, trained = CaptionedDigits(), f"python train.py {WORDS} seed={seed}"
    real = data.held_out.media.float() / 127.5 - 1
    asked = torch.cat((data.held_out.labels[:, None], data.named(attributes(real))), 1)
    bundle = load(train(seed))
    again = torch.cat([bundle.decode(bundle.encode(part)) for part in real.split(100)])
    command = f"python docs/results/captions.py measure seed={seed}"
    store.add(figures("held out", read_back(real, asked, data), command, seed, 0.0))
    store.add(figures("held out, encoded and decoded", read_back(again, asked, data), command, seed, 0.0))
    asked = torch.tensor(CAPTIONS).repeat_interleave(ITEMS, 0)
    sampler = configured_sampler("jacobi", type(bundle.generator), {"branches": 4})
    for guidance in GUIDANCE:
        began = time.monotonic()
        texts = [caption(*row) for row in asked.tolist()]
        drawn = sample(bundle, n=len(texts), condition={"text": texts}, sampler=sampler, guidance=guidance, seed=seed)
        found = read_back(drawn.media, asked, data) | {"steps": bundle.meta["step"], "calls": float(drawn.calls.double().mean())}
        store.add(figures(f"guidance {guidance}/seed{seed}", found, f"{command}, after: {trained}", seed, time.monotonic() - began))
        print(guidance, seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    if seed == 0:
        texts = [caption(*row) for row in SHOWN for _ in range(6)]
        save_grid(sample(bundle, n=len(texts), condition={"text": texts}, guidance=2, seed=1).media, HERE / "captions.png", 30, scale=2)


def page(store: Store) -> None:
    def row(title: str, keys: list[str]) -> tuple[str, ...]:
        return title, *(" / ".join(store.value(f"{key}/{name}", ".1f", 100.0) for key in keys) for name in READ)

    rows = [("images", *READ.values()), row("held-out digits", ["held out"])]
    rows.append(row("the same, encoded and decoded", ["held out, encoded and decoded"]))
    rows += [row(f"drawn, guidance {g}", [f"guidance {g}/seed{seed}" for seed in SEEDS]) for g in GUIDANCE]
    shown = "; ".join(caption(*row) for row in SHOWN[:5])
    HERE.joinpath("captions.md").write_text(
        f"""# From captions to digits

`data=captioned_digits`: mnist5k's digits with captions that are measured from the images, "a thick seven, tilted left". `experiment=mnist5k/captions`
trains an autoregressive model of the codes of `mnist5k_vq` on them, letter by letter, {WORDS.split("budget=")[1].split()[0]} of one processor. Of all digits 30 % are called
thin, thick, tilted left and tilted right, each; of the others the caption says nothing. This page is made by `python docs/results/captions.py page` from
[captions.json](captions.json), where every figure has its command, seed, seconds and machine.

{held_by_tests(LAWS)}

## What is read back

Per cent, two seeds; {ITEMS} samples of each of the 90 captions, by `jacobi` with four branches. A digit is recognised by a small classifier of real digits, width and
slant are measured as in the captions. "By the middle": of images whose caption names the attribute, those on its side of the middle.

{table(rows)}

Six samples a caption, a row of them for each of 2, 4, 7 (seed 0, guidance 2): {shown}.

![samples by caption](captions.png)

```bash
python sample.py ckpt=RUN/bundle n=16 condition="a thick seven, tilted left" guidance=2
```
"""
    )


def main(words: list[str]) -> None:
    given: Mapping[str, str] = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    seed, store = int(given.get("seed", 0)), Store("captions")
    if words[0] == "train":
        train(seed)
    elif words[0] == "measure":
        measure(store, seed)
    page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
