"""How long requests of a served model wait, and how many are answered: those that join what is drawn, beside batches that are drawn to their end.

    python docs/results/serving.py [masked autoregressive]     writes serving.md and serving.json

Engines in this process, without HTTP, the same requests in both forms. Time is that of the process on one core, so other work on the machine
does not count; where nothing is to be drawn it jumps to the next request.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from evidence import HERE, Store, figures, table

from gentok.bundle import load
from gentok.rng import RowRNG
from gentok.sampling import configured_sampler
from gentok.sampling_plan import SamplingPlan
from gentok.serving import engine as engines

MODELS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "masked": ("mnist5k_masked", "maskgit", {}, 2.0),
    "autoregressive": ("mnist5k_ar", "autoregressive", {}, 1.5),
}
"""Name -> (bundle, sampler, its settings, guidance)."""
FORMS = {"joined": 16, "batch": 0}
"""How many times its size a batch may take in before others have their turn (gentok/serving/engine.py)."""
CLIENTS, REQUESTS, TURNS, LOAD = 16, 48, 3, 0.7


def plans(name: str) -> list[SamplingPlan]:
    path, sampler, settings, guidance = MODELS[name]
    bundle = load(path)
    chosen = configured_sampler(sampler, type(bundle.generator), settings)
    return [SamplingPlan(bundle, chosen, n=1, condition=seed % 10, seed=seed, guidance=guidance) for seed in range(REQUESTS)]


def by_and_by(asked: list[SamplingPlan], gap: float) -> dict[str, float]:
    """Requests that come at random times, `gap` seconds apart in the mean: how long each takes."""
    engine, took, futures, skipped = engines.Engine(batch_size=CLIENTS, max_waiting=REQUESTS), [], [], -time.process_time()
    for plan, at in zip(asked, (RowRNG([0]).exponential(REQUESTS)[0].cumsum(0) * gap).tolist(), strict=True):
        while time.process_time() + skipped < at:
            if all(future.done() for future in futures):
                skipped = at - time.process_time()
            time.sleep(0.002)
        futures.append(engine.sample(plan))
        futures[-1].add_done_callback(lambda _, began=time.process_time(): took.append(time.process_time() - began))  # noqa: B008
    engine.close()
    assert not any(future.exception(0) for future in futures)
    took.sort()
    return {"median_seconds": statistics.median(took), "p95_seconds": took[int(0.95 * len(took))]}


def all_the_time(asked: list[SamplingPlan]) -> float:
    """Requests per second, where each of CLIENTS asks again as soon as it has its answer."""
    engine, began = engines.Engine(batch_size=CLIENTS, max_waiting=REQUESTS), time.process_time()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda plan: engine.sample(plan).result(), asked))
    took = time.process_time() - began
    engine.close()
    return len(asked) / took


def measure(name: str, store: Store) -> None:
    asked, began = plans(name), time.perf_counter()
    most = max(all_the_time(asked) for _ in range(2))
    found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(TURNS):
        for form, turns in FORMS.items():
            engines._TURNS = turns
            found[form].append({"requests_per_second": all_the_time(asked), **by_and_by(asked, 1 / (LOAD * most))})
            print(name, form, found[form][-1], flush=True)
    values = {f"{form}/{what}": statistics.median(one[what] for one in some) for form, some in found.items() for what in some[0]}
    values |= {"seconds_alone": min(_seconds_alone(asked[0]) for _ in range(3)), "asked_per_second": LOAD * most}
    store.add(figures(name, values, f"python docs/results/serving.py {name}", 0, time.perf_counter() - began))


def _seconds_alone(plan: SamplingPlan) -> float:
    began = time.process_time()
    plan.draw(plan.parts[0])
    return time.process_time() - began


def page(store: Store) -> str:
    rows = [("bundle, sampler", "form", f"answers per second, {CLIENTS} clients", "median wait, s", "95 % wait no longer than, s")]
    for name, (path, sampler, _, guidance) in MODELS.items():
        for form in FORMS:
            values = [store.value(f"{name}/{form}/{what}", ".2f") for what in ("requests_per_second", "median_seconds", "p95_seconds")]
            rows.append((f"`{path}`, `{sampler}`, guidance {guidance:g}", form, *values))
    machine = next(iter(store.figures.values()))["machine"] if store.figures else ""
    alone, asked = (
        " and ".join(f"{store.value(f'{name}/{what}', form)} ({name})" for name in MODELS)
        for what, form in (("seconds_alone", ".2f"), ("asked_per_second", ".1f"))
    )
    share = {
        name: 1 / (store.figures[f"{name}/joined/requests_per_second"]["value"] * store.figures[f"{name}/seconds_alone"]["value"])
        for name in MODELS
    }  # fmt: skip
    return f"""# Requests of a served model

Made by `python docs/results/serving.py` on {machine}: {REQUESTS} requests of one item, up to {CLIENTS} items at once,
both forms by turns, medians of {TURNS}. Seconds are those of the process on one core. `joined` is what `gentok serve` does: a request begins at the next step of what is drawn. In the form `batch` it waits until that
is drawn to its end. The first column of figures is of {CLIENTS} clients that ask again as soon as they have an answer; the waits are of requests that come at
random times, {LOAD:.0%} as many as are answered at most: {asked} a second. A request alone takes {alone} s.

{table(rows)}

On one core an item of 16 that are drawn together costs {share["masked"]:.2f} of what one alone does (masked), or {share["autoregressive"]:.2f} (autoregressive).
Where it costs about the same, nothing is won by drawing rows together, only turns are taken: the rate is that of the batch form, and requests of equal size are answered sooner one after
the other than side by side. Of the autoregressive model more is answered, since rows take the places of those that are done; a request that comes by itself
makes its first call apart and then shares its steps with up to 15 others, and so takes longer than in a batch of few. What joining is for are
devices on which a wide call costs about what a narrow one does, and requests that would stand behind long ones; neither was measured here.

Items are the same in both, bit for bit up to ties in the last digits of float32 ([tests/exact/test_exact_shared_calls.py](../../tests/exact/test_exact_shared_calls.py),
[tests/exact/test_exact_joining.py](../../tests/exact/test_exact_joining.py), [tests/serving/test_engine.py](../../tests/serving/test_engine.py)).
"""


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    store = Store("serving")
    for name in names or MODELS:
        measure(name, store)
    (HERE / "serving.md").write_text(page(store))


if __name__ == "__main__":
    main(sys.argv[1:])
