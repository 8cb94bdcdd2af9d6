"""A codec's preset of conf/tokenizer as it is configured, on the meta device, where nothing but shapes is computed."""

from __future__ import annotations

import torch
from tokenizer_kit import read

from gentok.build import build


def size(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build({**read("tokenizer", name), "losses": None}, media_shape=(1,))
