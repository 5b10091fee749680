"""Values of options that need no conversion worth the name, without the library that typer converts them with.

typer builds a pydantic model of every option, also of those that were not given, and pydantic takes more memory than
all else that a supervisor loads. Whatever is not plain goes its way, errors above all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

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
        self._simple = not (
            parameter.multiple
            or parameter.nargs != 1
            or getattr(parameter.type_descriptor.parameter_info, "parser", None) is not None
        )

    def __call__(self, context: Any, value: Any) -> Any:
        """For typer: the value as the command gets it."""
        found = plain_value(self._annotation, value) if self._simple else _ODD
        if found is _ODD or (found is None and self._parameter.required):
            return self._otherwise(context, value)
        callback = self._parameter.callback
        return found if callback is None else callback(context, self._parameter, found)


def plain_value(annotation: Any, value: Any) -> Any:
    """The value where there is nothing to it: absent, a text, a number in its usual form, one of the choices.

    Returns:
        A mark of its own for whatever is not so plain.
    """
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
