"""How a `NumberedServer` puts its answers on the wire: llama-server's chunks, token by token or in one piece."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llamastream.testing.numbered_answers import Answer, Body, Token


class Writer:
    """Writes an answer in llama-server's form, with an identity of its own."""

    def __init__(self, answer: Answer, identity: str, created: int) -> None:
        self._answer = answer
        self._identity = identity
        self._common = {
            "created": created,
            "id": f"chatcmpl-{identity}",
            "model": answer.model,
            "system_fingerprint": f"numbered-{answer.number}",
        }

    def stream(self) -> Iterator[bytes]:
        """The events: one piece for each token, then the end. The role comes with the first token."""
        answer = self._answer
        opening = self._opening() if answer.chat else b""
        seen: set[str] = set()
        for token in answer.tokens:
            first = token.field not in seen
            seen.add(token.field)
            yield opening + self._token(token, first=first)
            opening = b""
        yield opening + self._closing()

    def _opening(self) -> bytes:
        answer = self._answer
        events = [self._delta({"role": "assistant", "content": None})]
        if answer.echo and answer.reasoning:
            events.append(self._delta({"reasoning_content": answer.reasoning}))
        if answer.echo and answer.content:
            events.append(self._delta({"content": answer.content}))
        return b"".join(events)

    def _token(self, token: Token, *, first: bool) -> bytes:
        if not self._answer.chat:
            choice = {"text": token.text, "index": 0, "logprobs": None, "finish_reason": None}
            return self._event({"choices": [choice], "object": "text_completion"})
        if token.field != "arguments":
            return self._delta({token.field: token.text})
        head = {"id": self._call, "type": "function", "function": {"name": self._answer.tool, "arguments": '{"n":['}}
        opening = self._delta({"tool_calls": [{"index": 0, **head}]}) if first else b""
        return opening + self._delta({"tool_calls": [{"index": 0, "function": {"arguments": token.text}}]})

    def _closing(self) -> bytes:
        answer = self._answer
        timings = self._timings()
        if not answer.chat:
            choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
            last = {"choices": [choice], "object": "text_completion", "usage": self._usage(), "timings": timings}
            return self._event(last) + b"data: [DONE]\n\n"
        events = []
        if answer.finish_reason == "tool_calls":
            events.append(self._delta({"tool_calls": [{"index": 0, "function": {"arguments": "]}"}}]}))
        end: Body = {"choices": [{"finish_reason": answer.finish_reason, "index": 0, "delta": {}}]}
        end["object"] = "chat.completion.chunk"
        if answer.with_usage:
            events.append(self._event(end))
            end = {"choices": [], "object": end["object"], "usage": self._usage()}
        events.append(self._event({**end, "timings": timings}))
        return b"".join(events) + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        """The answer in one piece: a continued message comes whole, as llama-server sends it."""
        answer = self._answer
        said = {"content": answer.content, "reasoning_content": answer.reasoning, "arguments": ""}
        for token in answer.tokens:
            said[token.field] += token.text
        choice: Body = {"finish_reason": answer.finish_reason, "index": 0}
        if answer.chat:
            message: Body = {"role": "assistant", "content": said["content"]}
            if said["reasoning_content"]:
                message["reasoning_content"] = said["reasoning_content"]
            if said["arguments"]:
                end = "]}" if answer.finish_reason == "tool_calls" else ""
                function = {"name": answer.tool, "arguments": '{"n":[' + said["arguments"] + end}
                message |= {"tool_calls": [{"id": self._call, "type": "function", "function": function}]}
            choice["message"] = message
        else:
            choice |= {"text": said["content"], "logprobs": None}
        kind = "chat.completion" if answer.chat else "text_completion"
        usage = {"usage": self._usage(), "timings": self._timings()}
        return msgspec.json.encode({"choices": [choice], **self._common, "object": kind, **usage})

    @property
    def _call(self) -> str:
        return f"call_{self._identity}"

    def _delta(self, delta: Body) -> bytes:
        choice = {"finish_reason": None, "index": 0, "delta": delta}
        return self._event({"choices": [choice], "object": "chat.completion.chunk"})

    def _event(self, data: Body) -> bytes:
        return b"data: " + msgspec.json.encode({**data, **self._common}) + b"\n\n"

    def _usage(self) -> Body:
        prompt, new = self._answer.prompt_tokens, len(self._answer.tokens)
        counts = {"completion_tokens": new, "prompt_tokens": prompt, "total_tokens": prompt + new}
        return {**counts, "prompt_tokens_details": {"cached_tokens": 0}}

    def _timings(self) -> Body:
        """One millisecond for each token."""
        timings: Body = {"cache_n": 0}
        for name, count in (("prompt", self._answer.prompt_tokens), ("predicted", len(self._answer.tokens))):
            per_second = 1000.0 if count else 0.0
            timings |= {f"{name}_n": count, f"{name}_ms": float(count), f"{name}_per_token_ms": 1.0}
            timings[f"{name}_per_second"] = per_second
        return timings
