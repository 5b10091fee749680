"""The other end of the control socket: finds a running fleet, asks it for something, and hears what comes of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from llamastream.errors import LlamaStreamError
from llamastream.fleet import rendezvous
from llamastream.fleet.messages import (
    BEAT_SECONDS,
    MAX_REPLY,
    AskStatus,
    Beat,
    Done,
    FleetStatus,
    Refused,
    Reply,
    Request,
    decode_reply,
    encode,
)
from llamastream.fleet.peers import may_control, peer_uid

CONNECT_SECONDS = 3.0
STATUS_SECONDS = 3.0
"""For the status, which needs nothing that could take time."""
SILENCE_SECONDS = 6 * BEAT_SECONDS
"""A fleet says at least every `BEAT_SECONDS` that it lives."""


class ControlError(LlamaStreamError):
    """A fleet cannot be asked: none runs, several do, it does not answer, or it refuses."""


class ControlClient:
    """Asks one fleet; a connection for each request.

    Attributes:
        name: the fleet's. path: its socket.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def ask(self, request: Request, silence: float | None = None) -> Iterator[Reply]:
        """The replies as they come, without the last one. Leaving early leaves what was asked for running.

        Args:
            silence: seconds for which the fleet may say nothing; None: `SILENCE_SECONDS`.

        Raises:
            ControlError: the fleet cannot be reached, falls silent, or says that it did not work.
        """
        with self._connect() as connection:
            with suppress(OSError):  # it may have said why, and left
                connection.sendall(encode(request) + b"\n")
            pending = b""
            connection.settimeout(SILENCE_SECONDS if silence is None else silence)
            while True:
                *lines, pending = (pending + self._receive(connection)).split(b"\n")
                if len(pending) > MAX_REPLY:
                    raise ControlError(f"{self.name} sends a line of more than {MAX_REPLY} bytes")
                for line in lines:
                    reply = self._decode(line)
                    if isinstance(reply, Refused):
                        raise ControlError(reply.message)
                    if not isinstance(reply, Beat):
                        yield reply
                    if isinstance(reply, Done):
                        return

    def status(self, timeout: float = STATUS_SECONDS) -> FleetStatus:
        """How the fleet is.

        Args:
            timeout: seconds for which it may say nothing.

        Raises:
            ControlError: it cannot be reached, or does not say.
        """
        for reply in self.ask(AskStatus(), timeout):
            if isinstance(reply, FleetStatus):
                return reply
        raise ControlError(f"{self.name} does not say how it is")

    def _receive(self, connection: socket.socket) -> bytes:
        try:
            data = connection.recv(65_536)
        except TimeoutError:
            raise ControlError(
                f"{self.name} has said nothing for {connection.gettimeout():g} s: its supervisor hangs, or is stopped"
            ) from None
        except OSError as error:
            raise ControlError(f"the connection to {self.name} broke: {error.strerror}") from None
        if not data:
            raise ControlError(f"{self.name} ended before it had answered")
        return data

    def _decode(self, line: bytes) -> Reply:
        try:
            reply: Reply = decode_reply(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ControlError(f"{self.name} answers what this version does not understand: {error}") from None
        return reply

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            reason = error.strerror or "it does not answer"
            raise ControlError(f"{self.name} cannot be reached at {str(self.path)!r}: {reason}") from None
        if not (may_control(peer_uid(connection)) or os.geteuid() == 0):
            connection.close()
            raise ControlError(f"{str(self.path)!r} belongs to another user's process")
        return connection

    @property
    def answers(self) -> bool:
        """Whether anybody listens."""
        try:
            self._connect().close()
        except ControlError:
            return False
        return True


def find(name: str | None = None, environ: Mapping[str, str] | None = None) -> ControlClient:
    """The fleet with a name, else the only one that runs.

    Raises:
        ControlError: there is none, or there are several to choose from.
    """
    clients = [ControlClient(known, path) for known, path in rendezvous.sockets(environ).items()]
    living = [client for client in clients if client.answers]
    names = ", ".join(client.name for client in living)
    if name is not None:
        for client in living:
            if client.name == name:
                return client
        raise ControlError(
            f"no fleet with the name {name!r} runs; " + (f"there are: {names}" if names else "nor does any other")
        )
    if not living:
        raise ControlError("no fleet runs: `llamastream serve` starts one")
    if len(living) > 1:
        raise ControlError(f"several fleets run: choose one with --name; there are: {names}")
    return living[0]
