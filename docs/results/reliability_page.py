"""The page of reliability.py, from its figures."""

from __future__ import annotations

from evidence import HERE, Store, held_by_tests, table

LAWS = {
    "a run that was killed goes on and ends, to the bit, where it would have": "training/test_killed training/test_resume",
    "several processes, also on two hosts, train what one does": "training/test_processes training/test_hosts training/test_sharding",
    "a set that several processes encoded is that of one": "training/test_encoded_by_processes data/test_encoding_processes",
    "a checkpoint that a killed process had begun to write is not taken for one": "faults/test_run_folder",
    "a second SIGTERM leaves at once, also a process that hangs": "faults/test_stop_signals",
    "a full or read-only disk is one line, and nothing of before is lost": "faults/test_full_disk data/test_token_processes",
    "broken pictures of ten kinds end no run, and are listed": "faults/test_ten_ways",
    "a shard that is missing or disappears is named": "faults/test_shards_gone",
    "budgets do not feel a clock that jumps": "faults/test_clock_jumps",
    "one run trains in a folder, one call samples into it, at a time": "faults/test_run_folder faults/test_output_files",
    "a process that waits for one that was killed says so": "data/test_token_processes",
}


def _share(store: Store, key: str, of: str) -> str:
    return f"{store.value(key, ',.0f')} of {store.value(of, ',.0f')}"


def _when(store: Store, item: str) -> str:
    """The command of an item and what it ran on; that it was not measured, where it was not."""
    found = next((figure for key, figure in store.figures.items() if key.startswith(f"{item}/")), None)
    return "Not measured yet." if found is None else f"`{found['command']}`, {found['seconds']:,.0f} s on {found['machine']}."


def write_page(store: Store) -> None:
    value = store.value
    phases = ("training", "caching", "checkpointing", "sampling")
    counted = ", ".join(f"{value(f'ranks/kills_while_{name}', '.0f')} while {name}" for name in phases)
    killed = [
        ("what was killed", "kills", "ended within a minute, with one line", "longest, s", "tracebacks", "other results after the next start"),
        ("a random one of two processes", value("ranks/kills", ".0f"), _share(store, "ranks/in_one_line", "ranks/kills"),
         value("ranks/longest_seconds", ".1f"), value("ranks/tracebacks", ".0f"), value("ranks/different", ".0f")),
        ("one process", value("kills/kills", ".0f"), "–", "–", "–", _share(store, "kills/different", "kills/runs") + " runs"),
    ]  # fmt: skip
    memory = [
        ("work", "how much", "own memory after a fifth, MB", "more at the end, MB"),
        *(
            (what, amount, value(f"memory/{name}_megabytes", ",.0f"), value(f"memory/{name}_growth_megabytes", ".1f"))
            for what, name, amount in (
                ("encoding a set", "encoding", value("memory/tokens", ",.0f") + " tokens"),
                ("reading it, shuffled", "reading", value("memory/tokens", ",.0f") + " tokens"),
                ("training, with checkpoints and validations", "training", value("memory/steps", ",.0f") + " steps"),
            )
        ),
    ]
    stalls = f"""Training stands still for {value("stall/save_seconds", ".3f")} s while a checkpoint of {value("stall/checkpoint_megabytes", ".1f")} MB is written and
flushed, a step takes {value("stall/step_seconds", ".3f")} s: {store.value("stall/share_of_a_run", ".3f", 100.0)} % of a run with a checkpoint every 500 steps, as by default.

* {_when(store, "stall")}"""
    together = f"""Together they train {value("efficiency/items_per_second_of_two_together", ".0f")} items per second, alone but at the same time
{value("efficiency/items_per_second_of_two_alone", ".0f")}: an efficiency of {store.percent("efficiency/efficiency")}.

* {_when(store, "efficiency")}"""
    missing = "Not measured yet: it wants a machine that does nothing else. `python docs/results/reliability.py only={}`"
    stalls = stalls if "stall/save_seconds" in store.figures else missing.format("stall")
    together = together if "efficiency/efficiency" in store.figures else missing.format("efficiency")
    text = f"""# What a run survives

Made by `python docs/results/reliability.py` (`only=ranks,kills,stall,efficiency,memory,pictures`; how many is an argument). Nothing is
counted here that was not run: each table says how many were tried.

## Kills

{table(killed)}

Signal 9, at random moments. Of two processes, which nobody watches over, the one that is left must end by itself
({counted}); then the same command is given
again, with `resume=auto`, and the result compared by a hash with that of an undisturbed job: weights, averages and optimizer of the last
checkpoint, the encoded set, the pictures of samples. One process is killed again and again until its run has ended, and so compared, bundle
included: every fourth kill before the start has written a checkpoint ({value("kills/kills_before_a_checkpoint", ".0f")}), the others up to half a second after one, so that
{value("kills/kills_within_a_checkpoint", ".0f")} fell into the writing of the next; checkpoints that could not be read after a kill: {value("kills/unreadable_checkpoints", ".0f")}.

Processes are forked from one that has imported all packages, else most kills would wait for imports. Of the two, each goes through the
command line of train.py or sample.py; the one that is killed alone begins behind it, with its configuration composed.

Two faults came out by such kills and were mended: a connection that was lost in the backward pass ended in a traceback, and a kill within the
very first checkpoint kept `resume=auto` from beginning anew.

* {_when(store, "ranks")}
* {_when(store, "kills")}

## Memory

{table(memory)}

Own memory is what no file stands behind (RssAnon). The pages of a token file that is read belong to the system, which takes them back when
it needs them.

* {_when(store, "memory")}

## Files that are broken

{value("pictures/files", ",.0f")} pictures, of which 3 % are truncated, empty, a text, a sound, of 0 pixels, damaged within, forbidden to
read, a folder, a link to nothing, or of 16 bits (which are read). The run ended; it counted {_share(store, "pictures/said_to_be_broken", "pictures/broken")} as broken and
{_share(store, "pictures/said_to_be_left_out", "pictures/no_files")} as no files, and named {value("pictures/named_wrongly", ".0f")} that are whole.

* {_when(store, "pictures")}

## Stalls

{stalls}

## Two processes on two cores

{together}

{held_by_tests(LAWS)}
"""
    (HERE / "reliability.md").write_text(text)
