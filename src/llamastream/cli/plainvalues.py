"""Values of options that need no conversion worth the name, without the library that typer converts them with.

typer builds a pydantic model of every option, also of those that were not given, and pydantic takes more memory than
all else that a supervisor loads. Whatever is not plain goes its way, errors above all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

from typer import BadParameter

_ODD = object()


def lighten(parameters: Iterable[Any]) -> None:
    """Have these parameters of a command convert plain values by themselves. Idempotent."""
    for parameter in parameters:
        descriptor = getattr(parameter, "type_descriptor", None)
        if descriptor is not None and not isinstance(vars(parameter).get("process_value"), _Plain):
            parameter.process_value = _Plain(parameter, descriptor.annotation, parameter.process_value)


class _Plain:
    """In the place of the `process_value` of one parameter."""

    def __init__(self, parameter: Any, annotation: Any, otherwise: Callable[[Any, Any], Any]) -> None:
        self._parameter = parameter
        self._annotation = annotation
        self._otherwise = otherwise
        self._many = parameter.multiple or parameter.nargs == -1
        info = parameter.type_descriptor.parameter_info
        self._bounds = (getattr(info, "min", None), getattr(info, "max", None))
        self._odd = parameter.nargs not in (1, -1) or getattr(info, "parser", None) is not None

    def __call__(self, context: Any, value: Any) -> Any:
        """For typer: the value as the command gets it."""
        found = _ODD if self._odd else plain_value(self._annotation, value, many=self._many)
        if isinstance(found, int | float) and not within(found, *self._bounds):
            what = f"{value} is not allowed; allowed: a number {range_text(*self._bounds)}"
            raise BadParameter(what, ctx=context, param=self._parameter)
        if found is _ODD or (self._parameter.required and not found):
            return self._otherwise(context, value)
        callback = self._parameter.callback
        return found if callback is None else callback(context, self._parameter, found)


def within(value: float, least: float | None, most: float | None) -> bool:
    """Whether a number is as an option wants it. What is no number (nan) is in no range, also in one without ends."""
    if value != value:
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def range_text(least: float | None, most: float | None) -> str:
    """`from 1 to 256`, `from 0`, `up to 5`."""
    ends = ("" if least is None else f"from {least:g}", "" if most is None else f"{'up ' * (least is None)}to {most:g}")
    return " ".join(filter(None, ends)) or "such as 1.5"


def plain_value(annotation: Any, value: Any, *, many: bool = False) -> Any:
    """The value where there is nothing to it: absent, a text, a number in its usual form, one of the choices.

    Args:
        many: it may be given several times, and is a list of such values.

    Returns:
        A mark of its own for whatever is not so plain.
    """
    if many:
        return () if value is None else _plain_list(get_args(annotation), value)
    if value is None:
        return None
    if annotation is str and isinstance(value, str):
        return value
    if annotation in (int, float) and isinstance(value, str):
        try:
            return annotation(value)
        except ValueError:
            return _ODD
    if get_origin(annotation) is Literal and value in get_args(annotation):
        return value
    return _ODD


def _plain_list(inner: tuple[Any, ...], value: Any) -> Any:
    if len(inner) != 1 or not isinstance(value, list | tuple):
        return _ODD
    found = [plain_value(inner[0], each) for each in value]
    return _ODD if any(each is _ODD for each in found) else found
