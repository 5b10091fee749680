"""What a request leaves behind is gone when it is over: nothing waits for the garbage collector, which stops all
streams while it looks for cycles."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from wires import CHAT, ask, dial, request_bytes

from gateways import serving
from llamastream.engine import Engine
from llamastream.gateway import GatewaySettings, Upstreams
from polling import wait_for

ROUNDS = 10
STORY = {"messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0, "max_tokens": 20}
TEXT = {"prompt": "a", "n_predict": 5}


@contextmanager
def cycles() -> Iterator[Counter[str]]:
    """Counts, when left, what lies about in cycles, by its kind."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def leave(url: str, body: dict[str, Any], read: int) -> None:
    """Ask, read so many bytes at most, and go."""
    with dial(url) as connection:
        connection.sendall(request_bytes("POST", CHAT, body))
        if read:
            assert connection.recv(read)


Ask = Callable[[str, dict[str, Any]], object]
KINDS: dict[str, Ask] = {
    "stream": lambda url, more: ask(url, body={**STORY, **more, "stream": True}),
    "whole": lambda url, more: ask(url, body={**STORY, **more}),
    "passed on": lambda url, more: ask(url, path="/completion", body={**TEXT, **more, "stream": True}),
    "left": lambda url, more: leave(url, {**STORY, **more, "stream": True, "max_tokens": 400}, 100),
    "left at once": lambda url, more: leave(url, {**STORY, **more, "stream": True}, 0),
    "left whole": lambda url, more: leave(url, {**STORY, **more}, 0),
    "refused": lambda url, more: ask(url, body={"messages": 1, **more}),
    "refused by the server": lambda url, more: ask(url, body={"messages": [{"role": 1}], **more, "stream": True}),
    "unknown": lambda url, more: ask(url, path="/nowhere", body=more),
    "tokenized": lambda url, more: ask(url, path="/tokenize", body={"content": "a", **more}),
}


@pytest.mark.parametrize("cache", [False, True], ids=["without cache", "with cache"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_request_waits_for_the_collector(engine: Engine, kind: str, cache: bool) -> None:
    with serving(Upstreams([engine.url]), GatewaySettings(response_cache=cache)) as gateway:

        def one(number: int) -> None:
            served = len(gateway.served)
            KINDS[kind](gateway.url, {"seed": number % (ROUNDS // 2)})  # so that half of them may come from a cache
            wait_for(lambda: len(gateway.served) > served)

        one(-1)
        with cycles() as found:
            for number in range(ROUNDS):
                one(number)
    ours = ("llamastream.", "uvicorn.", "uvloop.", "httptools.")
    assert {name: count for name, count in found.items() if name.startswith(ours) and count >= ROUNDS // 2} == {}
