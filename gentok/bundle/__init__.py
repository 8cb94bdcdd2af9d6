"""The bundle: a trained model as a folder that describes itself and cannot run code.

    bundle.json                    format number, kind, configurations, token and condition specs, checksums, versions, metrics
    tokenizer/model.safetensors    always there: a generator's bundle contains its tokenizer
    generator/model.safetensors    only where kind == "generator"
    README.md                      a model card made from bundle.json

Weights are safetensors and configurations plain JSON that name components by id (gentok/interfaces/component.py). A folder is written
under a temporary name and renamed, so that a kill at any time leaves the last good bundle. Fingerprints are taken from what is stored and
checked on loading.

    models.py        tokenizers and generators from their configurations
    fingerprints.py  what tells two tokenizers apart
    files.py         reading a bundle folder or a training checkpoint
    writing.py       writing a bundle folder
    card.py          its model card
    places.py        where a model is: a folder, a file, a model of gentok's, the hub
    hub.py           bundles on the Hugging Face Hub
    model.py         a loaded model: Bundle and load
    publishing.py    bundles that are handed on: save_pretrained, push_to_hub, from_pretrained
    inner.py         tokenizers that work on another, trained one; pretrained ones
    teacher.py       generators that learn from another, trained one
"""

from gentok.bundle.files import FORMAT
from gentok.bundle.fingerprints import stamp
from gentok.bundle.inner import nest_inner, pretrained
from gentok.bundle.model import Bundle, load
from gentok.bundle.models import build_generator, build_tokenizer
from gentok.bundle.publishing import from_pretrained
from gentok.bundle.teacher import nest_teacher
from gentok.bundle.writing import save

__all__ = [
    "FORMAT", "Bundle", "build_generator", "build_tokenizer", "from_pretrained", "load", "nest_inner", "nest_teacher", "pretrained", "save",
    "stamp",
]  # fmt: skip
