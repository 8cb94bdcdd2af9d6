"""The public API does not break unnoticed: a stored listing is compared with the source."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="the public API is not compared: pip install griffe")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "docs" / "site" / "public_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_listing_is_that_of_the_source(api):
    new, old = api.listing(), api.LISTING.read_text()
    assert not api.breaks(old, new), "keep what was there, or declare the break (docs/CONTRIBUTING.md)"
    assert new == old, "python docs/site/public_api.py write"
    assert "class samplers__jacobi:\n    class Jacobi:\n" in new and "\n    Tokens = ...\n" in new


BEFORE = """class room__file:
    def f(a, b=1, *, c=2): ...
    class Thing:
        def __init__(self, size): ...
        def use(self): ...
"""
ADDED = [("size):", "size):"), ("c=2", "c=2, d=4"), ("size)", "size, *, more=None)"), ("def use", "def new(self): ...\n        def use")]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def f(a, b=1, *, c=2)", "def g(a, b=1, *, c=2)", "gentok.room.file.f: Public object was removed"),
        ("b=1, ", "", "f: Parameter was removed: "),
        ("b=1", "b=3", "f: Parameter default was changed"),
        ("(a, b=1", "(b=1, a=0", "f: "),
        ("c=2", "c", "f: "),
        ("c=2", "c=2, d", "f: Parameter was added as required"),
        ("size)", "size, more)", "Thing.(): Parameter was added as required"),
        ("        def use(self): ...\n", "", "Thing.use: Public object was removed"),
    ],
)
def test_what_breaks_is_named(api, old, new, says):
    found = api.breaks(BEFORE, BEFORE.replace(old, new))
    assert found and any(says in line for line in found), found


@pytest.mark.parametrize(("old", "new"), ADDED)
def test_what_is_added_breaks_nothing(api, old, new):
    assert api.breaks(BEFORE, BEFORE.replace(old, new)) == []
