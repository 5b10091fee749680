"""What the page of the dashboard asks, without a browser."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked(
    url: str, path: str, body: Any = None, key: str = "", mark: bool = True, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """A request of the page, as a browser sends it."""
    where = url.removeprefix("http://")
    connection = http.client.HTTPConnection(where, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if mark:
        sent["X-Llamastream-Dashboard"] = "1"
    if key:
        sent["Authorization"] = f"Bearer {key}"
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, sent)
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def told(url: str, path: str, body: Any = None, **how: Any) -> tuple[int, str]:
    """Status, and what is said."""
    with asked(url, path, body, **how) as response:
        found = json.loads(response.read())
        return response.status, found.get("message") or found["error"]["message"]


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The events of a page, as they come."""
    assert response.status == 200, response.read()
    name = ""
    while text := response.readline():
        if text.startswith(b"event: "):
            name = text[7:].strip().decode()
        elif text.startswith(b"data: "):
            yield name, json.loads(text[6:])


def until(stream: Iterator[tuple[str, Any]], name: str, condition: Callable[[Any], bool] = lambda _: True) -> Any:
    for found, data in stream:
        if found == name and condition(data):
            return data
    raise AssertionError(f"the stream ended before {name}")
