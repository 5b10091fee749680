"""`llamastream chat` in a terminal of its own, as a test's fingers and eyes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

from commandline import ROOT

COMMAND = [sys.executable, "-m", "llamastream", "chat"]


def terminal_environ(home: Path) -> dict[str, str]:
    """An environment without settings, with an empty HOME, and a terminal that can do what most can."""
    dropped = ("LLAMA", "XDG_", "NO_COLOR", "COLUMNS", "LINES", "INPUTRC", "COLORTERM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "HOME": str(home), "TERM": "xterm-256color", "INPUTRC": "/dev/null"}


class Chat:
    """`llamastream chat` in a terminal of its own; `seen` is everything that came since the last `expect`."""

    def __init__(
        self, *arguments: str, environ: dict[str, str], size: tuple[int, int] = (40, 200), command: list[str] = COMMAND
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            [*command, *arguments], env=environ, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.raw = b""
        self._taken = 0

    def expect(self, text: str, seconds: float = 20) -> str:
        """Wait for a text; what came before it since the last one, without what readline and colours add."""
        end = time.monotonic() + seconds
        while (position := self._shown().find(text, self._taken)) < 0:
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come within {seconds} s, but {self._shown()[self._taken :]!r}"
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux: the other side of the terminal is closed
                data = b""
            assert data, f"{text!r} did not come before the end, but {self._shown()[self._taken :]!r}"
            self.raw += data
        before = self._shown()[self._taken : position]
        self._taken = position + len(text)
        return before

    def _shown(self) -> str:
        text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", self.raw.decode("utf-8", "ignore"))
        return text.replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def ask(self, line: str) -> None:
        """Type a line once the prompt is there."""
        self.expect("> ")
        self.type(line + "\n")
        self.expect("\n")

    def interrupt(self, text: str) -> None:
        """Press Ctrl-C until a text comes: what comes between two looks of readline for keys, it hears late."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.expect(text, 1)
                return
        raise AssertionError(f"Ctrl-C did not lead to {text!r}")

    def end(self) -> int:
        """Read until the process ends; its exit code."""
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.raw += data
        return self.process.wait(15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        assert b"Traceback" not in self.raw, self.raw.decode("utf-8", "replace")
