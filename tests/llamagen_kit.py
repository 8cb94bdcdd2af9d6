"""LlamaGen's weights as its release names them, from drawn numbers, and what its own code makes of them (golden/llamagen.safetensors)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

RECORD = Path(__file__).parent / "golden" / "llamagen.safetensors"


def _drawn(name, shape):
    """A tensor that depends on its name alone."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        draw = 0.1 * draw + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    elif "embedding" not in name:
        draw = draw * np.prod(shape[1:]) ** -0.5
    return torch.from_numpy(draw.astype(np.float32))


def released(model):
    """A state dict under the names of the release. model: vq16, vq8 or gpt."""
    with safe_open(RECORD, "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])[model]
    return {name: torch.zeros(shape) if name.endswith("codebook_used") else _drawn(name, shape) for name, shape in shapes.items()}


def recorded(model, *names):
    """What LlamaGen's own code made of these weights: codes, pixels or logits."""
    with safe_open(RECORD, "pt") as file:
        return [file.get_tensor(f"{model}.{name}") for name in names]


def images(height, width):
    """Float32 [2, 3, height, width], what the recorded codes are of."""
    return torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (2, 3, height, width)).astype(np.float32))
