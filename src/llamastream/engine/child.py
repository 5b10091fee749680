"""The embedded engine's process: xllamacpp's server with parameters read from standard input.

Run by path with `-I -S` (no site, no PYTHON* variables); standard input brings JSON with `path` (the search path for
modules), `gpu` (whether one is wanted) and `set` (attributes of CommonParams, dotted, with their values). The
server logs to standard error, as llama-server does, this process to standard output.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

PARENT_CHECK_SECONDS = 1.0


def say(level: str, message: str) -> None:
    # standard output is ours alone: on standard error the server's log thread writes in pieces, between which a line
    # of ours could fall
    print(f"{level} llamastream: {message}", flush=True)


def fail(message: str) -> NoReturn:
    say("E", message)
    os._exit(1)


def assign(params: Any, name: str, value: Any) -> None:
    """Set one attribute (`cpuparams.n_threads`), with sets and enumerations as its type wants them."""
    target = params
    *parents, last = name.split(".")
    for parent in parents:
        target = getattr(target, parent, None)
    current = getattr(target, last, None)
    if target is None or current is None:
        fail(f"the embedded engine has no parameter {name!r} in this version of xllamacpp: leave the setting out")
    if isinstance(value, str) and type(current).__module__.startswith("xllamacpp"):
        value = getattr(type(current), value)
    elif isinstance(current, set):
        value = set(value)
    try:
        setattr(target, last, value)
    except (TypeError, ValueError, OverflowError) as error:
        fail(f"the embedded engine cannot set {name} to {value!r}: {error}")


def main() -> NoReturn:
    parent = os.getppid()
    config = json.load(sys.stdin.buffer)
    # nothing that the server opens should get number 0, which libraries take for a terminal
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:] = config["path"]
    try:
        import xllamacpp
    except Exception as error:  # noqa: BLE001 - whatever a broken wheel raises, it cannot be used
        fail(f"cannot import xllamacpp: {error}")
    params = xllamacpp.CommonParams()
    for name, value in config["set"].items():
        assign(params, name, value)

    if config["gpu"] and not any("GPU" in device["type"].name for device in xllamacpp.get_device_info()):
        say("W", "no usable GPU found")

    # until the model is loaded, SIGTERM ends the process at once (the default action), as with llama-server
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        # not os._exit: the log is written by a thread, and its last lines say what was wrong
        say("E", f"the server did not start: {error}")
        sys.exit(1)

    # A signal may arrive in any thread of the server; the wake-up pipe brings it to this one.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    say("I", f"listening on {server.listening_address}")
    while not select.select([wake_read], [], [], PARENT_CHECK_SECONDS)[0]:
        if os.getppid() != parent:
            break
    # Destroying the server with a stream in flight hangs for good; the system closes the sockets as well.
    os._exit(0)


if __name__ == "__main__":
    main()
