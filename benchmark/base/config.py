"""Build frozen dataclasses from a user's values. Keys, types and ranges of numbers are checked."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from benchmark.base.errors import UserError, shown, unknown
from benchmark.base.ranges import check_fields, check_range

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, object], what: str) -> T:
    """Build the dataclass `cls` from text or YAML values; `what` names it in error messages.

    Raises:
        UserError: a field is unknown or missing, a value has the wrong type, a number lies outside its declared range, or
            `cls` rejects a value with a ValueError.
    """
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown(f"field of {what}", str(name), known)
    for name, f in known.items():
        if name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise UserError(f"{what} needs '{name}'")
    arguments = {name: coerce(value, hints[name], f"{what}: {name}") for name, value in values.items()}
    try:
        instance = cls(**arguments)
        check_fields(instance)  # again, because a plugin's own `__post_init__` may skip it
        return instance
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def check_value(cls: type, name: str, value: object, what: str) -> None:
    """Check that the field `name` of the dataclass `cls` may have this value.

    Raises:
        UserError: the value has the wrong type, or a number lies outside its declared range.
    """
    hint = get_type_hints(cls, include_extras=True)[name]
    try:
        check_range(name, hint, coerce(value, get_type_hints(cls)[name], what))
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def coerce(value: object, hint: Any, what: str) -> Any:
    """Convert `value` to the type `hint`: a scalar, a Literal, a union, a tuple, a mapping or another dataclass.

    Raises:
        UserError: the value cannot be converted.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(hint), what)
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise unknown(what, str(value), map(str, get_args(hint)))
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{what} should be a list, not {shown(value)}")
        return tuple(coerce(item, get_args(hint)[0], what) for item in value)
    if origin is Mapping or dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{what} should be a mapping, not {shown(value)}")
        return dict(value) if origin is Mapping else build(hint, value, what)
    return _coerce_scalar(value, hint, what)


def _coerce_union(value: object, choices: Sequence[Any], what: str) -> Any:
    if value in (None, "none") and type(None) in choices:
        return None
    for choice in choices:
        if choice is not type(None):
            try:
                return coerce(value, choice, what)
            except UserError:
                continue
    raise UserError(f"{what} should be {' or '.join(map(_type_name, choices))}, not {shown(value)}")


def _coerce_scalar(value: object, hint: type, what: str) -> Any:
    refusal = UserError(f"{what} should be {_type_name(hint)}, not {shown(value)}")
    if hint is bool:
        truth = {"true": True, "false": False}.get(str(value).lower())
        if truth is None:
            raise refusal
        return truth
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refusal
    if hint is int and isinstance(value, float):
        raise refusal
    try:
        return hint(value)
    except (ValueError, OverflowError):
        raise refusal from None


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "none"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_type_name(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def field_names(cls: type) -> list[str]:
    """Return the names of the dataclass fields of `cls` that can be set."""
    return [f.name for f in dataclasses.fields(cls) if f.init]
