"""From a plain configuration to objects: `_target_` names a class under an allow-list, its signature is the schema.

No hydra here, so that a bundle from a stranger can be rebuilt safely: a target must be a class (or function) *defined* in gentok or in
a package that the caller trusts by name; `os.system`, or a module reached through another's imports, is refused. Everything is checked
(targets, unknown and missing keys, recursively) before the first object is built.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from gentok.format1_names import NAMES

__all__ = ["ConfigError", "build", "check", "resolve", "nearest_name"]


class ConfigError(ValueError):
    """A configuration that cannot be built; the message is one line for the person at the keyboard."""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `names`, or the names themselves where none is close."""
    names = [str(n) for n in names]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(names))}" if names else ""


def resolve(target: str, trust: Iterable[str] = ()) -> type:
    """The class that a `_target_` names. Raises ConfigError where it is not allowed, not there, or not defined where it says."""
    allowed = ("gentok", *trust)
    target = NAMES.get(target, target) if isinstance(target, str) else target
    if not isinstance(target, str) or target.split(".")[0] not in allowed or target.count(".") < 1:
        raise ConfigError(
            f"_target_={target!r} is not allowed: only components defined in {', '.join(allowed)} are built; "
            "a package of your own is allowed by trust=[its_name]"
        )
    module_name, name = target.rsplit(".", 1)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise ConfigError(f"_target_={target!r} needs the package {error.name!r}, which is not installed") from error
        raise ConfigError(f"_target_={target!r}: there is no module {module_name!r}{_near_module(module_name)}") from error
    component = getattr(module, name, None)
    own = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module_name and not n.startswith("_")]
    if component is None:
        raise ConfigError(f"_target_={target!r}: {module_name} has no {name!r}{nearest_name(name, own)}")
    if not callable(component) or str(getattr(component, "__module__", "")).split(".")[0] not in allowed:
        raise ConfigError(f"_target_={target!r} is not allowed: it is not defined in {', '.join(allowed)}")
    return component


def _near_module(name: str) -> str:
    parent = name.rsplit(".", 1)[0]
    try:
        package = importlib.import_module(parent)
    except ImportError:
        return ""
    return nearest_name(name, [f"{parent}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))])


def check(config: Mapping[str, Any], *, trust: Iterable[str] = (), where: str = "", given: Iterable[str] = ()) -> None:
    """Raises ConfigError unless `config` can be built; builds nothing. `given`: names that `build` will be handed."""
    trust, where, given = tuple(trust), where or "the configuration", tuple(given)
    if "_target_" not in config:
        raise ConfigError(f"{where} has no _target_; its keys are {', '.join(map(str, config)) or 'none'}")
    component = resolve(config["_target_"], trust)
    parameters = inspect.signature(component).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in config.items():
        if key != "_target_" and key not in names and not takes_any:
            raise ConfigError(f"{where} ({component.__name__}) has no key {key!r}{nearest_name(key, names)}")
        for child_where, child in _children(value, f"{where}.{key}"):
            check(child, trust=trust, where=child_where)
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and config.get(name) in (None, "???") and name not in given:
            raise ConfigError(f"{where} ({component.__name__}) needs the key {name!r}")


def _children(value: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return [(where, value)]
        return [pair for key, item in value.items() for pair in _children(item, f"{where}.{key}")]
    if isinstance(value, (list, tuple)):
        return [pair for i, item in enumerate(value) for pair in _children(item, f"{where}[{i}]")]
    return []


def build(config: Mapping[str, Any], *, trust: Iterable[str] = (), where: str = "", **given: Any) -> Any:
    """Builds `config` and, first, the components nested in it.

    given: objects from the caller (spec, condition_spec, media_shape, codebook, ...), handed over where the constructor names them and
    the configuration leaves them out or null. Raises ConfigError before anything is built.
    """
    trust = tuple(trust)
    check(config, trust=trust, where=where, given=given)
    return _build(config, trust, given)


def _build(config: Mapping[str, Any], trust: tuple[str, ...], given: Mapping[str, Any]) -> Any:
    component = resolve(config["_target_"], trust)
    arguments = {key: _value(value, trust) for key, value in config.items() if key != "_target_"}
    names = inspect.signature(component).parameters
    for name, value in given.items():
        if name in names and arguments.get(name) is None:
            arguments[name] = value
    return component(**arguments)


def _value(value: Any, trust: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _build(value, trust, {})
        return {key: _value(item, trust) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(item, trust) for item in value]
    return value
