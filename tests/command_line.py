"""The real command line, many times: python command_line.py CASES.json OUT.json

CASES.json: a list of {"program": "train" or "sample", "words": [...], "limit": bytes of the largest file that may be written, or null}.
OUT.json: of each its exit status, stdout, stderr and seconds of processor time. Everything is imported once; each case is a forked process
of its own, which runs what train.py and sample.py run, on its own sys.argv.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import lightning  # noqa: F401 - imported once for all
import torch

import gentok.training.run  # noqa: F401
from gentok import cli


def attempt(program: str, words: list[str], limit: int | None) -> dict:
    pipes = [os.pipe(), os.pipe()]  # files would fall under the limit
    before = os.times()
    pid = os.fork()
    if not pid:
        os.dup2(pipes[0][1], 1), os.dup2(pipes[1][1], 2)
        for pipe in pipes:
            os.close(pipe[0]), os.close(pipe[1])
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = [f"{program}.py", *words]
        status = 0
        try:
            getattr(cli, program)()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    for pipe in pipes:
        os.close(pipe[1])
    with ThreadPoolExecutor(2) as pool:
        out, err = pool.map(everything, (pipe[0] for pipe in pipes))
    status, after = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    return {"status": status, "out": out, "err": err, "seconds": seconds}


def everything(pipe: int) -> str:
    with open(pipe, encoding="utf-8", errors="replace") as file:
        return file.read()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    answers = [attempt(case["program"], case["words"], case.get("limit")) for case in cases]
    with open(sys.argv[2], "w") as file:
        json.dump(answers, file)
