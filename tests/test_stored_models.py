"""What a stored configuration can reach: components of the role that its place asks for, and nothing else of the package."""

import importlib
import inspect
import json
import pkgutil
import shutil
import socket
import sys
import textwrap

import pytest

import gentok
from gentok.build import _parameters, _roles, build, check, identify, resolve
from gentok.errors import ConfigError
from gentok.interfaces import Codebook, Component, Generator, Tokenizer, component_ids
from gentok.interfaces.format1 import COMPONENTS

ZOO = "docs/zoo/mnist5k_ar"


def modules():
    for info in pkgutil.walk_packages(gentok.__path__, "gentok."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


@pytest.fixture(scope="module")
def callables():
    """Every callable that some module of the package defines or imports: "module.name" -> object."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if callable(value):
                found[f"{module.__name__}.{name}"] = value
    assert len(found) > 2000
    return found


def test_no_callable_without_an_id_can_be_named(callables):
    reached = []
    for name, value in callables.items():
        own = inspect.isclass(value) and issubclass(value, Component) and value.component_id
        try:
            resolve(name)
        except ConfigError as error:
            assert "\n" not in str(error)
            continue
        if not own:
            reached.append(name)
    assert not reached


def test_ids_are_found_by_files_and_name_what_they_say():
    ids = component_ids()
    assert len(ids) > 100
    for own in ids:
        component = resolve(own)
        assert component.component_id == own and resolve(f"{component.__module__}.{component.__name__}") is component
    assert set(COMPONENTS.values()) <= set(ids), "a component of format 1 is gone"
    assert identify({"_target_": "gentok.codebooks.bernoulli.Bernoulli", "bits": 4}) == {"_target_": "codebook/bae", "bits": 4}


@pytest.mark.parametrize("role", [Tokenizer, Codebook, Generator])
def test_a_place_takes_components_of_its_role_alone(role):
    for own in component_ids():
        component = resolve(own)
        if issubclass(component, role):
            continue
        with pytest.raises(ConfigError, match=f"takes a {role.__name__}"):
            check({"_target_": own}, role=role, stored=True)


def test_every_nested_place_says_its_role_and_refuses_the_others():
    """Of all constructors: what is no component's annotation builds nothing, what is one builds that role."""
    strangers = {Codebook: "loss/reconstruction", None: "codebook/fsq"}
    for own in component_ids():
        parameters, hints = _parameters(resolve(own))
        for name, parameter in parameters.items():
            assert parameter.kind is not parameter.VAR_KEYWORD, f"{own}: **{name} hides what it takes"
            roles = _roles(hints.get(name))
            other = strangers[Codebook] if Codebook in roles else strangers[None]
            if roles and issubclass(resolve(other), roles):
                continue
            with pytest.raises(ConfigError, match="builds no component there|takes a |names a place"):
                check({"_target_": own, name: {"_target_": other}}, given=tuple(parameters), stored=True)


def test_what_names_a_place_is_annotated_as_one():
    """A parameter that is called like a path, of a component that a bundle can hold, is a LocalPath, so that `stored` refuses it."""
    for own in component_ids():
        parameters, hints = _parameters(resolve(own))
        for name in {"path", "folder", "file", "root", "url", "ckpt"} & set(parameters):
            with pytest.raises(ConfigError, match="names a place"):
                check({"_target_": own, name: "/etc/passwd"}, given=tuple(parameters), stored=True)


def attacks(tmp_path):
    """name -> what is done to the tokenizer's configuration of a bundle."""
    owned = str(tmp_path / "owned")
    shell = {"_target_": "os.system", "command": f"touch {owned}"}
    return {
        "a shell command": lambda c: c.update(shell),
        "a shell command as a codebook": lambda c: c.update(codebook=shell),
        "build with its own trust": lambda c: c.update(codebook={"_target_": "gentok.build.build", "config": shell, "trust": ["os"]}),
        "a function of the package": lambda c: c.update(codebook={"_target_": "gentok.bundle.writing.save", "path": owned}),
        "an import of any module": lambda c: c.update(
            codebook={"_target_": "gentok.tokenizers.pretrained.base.import_library", "library": "this"}
        ),
        "a module reached through another": lambda c: c.update(
            codebook={"_target_": "gentok.build.importlib.import_module", "name": "this"}
        ),
        "a private class": lambda c: c.update(codebook={"_target_": "gentok.nn.speech._Body"}),
        "another role": lambda c: c.update(codebook={"_target_": "loss/reconstruction"}),
        "a data set in the place of a codebook": lambda c: c.update(codebook={"_target_": "data/folder", "path": "/"}),
        "a component where none belongs": lambda c: c.update(width={"_target_": "codebook/fsq"}),
        "a path": lambda c: c.update({"_target_": "tokenizer/diffusers_vq", "path": "/etc", "media_shape": [3, 32, 32]}),
        "a name on a hub": lambda c: c.update({"_target_": "tokenizer/transformers_dac", "path": "someone/something"}),
        "weights by path": lambda c: c.update({"_target_": "tokenizer/encodec", "weights": "http://127.0.0.1:9/x"}),
        "a network by path, as a teacher's twin": lambda c: c.update(
            {"_target_": "tokenizer/tokenflow", "semantic": {"_target_": "features/vision_map", "path": "/etc", "architecture": {}}}
        ),
        "a bundle by path": lambda c: c.update({"_target_": "tokenizer/prefix", "whole": {"ckpt": "/etc"}, "keep": 1}),
        "trust": lambda c: c.update(trust=["os"]),
    }


@pytest.mark.parametrize("name", attacks.__call__(__import__("pathlib").Path("x")))
def test_an_attack_is_one_line_and_has_no_effect(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    bundle = shutil.copytree(ZOO, tmp_path / "bundle")
    document = json.loads((bundle / "bundle.json").read_text())
    attacks(tmp_path)[name](document["tokenizer"]["config"])
    (bundle / "bundle.json").write_text(json.dumps(document))
    loaded = set(sys.modules)
    with pytest.raises(ConfigError) as error:
        gentok.load(bundle)
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()
    assert "this" not in set(sys.modules) - loaded


def test_a_class_that_moves_and_changes_its_name_keeps_its_bundles(tmp_path, monkeypatch):
    """A package of a user's own: its tokenizer is saved, moved to another file under another name, and loads to the same codes."""
    import torch

    from gentok.bundle import save, stamp

    source = """
        from gentok.interfaces import Codebook
        from gentok.tokenizers.vqgan import VQGAN


        class {name}(VQGAN, id="tokenizer/mine"):
            def __init__(self, codebook: Codebook, media_shape):
                super().__init__(codebook, media_shape, width=8)
    """
    package = tmp_path / "moving"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "before.py").write_text(textwrap.dedent(source.format(name="Before")))
    monkeypatch.syspath_prepend(tmp_path)
    component_ids.cache_clear()
    config = {
        "_target_": "moving.before.Before", "media_shape": [1, 16, 16],
        "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 8},
    }  # fmt: skip
    torch.manual_seed(0)
    tokenizer = build(config, trust=["moving"]).eval()
    stamp(tokenizer, config)
    path = save(tmp_path / "bundle", tokenizer=tokenizer, tokenizer_config=config)
    stored = json.loads((path / "bundle.json").read_text())["tokenizer"]["config"]
    assert stored["_target_"] == "tokenizer/mine" and stored["codebook"]["_target_"] == "codebook/vq"

    (package / "elsewhere").mkdir()
    (package / "elsewhere" / "__init__.py").write_text("")
    (package / "before.py").unlink()
    (package / "elsewhere" / "after.py").write_text(textwrap.dedent(source.format(name="After")))
    for name in [name for name in sys.modules if name.split(".")[0] == "moving"]:
        del sys.modules[name]
    component_ids.cache_clear()
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="no component of this id"):
        gentok.load(path)
    again = gentok.load(path, trust=["moving"])
    media = torch.rand(2, 1, 16, 16) * 2 - 1
    assert type(again.tokenizer).__name__ == "After" and torch.equal(again.encode(media).codes, tokenizer.encode(media).codes)
    component_ids.cache_clear()
