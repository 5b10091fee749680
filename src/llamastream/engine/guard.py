# pathlib and contextlib cost more to import than this whole program does:
# ruff: noqa: SIM105, SLF001 (`posix._exit` is `os._exit`)
"""The guard: a tiny process between us and a llama-server, so that the server dies with us, even on SIGKILL.

Run as `python -I -S guard.py CONTROL STATUS DIRECTORY CLEANUP COMMAND...` with the standard library only. It makes the
server's private directory, starts the command, and ends it when the control pipe reaches its end (we are gone), when
its parent changes, or on a byte in that pipe: `T` sends SIGTERM, `K` SIGKILL. Only the guard signals the server: it is
the server's parent, hence the process id cannot have been reused. What happened goes to the status pipe as lines:
`pid N`, `error ERRNO`, `exit CODE`, and `directory ERRNO` if the directory could not be made.

The directory is made here and not by our parent, which may be killed at any moment, and would leave it behind. The
first line in the control pipe is the API key, to be written to `keys` in the directory; an empty line: there is none.

Why not PR_SET_PDEATHSIG alone: it fires when the *thread* that launched the server ends, and macOS has none. Here it
is set on top, from the guard's only thread, for the case that the guard itself is killed.

There is one guard for each server, so it is kept small: `posix` and `_signal` are what `os` and `signal` stand on, and
without these two a guard takes a quarter less memory.
"""

from __future__ import annotations

import select
import sys

TYPE_CHECKING = False  # `typing` itself would cost more to import than everything else here
if TYPE_CHECKING:
    import os
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal
    import posix as os

# how often to look whether our parent is still ours: covers a control pipe that a forked child holds open
PARENT_CHECK_SECONDS = 1.0
# of a file's mode (POSIX, sys/stat.h; the same numbers on Linux and macOS)
_KIND, _DIRECTORY = 0o170000, 0o040000


def _load_prctl() -> Any:
    """`prctl`. Looked up in the child: what that takes of memory is gone with its `exec`, and the guard, which has one
    thread only, may be forked without care."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        return ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None


def _become(command: list[str], error_pipe: int, guard: int) -> NoReturn:
    """In the child: take the place of the server."""
    try:
        os.setpgid(0, 0)
        prctl = _load_prctl()
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != guard:
                os._exit(127)
        # Python ignores these two, and what is ignored stays so over exec
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    except OSError as error:
        os.write(error_pipe, str(error.errno).encode())
    finally:
        os._exit(127)


def _end_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except OSError:
        # the group has not been made yet, or is empty already
        try:
            os.kill(child, number)
        except OSError:
            pass


def clean(paths: list[str]) -> None:
    """Remove files and flat directories, as far as they are there."""
    for path in paths:
        try:
            if os.lstat(path).st_mode & _KIND == _DIRECTORY:
                for name in os.listdir(path):
                    os.unlink(f"{path}/{name}")
                os.rmdir(path)
            else:
                os.unlink(path)
        except OSError:
            pass


def _say(status: int, line: bytes) -> None:
    try:
        os.write(status, line)
    except OSError:
        pass  # nobody is left to read it; the end of the control pipe tells the same


def _first_line(control: int) -> bytes | None:
    """The first line in the control pipe; None if our parent has gone before it was whole. What follows are orders."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control, 1)
        if not part:
            return None
        line += part
    return line[:-1]


def _make_directory(directory: str, key: bytes) -> None:
    os.mkdir(directory, 0o700)
    if key:
        file = os.open(f"{directory}/keys", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, key + b"\n")
        os.close(file)


def main(arguments: list[str]) -> int:
    control, status = int(arguments[0]), int(arguments[1])
    directory = arguments[2]
    cleanup = [directory, *(path for path in arguments[3].split("\n") if path)]
    command = arguments[4:]
    parent, guard = os.getppid(), os.getpid()
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    # what the server makes (its socket, saved slots) is for its user alone
    os.umask(0o077)

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    ending: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ending.append(True))
    signal.signal(signal.SIGCHLD, lambda *_: None)

    key = _first_line(control)
    if key is None:
        return 0
    try:
        _make_directory(directory, key)
    except OSError as error:
        if not isinstance(error, FileExistsError):  # else it is somebody else's
            clean(cleanup)
        _say(status, b"directory %d\n" % (error.errno or 0))
        return 1

    error_read, error_write = os.pipe()
    child = os.fork()
    if child == 0:
        _become(command, error_write, guard)
    os.close(error_write)
    problem = os.read(error_read, 16)
    if problem:
        clean(cleanup)
        _say(status, b"error %s\n" % problem)
        return 127
    _say(status, b"pid %d\n" % child)

    gone = False
    while True:
        readable, _, _ = select.select([control, wake_read], [], [], PARENT_CHECK_SECONDS)
        if control in readable:
            for order in os.read(control, 64) or b"E":
                if order == ord("T"):
                    os.kill(child, signal.SIGTERM)
                elif order == ord("K"):
                    _end_group(child, signal.SIGKILL)
                else:
                    gone = True
        if wake_read in readable:
            os.read(wake_read, 512)
        if gone or ending or os.getppid() != parent:
            _end_group(child, signal.SIGKILL)
            _, result = os.waitpid(child, 0)
            break
        done, result = os.waitpid(child, os.WNOHANG)
        if done:
            break

    code = os.waitstatus_to_exitcode(result)
    _end_group(child, signal.SIGKILL)  # what the server may have started itself
    clean(cleanup)
    _say(status, b"exit %d\n" % code)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # no clean-up of the interpreter is needed, and none should delay the end
    os._exit(main(sys.argv[1:]))
