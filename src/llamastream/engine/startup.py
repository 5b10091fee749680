"""The steps of a start: choose the engine, fill in the options, start the process, wait until it is ready."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from llamastream.engine import embedded, hub
from llamastream.engine.address import ServerAddress
from llamastream.engine.addresses import check_port, prepare_socket
from llamastream.engine.environment import clean_environment
from llamastream.engine.failures import SHOWN_LINES, classify, describe_exit
from llamastream.engine.flags import command_line, hidden
from llamastream.engine.logs import LogRing
from llamastream.engine.options import EngineOptions
from llamastream.engine.probe import Binary, find_binary, probe
from llamastream.engine.process import ServerProcess
from llamastream.engine.ready import (
    announced_port,
    is_healthy,
    listening_ports,
    read_capabilities,
)
from llamastream.engine.resolve import resolve
from llamastream.engine.server import Engine
from llamastream.errors import EngineError, EngineMissingError, EngineStartTimeoutError, ModelDownloadError
from llamastream.types import LogRecord

# between looks at a server that has not said that it listens, and at one that has and is loading
QUIET_POLL_SECONDS = 0.25
LOADING_POLL_SECONDS = 0.05
# how the log of the embedded engine's process names itself
CHILD_SOURCE = "llamastream"
# llama-server's words, and those of our child
NO_GPU = "no usable GPU found"


class _Plan(Struct, frozen=True):
    """Everything that is needed to start one process."""

    kind: str
    command: tuple[str, ...]
    options: EngineOptions
    stdin: bytes | None
    build: str
    warnings: tuple[str, ...]


def start(
    options: EngineOptions,
    on_log: Callable[[LogRecord], None] | None,
    cancelled: threading.Event,
    on_spawn: Callable[[int], None] | None = None,
) -> Engine:
    """Start a server; `Launch.start` says what can be raised.

    Args:
        cancelled: set by another thread to give up. on_spawn: called with the process id when the process exists.
    """
    binary = choose(options)
    if binary is not None and options.hf is not None and probe(binary.path).help().first("-hf", "--hf-repo", "-hfr"):
        try:
            return _start_one(options, binary, on_log, cancelled, on_spawn, downloaded=None)
        except ModelDownloadError:
            # a build without TLS cannot download; huggingface_hub can
            if not hub.hub_available():
                raise
    downloaded = str(hub.download(options.hf)) if options.hf is not None else None
    return _start_one(options, binary, on_log, cancelled, on_spawn, downloaded=downloaded)


def choose(options: EngineOptions) -> Binary | None:
    """The executable to run, or None for the embedded engine.

    Raises:
        EngineMissingError: there is none of the kind that is wanted.
    """
    if options.kind != "embedded":
        found = find_binary(options.binary)
        if found is not None:
            return found
        if options.kind == "executable":
            raise EngineMissingError(
                "no llama-server executable: install llama.cpp, put llama-server on PATH, or give its path as binary "
                "or in LLAMA_SERVER_BIN; kind='embedded' needs none"
            )
    if embedded.embedded_version() is None:
        raise EngineMissingError(
            "no engine: there is no llama-server executable (binary, LLAMA_SERVER_BIN, PATH), and the embedded engine "
            "is not installed: pip install 'llamastream[server]'"
        )
    return None


def _start_one(
    options: EngineOptions,
    binary: Binary | None,
    on_log: Callable[[LogRecord], None] | None,
    cancelled: threading.Event,
    on_spawn: Callable[[int], None] | None,
    *,
    downloaded: str | None,
) -> Engine:
    began = time.monotonic()
    filled, warnings = resolve(options, downloaded=downloaded)
    made_directory = None
    if filled.socket is not None:
        made_directory = str(Path(filled.socket).parent) if prepare_socket(filled.socket) else None
    else:
        check_port(filled.host, filled.port)
    if filled.slot_save_path is not None:
        Path(filled.slot_save_path).mkdir(mode=0o700, parents=True, exist_ok=True)

    # private (0700), made and removed by the guard: the empty configuration directory, and the key file
    directory = new_directory()
    try:
        plan = _plan(filled, binary, directory, filled.model or downloaded, warnings)
        secrets = [filled.api_key] if filled.api_key else []
        cleanup = []
        if filled.socket is not None:
            cleanup.append(filled.socket)
            if made_directory is not None:
                cleanup.append(made_directory)
        ring = LogRing(on_log, secrets)
        process = ServerProcess(
            plan.command,
            environment=clean_environment(
                os.environ, config_home=directory, hf=options.hf is not None and downloaded is None
            ),
            ring=ring,
            directory=directory,
            key=filled.api_key or "" if plan.kind == "executable" else "",
            stdin=plan.stdin,
            cleanup=cleanup,
        )
        try:
            if on_spawn is not None:
                on_spawn(process.pid)
            address = _wait_ready(process, plan, cancelled)
            (Path(directory) / "keys").unlink(missing_ok=True)
            capabilities = read_capabilities(address, filled.api_key, plan.build)
            if not process.alive:
                raise _failure(process, plan)
        except BaseException:
            process.stop(0.0)
            raise
    except BaseException:
        if made_directory is not None:
            with suppress(OSError):
                Path(made_directory).rmdir()
        raise
    return Engine(
        process,
        address,
        kind=plan.kind,
        options=filled if filled.socket else replace(filled, port=address.port),
        capabilities=capabilities,
        command=hidden(plan.command, secrets),
        warnings=(*plan.warnings, *_no_gpu(plan, ring)),
        start_seconds=time.monotonic() - began,
    )


def new_directory() -> str:
    """A path for a directory that does not exist yet.

    Not by `tempfile.gettempdir`, which makes a file to see whether it can: a signal then would leave that behind.
    """
    named = (tempfile.tempdir, *map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    for base in (*named, "/tmp", "/var/tmp", "."):  # noqa: S108  # where tempfile looks, too; the name is a secret
        if base and Path(base).is_dir() and os.access(base, os.W_OK | os.X_OK):
            return str(Path(base).absolute() / f"llamastream-{secrets.token_hex(8)}")
    raise EngineError("there is no directory for temporary files that can be written: set TMPDIR to one")


def _no_gpu(plan: _Plan, ring: LogRing) -> list[str]:
    """Both kinds of engine fall back to the CPU when they find no GPU: say so to who asked for one."""
    if plan.options.gpu and any(NO_GPU in record.message for record in ring.records()):
        return ["gpu is on, but the engine found none that it can use, and runs on the CPU: use a build for your GPU"]
    return []


def _plan(
    options: EngineOptions, binary: Binary | None, directory: str, model: str | None, warnings: list[str]
) -> _Plan:
    if binary is None:
        assert model is not None
        settings, more = embedded.settings_for(options, model=model)
        return _Plan(
            kind="embedded",
            command=tuple(embedded.command()),
            options=options,
            stdin=embedded.child_input(settings, gpu=options.gpu),
            build=f"xllamacpp {embedded.embedded_version()}",
            warnings=(*warnings, *more),
        )
    probed = probe(binary.path)
    key_file = None
    if options.api_key is not None:
        key_file = str(Path(directory) / "keys")
    line = command_line(options, probed.help(), model=model, key_file=key_file)
    return _Plan(
        kind="executable",
        command=(binary.path, *line.arguments),
        options=options,
        stdin=None,
        build=probed.version,
        warnings=(*warnings, *line.warnings),
    )


def _wait_ready(process: ServerProcess, plan: _Plan, cancelled: threading.Event) -> ServerAddress:
    """Wait until the server answers `/health` with 200; its address."""
    options = plan.options
    tls = any(argument.startswith("--ssl-cert-file") for argument in options.extra_args)
    port = options.port
    embedding = plan.kind == "embedded"
    listening = False
    seen = version = 0
    deadline = time.monotonic() + options.start_timeout
    while True:
        records, seen = process.ring.since(seen)
        for record in records:
            # the embedded server says it, and then our process around it, once it handles signals
            announced = announced_port(record) if not embedding or record.source == CHILD_SOURCE else None
            if announced is not None:
                listening, port = True, announced or port
        if not process.alive:
            raise _failure(process, plan)
        if cancelled.is_set():
            raise EngineError("the start was cancelled")
        if not listening and not embedding:
            listening, port = _look(process, options, port)
        if listening and (port or options.socket):
            address = ServerAddress(host=options.host, port=port, socket=options.socket, tls=tls)
            # another server may hold the port and answer: ours counts only while it lives
            if is_healthy(address) and process.alive:
                return address
        now = time.monotonic()
        if records and options.hf is not None:
            deadline = max(deadline, now + options.start_timeout)  # a download that makes progress is not stuck
        if now > deadline:
            raise EngineStartTimeoutError(
                f"the server was not ready within {options.start_timeout:g} s (start_timeout): still loading, or "
                "stuck; allow more time, or use a smaller model",
                log_lines=[record.message for record in process.ring.records()[-SHOWN_LINES:]],
            )
        version = process.ring.wait(version, LOADING_POLL_SECONDS if listening else QUIET_POLL_SECONDS)


def _look(process: ServerProcess, options: EngineOptions, port: int) -> tuple[bool, int]:
    """For builds that do not log their address: ask the system where the process listens."""
    if options.socket is not None:
        return Path(options.socket).is_socket(), port
    ports = listening_ports(process.pid)
    if port:
        return port in ports, port
    return (True, ports.pop()) if len(ports) == 1 else (False, 0)


def _failure(process: ServerProcess, plan: _Plan) -> EngineError:
    exit_code = process.wait(5.0)
    options = plan.options
    lines = [
        f"{record.source}: {record.message}" if record.source else record.message for record in process.ring.records()
    ]
    error = classify(
        lines,
        exit_code,
        model=options.hf or options.model or "",
        address=options.socket or f"{options.host} port {options.port}",
    )
    if exit_code == 0:
        error.args = (f"{error.args[0]} ({describe_exit(exit_code)})",)
    return error
