"""train.py, which notes in the file ENCODED how many processes it has started to encode a set; run by test_encoded_by_processes.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gentok.data.encoding_processes as encoding

started = encoding.encode_by_processes


def noted(tokenizer: Any, data: Any, path: Path, devices: list[str], **options: Any) -> Path:
    made = started(tokenizer, data, path, devices, **options)
    with open(os.environ["ENCODED"], "a") as file:
        print(len(devices), len(data), file=file)
    return made


if __name__ == "__main__":
    encoding.encode_by_processes = noted
    from gentok.cli import train

    train()
