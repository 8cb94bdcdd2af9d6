"""From a plain configuration to objects: `_target_` names a component, its constructor's signature is the schema.

`_target_` is the place of a class (`gentok.codebooks.vq.VQ`, as conf/ has it) or a component's id (`codebook/vq`, as bundles store it).
Only components are built (gentok/interfaces/component.py), or what a package defines that the caller trusts by name. Which component fits
where is said by annotations: a parameter `codebook: Codebook` takes a codebook, `losses: Loss | None` a loss, and a parameter without the
annotation of a component takes none. Everything is checked, recursively, before the first object is built. No hydra here.

A configuration that was stored in a file, by whoever wrote it, is built with `stored=True`: it may name no file, folder or address.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from gentok.errors import ConfigError, nearest_name
from gentok.interfaces.component import Component, LocalPath, component_ids
from gentok.interfaces.format1 import COMPONENTS
from gentok.settings import check_setting, type_hints

__all__ = ["build", "check", "component_name", "identify", "resolve"]

PLACES = ("path", "weights", "ckpt", "url", "trust")
"""Keys under which a stored configuration may hold no text, wherever they stand in it."""


# ------------------------------------------------------------------------------------------------------------- names


def resolve(target: str, trust: Iterable[str] = ()) -> type[Any]:
    """The class that a `_target_` names.

    Args:
        target: a component's id, a name that format 1 stored, or "module.Class".
        trust: packages beside gentok whose classes may be built.

    Returns:
        The class; nothing of it is run.

    Raises:
        ConfigError: it is not allowed, not there, or no component.
    """
    allowed = ("gentok", *trust)
    place = _place(target, allowed)
    module_name, _, name = place.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise ConfigError(f"_target_={target!r} needs the package {error.name!r}, which is not installed") from error
        raise ConfigError(f"_target_={target!r}: there is no module {module_name!r}{_near_module(module_name)}") from error
    component = getattr(module, name, None)
    if component is None:
        own = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module_name and not n.startswith("_")]
        raise ConfigError(f"_target_={target!r}: {module_name} has no {name!r}{nearest_name(name, own)}")
    if not inspect.isclass(component) or component.__module__.split(".")[0] not in allowed:
        raise ConfigError(f"_target_={target!r} is not allowed: it is no class defined in {', '.join(allowed)}")
    if component.__module__.split(".")[0] == "gentok" and not (issubclass(component, Component) and component.component_id):
        raise ConfigError(f"_target_={target!r} is not allowed: it is no component (a class with an id, gentok/interfaces/component.py)")
    return component


def _place(target: Any, allowed: tuple[str, ...]) -> str:
    """"module.Class" of a target. Raises ConfigError where it cannot be one of the allowed packages'."""
    target = COMPONENTS.get(target, target) if isinstance(target, str) else target
    if isinstance(target, str) and "/" in target:
        ids = {own: place for package in reversed(allowed) for own, place in component_ids(package).items()}
        if target not in ids:
            raise ConfigError(
                f"_target_={target!r}: {', '.join(allowed)} has no component of this id{nearest_name(target, ids)}; a package of your own "
                "is allowed by trust=[its_name]"
            )
        return ids[target]
    if not isinstance(target, str) or target.split(".")[0] not in allowed or "." not in target:
        raise ConfigError(
            f"_target_={target!r} is not allowed: only components defined in {', '.join(allowed)} are built; "
            "a package of your own is allowed by trust=[its_name]"
        )
    return target


def _near_module(name: str) -> str:
    parent = name.rsplit(".", 1)[0]
    try:
        package = importlib.import_module(parent)
    except ImportError:
        return ""
    return nearest_name(name, [f"{parent}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))])


def identify(config: Any) -> Any:
    """`config` with the ids of its components in the place of their classes: what bundles and checkpoints store.

    Names that format 1 stored become ids too. A class without an id, of a package of your own, stays "module.Class". Nothing is imported.
    """
    if isinstance(config, Mapping):
        return {key: _id(value) if key == "_target_" and isinstance(value, str) else identify(value) for key, value in config.items()}
    return [identify(item) for item in config] if isinstance(config, (list, tuple)) else config


def _id(target: str) -> str:
    if target in COMPONENTS or "/" in target:
        return COMPONENTS.get(target, target)
    return next((own for own, place in component_ids(target.split(".")[0]).items() if place == target), target)


def component_name(config: Any) -> str:
    """The class name of the component that a configuration describes, for people; "" where it describes none."""
    target = config.get("_target_") if isinstance(config, Mapping) else None
    if not isinstance(target, str):
        return ""
    return component_ids().get(_id(target), target).rpartition(".")[2]


# ------------------------------------------------------------------------------------------------------------- checks


@lru_cache
def _parameters(component: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """(the parameters, the annotation of each) of a component's constructor.

    `**options: Annotated[Any, Other, ...]` stands for what the constructors of these classes take: the fields of settings, which are
    dataclasses, or the arguments of the base class. A parameter that the constructor names itself counts before one of theirs.
    """
    parameters = dict(inspect.signature(component).parameters)
    source = component if dataclasses.is_dataclass(component) and "__init__" in vars(component) else component.__init__  # type: ignore[misc]
    hints = dict(type_hints(source))
    for name, parameter in list(parameters.items()):
        if parameter.kind is not parameter.VAR_KEYWORD:
            continue
        for other in filter(inspect.isclass, getattr(hints.get(name), "__metadata__", ())):  # of an Annotated
            parameters.pop(name, None)
            further, annotations = _parameters(other)  # type: ignore[arg-type]
            parameters, hints = {**further, **parameters}, {**annotations, **hints}
    return parameters, hints


def _roles(annotation: Any) -> tuple[type, ...]:
    """The base classes of components that an annotation names, however deep inside."""
    if isinstance(annotation, type):
        return (annotation,) if issubclass(annotation, Component) else ()
    return tuple(role for part in typing.get_args(annotation) for role in _roles(part))


def _is_place(annotation: Any) -> bool:
    return annotation is LocalPath or any(_is_place(part) for part in typing.get_args(annotation))


def check(
    config: Mapping[str, Any], *, trust: Iterable[str] = (), where: str = "", given: Iterable[str] = (), role: type | None = None,
    stored: bool = False,
) -> None:  # fmt: skip
    """Raises ConfigError unless `config` can be built; builds nothing.

    Args:
        config: a plain configuration with a `_target_`.
        trust: packages beside gentok whose classes may be built.
        where: the configuration's name in messages.
        given: names that `build` will be handed.
        role: the base class that the place asks for, such as `gentok.interfaces.Codebook`; None: any component.
        stored: whether it was read from a file; it may then name no place.
    """
    _check(config, tuple(trust), where or "the configuration", tuple(given), () if role is None else (role,), stored)


def _check(
    config: Any, trust: tuple[str, ...], where: str, given: tuple[str, ...], roles: tuple[type, ...], stored: bool,
    later: tuple[str, ...] = (),
) -> None:  # fmt: skip
    if not isinstance(config, Mapping) or "_target_" not in config:
        keys = ", ".join(map(str, config)) if isinstance(config, Mapping) else repr(config)
        raise ConfigError(f"{where} has no _target_; its keys are {keys or 'none'}")
    component = resolve(config["_target_"], trust)
    if roles and not issubclass(component, roles) and component.__module__.split(".")[0] not in trust:
        wanted = " or ".join(role.__name__ for role in roles)
        raise ConfigError(f"{where} takes a {wanted}, and {component.__name__} is none")
    parameters, hints = _parameters(component)  # type: ignore[arg-type]
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    takes_any = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    for key, value in config.items():
        value = None if value == "???" else value
        if key == "_target_":
            continue
        if key not in names and takes_any is None:
            raise ConfigError(f"{where} ({component.__name__}) has no key {key!r}{nearest_name(key, names)}")
        annotation = hints.get(key if key in names else str(takes_any))
        if stored:
            _check_places(value, f"{where}.{key}", key, annotation)
        children = list(_children(value, f"{where}.{key}"))
        allowed = _roles(annotation)
        if children and not allowed and component.__module__.split(".")[0] == "gentok":
            raise ConfigError(f"{children[0][0]}: {component.__name__} builds no component there")
        for child_where, child in children:
            _check(child, trust, child_where, (), allowed, stored, (*given, *later))
        if value is not None or not (key in given or key in later or key in required):
            _check_value(value, f"{where}.{key}", annotation)
    for name in required:
        if config.get(name) in (None, "???") and name not in given:
            raise ConfigError(f"{where} ({component.__name__}) needs the key {name!r}")


def _check_value(value: Any, where: str, annotation: Any) -> None:
    """Raises ConfigError where a value is no component and one is asked for, or does not fit its annotation."""
    roles = _roles(annotation)
    if roles and isinstance(value, (str, bool, int, float)):
        raise ConfigError(f"{where}={value}: expected a {' or a '.join(role.__name__ for role in roles)}, which is a group of keys")
    try:
        check_setting(where, value, annotation)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_places(value: Any, where: str, key: str, annotation: Any = None) -> None:
    if value is not None and (_is_place(annotation) or (key in PLACES and not _is_plain(value))):
        raise ConfigError(f"{where} names a place ({value!r}), which a stored model may not do: it could read your files or the network")
    if isinstance(value, Mapping) and "_target_" not in value:
        for name, item in value.items():
            _check_places(item, f"{where}.{name}", str(name))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_places(item, f"{where}[{i}]", key if isinstance(item, str) else "")


def _is_plain(value: Any) -> bool:
    """Whether a value holds no text: numbers, and containers of numbers (the weights of losses)."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else value is None or isinstance(value, (bool, int, float))


def _children(value: Any, where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping) and "_target_" in value:
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _children(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _children(item, f"{where}[{i}]")


# -------------------------------------------------------------------------------------------------------------- build


def build(
    config: Mapping[str, Any], *, trust: Iterable[str] = (), where: str = "", role: type | None = None, stored: bool = False, **given: Any
) -> Any:
    """Builds `config` and, first, the components nested in it.

    Args:
        config, trust, where, role, stored: as in `check`.
        given: objects from the caller (spec, condition_spec, media_shape, codebook, ...), handed over where the constructor names them
            and the configuration leaves them out or null.

    Returns:
        The component.

    Raises:
        ConfigError: before anything is built.
    """
    trust = tuple(trust)
    check(config, trust=trust, where=where, given=given, role=role, stored=stored)
    return _build(config, trust, given)


def _build(config: Mapping[str, Any], trust: tuple[str, ...], given: Mapping[str, Any]) -> Any:
    component = resolve(config["_target_"], trust)
    arguments = {key: _value(value, trust) for key, value in config.items() if key != "_target_"}
    names = _parameters(component)[0]  # type: ignore[arg-type]
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
