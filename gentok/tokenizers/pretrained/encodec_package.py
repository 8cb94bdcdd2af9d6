"""EnCodec's model of 24 kHz as Meta's own package `encodec` has it (arXiv 2210.13438): pip install encodec.

Codes are those of encodec's EncodecModel.encode at the bandwidth of `levels` levels. The model of 48 kHz normalises segments of a second
and sends the scale of each beside the codes: it is no map of codes to sound, and refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, remove_weight_norm

from gentok.interfaces import LocalPath
from gentok.nn.conv1d import weight_of
from gentok.tokenizers.pretrained.base import first_line, import_library, one_of
from gentok.tokenizers.pretrained.codec_base import CodecOptions, CodecSettings, Half, PretrainedCodec, first_levels
from gentok.tokenizers.pretrained.levels import Branch, Level, Levels
from gentok.tokenizers.pretrained.transformers_encodec import SIDE_VALUES

__all__ = ["EncodecPackage"]

PUBLISHED = {"sample_rate": 24000, "dimension": 128, "n_filters": 32, "ratios": [8, 5, 4, 2], "lstm": 2, "n_q": 32, "bins": 1024}
"""The model of 24 kHz."""
FILE = "encodec_24khz-d7cc33bc.th"
"""The name of its weights, as the package downloads them."""


class PackageLevel(Level):
    """A VectorQuantization of the package: a table that it averages."""

    @property
    def rows(self) -> Tensor:
        return self.layer._codebook.embed


def _model(config: Mapping[str, Any]) -> nn.Module:
    """encodec's EncodecModel with random weights; config: the keys of PUBLISHED."""
    unknown = sorted(set(config) - set(PUBLISHED))
    if unknown:
        raise ValueError(f"tokenizer.config has the unknown key {unknown[0]!r}; encodec's model has {', '.join(PUBLISHED)}")
    encodec, options = import_library("encodec"), {**PUBLISHED, **config}
    sizes = {key: options[key] for key in ("dimension", "n_filters", "ratios", "lstm")}
    halves = [getattr(encodec.modules, name)(**sizes, norm="weight_norm", causal=True) for name in ("SEANetEncoder", "SEANetDecoder")]
    quantizer = encodec.quantization.ResidualVectorQuantizer(options["dimension"], options["n_q"], options["bins"])
    return encodec.EncodecModel(*halves, quantizer, [], options["sample_rate"], 1)


def _weights(path: str) -> dict[str, Tensor]:
    """The state of a file, of the file of the published name in a folder, or of the package's own download."""
    if path in ("encodec_48khz", "facebook/encodec_48khz") or "encodec_48khz" in Path(path).name:
        raise ValueError(SIDE_VALUES)
    place = Path(path).expanduser()
    place = place / FILE if place.is_dir() else place
    try:
        if os.path.exists(place):
            return torch.load(place, map_location="cpu", weights_only=True)
        if path != "encodec_24khz":
            raise FileNotFoundError(f"there is no {place}")
        root = import_library("encodec.model").ROOT_URL
        return torch.hub.load_state_dict_from_url(root + FILE, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # what torch and the connection raise differs from version to version
        raise FileNotFoundError(
            f"no weights of encodec's model of 24 kHz could be loaded from {path} ({first_line(error)}); encodec_24khz needs a connection "
            f"or a filled cache, the path of {FILE} works without"
        ) from error


def _parametrized(model: nn.Module) -> nn.Module:
    """Weight norms of the package's kind replaced by parametrizations, which can be copied (weights are then no leaves otherwise)."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
            parametrizations.weight_norm(module)
    return model


class EncodecPackage(PretrainedCodec, id="tokenizer/encodec_package"):
    """The model of 24 kHz of the package encodec. 2 levels are 1.5 kbit/s, 8 are 6, 32 are 24."""

    def __init__(self, path: LocalPath | None = None, config: Mapping[str, Any] | None = None, **options: CodecOptions):
        """
        Args:
            path: "encodec_24khz" (downloaded by torch.hub), a folder with the file that is downloaded, or that file.
            config: instead of path, for random weights: {sample_rate, dimension, n_filters, ratios, lstm, n_q, bins}, each as published
                where it is left out.
            options: as in CodecSettings.

        Raises:
            ValueError: not exactly one of path and config is given, or it is the model of 48 kHz.
            FileNotFoundError: nothing loads from path.
        """
        one_of("encodec", path, config, "encodec_24khz, or where its weights lie")
        config, settings = {**PUBLISHED, **(config or {})}, CodecSettings(**options)
        weights = None if path is None else _weights(path)
        model = _model(config)
        if weights is not None:
            try:
                model.load_state_dict(weights)
            except (RuntimeError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} does not hold the weights of encodec's model of 24 kHz: {str(error).splitlines()[0]}") from error
        model = _parametrized(model)
        codebook = Levels([Branch(first_levels(model.quantizer.vq.layers, settings.levels, PackageLevel))], config["dimension"])
        shape = (1, config["dimension"], int(model.encoder.hop_length))
        parts = Half(model.encoder, *shape), codebook, Half(model.decoder, *shape)
        super().__init__(parts, config, config["sample_rate"], settings)

    @property
    def last_layer(self) -> Tensor:
        return weight_of(self.decoder.model.model[-1].conv.conv)
