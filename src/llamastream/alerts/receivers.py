"""Where messages go: a webhook, a program, mail and chat services. Each call blocks, and raises what went wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from llamastream._version import __version__
from llamastream.alerts.messages import Message, encoded
from llamastream.alerts.settings import AlertSettings, check_url, is_header, revealed
from llamastream.errors import SettingError

if TYPE_CHECKING:
    import http.client

logger = logging.getLogger("llamastream.alerts")

MOST_SAID = 300
"""Characters of what a program or a server says about a failure that are passed on."""
SIGNATURE = "X-Llamastream-Signature"


class ReceiverError(Exception):
    """A message was not taken. `final`: another attempt would fail as well. Holds no secret."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Receiver(Protocol):
    """Takes messages."""

    name: str

    def tell(self, message: Message) -> None:
        """Hand it over; blocks for the receiver's timeout at most.

        Raises:
            ReceiverError: it was not taken.
        """


class Webhook:
    """Posts messages as JSON. Redirects are not followed: the header is for this address alone."""

    name = "webhook"

    def __init__(self, url: str, *, header: str | None = None, key: str | None = None, timeout: float = 10.0) -> None:
        self._parts = urlsplit(url)
        self._header = header
        self._key = None if key is None else key.encode()
        self._timeout = timeout

    def tell(self, message: Message) -> None:
        # here, and not above: who has no webhook, keeps none of that in memory
        import hashlib
        import hmac
        import http.client

        body = encoded(message)
        headers = {"Content-Type": "application/json", "User-Agent": f"llamastream/{__version__}"}
        headers["X-Llamastream-Alert"] = message.id
        if self._header is not None:
            name, _, value = self._header.partition(":")
            headers[name.strip()] = value.strip()
        if self._key is not None:
            moment = str(int(time.time()))
            digest = hmac.new(self._key, f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
            headers[SIGNATURE] = f"t={moment},sha256={digest}"
        parts = self._parts
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = self._connection()
        end = time.monotonic() + self._timeout
        try:
            connection.request("POST", target, body, headers)
            if connection.sock is not None:
                connection.sock.settimeout(max(0.01, end - time.monotonic()))
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise ReceiverError(f"{type(error).__name__}: {_why(error)}") from None
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise ReceiverError(f"it answered {status}", final=400 <= status < 500 and status not in (408, 425, 429))

    def _connection(self) -> http.client.HTTPConnection:
        import http.client
        import ssl

        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self._timeout)


class Command:
    """Runs a program for each message: the message as JSON on stdin, its main fields in the environment. No shell."""

    name = "command"

    def __init__(self, arguments: tuple[str, ...], *, timeout: float = 10.0) -> None:
        self._arguments = arguments
        self._timeout = timeout

    def tell(self, message: Message) -> None:
        # our own variables may hold secrets, which are none of its business
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
        for name in ("id", "kind", "rule", "severity", "title", "text", "fleet"):
            environ[f"LLAMASTREAM_ALERT_{name.upper()}"] = str(getattr(message, name)).replace("\0", "")
        environ["LLAMASTREAM_ALERT_SUBJECTS"] = " ".join(subject.name for subject in message.subjects)
        try:
            process = subprocess.Popen(
                self._arguments, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ReceiverError(f"it cannot be started: {_why(error)}", final=True) from None
        try:
            _, said = process.communicate(encoded(message), timeout=self._timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started itself
            process.communicate()
            raise ReceiverError(f"it had not ended after {self._timeout:g} s, and was killed") from None
        if process.returncode:
            text = said.decode("utf-8", "replace").strip()[-MOST_SAID:]
            raise ReceiverError(f"it ended with {process.returncode}" + (f": {text}" if text else ""))


class Apprise:
    """Mail and chat services, through the library of that name."""

    name = "apprise"
    _TYPES: ClassVar = {"firing": "warning", "ongoing": "warning", "recovered": "success", "test": "info"}

    def __init__(self, urls: str) -> None:
        """Raises:
        SettingError: the library is missing, or does not know the form of an address.
        """
        try:
            import apprise
        except ImportError:
            raise SettingError(
                "the setting apprise needs the package apprise: pip install 'llamastream[alerts]'"
            ) from None
        self._service: Any = apprise.Apprise()
        for number, url in enumerate(urls.split(), 1):
            if not self._service.add(url):
                raise SettingError(f"apprise = (hidden) is not allowed: it does not know the form of address {number}")

    def tell(self, message: Message) -> None:
        kind = self._TYPES[message.kind]
        if message.severity == "critical" and kind == "warning":
            kind = "failure"
        try:
            taken = self._service.notify(body=message.text, title=message.title, notify_type=kind)
        except Exception as error:  # noqa: BLE001  # there are a hundred plugins under it
            raise ReceiverError(f"{type(error).__name__} in the library") from None  # whose text may hold an address
        if not taken:
            raise ReceiverError("at least one of the services did not take it")


def receivers_of(settings: AlertSettings) -> list[Receiver]:
    """Those that are set, beside the log.

    Raises:
        SettingError: a secret cannot be read or used, or a library is missing.
    """
    found: list[Receiver] = []
    url = revealed(settings.webhook, "webhook")
    if url is not None:
        if not check_url(url):
            raise SettingError("webhook = (hidden) is not allowed; allowed: an address that begins with http(s)://")
        header = revealed(settings.webhook_header, "webhook_header")
        if header is not None and not is_header(header):
            raise SettingError("webhook_header = (hidden) is not allowed; allowed: Name: value")
        key = revealed(settings.webhook_key, "webhook_key")
        found.append(Webhook(url, header=header, key=key, timeout=settings.timeout))
    if settings.command:
        if shutil.which(settings.command[0]) is None:  # it may be there when it is needed: no reason not to serve
            logger.warning("alerts: there is no program %r to run now (command)", settings.command[0])
        found.append(Command(settings.command, timeout=settings.timeout))
    services = revealed(settings.apprise, "apprise")
    if services is not None:
        found.append(Apprise(services))
    return found


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error))[:MOST_SAID]
