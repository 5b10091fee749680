"""What the gateway writes after a break has llama-server's own form: the server's chunks, read and written, are the
same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from wires import ask

from gateways import TOOL
from llamastream.engine import Engine
from llamastream.gateway.frames import Continuation
from llamastream.protocol.assembler import Assembler
from llamastream.protocol.chunks import decode_chunk
from llamastream.types import StreamEnd, StreamEvent

STORY = [{"role": "user", "content": "Tell me a story."}]
COUNTED = {"stream": True, "temperature": 0, "max_tokens": 12, "stream_options": {"include_usage": True}}


def rewritten(path: str, events: list[Any], *, usage: bool) -> list[Any]:
    """Each chunk made into typed events and written again."""
    first = events[0]
    writer = Continuation(
        chat=path.endswith("chat/completions"),
        id=first["id"],
        created=first["created"],
        model=first["model"],
        fingerprint=first["system_fingerprint"],
        usage=usage,
    )
    assembler, written = Assembler(), b""
    for event in events[:-1]:
        read: list[StreamEvent] = []
        assembler.add(decode_chunk(json.dumps(event).encode()), read)
        written += writer.write(read)
    written += writer.write([StreamEnd("stop", assembler.usage, None)])  # type: ignore[arg-type]  # not looked at
    lines = [line[6:] for line in written.decode().split("\n") if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def comparable(event: Any) -> Any:
    """A chunk without what is written once (the role) and the time, which goes on."""
    if isinstance(event, str):
        return event
    event = json.loads(json.dumps(event))
    event.pop("created")
    for choice in event["choices"]:
        for call in choice.get("delta", {}).get("tool_calls", ()):
            call.get("function", {}).setdefault("arguments", "")  # llama-server may leave an empty one out
    for figure, value in event.get("timings", {}).items():
        event["timings"][figure] = pytest.approx(value) if isinstance(value, float) else value
    return event


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/chat/completions", {"messages": STORY, **COUNTED}),
        ("/v1/chat/completions", {"messages": STORY, **COUNTED, "stream_options": None}),
        ("/v1/chat/completions", {"messages": STORY, **COUNTED, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {"messages": STORY, **COUNTED, "n": 2}),
        ("/v1/chat/completions", {"messages": STORY, **COUNTED, "timings_per_token": True}),
        ("/v1/chat/completions", {"messages": STORY, **COUNTED, "tools": [TOOL], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": "Once", **COUNTED}),
        ("/v1/completions", {"prompt": "Once", **COUNTED, "stream_options": None}),
        ("/v1/completions", {"prompt": "Once", **COUNTED, "logprobs": 2}),
        ("/v1/completions", {"prompt": "Once", **COUNTED, "n": 2}),
    ],
)
def test_what_is_written_is_what_the_server_writes(engine: Engine, path: str, request_: dict[str, Any]) -> None:
    body = {name: value for name, value in request_.items() if value is not None}
    events = ask(engine.url, path=path, body=body).events
    usage = "stream_options" in body
    roles = [e for e in events if isinstance(e, dict) and e["choices"] and "role" in e["choices"][0].get("delta", {})]
    expected = [comparable(event) for event in events if event not in roles]
    assert [comparable(event) for event in rewritten(path, events, usage=usage)] == expected
