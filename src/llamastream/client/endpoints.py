"""The endpoints that answer at once, declared once for both clients: what is sent, and what the answer means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from llamastream.errors import (
    ConnectionLostError,
    EventTooLargeError,
    FirstByteTimeoutError,
    InvalidRequestError,
    ProtocolError,
)
from llamastream.protocol.failures import response_error, unexpected_response
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.toolcalls import Question, Reply
from llamastream.types import Health

T = TypeVar("T")

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""Largest body of an endpoint that answers at once."""


class Call(Generic[T]):
    """One request with a whole answer: method, path, JSON body and how to read the answer's body.

    `read` takes (status, headers, body, url) and returns the value or raises.
    """

    __slots__ = ("body", "method", "path", "read")

    def __init__(
        self,
        method: str,
        path: str,
        read: Callable[[int, Mapping[str, str], bytes, str], T],
        body: Any = None,
    ) -> None:
        self.method = method
        self.path = path
        self.read = read
        self.body: bytes | None = None if body is None else msgspec.json.encode(body)


class Answer(Generic[T]):
    """Reads the answer to a call, without I/O."""

    def __init__(self, call: Call[T], base_url: str) -> None:
        self.url = base_url + call.path
        self._call = call
        self._reader = ResponseReader()
        self._body = bytearray()

    @property
    def reader(self) -> ResponseReader:
        """The reader of the response, for whoever keeps the connection."""
        return self._reader

    @property
    def complete(self) -> bool:
        return self._reader.complete

    def feed(self, data: bytes) -> None:
        """Bytes from the connection; b"" says that the server closed it.

        Raises:
            LlamaStreamError: the connection ended too early, the answer is too large, or it is not HTTP.
        """
        if not data:
            if not self._reader.feed_eof():
                raise ConnectionLostError(f"{self.url} closed the connection in the middle of its answer")
            return
        for piece in self._reader.feed(data):
            self._body += piece
        if self._reader.failure is not None:
            raise type(self._reader.failure)(f"{self.url}: {self._reader.failure.message}")
        if len(self._body) > MAX_RESPONSE_BYTES:
            raise EventTooLargeError(f"{self.url}: the answer is larger than {MAX_RESPONSE_BYTES} bytes")

    def value(self) -> T:
        """What the answer says.

        Raises:
            LlamaStreamError: the server reported an error, or what answers is no llama-server.
        """
        return self._call.read(self._reader.status, self._reader.headers, bytes(self._body), self.url)

    def timed_out(self, timeout: float) -> FirstByteTimeoutError:
        return FirstByteTimeoutError(f"{self.url}: no answer within {timeout:g} s; is this a llama-server?")


def health() -> Call[Health]:
    return Call("GET", "/health", _read_health)


def props() -> Call[dict[str, Any]]:
    return Call("GET", "/props", _read_object)


def lora_adapters() -> Call[list[Any]]:
    """Adapters that a server has loaded, with their scales."""
    return Call("GET", "/lora-adapters", _read_list)


def slots() -> Call[list[dict[str, Any]]]:
    return Call("GET", "/slots", _read_slots)


def models() -> Call[list[str]]:
    return Call("GET", "/v1/models", _read_models)


def model_list() -> Call[dict[str, Any]]:
    """What `/v1/models` says, with all that the server tells of each."""
    return Call("GET", "/v1/models", _read_object)


def metrics() -> Call[dict[str, float]]:
    return Call("GET", "/metrics", _read_metrics)


def tokenize(text: str, add_special: bool, parse_special: bool) -> Call[list[int]]:
    if not isinstance(text, str):
        raise InvalidRequestError(f"text must be a str, not {type(text).__name__}")
    body = {"content": text, "add_special": add_special, "parse_special": parse_special}
    return Call("POST", "/tokenize", _read_field("tokens", list), body)


def detokenize(tokens: Sequence[int]) -> Call[str]:
    return Call("POST", "/detokenize", _read_field("content", str), {"tokens": list(tokens)})


def apply_template(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> Call[str]:
    return Call("POST", "/apply-template", _read_field("prompt", str), {"messages": list(messages), **extra})


def question(asked: Question) -> Call[Reply]:
    """One of the questions that tell what a server can do; a refusal is an answer, too."""
    return Call("POST", asked[0], _read_reply, asked[1])


def reattach_probe() -> Call[bool]:
    """Whether a server can replay a running generation: then it asks for the id that is missing here."""
    return Call("GET", "/v1/stream", lambda status, headers, body, url: status == 400)


def drop_generation(path: str) -> Call[int]:
    """End a generation that is held under an id, and forget it. The value is the status."""
    return Call("DELETE", path, lambda status, headers, body, url: status)


def _read_reply(status: int, headers: Mapping[str, str], body: bytes, url: str) -> Reply:
    if status in (401, 403, 429, 502, 503, 504):  # nothing that tells of tools
        raise response_error(status, headers, body, url)
    return status, body


def _read_health(status: int, headers: Mapping[str, str], body: bytes, url: str) -> Health:
    if status == 200:
        decoded = _json_or_none(body)
        if isinstance(decoded, dict) and "status" in decoded:
            return Health("ok") if decoded["status"] == "ok" else Health("loading", str(decoded["status"]))
        raise unexpected_response(status, headers, body, url, "JSON")
    error = response_error(status, headers, body, url)
    if status == 503:
        return Health("loading", error.message)
    return Health("error", error.message)


def _read_object(status: int, headers: Mapping[str, str], body: bytes, url: str) -> dict[str, Any]:
    decoded = _read_json(status, headers, body, url)
    if not isinstance(decoded, dict):
        raise ProtocolError(f"{url} answered with JSON of another shape than a llama-server's")
    return decoded


def _read_list(status: int, headers: Mapping[str, str], body: bytes, url: str) -> list[Any]:
    decoded = _read_json(status, headers, body, url)
    if not isinstance(decoded, list):
        raise ProtocolError(f"{url} answered with JSON of another shape than a llama-server's")
    return decoded


def _read_slots(status: int, headers: Mapping[str, str], body: bytes, url: str) -> list[dict[str, Any]]:
    decoded = _read_list(status, headers, body, url)
    if not all(isinstance(slot, dict) for slot in decoded):
        raise ProtocolError(f"{url} answered with JSON of another shape than a llama-server's")
    return decoded


def _read_models(status: int, headers: Mapping[str, str], body: bytes, url: str) -> list[str]:
    data = _read_object(status, headers, body, url).get("data")
    if not isinstance(data, list):
        raise ProtocolError(f"{url} answered with JSON of another shape than a llama-server's")
    return [str(model.get("id")) for model in data if isinstance(model, dict)]


def _read_metrics(status: int, headers: Mapping[str, str], body: bytes, url: str) -> dict[str, float]:
    if status != 200:
        raise response_error(status, headers, body, url)
    values = {}
    for line in body.decode("utf-8", "replace").split("\n"):
        name, _, value = line.strip().rpartition(" ")
        if name and not name.startswith("#"):
            try:
                values[name] = float(value)
            except ValueError:
                raise ProtocolError(f"{url} has a line that is no metric: {line[:80]!r}") from None
    return values


def _read_field(name: str, kind: type[T]) -> Callable[[int, Mapping[str, str], bytes, str], T]:
    def read(status: int, headers: Mapping[str, str], body: bytes, url: str) -> T:
        value = _read_object(status, headers, body, url).get(name)
        if not isinstance(value, kind):
            raise ProtocolError(f"{url} answered without {name!r}; is this a llama-server?")
        return value

    return read


def _read_json(status: int, headers: Mapping[str, str], body: bytes, url: str) -> Any:
    if status >= 400:
        raise response_error(status, headers, body, url)
    if status >= 300:
        raise unexpected_response(status, headers, body, url, "JSON")
    decoded = _json_or_none(body)
    if decoded is None:
        raise unexpected_response(status, headers, body, url, "JSON")
    return decoded


def _json_or_none(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
