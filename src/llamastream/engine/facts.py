"""Facts about this machine for `llamastream check`: each function looks, returns what it saw, and raises nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from msgspec import Struct

from llamastream.engine.addresses import check_port
from llamastream.engine.attributes import SWITCHES, VALUES
from llamastream.engine.embedded import embedded_version
from llamastream.engine.flags import MANAGED
from llamastream.engine.gguf import GgufInfo
from llamastream.engine.machine import Cores, Memory, cores, cpu_features, memory
from llamastream.engine.probe import VARIABLE, find_binary, probe
from llamastream.engine.resolve import check_model
from llamastream.errors import EngineError, SettingError

__all__ = [
    "Cores",
    "EngineFact",
    "Memory",
    "ModelFact",
    "PortFact",
    "cores",
    "cpu_features",
    "find_engines",
    "memory",
    "model_fact",
    "port_fact",
]

# what the rest of the library builds on: JSON logs are optional, these flags are not
NEEDED_FLAGS = ("--parallel", "--ctx-size", "--threads", "--host", "--port", "--model")


class EngineFact(Struct, frozen=True):
    """One way to run a llama-server.

    Attributes:
        kind: `executable` or `embedded`. usable: whether `launch` can use it.
        path: the executable, or the Python that runs the embedded engine.
        version: as it says itself, "" if unknown.
        found: where from (binary, LLAMA_SERVER_BIN, PATH, xllamacpp), "" if nothing names one.
        problem: why it cannot be used and what to do, "" if it can.
        flags: the llama-server flags that it takes, sorted.
    """

    kind: str
    usable: bool
    path: str = ""
    version: str = ""
    found: str = ""
    problem: str = ""
    flags: tuple[str, ...] = ()


class ModelFact(Struct, frozen=True):
    """A model file: its header, or why it cannot be used."""

    path: str
    info: GgufInfo | None = None
    problem: str = ""


class PortFact(Struct, frozen=True):
    """Whether a port can be bound, by trying; `problem` names the process in the way where the system tells."""

    host: str
    port: int
    free: bool
    problem: str = ""


def find_engines(binary: str | None = None, environment: Mapping[str, str] | None = None) -> list[EngineFact]:
    """The engines in the order in which `kind="auto"` takes them: executable, then embedded.

    Args:
        binary: as `EngineOptions.binary`.
        environment: instead of `os.environ`.
    """
    return [_executable(binary, environment), _embedded()]


def _executable(binary: str | None, environment: Mapping[str, str] | None) -> EngineFact:
    try:
        found = find_binary(binary, environment)
    except SettingError as error:
        return EngineFact(
            kind="executable", usable=False, found="binary" if binary else VARIABLE, problem=error.message
        )
    if found is None:
        return EngineFact(
            kind="executable",
            usable=False,
            problem="no llama-server in LLAMA_SERVER_BIN or PATH: install llama.cpp, or use the embedded engine",
        )
    try:
        probed = probe(found.path)
    except EngineError as error:
        return EngineFact(kind="executable", usable=False, path=found.path, found=found.found, problem=error.message)
    known = probed.help()
    missing = [flag for flag in NEEDED_FLAGS if not known.has(flag)]
    return EngineFact(
        kind="executable",
        usable=not missing,
        path=found.path,
        version=probed.version,
        found=found.found,
        problem=f"this build is too old, it lacks {', '.join(missing)}: use a newer one" if missing else "",
        flags=tuple(known.names),
    )


def _embedded() -> EngineFact:
    version = embedded_version()
    if version is None:
        return EngineFact(
            kind="embedded",
            usable=False,
            problem="the package xllamacpp is not installed: pip install 'llamastream[server]'",
        )
    return EngineFact(
        kind="embedded",
        usable=True,
        path=sys.executable,
        version=version,
        found="xllamacpp",
        # What options of ours express, and what may be passed on; its log is text.
        flags=tuple(sorted((SWITCHES.keys() | VALUES.keys() | MANAGED.keys()) - {"--log-jsonl"})),
    )


def model_fact(path: str) -> ModelFact:
    """Read a model file's header."""
    try:
        return ModelFact(path=path, info=check_model(path))
    except EngineError as error:
        return ModelFact(path=path, problem=error.message)


def port_fact(host: str, port: int) -> PortFact:
    """Try to bind a port."""
    try:
        check_port(host, port)
    except EngineError as error:
        return PortFact(host=host, port=port, free=False, problem=error.message)
    return PortFact(host=host, port=port, free=True)
