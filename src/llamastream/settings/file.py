"""The settings file: where it is, and what it says."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llamastream.errors import SettingError

CONFIG_VARIABLE = "LLAMASTREAM_CONFIG"


def base_directory(variable: str, default: str, environ: Mapping[str, str] | None = None) -> Path:
    """The directory that a variable of the XDG base directory specification names, else `default` in the home
    directory. A relative path in the variable is ignored, as the specification says.

    Raises:
        RuntimeError: nobody knows where the home directory is.
    """
    named = Path((os.environ if environ is None else environ).get(variable, ""))
    return named if named.is_absolute() else Path.home() / default


def user_directory(variable: str, default: str, environ: Mapping[str, str] | None = None) -> Path:
    """Our own directory in that."""
    return base_directory(variable, default, environ) / "llamastream"


def config_path(environ: Mapping[str, str] | None = None) -> Path:
    """The settings file that is read if it exists."""
    environ = os.environ if environ is None else environ
    if named := environ.get(CONFIG_VARIABLE, ""):
        return Path(named).expanduser()
    return user_directory("XDG_CONFIG_HOME", ".config", environ) / "config.toml"


def user_table(section: str, allowed: Collection[str], environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """A table of the user's settings file, and what to call it; empty if there is no file.

    Raises:
        SettingError: the file cannot be read, is not TOML, has other tables than the `allowed`, or LLAMASTREAM_CONFIG
            names one that is not there.
    """
    path = config_path(environ)
    if not path.exists() and not environ.get(CONFIG_VARIABLE):
        return {}, "default"
    tables = read_toml(path)
    unknown = set(tables).difference(allowed)
    if unknown:
        raise SettingError(
            f"{path} has the table [{min(unknown)}], which is none of ours; allowed: "
            + ", ".join("[models.NAME]" if name == "models" else f"[{name}]" for name in sorted(allowed))
        )
    table = tables.get(section, {})
    if not isinstance(table, dict):
        raise SettingError(f"{section} in {path} must be a table: [{section}]")
    return table, f"{path} [{section}]"


def read_toml(path: str | Path) -> dict[str, Any]:
    """A settings file as a dict of tables.

    Raises:
        SettingError: the file is not there, not readable or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {str(path)!r} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the settings file {str(path)!r} is not TOML: {error}") from None
