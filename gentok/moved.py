"""Where modules went: an import of an old place is answered by one line with the new one. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

__all__ = ["MODULES", "MovedModules"]

MODULES = {
    "gentok.bundle_files": "gentok.bundle.files",
    "gentok.codebooks.bernoulli": "gentok.codebooks.bae",
    "gentok.codebooks.bits": "gentok.codebooks.bit_groups",
    "gentok.codebooks.factorised": "gentok.codebooks.factorized_vq",
    "gentok.codebooks.index_backprop": "gentok.codebooks.ibq",
    "gentok.codebooks.lookup_free": "gentok.codebooks.lfq",
    "gentok.codebooks.split": "gentok.codebooks.split_rvq",
    "gentok.data.audio": "gentok.data.sound_files",
    "gentok.data.itemset": "gentok.data.indexed_dataset",
    "gentok.data.limited": "gentok.data.subset",
    "gentok.data.listing": "gentok.data.file_index",
    "gentok.data.noise_pictures": "gentok.data.noise_images",
    "gentok.data.pictures": "gentok.data.image_files",
    "gentok.data.pictureset": "gentok.data.image_dataset",
    "gentok.data.sets": "gentok.data.datasets",
    "gentok.data.soundset": "gentok.data.sound_dataset",
    "gentok.data.tarindex": "gentok.data.tar_index",
    "gentok.data.tensorfile": "gentok.data.tensor_file",
    "gentok.data.together": "gentok.data.sharded_encoding",
    "gentok.data.tokens": "gentok.data.token_cache",
    "gentok.judge": "gentok.eval_classifier",
    "gentok.metrics.judge": "gentok.metrics.eval_classifier",
    "gentok.metrics.outside": "gentok.metrics.optional_packages",
    "gentok.mistakes": "gentok.cli.config_errors",
    "gentok.nn.cache": "gentok.nn.kv_cache",
    "gentok.nn.maps": "gentok.nn.feature_cache",
    "gentok.nn.places": "gentok.nn.cell_positions",
    "gentok.nn.streams": "gentok.nn.two_stream",
    "gentok.nn.waves": "gentok.nn.waveform_discriminator",
    "gentok.noise": "gentok.rng",
    "gentok.prompts": "gentok.prompt",
    "gentok.protocols": "gentok.evaluation",
    "gentok.protocols.hearing": "gentok.metrics.spoken_digits",
    "gentok.regions": "gentok.region_likelihood",
    "gentok.samplers.filling": "gentok.samplers.unmasking",
    "gentok.tokenizers.nested": "gentok.tokenizers.inner",
    "gentok.tokenizers.sound": "gentok.tokenizers.sound_checks",
    "gentok.tokens": "gentok.types",
    "gentok.training.overhead": "gentok.benchmarks.overhead",
    "gentok.training.show": "gentok.training.config_tree",
    "gentok.training.sound": "gentok.training.data_checks",
    "gentok.training.teacher_maps": "gentok.training.feature_cache",
    "gentok.training.watch": "gentok.training.nan_check",
    "gentok.words": "gentok.types",
    "gentok.words.condition_specs": "gentok.types.condition_specs",
    "gentok.words.conditions": "gentok.types.conditions",
    "gentok.words.formats": "gentok.types.formats",
    "gentok.words.grids": "gentok.types.grids",
    "gentok.words.items": "gentok.types.tokens",
    "gentok.words.protocols": "gentok.interfaces",
    "gentok.words.results": "gentok.types.outputs",
    "gentok.words.spec": "gentok.types.token_spec",
}


class MovedModules(MetaPathFinder):
    """Asked by Python about modules that no other finder knows; raises ModuleNotFoundError for those that have moved."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname in MODULES:
            raise ModuleNotFoundError(f"{fullname} is called {MODULES[fullname]} now (docs/glossary.md has the new names)", name=fullname)
