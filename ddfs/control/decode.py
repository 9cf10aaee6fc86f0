"""JSON values into the dataclasses of :mod:`ddfs.control.messages`.

Strict about types and about what is missing; keys that nobody knows are passed over,
because a daemon may be newer than the client. Pydantic would do the same, and importing it
takes longer than all else that ``ddfs status`` does.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def decode(kind: type[T], value: object) -> T:
    """*value*, as :func:`json.loads` gives it, as a *kind*.

    *kind* is a dataclass, or ``list[...]``, ``tuple[..., ...]`` or ``... | None`` of one, or
    a plain type. ``ValueError`` says where *value* is not what it should be.
    """
    decoded: T = _decode(kind, value, "answer")
    return decoded


def _decode(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(arguments, value, where)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        items = (_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        return origin(items)
    # JSON does not tell 1 from 1.0, and in Python True is an int.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) is not (kind is bool):
        raise _wrong(where, kind.__name__, value)
    return kind(value)


def _decode_optional(arguments: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None:
        return None
    (kind,) = (argument for argument in arguments if argument is not types.NoneType)
    return _decode(kind, value, where)


def _decode_dataclass(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    given = {}
    for name, (field_kind, is_required) in _fields(kind).items():
        if name in value:
            given[name] = _decode(field_kind, value[name], f"{where}.{name}")
        elif is_required:
            raise ValueError(f"{where}.{name} is missing")
    return kind(**given)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
    }


def _wrong(where: str, wanted: str, value: object) -> ValueError:
    return ValueError(f"{where}: {wanted} was expected, not {str(value)[:60]!r}")
