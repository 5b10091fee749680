"""Command-line options made from the declared settings, so that no option is spelled twice."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from msgspec import Struct
from typer.core import TyperCommand

from llamastream.cli.plainvalues import lighten
from llamastream.errors import SettingError
from llamastream.settings import CONFIG_VARIABLE, ENV_PREFIX, SettingField, declared, load, with_sources


def with_settings(
    group: type[Struct],
    argument: str,
    *,
    only: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
    panel: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a settings group; it gets the loaded group as the keyword `argument`, and where
    each value came from as `<argument>_sources`.

    Args:
        only: the fields to offer, all if empty; the others still come from the environment.
        defaults: defaults of this command that differ from the declared ones, for the help text; the command itself
            puts them in, since a default may depend on other options.
        panel: heading of these options in the help of a `GroupedCommand`.

    A secret is never an option of its own, which every user of the machine could read in the process list: the option
    `--its-name-file` names a file that holds it.
    """
    changed = dict(defaults or {})
    offered = [f for f in declared(group) if f.flags and f.name != "extra_args" and (not only or f.name in only)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**kwargs: Any) -> Any:
            given = {field.name: kwargs.pop(field.name) for field in offered}
            for field in offered:
                if given[field.name] == []:  # typer's word for a repeatable option that was not given
                    given[field.name] = None
                if field.secret and given[field.name] is not None:
                    given[field.name] = read_secret(given[field.name], secret_flag(field))
            settings, sources = load(group, given=given)
            try:
                return command(**kwargs, **{argument: settings, f"{argument}_sources": sources})
            except SettingError as error:  # found only when the setting was used: a file that is not there
                raise with_sources(error, sources) from None

        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name not in (argument, f"{argument}_sources")
        ]
        parameters = own + [_parameter(field, changed, panel) for field in offered]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(field: SettingField, changed: Mapping[str, Any], panel: str | None) -> inspect.Parameter:
    kind: Any = next(plain_types(field.type))
    if is_repeatable(field.type):
        kind = list[str]
    default = changed.get(field.name, field.default)
    flags = [secret_flag(field)] if field.secret else list(field.flags)
    description = f"File that holds this: {field.description}" if field.secret else field.description
    if kind is bool:
        flags[0] += f"/--no-{flags[0][2:]}"
    known = [] if default in (None, ()) else [f"default: {str(default).lower() if kind is bool else default}"]
    choices = literal_choices(field.type)
    option = typer.Option(
        *flags,
        autocompletion=(lambda incomplete: [c for c in choices if c.startswith(incomplete)]) if choices else None,
        help=f"{description} [{'; '.join([*known, f'env: {field.env}'])}]",
        show_default=False,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


class GroupedCommand(TyperCommand):
    """A command whose help shows the options of each panel under their own heading, and which stays small."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """For typer: take the arguments."""
        lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """For typer: write the options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def literal_choices(annotation: Any) -> list[str]:
    """What a setting with choices may be; [] for one without."""
    origin = get_origin(annotation)
    if origin is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if origin is Annotated:
        return literal_choices(get_args(annotation)[0])
    return []


def is_repeatable(annotation: Any) -> bool:
    """Whether a setting has several values, each with an option of its own."""
    origin = get_origin(annotation)
    return is_repeatable(get_args(annotation)[0]) if origin is Annotated else origin is tuple


def unknown_variables(environ: Mapping[str, str], groups: Iterable[type[Struct]]) -> list[str]:
    """A line for each variable that is likely a misspelt setting of ours, with the one that may be meant.

    Only those that are close to one: other names may well belong to programs around us.
    """
    known = {CONFIG_VARIABLE, *(field.env for group in groups for field in declared(group))}
    found = []
    for name in sorted(environ.keys() - known):
        if name.upper().startswith(ENV_PREFIX):
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
            if near:
                found.append(f"the environment has {name}, which is no setting; did you mean {near[0]}?")
    return found


def secret_flag(field: SettingField) -> str:
    """`--api-key-file` for the setting `api_key`."""
    return f"{field.flags[0]}-file"


def read_secret(path: str, flag: str) -> str:
    """The first line of a file.

    Raises:
        SettingError: it cannot be read, or is empty.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            secret = file.readline(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{flag}: {path!r} cannot be read: {error}") from None
    if not secret:
        raise SettingError(f"{flag}: the first line of {path!r} is empty; it must hold the key")
    return secret


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
