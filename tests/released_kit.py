"""Released weights as their releases name them, drawn, and what the releases' own code made of them (golden/FAMILY.safetensors)."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"
TABLE = re.compile(
    r"embedding|class_emb|lvl_embed|pos_embed|pos_1LC|pos_start|latent_tokens|patch_embed.weight|(mask|cls)_token|module\.registers|posembs"
)
"""Tensors that are not divided by the root of their width."""
ZERO = re.compile(r"codebook_used|zero_k_bias|_hit_SV")
"""Tensors that a release has at zero."""


def drawn(name, shape):
    """A tensor that depends on its name alone."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        draw = 0.1 * draw + (1.0 if re.search(r"[nN]orm|ln_", name) and name.endswith("weight") else 0.0)
    elif not TABLE.search(name):
        draw = draw * np.prod(shape[1:]) ** -0.5
    return torch.from_numpy(draw.astype(np.float32))


def released(family, model, **changes):
    """A state dict under the names of the release. changes: tensors, None to leave one out."""
    with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])[model]
    state = {name: torch.zeros(shape) if ZERO.search(name) else drawn(name, shape) for name, shape in shapes.items()}
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


def recorded(family, model, *names):
    """What the release's own code made of these weights: codes, pixels or logits."""
    with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
        return [file.get_tensor(f"{model}.{name}") for name in names]


def some_slow(names, *quick):
    """Parameters of a test: of all names but the quick ones it is slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def images(height, width):
    """Float32 [2, 3, height, width], what the recorded codes are of."""
    return torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (2, 3, height, width)).astype(np.float32))
