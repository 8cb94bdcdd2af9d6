"""Makes reliability.md and reliability.json: processes that are killed, full caches, memory that stays flat, files that are broken.

    python docs/results/reliability.py [only=ranks,kills,stall,efficiency,memory,pictures] [rank_kills=40] [process_kills=100]
                                       [tokens=10000000] [steps=2000] [pictures=10000] [seed=0] [keep=FOLDER]

    python docs/results/reliability.py page              only writes the page anew

Every figure says how many were tried. Kills are written down one by one: with keep=FOLDER a measurement that was stopped goes on.
Figures of time (stall, efficiency) want a machine that does nothing else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence import ROOT, Store, figures
from reliability_jobs import found_by
from reliability_kills import Counted, kills, ranks
from reliability_machine import efficiency, memory_of_steps, memory_of_tokens, stall
from reliability_page import write_page


def pictures(root: Path, count: int) -> dict[str, Any]:
    """A folder of which 3 % are broken in ten ways, trained on to the end, every picture at least once."""
    sys.path[:0] = [str(ROOT / "tests" / "faults")]
    def work() -> dict[str, Any]:
        from ten_ways import BROKEN, LEFT_OUT
        from test_ten_ways import trained

        skipped, made = trained(root, count, count * 3 // 100, -(-count // 10), 10)
        wanted = {kind: sum(len(made[way]) for way in ways) for kind, ways in (("broken", BROKEN), ("no_files", LEFT_OUT))}
        named = {**skipped["reasons"], **skipped["left_out_reasons"]}
        wrong = set(named) - {str(path) for way in (*BROKEN, *LEFT_OUT) for path in made[way]}
        return {"files": count, "broken": wanted["broken"], "said_to_be_broken": skipped["count"], "no_files": wanted["no_files"],
                "said_to_be_left_out": skipped["left_out"], "named": len(named), "named_wrongly": len(wrong)}  # fmt: skip

    return found_by(work, root, "pictures")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    seed = int(given.get("seed", 0))
    numbers = {"rank_kills": 40, "process_kills": 100, "tokens": 10_000_000, "steps": 2000, "pictures": 10_000}
    numbers |= {key: int(given[key]) for key in numbers if key in given}
    items: dict[str, tuple[str, Callable[[Path, Counted], Any]]] = {
        "ranks": ("rank_kills", lambda root, counted: ranks(root, numbers["rank_kills"], seed, counted)),
        "kills": ("process_kills", lambda root, counted: kills(root, numbers["process_kills"], seed, counted)),
        "stall": ("", lambda root, counted: counted(stall(root))),
        "efficiency": ("", lambda root, counted: counted(efficiency(root))),
        "memory": (
            "tokens",
            lambda root, counted: counted({**memory_of_tokens(root, numbers["tokens"]), **memory_of_steps(root, numbers["steps"])}),
        ),
        "pictures": ("pictures", lambda root, counted: counted(pictures(root, numbers["pictures"]))),
    }
    store = Store("reliability")
    for item in [] if words == ["page"] else given.get("only", ",".join(items)).split(","):
        if item not in items:
            sys.exit(f"only={item}: choose from {', '.join(items)}")
        number, measure = items[item]
        asked = [f"{name}={numbers[name]}" for name in ((number, "steps") if item == "memory" else (number,)) if name]
        how = " ".join(["python docs/results/reliability.py", f"only={item}", *asked, f"seed={seed}"])
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(given.get("keep", temporary))
            root.mkdir(parents=True, exist_ok=True)
            clock = root / f"{item}.seconds"  # of all starts
            began = time.monotonic() - (float(clock.read_text()) if clock.is_file() else 0.0)

            def counted(found: dict[str, Any], item: str = item, how: str = how, began: float = began, clock: Path = clock) -> None:
                clock.write_text(str(time.monotonic() - began))
                store.add(figures(item, found, how, seed, time.monotonic() - began))

            measure(root, counted)
        print(f"{item}: { {key: figure['value'] for key, figure in store.figures.items() if key.startswith(item + '/')} }", flush=True)
    write_page(store)


if __name__ == "__main__":
    main(sys.argv[1:])
