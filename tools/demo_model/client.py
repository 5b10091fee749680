"""A minimal blocking client of llama-server for the verification, from the standard library alone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


class Client:
    """Talks to one server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """One request and its JSON answer."""
        with self.open(path, body) as response:
            return json.load(response)

    def open(self, path: str, body: dict[str, Any]) -> Any:
        """One request; the response is left to be read."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=120)

    def deltas(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The deltas of a streamed chat."""
        with self.open("/v1/chat/completions", {**body, "stream": True}) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        yield choice["delta"]

    def chat(self, messages: list[Message], *, stream: bool = False, **options: Any) -> str:
        """The text of an answer."""
        body = {"messages": messages, "temperature": 0, **options}
        if stream:
            return "".join(delta.get("content") or "" for delta in self.deltas(body))
        return self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"] or ""

    def tool_call(self, messages: list[Message], *, stream: bool, **options: Any) -> tuple[str, str]:
        """Name and arguments of the first tool call of an answer; both empty if there is none."""
        body = {"messages": messages, "temperature": 0, **options}
        name = arguments = ""
        if stream:
            for delta in self.deltas(body):
                for call in delta.get("tool_calls") or []:
                    if call.get("index", 0) == 0:
                        name += call["function"].get("name") or ""
                        arguments += call["function"].get("arguments") or ""
            return name, arguments
        calls = self.post("/v1/chat/completions", body)["choices"][0]["message"].get("tool_calls") or []
        return (calls[0]["function"]["name"], calls[0]["function"]["arguments"]) if calls else ("", "")

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The continuation of a plain text."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": max_tokens}
        return str(self.post("/v1/completions", body)["choices"][0]["text"])

    def usage(self, messages: list[Message]) -> int:
        """Number of tokens of an answer."""
        body = {"messages": messages, "temperature": 0, "max_tokens": 1200}
        return int(self.post("/v1/chat/completions", body)["usage"]["completion_tokens"])

    def count(self, messages: list[Message]) -> int:
        """Number of tokens of a prompt."""
        if not messages:
            return 0
        prompt = self.post("/apply-template", {"messages": messages})["prompt"]
        return len(self.post("/tokenize", {"content": prompt})["tokens"])

    def pieces(self, text: str) -> list[str | None]:
        """The tokens of a text; None for a token that ends or begins inside a character."""
        found = self.post("/tokenize", {"content": text, "with_pieces": True})["tokens"]
        return [token["piece"] if isinstance(token["piece"], str) else None for token in found]
