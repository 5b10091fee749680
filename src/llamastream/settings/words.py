"""The types of settings in words, for messages and pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from msgspec import Meta, Struct
from msgspec.structs import fields


def describe_type(annotation: Any) -> str:
    """A type with its bounds in words: `a whole number from 1 to 65535`, `text`, `true or false`."""
    return " or ".join(dict.fromkeys(_describe(annotation, ())))


def _describe(annotation: Any, meta: tuple[Meta, ...]) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extras = get_args(annotation)
        yield from _describe(inner, meta + tuple(m for m in extras if isinstance(m, Meta)))
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            if part is not type(None):
                yield from _describe(part, meta)
    elif annotation is bool:
        yield "true or false"
    elif annotation in (int, float):
        yield ("a whole number" if annotation is int else "a number") + _bounds(meta)
    elif annotation is str:
        yield "text"
    elif origin is tuple:
        yield "words separated by spaces"
    elif args := get_args(annotation):
        yield ", ".join(str(arg) for arg in args if arg is not Ellipsis)
    else:
        yield getattr(annotation, "__name__", str(annotation))


def _bounds(meta: tuple[Meta, ...]) -> str:
    low = next((f" from {_number(m.ge)}" for m in meta if m.ge is not None), "")
    low = low or next((f" above {_number(m.gt)}" for m in meta if m.gt is not None), "")
    return low + next((f" up to {_number(m.le)}" for m in meta if m.le is not None), "")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def shown(settings: Struct, secret: Collection[str]) -> list[tuple[str, Any]]:
    """The fields that differ from their defaults, for a representation; those that are `secret` are never in clear."""
    pairs = [(field.name, getattr(settings, field.name), field.default) for field in fields(settings)]
    return [(name, "***" if name in secret else value) for name, value, default in pairs if value != default]
