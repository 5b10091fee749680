"""Settings declared once: the command line, the environment, the TOML file and the reference page derive from these.

A settings group is a frozen `msgspec.Struct` whose fields are `Annotated[type, Meta(...)]`: the description is the
help text, the bounds are the checks. A field's flag is `--its-name`, its TOML key `its_name` in the group's table
(`SECTION`), its variable `LLAMASTREAM_ITS_NAME`, or `LLAMASTREAM_SERVE_ITS_NAME` in the group `serve`.
`Meta(extra={...})` may say `flags` (all spellings, the long one first; [] for none), `secret` (never shown), and
`check`: a function of a value and its source that raises a `SettingError` which names both, for what bounds cannot say.

Order of precedence: command line (or arguments), environment, file, defaults. The file is TOML with one table for each
group (`[client]`, `[serve]`, `[fleet]`, `[gateway]`, `[alerts]`, `[bench]`, `[tune]`), and one for each model that
`serve` runs (`[models.NAME]`): the one that LLAMASTREAM_CONFIG names, else `llamastream/config.toml` in the user's
configuration directory. None is read from the working directory, which may be a stranger's.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import fields as struct_fields

from llamastream.address import Address, parse_addresses
from llamastream.errors import SettingError
from llamastream.settings.file import CONFIG_VARIABLE as CONFIG_VARIABLE
from llamastream.settings.file import config_path as config_path
from llamastream.settings.file import read_toml as read_toml
from llamastream.settings.file import user_table
from llamastream.settings.objects import values_of
from llamastream.settings.words import describe_type as describe_type
from llamastream.settings.words import shown
from llamastream.types import Fallback, RecoveryMode, RetryPolicy, Timeouts

ENV_PREFIX = "LLAMASTREAM_"
DEFAULT_BASE_URL = "http://localhost:8080"

SECTIONS = frozenset({"client", "serve", "fleet", "gateway", "alerts", "bench", "tune", "models"})
"""Tables that a settings file may have."""

S = TypeVar("S", bound=Struct)
Seconds = Annotated[float, Meta(gt=0, le=1e7)]


def _check_header_value(key: str, source: str) -> None:
    if not (key.isascii() and key.isprintable()):
        raise SettingError(f"api_key = (hidden) from {source} is not allowed; allowed: printable ASCII, for a header")


class ClientSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach a server, and the defaults of its requests."""

    SECTION: ClassVar[str] = "client"

    base_url: Annotated[
        str,
        Meta(
            description="Address of the server: http, https or unix scheme, with or without /v1; several separated by "
            "spaces or commas.",
            extra={"flags": ["--url", "-u"], "check": parse_addresses},
        ),
    ] = DEFAULT_BASE_URL
    api_key: Annotated[
        str | None,
        Meta(description="Key that the server asks for.", extra={"secret": True, "check": _check_header_value}),
    ] = None
    model: Annotated[str | None, Meta(description="Model name sent with each request.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="Sampling temperature; 0 is greedy; unset leaves the server's default."),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Most tokens an answer may have; unset means no limit.")
    ] = None
    connect_timeout: Annotated[Seconds | None, Meta(description="Seconds to connect, TLS included.")] = 5.0
    first_byte_timeout: Annotated[
        Seconds | None, Meta(description="Seconds to the response header, that is in the server's queue.")
    ] = 300.0
    prefill_timeout: Annotated[
        Seconds | None, Meta(description="Seconds from the header to the first token, that is for prefill.")
    ] = 300.0
    content_idle_timeout: Annotated[
        Seconds | None, Meta(description="Seconds from one piece of content to the next.")
    ] = 60.0
    total_timeout: Annotated[Seconds | None, Meta(description="Seconds for a whole request.")] = None
    ca_file: Annotated[str | None, Meta(description="PEM file of the authority that signed the server.")] = None
    cert_file: Annotated[str | None, Meta(description="PEM file of the client's own certificate.")] = None
    key_file: Annotated[str | None, Meta(description="PEM file of the client certificate's key.")] = None
    max_retries: Annotated[
        int, Meta(ge=0, le=100, description="Repetitions of a request that failed before its first content.")
    ] = 3
    loading_patience: Annotated[
        float, Meta(ge=0, le=1e7, description="Seconds to wait for a server that is loading its model.")
    ] = 300.0
    fallback: Annotated[
        Fallback,
        Meta(
            description="Whether an answer may come as one piece: `auto` where streaming fails, `always`, or `never`."
        ),
    ] = "auto"
    recovery: Annotated[
        RecoveryMode,
        Meta(
            description="How a stream that breaks in the middle may go on: `full`, `reattach` (only where the server "
            "still holds the generation), or `off`."
        ),
    ] = "full"
    recovery_patience: Annotated[
        float, Meta(ge=0, le=1e7, description="Seconds that a stream which broke in the middle tries to go on.")
    ] = 60.0
    max_recoveries: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Breaks in the middle of one stream that are mended at most.")
    ] = 100
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1 << 20, description="Connections to a server at the same time; further streams wait in line."),
    ] = 512
    max_event_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Largest server-sent event that is accepted, in bytes.")
    ] = 8 * 1024 * 1024

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return shown(self, secret=("api_key",))

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy(
            max_retries=self.max_retries,
            loading_patience=self.loading_patience,
            recovery_patience=self.recovery_patience,
            max_recoveries=self.max_recoveries,
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses in `base_url`."""
        return parse_addresses(self.base_url)

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(
            connect=self.connect_timeout,
            first_byte=self.first_byte_timeout,
            prefill=self.prefill_timeout,
            content_idle=self.content_idle_timeout,
            total=self.total_timeout,
        )


class SettingField(Struct, frozen=True):
    """One declared setting, as the command line and the reference page need it.

    Attributes:
        name: field name. flags: spellings on the command line, () if it has none. env: variable name.
        type: with its annotations. default: the default value. description: one sentence. secret: never show the value.
        check: raises `SettingError` for a value, and its source, that the type cannot exclude; None: there is none.
    """

    name: str
    flags: tuple[str, ...]
    env: str
    type: Any
    default: Any
    description: str
    secret: bool = False
    check: Callable[[Any, str], object] | None = None


def declared(group: type[Struct]) -> list[SettingField]:
    """The settings of a group, in the order of their declaration."""
    hints = get_type_hints(group, include_extras=True)
    section: str = getattr(group, "SECTION", "client")
    prefix = ENV_PREFIX if section == "client" else f"{ENV_PREFIX}{section.upper()}_"
    found = []
    for field in struct_fields(group):
        meta = [m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, Meta)]
        extra: dict[str, Any] = {}
        description = ""
        for m in meta:
            extra.update(m.extra or {})
            description = m.description or description
        default = field.default if field.default is not msgspec.NODEFAULT else None
        found.append(
            SettingField(
                name=field.name,
                flags=tuple(extra.get("flags", ["--" + field.name.replace("_", "-")])),
                env=prefix + field.name.upper(),
                type=hints[field.name],
                default=default,
                description=description,
                secret=bool(extra.get("secret", False)),
                check=extra.get("check"),
            )
        )
    return found


def load(
    group: type[S],
    *,
    given: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    table: Mapping[str, Any] | None = None,
    table_source: str = "the settings file",
    given_source: str | None = None,
    above: Mapping[str, Any] | None = None,
    above_source: str = "",
) -> tuple[S, dict[str, str]]:
    """A group's settings and, for each, where its value came from.

    Args:
        given: values from the command line or a call; None stands for "not given".
        given_source: what to call their source in messages; None: the flag of each.
        environ: the environment (`os.environ` if None).
        table: the group's table of a TOML file; None: that of the user's settings file. `table_source` names it.
        above: a table whose values win over those of `table`; `above_source` names it.

    Raises:
        SettingError: a value is not allowed, or the table has a key that is no setting.
    """
    environ = os.environ if environ is None else environ
    given = given or {}
    if table is None:
        table, table_source = user_table(getattr(group, "SECTION", "client"), SECTIONS, environ)
    fields = declared(group)
    above = above or {}
    for keys, where in ((above, above_source), (table, table_source)):
        if unknown := set(keys) - {field.name for field in fields}:
            allowed = ", ".join(field.name for field in fields)
            raise SettingError(f"{min(unknown)!r} in {where} is no setting; allowed: {allowed}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in fields:
        strict = False  # the command line and the environment have nothing but text, a file has types
        if given.get(field.name) is not None:
            raw, source = given[field.name], given_source or next(iter(field.flags), "the call")
        elif environ.get(field.env, "") != "":
            raw, source = environ[field.env], f"the environment ({field.env})"
        elif field.name in above:
            raw, source, strict = above[field.name], above_source, True
        elif field.name in table:
            raw, source, strict = table[field.name], table_source, True
        else:
            values[field.name], sources[field.name] = field.default, "default"
            continue
        values[field.name] = _convert(field, raw, source, strict=strict)
        sources[field.name] = source
    try:
        return group(**values), sources
    except SettingError as error:  # what a group finds wrong with its values together
        raise with_sources(error, sources) from None


def replaced_settings(settings: S, given: Mapping[str, Any], settings_source: str, given_source: str) -> S:
    """`settings` with what was given in place of its values, all of it checked: a Struct that is made in Python code
    checks nothing by itself.

    Raises:
        SettingError: a value is not allowed.
    """
    values = {}
    for field in declared(type(settings)):
        if given.get(field.name) is not None:
            values[field.name] = _convert(field, given[field.name], given_source)
        else:
            values[field.name] = _convert(field, getattr(settings, field.name), settings_source)
    return type(settings)(**values)


def with_sources(error: SettingError, sources: Mapping[str, str]) -> SettingError:
    """The error with where the settings came from that its message names, as far as it does not say so itself:
    ` (hf from the environment (LLAMASTREAM_SERVE_HF))`."""
    named = [
        f"{name} from {source}"
        for name, source in sources.items()
        if source != "default" and re.search(rf"\b{name}\b", error.message) and source not in error.message
    ]
    return SettingError(f"{error.message} ({', '.join(named)})") if named else error


def _convert(field: SettingField, raw: Any, source: str, *, strict: bool = False) -> Any:
    if isinstance(raw, str) and get_origin(_bare(field.type)) is tuple:
        raw = shlex.split(raw)
    try:
        if isinstance(raw, bool) and _bare(field.type) is not bool:
            raise msgspec.ValidationError  # which would be taken for the number 0 or 1
        value = msgspec.convert(raw, field.type, strict=strict)
    except msgspec.ValidationError:
        shown = "(hidden)" if field.secret else repr(raw)
        raise SettingError(
            f"{field.name} = {shown} from {source} is not allowed; allowed: {describe_type(field.type)}"
        ) from None
    if field.check is not None and value is not None:
        field.check(value, source)
    return value


def user_section(section: str, environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """A table of the user's settings file by its name, and what to call it; empty if there is no file. Raises as
    `user_table`."""
    return user_table(section, SECTIONS, environ)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def from_object(source: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Client arguments from any object (or mapping) with `llm_base_url`, `llm_model`, `llm_temperature`,
    `llm_max_tokens`, `llm_api_key`; what it lacks, or has as None, is left out, and so are the arguments `without`.

    Secrets of pydantic (`SecretStr`) are understood by their `get_secret_value`. The address may be a list.

    Raises:
        SettingError: it has none of them, or one has a value that is not allowed.
    """
    fields = {field.name: field for field in declared(ClientSettings)}
    return {argument: _convert(fields[argument], value, shown) for argument, value, shown in values_of(source, without)}
