"""Command-line options made from the declared settings, so that no option is spelled twice."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from msgspec import Struct

from llamastream.settings import SettingField, declared, load


def with_settings(
    group: type[Struct], argument: str, *, only: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a settings group; it gets the loaded group as the keyword `argument`, and where
    each value came from as `<argument>_sources`.

    Args:
        only: the fields to offer, all if empty; the others still come from the environment.
        defaults: defaults of this command that differ from the declared ones.
    """
    changed = dict(defaults or {})
    offered = [f for f in declared(group) if f.name != "extra_args" and (not only or f.name in only)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**kwargs: Any) -> Any:
            given = {field.name: kwargs.pop(field.name) for field in offered}
            settings, sources = load(group, given=given, table=changed, table_source="default")
            return command(**kwargs, **{argument: settings, f"{argument}_sources": sources})

        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name not in (argument, f"{argument}_sources")
        ]
        parameters = own + [_parameter(field, changed) for field in offered]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(field: SettingField, changed: Mapping[str, Any]) -> inspect.Parameter:
    kind = next(plain_types(field.type))
    default = changed.get(field.name, field.default)
    flags = list(field.flags)
    if kind is bool:
        flags[0] += f"/--no-{flags[0][2:]}"
    known = [] if default is None else [f"default: {str(default).lower() if kind is bool else default}"]
    option = typer.Option(
        *flags, help=f"{field.description} [{'; '.join([*known, f'env: {field.env}'])}]", show_default=False
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def plain_types(annotation: Any) -> Iterator[type]:
    """The types of an annotation that a command line can parse: bool, int, float or str (choices are str)."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from plain_types(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            if part is not type(None):
                yield from plain_types(part)
    else:
        yield annotation if annotation in (bool, int, float) else str
