"""Building from a configuration: the signature is the schema, and nothing outside the allow-list is ever touched."""

import sys

import pytest
import torch

from gentok.build import build, check, resolve
from gentok.errors import ConfigError

COSINE = "gentok.training.optim.Cosine"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.load",
        "gentok.bundle.os.system",
        "gentok.bundle.shutil",
        "gentok.bundle.torch.load",
        "gentok.build.importlib.import_module",
        "gentok.bundle.nn",
        "gentok",
        "",
    ],
)
def test_targets_outside_the_allow_list_are_refused(target):
    with pytest.raises(ConfigError) as error:
        build({"_target_": target, "command": "true"})
    assert "\n" not in str(error.value)


def test_an_unknown_key_names_the_nearest_before_anything_is_built():
    with pytest.raises(ConfigError, match="did you mean 'warmup'"):
        check({"_target_": COSINE, "warmpu": 3})


def test_nested_components_are_checked_first(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "BUILT = []\n"
        "class Inner:\n    def __init__(self, size):\n        BUILT.append('inner')\n        self.size = size\n"
        "class Outer:\n    def __init__(self, inner, parts=(), spec=None):\n"
        "        self.inner, self.parts, self.spec = inner, parts, spec\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = {"_target_": "mine.Inner", "size": 2}
    with pytest.raises(ConfigError, match="trust"):
        build({"_target_": "mine.Outer", "inner": inner})
    with pytest.raises(ConfigError, match=r"parts\[0\].*needs the key 'size'"):
        build({"_target_": "mine.Outer", "inner": inner, "parts": [{"_target_": "mine.Inner"}]}, trust=["mine"])
    assert sys.modules["mine"].BUILT == []
    outer = build({"_target_": "mine.Outer", "inner": inner, "parts": [inner]}, trust=["mine"], spec="given", unused=1)
    assert (outer.inner.size, outer.parts[0].size, outer.spec) == (2, 2, "given")


OPTIONS = """from typing import Annotated, Any
from gentok.interfaces import LocalPath
from gentok.interfaces.component import Component
from gentok.settings import PositiveInt
class Base(Component, id="mine/base"):
    def __init__(self, width: PositiveInt, depth: PositiveInt = 6, path: LocalPath | None = None):
        self.width, self.depth = width, depth
class Wider(Base, id="mine/wider"):
    def __init__(self, depth: PositiveInt = 5, **base: Annotated[Any, Base]):
        super().__init__(depth=depth, **base)
class Widest(Wider, id="mine/widest"):
    def __init__(self, **wider: Annotated[Any, Wider]):
        super().__init__(**wider)
class Easy(Base, id="mine/easy"):
    def __init__(self, width: PositiveInt = 3, **base: Annotated[Any, Base]):
        super().__init__(width, **base)
class Open(Base, id="mine/open"):
    def __init__(self, **base: Any):
        super().__init__(8)
"""


@pytest.mark.parametrize("name", ["Wider", "Widest"])
def test_options_stand_for_the_arguments_of_another_class(tmp_path, monkeypatch, name):
    (tmp_path / "optional.py").write_text(OPTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "optional", raising=False)
    target, trust = {"_target_": f"optional.{name}", "width": 4}, ["optional"]
    made = build(target, trust=trust)
    assert (made.width, made.depth) == (4, 5) and build({**target, "depth": 2}, trust=trust).depth == 2
    refused = {"did you mean 'width'": {"widht": 4}, "depth=0: expected": {"depth": 0}, "width=0: expected": {"width": 0}}
    for words, keys in refused.items():
        with pytest.raises(ConfigError, match=words):
            check({**target, **keys}, trust=trust)
    with pytest.raises(ConfigError, match="needs the key 'width'"):
        check({"_target_": target["_target_"]}, trust=trust)
    with pytest.raises(ConfigError, match="names a place"):
        check({**target, "path": "/etc"}, trust=trust, stored=True)
    assert build({"_target_": "optional.Easy"}, trust=trust).width == 3  # its own default counts
    check({"_target_": "optional.Open", "widht": 4}, trust=trust)  # what the annotation closes


def test_a_missing_value_counts_as_missing():
    with pytest.raises(ConfigError, match="needs the key 'path'"):
        check({"_target_": "gentok.data.folder.ImageFolder", "path": "???"})


def test_wrong_modules_and_classes_name_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'gentok.training.optim'"):
        resolve("gentok.training.optmi.Cosine")
    with pytest.raises(ConfigError, match="did you mean 'Cosine'"):
        resolve("gentok.training.optim.Cosinus")


def test_schedules_end_where_they_say():
    for name, end in (("Cosine", 0.1), ("Linear", 0.1), ("Constant", 1.0)):
        arguments = {} if name == "Constant" else {"final": 0.1}
        schedule = build({"_target_": f"gentok.training.optim.{name}", "warmup": 10, **arguments})
        assert schedule(0.0, 0) == pytest.approx(0.1)
        assert schedule(1.0, 1000) == pytest.approx(end)


def test_weight_decay_spares_vectors_and_embeddings():
    module = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 2))
    optimizer = build({"_target_": "gentok.training.optim.AdamW", "weight_decay": 0.3})(module)
    decayed = {p.shape for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {module[1].weight.shape}
