"""Every experiment is complete: it is composed, and what it trains is built and counted, without data."""

from pathlib import Path

import pytest

from gentok.benchmarks.plan import SIZES
from gentok.cli import compose
from gentok.describe import describe

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(
    str(path.relative_to(ROOT / "conf" / "experiment").with_suffix("")) for path in (ROOT / "conf" / "experiment").glob("*/*.yaml")
)
QUICK = ("cifar10/tokenflow_ms", "spoken_digits/semantic", "cifar10/resgen_rq", "mnist5k/self_speculative", "cifar10/ctf", "cifar10/xar")
WHERE = {
    "cifar10": ["data.shards=nowhere.tar", "data.held_out=nowhere.tar"],
    "fsdd": ["data.shards=nowhere.tar", "data.held_out=nowhere.tar"],
    "imagenet256": [],
}


def words(name: str) -> list[str]:
    out = [f"experiment={name}", *WHERE.get(name.partition("/")[0], [])]
    for start, sizes in SIZES.items():  # of the tokenizer, without a bundle
        if name.startswith(start):
            return [*out, "trainer=cpu", "data.path=nowhere", "describe_classes=1000", *sizes]
    if name.endswith("/next_scale"):
        return [*out, "tokenizer=vqgan", "codebook=pyramid"]
    if "override /tokenizer: from_bundle" in (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text():
        data = name.partition("/")[0]
        kind = "codec" if data == "spoken_digits" else "rq" if name.endswith("_rq") else "kl" if name == "cifar10/xar" else "vq"
        zoo = f"{data}_{kind}"
        out.append(f"tokenizer.ckpt={ROOT / 'docs' / 'zoo' / zoo}")
    return out


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES])
def test_an_experiment_describes_what_it_trains(name, capsys):
    config = compose("config", words(name))
    report = describe(config)
    assert report["tokens"] > 0 or report["bits"] == 0
    assert report["tokenizer"] > 0 or config["tokenizer"].get("speech", {}).get("ckpt") is None  # a size alone stands for what is inside
    assert report["flops_train_step"] > 0
