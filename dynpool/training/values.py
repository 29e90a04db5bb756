"""Plain values of YAML and the command line -> dataclasses, with errors that say what is allowed."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that makes no sense."""


def make(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The dataclass `cls` of nested plain values.

    Raises:
        ConfigError: a key is unknown, or a value is not of its type; named as `where`.key, with what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be keys and values, got {values!r}")
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            place = where or "the configuration"
            raise ConfigError(f"unknown key {_join(where, key)!r}: {place} has {', '.join(known)}")
    made = {key: convert(value, hints[key], _join(where, key)) for key, value in values.items()}
    try:
        return cls(**made)
    except (ValueError, TypeError) as error:
        raise (
            error if isinstance(error, ConfigError) else ConfigError(f"{where}: {error}" if where else str(error))
        ) from error


def convert(value: Any, wanted: Any, name: str) -> Any:
    """`value` as `wanted`, a type as in annotations: YAML has 1e-3 as text, and 1 where 1.0 is meant."""
    if is_dataclass(wanted):
        return make(wanted, value, name)  # type: ignore[arg-type]
    for kind in _alternatives(wanted):
        found, converted = _try(value, kind, name)
        if found:
            return converted
    raise ConfigError(f"{name} must be {_words(wanted)}, got {value!r}")


def assign(values: dict[str, Any], override: str) -> None:
    """Put "a.b=value", the value in YAML, into nested plain values.

    Raises:
        ConfigError: it is not of that form.
    """
    import yaml

    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"an override must be key=value, such as optimiser.lr=0.01, got {override!r}")
    *parents, last = path.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{parent} must be a mapping, of which {path!r} is a key, got {values!r}")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} must be given in YAML, got {text!r}") from error


def merge(base: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `more`, key by key at every depth."""
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value
    return base


def plain(value: Any) -> Any:
    """Mappings and lists instead of tuples and the like, as YAML writes them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested values by their keys as in overrides, such as "optimiser.lr"."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        name = _join(where, key)
        made.update(flat(value, name) if isinstance(value, Mapping) else {name: value})
    return made


def _try(value: Any, kind: Any, name: str) -> tuple[bool, Any]:
    if kind is Any or (kind is types.NoneType and value is None):
        return True, value
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind) and not isinstance(value, bool), value
    if origin is tuple and isinstance(value, (list, tuple)):
        inside = get_args(kind)
        repeated = [inside[0]] * len(value) if inside[-1] is ... else inside
        return len(repeated) == len(value), tuple(convert(v, k, name) for v, k in zip(value, repeated, strict=False))
    if origin is dict and isinstance(value, Mapping):
        return True, dict(value)
    return _try_scalar(value, kind)


def _try_scalar(value: Any, kind: Any) -> tuple[bool, Any]:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool), value
    if kind is float and isinstance(value, (int, float, str)):
        try:
            return True, float(value)
        except (ValueError, OverflowError):
            return False, None
    return kind in (int, str) and isinstance(value, kind), value


def _alternatives(wanted: Any) -> Sequence[Any]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _words(wanted: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", types.NoneType: "null"}
    words = []
    for kind in _alternatives(wanted):
        if get_origin(kind) is Literal:
            words += [repr(choice) for choice in get_args(kind)]
        elif get_origin(kind) is tuple:
            words.append("a list")
        else:
            words.append(names.get(kind, "keys and values"))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
