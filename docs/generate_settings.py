"""Writes docs/settings.md from the declarations: `python docs/generate_settings.py`. A test notices an old page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from llamastream.alerts.settings import AlertSettings
from llamastream.bench.settings import BenchSettings
from llamastream.bench.tune.settings import TuneSettings
from llamastream.cli.options import secret_flag
from llamastream.engine import EngineOptions
from llamastream.engine.attributes import SWITCHES, VALUES
from llamastream.fleet.settings import FleetSettings
from llamastream.gateway.settings import GatewaySettings
from llamastream.settings import ClientSettings, SettingField, declared, describe_type

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

<!-- Made by docs/generate_settings.py from the declarations in the code. Change those, then run it again. -->

Every setting is declared once, in the code; options, environment variables and this page derive from the
declaration. What is given on the command line (or as an argument in Python) wins over the environment, which wins over
the default. A variable that is set but empty counts as not set. A value that is not allowed is an error which names
the setting, the value, what is allowed, and where the value came from.
"""

CLIENT = """
## Client

Read by `StreamingClient()`, `AsyncStreamingClient()`, `llamastream chat` and, where it talks to a server, by
`llamastream check`. In Python the clients take the address, the key, `model`, `temperature`, `max_tokens` and the TLS
files by these names; the five timeouts together as `timeouts=Timeouts(...)`, or everything as
`settings=ClientSettings(...)`.
"""

ENGINE = """
## Engine

The fields of `EngineOptions`, and options of `llamastream serve`. `EngineOptions` in Python does not read the
environment; the command does. `llamastream serve` has port 8080 as its default, and takes further flags of
llama-server as they are instead of `extra_args`; with `--demo` it serves the demo model alone, whatever `model`, `hf`,
`alias` and `[models]` say.
"""

FLAGS = """
### Further flags

A llama-server executable takes what its `--help` lists. The embedded engine takes these, by llama-server's other names
for them too:
"""

FLEET = """
## Fleet

The fields of `FleetSettings`, and further options of `llamastream serve`: how its servers are supervised. In Python:
`Fleet(..., settings=FleetSettings(...))`. [The page on fleets](fleet.md) shows them at work.
"""

GATEWAY = """
## Gateway

The fields of `GatewaySettings`, and further options of `llamastream serve`: the address that clients talk to, before
the servers. In Python: `create_app(source, GatewaySettings(...))`. Where it listens is said by `host`, `port` and
`socket` of the [engine](#engine), since without the gateway the servers would listen there; `drain_timeout` is that of
the fleet for `serve`, unless it is set here. [The page on the gateway](gateway.md) shows it at work.
"""

BENCH = """
## Measurements

The fields of `BenchSettings`, and options of `llamastream bench`. [The page on measurements](bench.md) shows them at
work.
"""

ALERTS = """
## Alerts

The fields of `AlertSettings`: what `llamastream serve` watches, and whom it tells. Secrets may be written as `@FILE`,
which stands for what that file holds. [The page on alerts](alerts.md) shows them at work.
"""

TUNE = """
## Tuning

The fields of `TuneSettings`, and options of `llamastream tune`. [Its page](tune.md) shows them at work.
"""

MODELS = """
## Models

A table `[models.NAME]` of the settings file is a model that `llamastream serve` runs, beside those of other such
tables. It may have every setting of the engine, with the same meaning, which wins over `[serve]`, and `instances`. What
the command line or the environment says wins over both, for every model. With `--model` or `--hf`, or their variables,
that model is served alone.
"""


def page() -> str:
    settings = HEAD + CLIENT + table(ClientSettings) + ENGINE + table(EngineOptions)
    return (
        settings
        + FLAGS
        + further_flags()
        + FLEET
        + table(FleetSettings)
        + GATEWAY
        + table(GatewaySettings)
        + BENCH
        + table(BenchSettings)
        + ALERTS
        + table(AlertSettings)
        + TUNE
        + table(TuneSettings)
        + MODELS
    )


def further_flags() -> str:
    flags = ", ".join(f"`{flag}`" for flag in sorted(SWITCHES | VALUES))
    return "\n" + textwrap.fill(flags, 120, break_on_hyphens=False) + ".\n"


def table(group: type[Struct]) -> str:
    lines = ["", "| Setting | Command line | Environment | Default | What it is |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(field))} |" for field in declared(group)]
    return "\n".join(lines) + "\n"


def cells(field: SettingField) -> Iterator[str]:
    extra = field.name == "extra_args"
    yield f"`{field.name}`"
    yield "further flags" if extra else ", ".join(f"`{flag}`" for flag in spellings(field))
    yield "" if extra else f"`{field.env}`"
    yield default_text(field.default)
    allowed = describe_type(field.type)
    shown = "" if extra or allowed in ("text", "true or false") else f" Allowed: {allowed}."
    yield (field.description + shown).replace("|", "\\|")


def spellings(field: SettingField) -> list[str]:
    if not field.flags:
        return []
    flags = [secret_flag(field)] if field.secret else list(field.flags)
    if isinstance(field.default, bool):
        flags.append(f"--no-{flags[0].removeprefix('--')}")
    return flags


def default_text(value: Any) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
