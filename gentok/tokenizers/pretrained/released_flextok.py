"""FlexTok (Bachmann et al., arXiv 2502.13967) as gentok's own, with released weights or to be trained further.

Read are model.safetensors of EPFL-VILAB/flextok_d12_d12_in1k, _d18_d18_in1k, _d18_d28_in1k and _d18_d28_dfn, which hold their autoencoder
(flextok_vae_c16) too. Their licence, Apple's for machine learning research models, allows research that is not commercial, and asks that it
goes along with the weights and with all that is made from them.

Two numbers are in no tensor and change the result: the factor that latents are scaled by, and what times are multiplied by before they are
embedded. They are read from the configuration in the file's header, or in config.json beside it, and kept in a bundle's.

Deviations: `encode` takes the mean of the autoencoder's posterior unless it is given `rng`, the release always a draw; norms have weights,
which are one (and biases zero) at the start; the projection on a teacher's map, if a file has one, is left out.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from gentok.codebooks.fsq import FSQ
from gentok.interfaces import LocalPath
from gentok.nn.patches import positions_2d
from gentok.nn.released import channels_outermost, fill, find_file, read_state, take
from gentok.settings import PositiveFloat
from gentok.tokenizers.flextok import FlexTok
from gentok.tokenizers.pretrained.diffusers_kl import DiffusersKL

__all__ = ["ReleasedFlexTok"]

MODEL = "FlexTok"
FILES = ("model.safetensors", "*.safetensors")
KNOWN = re.compile(r"decoder\.module_dict\.dec_nested_dropout\.dropout_mask_token")
PLACES = {
    "encoder.registers": "encoder.module_dict.enc_register_module.registers",
    "encoder.stem": "encoder.module_dict.enc_patch_emb.patch_proj",
    "encoder.transformer": "encoder.module_dict.enc_transformer",
    "encoder.head": "encoder.module_dict.enc_to_latents.proj",
    "decoder.inward": "decoder.module_dict.dec_from_latents.proj",
    "decoder.dropped": "decoder.module_dict.dec_nested_dropout.dropout_mask_token",
    "decoder.null": "decoder.module_dict.dec_latent_dropout.nullcond",
    "decoder.stem": "decoder.module_dict.dec_noise_patch_emb.patch_proj",
    "decoder.time.first": "decoder.module_dict.dec_time_embedder.mlp.0",
    "decoder.time.second": "decoder.module_dict.dec_time_embedder.mlp.2",
    "decoder.transformer": "decoder.module_dict.dec_transformer",
    "decoder.modulation": "decoder.module_dict.dec_to_patches.adaLN_modulation.1",
    "decoder.head": "decoder.module_dict.dec_to_patches.proj",
    "latents.model": "vae.vae",
}
"""Own parts -> released ones."""
BLOCK = {
    "attention.qkv": ("attn.wq", "attn.wk", "attn.wv"), "attention.out": ("attn.proj",), "mlp.up": ("mlp.fc1", "mlp.fc3"),
    "mlp.out": ("mlp.fc2",), "modulation": ("adaLN_modulation.1",),
}  # fmt: skip
"""Layers of a block, those of the release one below the other."""
SINES = {
    "encoder": "encoder.module_dict.enc_posemb_module.posembs",
    "decoder": "decoder.module_dict.dec_patches_posemb_module.posembs",
}
LEARNED = "decoder.module_dict.dec_registers_posemb_module.posembs"
ORDER = (2, 3, 0, 4, 5, 1)
"""Where the release has shift, scale and gate of attention, then those of the feed-forward part."""


class ReleasedFlexTok(FlexTok, id="tokenizer/flextok_released"):
    """FlexTok's flow with LayerNorms over the latents of an AutoencoderKL."""

    def __init__(
        self, *, weights: LocalPath | None = None, time_scale: PositiveFloat | None = None, **flextok: Annotated[Any, FlexTok]
    ):
        """
        Args:
            weights: a released file, or the folder that holds it; None: random weights.
            time_scale: what times are multiplied by before they are embedded; None: what the file says, without a file 1,000.
            flextok: as of FlexTok; `latents` is a DiffusersKL, its scaling_factor null where the file says it.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: the weights are of another model, or the settings do not fit each other or the data.
        """
        super().__init__(norm="layer", **flextok)
        if not self.generative or not isinstance(self.latents, DiffusersKL):
            raise ValueError("a released FlexTok has decoder=flow and latents of gentok.tokenizers.pretrained.diffusers_kl")
        sizes = [list(part.spec.media_shape) for part in (self, self.latents)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"images are {sizes[0]}, those of the autoencoder {sizes[1]}: set tokenizer.latents.media_shape={sizes[0]}")
        self.time_scale = time_scale
        if weights is not None:
            self._load(find_file(weights, MODEL, FILES))
            self.needs_training = False
        self.decoder.time.scale = self.time_scale or 1000.0

    def _load(self, path: Path) -> None:
        state = read_state(path, MODEL, FILES, KNOWN, "a tokenizer of FlexTok")
        self._settle(_header(path), path)
        for side, name in SINES.items():
            network = getattr(self, side)
            width = network.stem.out_features
            (found,) = take(state, {name: (1, width, *network.home)}, path, MODEL)
            places = positions_2d(network.home, network.home, width, device=found.device)
            if not torch.allclose(found[0].flatten(1).T.float(), places, atol=5e-3):
                raise ValueError(f"{path} is not the {MODEL} that is configured here: {name} holds other numbers than sines and cosines")
        count, width = self.decoder.places.shape
        (learned,) = take(state, {LEARNED: (1, 1, width, count)}, path, MODEL)
        ignored = [name for name in state if "repa" in name] + ["vae.logvar"]
        fill(self, self._sources(), state, path, MODEL, ignored)
        if not self.decoder.places.is_meta:
            self._put(learned[0, 0].T)

    @torch.no_grad()
    def _put(self, places: Tensor) -> None:
        """What is not as in the file: places of registers, the order of a patch's numbers, and that of modulations."""
        self.decoder.places.copy_(places)
        channels_outermost(self.encoder.stem, self.patch, axis=1)
        channels_outermost(self.decoder.stem, self.patch, axis=1)
        channels_outermost(self.decoder.head, self.patch)
        for block in self.decoder.transformer.blocks:
            for tensor in (block.modulation.weight, block.modulation.bias):
                tensor.copy_(tensor.unflatten(0, (block.kinds, 6, -1))[:, ORDER].transpose(0, 1).flatten(0, 2))

    def _sources(self) -> dict[str, tuple[str, ...]]:
        """Own names and the released tensors that they are made of. Norms have none, and places of registers are put in by themselves."""
        found: dict[str, tuple[str, ...]] = {}
        for key in self.state_dict():
            place = next((own for own in PLACES if key == own or key.startswith(f"{own}.")), None)
            if place is None:
                continue
            inside = key[len(place) :]
            if not place.endswith("transformer"):
                found[key] = (PLACES[place] + inside,)
            elif block := re.fullmatch(r"\.blocks\.(\d+)\.(.+)\.(weight|bias)", inside):
                layers = BLOCK.get(block[2], ())
                if layers:
                    found[key] = tuple(f"{PLACES[place]}.blocks.{block[1]}.{layer}.{block[3]}" for layer in layers)
        return found

    def _settle(self, header: Mapping[str, Any], path: Path) -> None:
        """Takes what no tensor says from a file's configuration. Raises ValueError where neither that nor the settings say it."""
        own = list(self.codebook.values) if isinstance(self.codebook, FSQ) else None
        levels = list(header.get("regularizer", {}).get("levels", own or ()))
        if levels != own:
            raise ValueError(f"{path} has an FSQ of levels {levels}; tokenizer.codebook.values are {own}")
        embedder = header.get("decoder", {}).get("module_dict", {}).get("dec_time_embedder")
        if embedder is not None:
            self.time_scale = 1000.0 / float(embedder.get("max_timestep", 1000.0))  # as its code has it by default
        factor = header.get("vae", {}).get("scaling_factor") or self.latents.model.config.scaling_factor
        for what, setting, value in (
            ("what it multiplies times by", "tokenizer.time_scale", self.time_scale),
            ("by which factor its latents are scaled", "tokenizer.latents.config.scaling_factor", factor),
        ):
            if value is None:
                raise ValueError(f"{path} does not say {what}: give {setting}")
        self.latents.factor = float(factor)

    def portable(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if "weights" not in config:
            return dict(config)
        latents = {**config["latents"], "config": {**config["latents"]["config"], "scaling_factor": self.latents.factor}}
        return {**config, "weights": None, "time_scale": self.time_scale, "latents": latents}


def _header(path: Path) -> dict[str, Any]:
    """The configuration in a safetensors file's header, whose values are written as Python has them, else that of config.json beside it.
    Nothing is run."""
    written: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            written = file.metadata() or {}
    found: dict[str, Any] = {}
    for key, text in written.items():
        try:
            found[key] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            continue
    beside = path.with_name("config.json")
    if "decoder" not in found and beside.is_file():
        found = {**json.loads(beside.read_text()), **found}
    return {key: value for key, value in found.items() if isinstance(value, dict)}
