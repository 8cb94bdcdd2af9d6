"""`python tests/fuzz n=2000 seed=0 only=bundle,weights out=outputs/fuzz.json`: a campaign, `n` copies of every kind of input."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]


def main(words: list[str]) -> int:
    from fuzz_engine import run, write_report
    from fuzz_targets import TARGETS

    given = dict(word.partition("=")[::2] for word in words)
    n, seed, out = int(given.get("n", 1000)), int(given.get("seed", 0)), Path(given.get("out", "outputs/fuzz.json"))
    names = given["only"].split(",") if "only" in given else list(TARGETS)
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            report = run(TARGETS[name], Path(scratch) / name, n, seed)
            reports.append(report)
            kinds = Counter(f"{v['kind']}: {v['detail'][:150]}" for v in report.violations)
            print(f"{name}: {dict(report.counts)} in {report.seconds:.0f} s", flush=True)
            for kind, count in kinds.most_common(int(given.get("show", 10))):
                first = next(v for v in report.violations if f"{v['kind']}: {v['detail'][:150]}" == kind)
                print(f"  {count:5} {kind}\n        seed {first['seed']}: {first['what'][:150]}", flush=True)
            write_report(reports, out, n=n, seed=seed, argv=words)
    return int(any(report.violations for report in reports))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.exit(main(sys.argv[1:]))
