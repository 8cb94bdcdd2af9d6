"""The core knows components by their base classes: no file of it imports or names a concrete tokenizer, generator, codebook or sampler."""

import ast
import re
from pathlib import Path

import pytest

from gentok.build import resolve
from gentok.interfaces import component_ids

PACKAGE = Path(__file__).resolve().parent.parent / "gentok"
CORE = ("bundle", "evaluation", "training", "data", "sampling.py", "prompt.py", "evaluate.py", "describe.py", "codec.py")
ROLES = ("tokenizer", "generator", "codebook", "sampler")
COMPONENTS = {own: place for own, place in component_ids().items() if own.split("/")[0] in ROLES}
CLASSES = {place.rpartition(".")[2] for place in COMPONENTS.values()}
FILES = {place.rpartition(".")[0] for place in COMPONENTS.values()}


def inner_keys() -> set[str]:
    """Keys of configurations under which a tokenizer holds another, which the core must take from `Tokenizer.inner`."""
    return {key for own in COMPONENTS if own.startswith("tokenizer/") for key in resolve(own).inner}


KEYS = inner_keys()


def looked_up(node: ast.AST) -> list[str]:
    """The constant key of `config[key]`, `config.get(key)` or `config.pop(key)`."""
    keys: list[ast.AST] = [node.slice] if isinstance(node, ast.Subscript) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
        keys = node.args[:1]
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def violations(source: str) -> list[str]:
    tree, found = ast.parse(source), []
    documented = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    docstrings = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(alias.name for alias in node.names), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Name):
            names = {node.id}
        elif isinstance(node, ast.Attribute):
            names = {node.attr}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = {*re.findall(r"[\w/]+", node.value), *re.findall(r"[\w.]+", node.value)}
        found += [f"line {node.lineno}: the key {key}" for key in looked_up(node) if key in KEYS]
        wrong = {name for name in names if name in CLASSES | FILES | COMPONENTS.keys() or name.rpartition(".")[0] in FILES}
        found += [f"line {node.lineno}: {name}" for name in sorted(wrong)]
    return found


CORE_FILES = [path for name in CORE for path in sorted(PACKAGE.glob(name if name.endswith(".py") else f"{name}/**/*.py"))]


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_names_no_concrete_component(path):
    assert not violations(path.read_text())


def test_there_is_a_core():
    assert len(CORE_FILES) > 40 and {"VQGAN", "MaskGIT", "VQ", "Autoregressive"} <= CLASSES and {"latents", "speech", "whole"} <= KEYS


@pytest.mark.parametrize(
    "planted",
    [
        "from gentok.tokenizers.vqgan import VQGAN",
        "from gentok.codebooks import vq",
        "import gentok.samplers.maskgit",
        "def f():\n    from gentok.generators.masked import MaskedTransformer",
        "def f(tokenizer):\n    return type(tokenizer).__name__ == 'FlexTok'",
        "config = {'_target_': 'gentok.tokenizers.kl.KL'}",
        "config = {'_target_': 'codebook/vq'}",
        "inner = config['latents']",
        "inner = config.get('speech')",
        "sampler = samplers.MaskGIT()",
    ],
)
def test_a_planted_name_is_found(planted):
    assert violations(planted)


def test_base_classes_and_words_are_no_concrete_components():
    imports = "from gentok.samplers.base import Sampler\nfrom gentok.interfaces import Tokenizer"
    assert not violations(f'"""A VQGAN."""\n{imports}\nx = "the whole file"')
