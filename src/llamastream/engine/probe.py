"""What a llama-server executable is: its version and its flags, asked once per file and remembered."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from llamastream.engine.environment import clean_environment
from llamastream.engine.helptext import Help, parse_help
from llamastream.errors import EngineMissingError, SettingError
from llamastream.settings.file import user_directory

NAME = "llama-server"
VARIABLE = "LLAMA_SERVER_BIN"
PROBE_SECONDS = 30.0


class Binary(Struct, frozen=True):
    """A llama-server executable; `found` says how it was found: `binary`, `LLAMA_SERVER_BIN` or `PATH`."""

    path: str
    found: str


class Probe(Struct, frozen=True):
    """What an executable says of itself; `key` identifies the file (path, size, time of change)."""

    key: str
    version: str
    help_text: str

    def help(self) -> Help:
        """The flags, parsed."""
        return parse_help(self.help_text)


def find_binary(binary: str | None = None, environment: Mapping[str, str] | None = None) -> Binary | None:
    """Look for llama-server: `binary`, then LLAMA_SERVER_BIN, then PATH; None if it is nowhere.

    Raises:
        SettingError: `binary` or LLAMA_SERVER_BIN is set, but names nothing that can be executed.
    """
    environment = os.environ if environment is None else environment
    path = environment.get("PATH", os.defpath)
    for value, found in ((binary, "binary"), (environment.get(VARIABLE), VARIABLE)):
        if value:
            resolved = shutil.which(Path(value).expanduser(), path=path)
            if resolved is None:
                reason = "it is a directory" if Path(value).expanduser().is_dir() else "no such executable file"
                raise SettingError(f"{found} is {value!r}: {reason}; give the path of a llama-server executable")
            return Binary(str(Path(resolved).absolute()), found)
    on_path = shutil.which(NAME, path=path)
    return Binary(str(Path(on_path).absolute()), "PATH") if on_path else None


_memory: dict[str, Probe] = {}
_lock = threading.Lock()


def probe(path: str, cache: Path | None = None) -> Probe:
    """Ask an executable for its version and flags; remembered in memory and in the user's cache directory.

    Args:
        cache: directory of the cache; default: `default_cache()`.

    Raises:
        EngineMissingError: it cannot be executed, or it is no llama-server.
    """
    key = _identity(path)
    with _lock:
        if key in _memory:
            return _memory[key]
        directory = default_cache() if cache is None else cache
        result = _read_cache(directory, key)
        if result is None:
            result = _ask(path, key)
            _write_cache(directory, result)
        _memory[key] = result
        return result


def default_cache() -> Path:
    """The user's cache directory for probes (`XDG_CACHE_HOME`, `~/.cache`, `~/Library/Caches`)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llamastream" / "probe"
    return user_directory("XDG_CACHE_HOME", ".cache") / "probe"


def _identity(path: str) -> str:
    try:
        real = os.path.realpath(path)
        info = Path(real).stat()
    except OSError as error:
        raise EngineMissingError(f"cannot read the executable {path!r}: {error.strerror}") from None
    return f"{real}:{info.st_size}:{info.st_mtime_ns}"


def _ask(path: str, key: str) -> Probe:
    # no configuration can be below a device, and no directory has to be made that a signal could leave behind
    environment = clean_environment(os.environ, config_home=os.devnull)
    version = _run(path, "--version", environment)
    text = _run(path, "--help", environment)
    if not parse_help(text).has("--port"):
        said = (text.strip() or "nothing").splitlines()[0][:200]
        raise EngineMissingError(
            f"{path!r} is no llama-server: its --help names no --port (it said: {said}); give the path of llama-server"
        )
    return Probe(key=key, version=parse_version(version), help_text=text)


def parse_version(output: str) -> str:
    """The line with the version out of `--version`; "" if there is none (the builds of 2023 have no such flag)."""
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if line.startswith("version:")), "")


def _run(path: str, flag: str, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [path, flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            timeout=PROBE_SECONDS,
            check=False,
        )
    except OSError as error:
        raise EngineMissingError(
            f"cannot execute {path!r}: {error.strerror}; give a llama-server built for this system"
        ) from None
    except subprocess.TimeoutExpired:
        raise EngineMissingError(
            f"{path!r} did not answer {flag} within {PROBE_SECONDS:g} s; is it llama-server?"
        ) from None
    return done.stdout.decode("utf-8", "replace")


def _cache_file(directory: Path, key: str) -> Path:
    return directory / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")


def _read_cache(directory: Path, key: str) -> Probe | None:
    try:
        cached = msgspec.json.decode(_cache_file(directory, key).read_bytes(), type=Probe)
    except (OSError, msgspec.DecodeError):
        return None
    return cached if cached.key == key else None


def _write_cache(directory: Path, result: Probe) -> None:
    target = _cache_file(directory, result.key)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            file.write(msgspec.json.encode(result))
        Path(file.name).replace(target)
    except OSError:
        pass  # a cache that cannot be written costs a second at the next start, no more
