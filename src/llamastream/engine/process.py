"""Starting and stopping a server process behind its guard; reading everything that it says."""

from __future__ import annotations

import fcntl
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from llamastream.engine.guard import clean
from llamastream.engine.logs import LineBuffer, LogRing
from llamastream.errors import EngineCrashedError, EngineMissingError

GUARD = Path(__file__).with_name("guard.py")
# from the guard's `exit` line to the end of the pipes: only what a grandchild holds open can take longer
DRAIN_SECONDS = 1.0
CLEANING_UP = "cleaning up before exit"
CLEANUP_SECONDS = 2.0


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are neither 0, 1 nor 2, even where these are closed: the guard's own streams go there."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))
        os.close(end)
    return ends[0], ends[1]


class ServerProcess:
    """A server behind its guard. Thread-safe; the constructor returns when the server's process exists.

    Raises:
        EngineMissingError: the program cannot be executed.
        EngineCrashedError: the guard did not start, or could not make the directory.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        ring: LogRing,
        directory: str,
        key: str = "",
        stdin: bytes | None = None,
        cleanup: Sequence[str] = (),
    ) -> None:
        """Start `command` (an absolute program path first).

        Args:
            directory: a private directory that the guard makes for the server, and removes when it has ended.
            key: one line of ASCII, written to the file `keys` in it; "": no such file.
            stdin: what the server reads from its standard input; None: nothing.
            cleanup: further files and flat directories that the guard removes then.
        """
        self.ring = ring
        self.pid = 0
        self.exit_code: int | None = None
        self._exec_errno = 0
        self._directory_errno = 0
        self._started = threading.Event()
        self._exited = threading.Event()
        self._lock = threading.Lock()
        self._when_ended: list[Callable[[], None]] = []
        self._stopping = False
        self._cleanup = [directory, *cleanup]
        self._owner = os.getpid()
        control_read, self._control = _pipe()
        self._status, status_write = _pipe()
        try:
            self._guard = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", str(GUARD), str(control_read), str(status_write), directory,
                    "\n".join(cleanup), *command,
                ],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                pass_fds=(control_read, status_write),
                # Ctrl-C in a terminal goes to the whole foreground group: the server must outlive it until we stop it
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._control)
            os.close(self._status)
            raise EngineCrashedError(f"cannot start {sys.executable!r} for the guard: {error}") from None
        except BaseException:
            os.close(self._control)  # a guard that has begun hears of it, and ends
            os.close(self._status)
            raise
        finally:
            os.close(control_read)
            os.close(status_write)
        try:
            self._wait_started(command[0], key, stdin)
        except BaseException:
            self._close_control()  # what the guard may have begun, it ends and cleans up
            raise

    def _wait_started(self, program: str, key: str, stdin: bytes | None) -> None:
        self._order(key.encode("ascii") + b"\n")
        self._reader = threading.Thread(target=self._read_all, name="llamastream-engine-log", daemon=True)
        self._reader.start()
        if stdin is not None:
            self._write_stdin(stdin)
        self._started.wait()
        if self.pid:
            return
        self._reader.join()
        if self._directory_errno:
            raise EngineCrashedError(
                f"cannot make the directory {self._cleanup[0]!r}: {os.strerror(self._directory_errno)}; "
                "set TMPDIR to a directory that can be written"
            )
        if self._exec_errno:
            raise EngineMissingError(
                f"cannot execute {program!r}: {os.strerror(self._exec_errno)}; give an executable llama-server for "
                "this system as binary"
            )
        raise EngineCrashedError(
            f"the guard process ended with code {self._guard.returncode} before the server started",
            log_lines=[record.message for record in self.ring.records()[-12:]],
        )

    @property
    def alive(self) -> bool:
        """Whether the server's process still runs."""
        return not self._exited.is_set()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the process and of its output; the exit code, or None after `timeout` seconds."""
        if not self._exited.wait(timeout):
            return None
        # the last lines are often the ones that matter
        self._reader.join(DRAIN_SECONDS)
        return self.exit_code

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the process has ended; at once if it has. It must not wait for anything."""
        with self._lock:
            if not self._exited.is_set():
                self._when_ended.append(callback)
                return
        callback()

    def _ended(self) -> None:
        with self._lock:
            self._exited.set()
            callbacks, self._when_ended = self._when_ended, []
        for callback in callbacks:
            callback()

    def terminate(self) -> None:
        """Ask the server to end (SIGTERM)."""
        self._order(b"T")

    def kill(self) -> None:
        """End the server and what it started, at once (SIGKILL)."""
        self._order(b"K")

    def stop(self, timeout: float) -> int | None:
        """SIGTERM, `timeout` seconds of patience, SIGKILL; the exit code. Idempotent."""
        if os.getpid() != self._owner:
            return self.exit_code  # a forked copy of us owns nothing here
        if self.alive:
            # once: a second SIGTERM makes llama-server drop everything and abort
            with self._lock:
                first, self._stopping = not self._stopping, True
            if first:
                self.terminate()
            if not self._wait_end(timeout):
                self.kill()
                self._exited.wait(10.0)
        self._reader.join(DRAIN_SECONDS + 5.0)
        self._close_control()
        return self.exit_code

    def _wait_end(self, timeout: float) -> bool:
        """Wait for the end after SIGTERM; whether it came.

        llama-server with streams under way hangs here in two ways. Its signal handler takes a lock that the interrupted
        thread may hold: only `timeout` helps. Or it says that it cleans up, when nothing is generated any more, and
        then waits for handlers whose clients are still connected: from there on patience is short, nothing can be lost.
        """
        deadline = time.monotonic() + timeout
        seen = version = 0
        while self.alive and (left := deadline - time.monotonic()) > 0:
            records, seen = self.ring.since(seen)
            if any(CLEANING_UP in record.message for record in records):
                deadline = min(deadline, time.monotonic() + CLEANUP_SECONDS)
                left = min(left, CLEANUP_SECONDS)
            version = self.ring.wait(version, left)
        return not self.alive

    def _write_stdin(self, data: bytes) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(data)
            self._guard.stdin.close()
        except BrokenPipeError:
            pass  # it ended early; its exit code and log say why

    def _order(self, order: bytes) -> None:
        with self._lock:
            if self._control >= 0 and self.alive and os.getpid() == self._owner:
                with suppress(BrokenPipeError):  # the guard is gone, and the server with it
                    os.write(self._control, order)

    def _close_control(self) -> None:
        with self._lock:
            if self._control >= 0:
                os.close(self._control)
                self._control = -1

    def _read_all(self) -> None:
        """The reader thread: logs and status until all pipes have ended."""
        assert self._guard.stdout is not None
        assert self._guard.stderr is not None
        buffers = {self._guard.stdout.fileno(): LineBuffer(), self._guard.stderr.fileno(): LineBuffer()}
        status_line = b""
        deadline: float | None = None
        with selectors.DefaultSelector() as selector:
            for descriptor in (*buffers, self._status):
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = selector.select(wait)
                if not ready and deadline is not None:
                    break
                for key, _ in ready:
                    data = os.read(key.fd, 65_536)
                    if not data:
                        selector.unregister(key.fd)
                    if key.fd == self._status:
                        *lines, status_line = (status_line + data).split(b"\n")
                        for line in lines:
                            self._on_status(line)
                        if not data or self._exited.is_set():
                            deadline = time.monotonic() + DRAIN_SECONDS
                    else:
                        for text in buffers[key.fd].feed(data):
                            self.ring.add_line(text)
        for buffer in buffers.values():
            if (rest := buffer.flush()) is not None:
                self.ring.add_line(rest)
        self._finish()

    def _on_status(self, line: bytes) -> None:
        word, _, number = line.partition(b" ")
        if word == b"pid":
            self.pid = int(number)
            try:
                self._created = psutil.Process(self.pid).create_time()
            except psutil.Error:
                self._created = 0.0
            self._started.set()
        elif word == b"error":
            self._exec_errno = int(number)
        elif word == b"directory":
            self._directory_errno = int(number)
        elif word == b"exit":
            self.exit_code = int(number)
            self._ended()
            self.ring.wake()

    def _finish(self) -> None:
        assert self._guard.stdout is not None
        assert self._guard.stderr is not None
        os.close(self._status)
        self._guard.stdout.close()
        self._guard.stderr.close()
        self._guard.wait()
        if self.pid and not self._exited.is_set():
            self._end_orphan()
        self._ended()
        self._started.set()
        self.ring.wake()
        self.ring.close()

    def _end_orphan(self) -> None:
        """The guard died without a word (someone killed it): on Linux the server died with it, elsewhere we end it."""
        self.exit_code = -9
        clean(self._cleanup)
        try:
            process = psutil.Process(self.pid)
            if process.create_time() == self._created:
                process.kill()
                process.wait(5.0)
        except psutil.Error:
            pass  # it has ended already
