"""Writes density.md and its plot from the figures of density.json; see density.py."""

from __future__ import annotations

from density_encoder import MERGES, OTHERS, SHAPES
from density_models import FLOW_STEPS, ITEMS, MINUTES, PICTURES, SEEDS, SETTINGS
from evidence import HERE, Store, held_by_tests, table

LAWS = {
    "uniform attention as a mean is attention with equal scores; few tokens are adaptive means, and come back to the nearest": "nn/test_density",
    "recovery begins as the identity, with gates of zero and without, and all of its weights are trained": "nn/test_density",
    "operations, counted by torch, are those of a formula, and fall with t as the schedule says": "nn/test_density",
    "a row does not depend on its batch, whatever the times of other rows; bundles; prefixes; other sizes": "nn/test_density tokenizers/test_flextok_density",
    "xAR: the gradient of an entity's output to later inputs is zero; cached sampling is a loop over single passes": "generators/test_xar_density",
    "a killed and resumed run is the run; activations computed twice; pairing": "training/test_resume training/test_blocks test_pairings",
}  # fmt: skip
TITLES = {name: title for name, (title, _) in SETTINGS.items()}
METRICS = {"held_out_flow_loss": ("held-out loss", ".4f"), "psnr_db": ("PSNR, dB", ".2f")}


def ratio(store: Store, key: str) -> str:
    """The median of a time ratio, with the least and the greatest."""
    low, high = (store.value(f"{key}/time_ratio_{end}", ".2f") for end in ("least", "greatest"))
    return f"{store.value(f'{key}/time_ratio', '.2f')} ({low} to {high})"


def fewer(store: Store, key: str) -> str:
    share = store.figures.get(f"{key}/flops_share", {}).get("value")
    return "–" if share is None else f"{100 * (share - 1):+.0f} %".replace("-", "−")


def costs(store: Store, keys: dict[str, str], names: dict[str, str]) -> str:
    """Operations and time of `names` -> titles; keys: of the store -> title."""
    rows = [("", *(part for title in keys.values() for part in (f"{title}: MFLOP", "fewer", "time ratio")))]
    for name, own in names.items():
        row = [own]
        for key in keys:
            row += [store.value(f"{key}/{name}/flops", ",.1f", 1e-6), fewer(store, f"{key}/{name}"), ratio(store, f"{key}/{name}")]
        rows.append(tuple(row))
    return table(rows)


def seeds(store: Store, name: str, metric: str, form: str) -> str:
    return " / ".join(store.value(f"{name}/seed{seed}/{metric}", form) for seed in SEEDS)


def qualities(store: Store, suffix: str) -> str:
    rows = [("", "steps", "training, s", *(title for title, _ in METRICS.values()))]
    for name, title in TITLES.items():
        if not any(f"{name}{end}/seed0/steps" in store.figures for end in ("", suffix)):
            continue
        key = name if name == "dense" else name + suffix
        forms = {"steps": ".0f", "training_seconds": ".0f"} | {metric: form for metric, (_, form) in METRICS.items()}
        rows.append((title, *(seeds(store, key, metric, form) for metric, form in forms.items())))
    return table(rows)


def plot(store: Store) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    value = lambda key: store.figures.get(key, {}).get("value")  # noqa: E731
    for number, (name, (title, _)) in enumerate(SETTINGS.items()):
        flops = value(f"small/solve/{name}/flops")
        for suffix, marker in (("", "o"), ("-steps", "x")):
            found = [value(f"{name}{suffix}/seed{seed}/held_out_flow_loss") for seed in SEEDS]
            points = [loss for loss in found if loss is not None]
            if points and flops:
                label = title if not suffix else None
                left.plot([flops / 1e6] * len(points), points, marker, color=f"C{number}", label=label, linestyle="-", linewidth=1)
    left.set(title="Decoder: o same minutes, x same steps", xlabel=f"MFLOP of {FLOW_STEPS} passes, one image", ylabel="held-out loss of the flow")
    left.legend(fontsize=7)
    found = [(value(f"encoder/speed/small/r{r}/flops"), value(f"encoder/digits/r{r}/seed0/psnr_db")) for r in MERGES]
    points = [(flops / 1e6, quality) for flops, quality in found if flops and quality]
    right.plot(*zip(*points), marker="o", linewidth=1, label="digits, by the encoder's operations")
    if (other := value(f"encoder/digits/r{OTHERS}/seed0/psnr_db")) is not None:
        right.axhline(other, color="gray", linewidth=1, label="with the registers of another image")
        right.set_ylim(other - 0.2, max(y for _, y in points) + 0.3)
    right.legend(fontsize=7)
    right.set(title=f"Encoder with r = {', '.join(map(str, MERGES))} patches merged a block", xlabel="MFLOP of the encoder, one image", ylabel="PSNR, dB")
    figure.tight_layout()
    figure.savefig(HERE / "density.png", dpi=110)
    plt.close(figure)


def encoders(store: Store) -> str:
    rows = [("encoder", "r", "MFLOP", "fewer", "time ratio")]
    for name, (width, depth, _, patches, registers, _, tried) in SHAPES.items():
        for r in (0, *tried):
            key = f"encoder/speed/{name}/r{r}"
            flops, whole = (store.figures.get(f"encoder/speed/{name}/r{n}/flops", {}).get("value") for n in (r, 0))
            share = "–" if not flops or not whole else f"{100 * (flops / whole - 1):+.0f} %".replace("-", "−")
            title = f"{depth} blocks of {width}, {patches} patches, {registers} registers"
            rows.append((title, str(r), store.value(f"{key}/flops", ",.1f", 1e-6), share, ratio(store, key)))
    quality = [("r", "digits: PSNR, dB", "photographs: held-out loss")]
    for r in (*MERGES, OTHERS):
        found = (store.value(f"encoder/digits/r{r}/seed0/psnr_db", ".2f"), store.value(f"encoder/dense/r{r}/seed0/held_out_flow_loss", ".4f"))
        quality.append(("registers of another image" if r == OTHERS else str(r), *found))
    return table(rows) + "\n\n" + table(quality)


def write(store: Store) -> None:
    plot(store)
    from density_words import DECODER, ENCODER, HEAD, XAR

    parts = [
        "# Token density",
        HEAD,
        held_by_tests(LAWS),
        f"## FlexTok's decoder\n\n{DECODER['cost']}\n\n"
        + costs(store, {"small/solve": f"{FLOW_STEPS} passes", "small/train": "a training step"}, TITLES)
        + f"\n\n{DECODER['large']}\n\n"
        + costs(store, {"d12/solve": "3 passes"}, TITLES),
        f"### Quality\n\n{DECODER['quality'].format(minutes=MINUTES, items=ITEMS, pictures=PICTURES, steps=FLOW_STEPS)}\n\n"
        f"The same processor minutes:\n\n{qualities(store, '')}\n\nThe same steps:\n\n{qualities(store, '-steps')}\n\n"
        f"![operations against quality](density.png)\n\n{DECODER['says']}",
        f"## xAR\n\n{XAR['cost']}\n\n"
        + "\n\n".join(f"{XAR[n]}:\n\n" + costs(store, {f"xar_{n}/pass": "all cells", f"xar_{n}/call": "the last cell"},
                      {"dense": "dense", "quarter": "1/4 of the vectors"})
                      for n in ("small", "b"))
        + f"\n\n{XAR['says']}",
        f"## FlexTok's encoder: merged patches, left out\n\n{ENCODER['what'].format(pictures=PICTURES)}\n\n{encoders(store)}\n\n{ENCODER['says']}",
    ]  # fmt: skip
    (HERE / "density.md").write_text("\n\n".join(parts) + "\n")
