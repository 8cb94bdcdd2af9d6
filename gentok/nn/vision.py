"""Vision transformers of the transformers library as semantic networks: CLIP, SigLIP, DINOv2 and whatever else AutoModel reads.

The map is a hidden state, the one before the last by default (TokenFlow, arXiv 2412.03069, takes the penultimate), without the tokens in
front of the patches, laid out as the patches lie. Images are resized to `size` x `size`, since positions are learnt for one size, and
shifted and scaled by `mean` and `std` after they were brought to [0, 1].

Weights are read from a local folder, never fetched: for a frozen network at every use, for a trained one only through the run's teacher, so
that a saved tokenizer needs no folder. Layers behind the one that is read are not built where the network is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentok.interfaces import LocalPath
from gentok.nn.features import resized
from gentok.nn.semantic import SemanticNetwork
from gentok.settings import PositiveInt

__all__ = ["VisionMap"]

UNUSED = ("post_layernorm", "pooler", "head.")
"""Parts of the library's models that stand behind every hidden state."""


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a VisionMap needs the package transformers: pip install transformers") from error
    return transformers


@lru_cache(maxsize=4)
def _frozen(path: str, device: str) -> nn.Module:
    """The vision part of the model in a local folder, in float32 and eval mode: no module of anything that uses it."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path} of a vision model: save one there (config.json and model.safetensors)")
    with torch.device("cpu"):
        model = _library().AutoModel.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return getattr(model, "vision_model", model).eval().requires_grad_(False).float().to(device)  # of a model of images and texts its half


class VisionMap(SemanticNetwork, id="features/vision_map"):
    """The map of a vision transformer of transformers, of the image at its size.

    Args:
        architecture: the vision model's configuration, with its `model_type` (clip_vision_model, siglip_vision_model, dinov2, ...).
        path: folder of the weights, of a frozen network.
        size: pixels per side of what it sees.
        layer: index of the hidden state, negative from the end.
        mean: per channel, subtracted.
        std: per channel, divided by.
        trained, start: see gentok.nn.semantic; the teacher is then a frozen VisionMap of this architecture.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        path: LocalPath | None = None,
        size: PositiveInt = 224,
        layer: int = -2,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        trained: bool = False,
        start: str = "teacher",
    ):
        super().__init__(frozen=not trained, start=start)
        missing = [key for key in ("model_type", "hidden_size", "num_hidden_layers", "patch_size") if key not in architecture]
        if missing:
            raise ValueError(f"a VisionMap's architecture is the model's config.json; it lacks {', '.join(missing)}")
        if not trained and path is None:
            raise ValueError("a frozen VisionMap needs path=FOLDER with its weights")
        layers = int(architecture["num_hidden_layers"])
        if not -layers <= layer <= -1:
            raise ValueError(f"layer={layer}: a hidden state of this network is one of -{layers}..-1, from the end")
        self.width, self.size, self.layer, self.path = int(architecture["hidden_size"]), int(size), layer, path
        self.patch = int(architecture["patch_size"])
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)
        if trained:
            options = {**architecture, "num_hidden_layers": layers + layer + 1, "image_size": self.size}
            kind = options.pop("model_type")
            library = _library()
            model = library.AutoModel.from_config(library.AutoConfig.for_model(kind, **options))
            self.network = getattr(model, "vision_model", model)  # as in _frozen
            for name, parameter in self.network.named_parameters():
                if any(word in name for word in UNUSED):
                    parameter.requires_grad_(False)

    def map(self, media: Tensor) -> Tensor:
        network, layer = (_frozen(self.path, str(media.device)), self.layer) if self.frozen else (self.network, -1)
        x = resized(media, self.size).expand(-1, 3, -1, -1)
        x = ((x + 1) / 2 - self.mean.to(x)) / self.deviation.to(x)
        hidden = network(x, output_hidden_states=True).hidden_states[layer]
        side = self.size // self.patch
        if hidden.dim() != 3 or hidden.shape[1] < side * side:
            raise ValueError(
                f"a VisionMap of {self.size} px and patches of {self.patch} expects {side} x {side} patches; got {tuple(hidden.shape)}"
            )
        return hidden[:, -side * side :].transpose(1, 2).unflatten(2, (side, side)).float()

    def weights(self) -> dict[str, Tensor]:
        return dict((_frozen(self.path, "cpu") if self.frozen else self.network).state_dict())
