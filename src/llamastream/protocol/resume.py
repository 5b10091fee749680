"""Going on with an answer of which the caller has a part: the request to send, and what becomes of its chunks.

Two ways need this. A *continued* answer is asked for with the part as the beginning of the assistant's message (or at
the end of the prompt); the server then counts the part as prompt, which is undone here. A *repeated* answer is the same
request once more; what the caller has is compared and swallowed.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import msgspec

from llamastream.errors import StreamDivergedError
from llamastream.protocol.chunks import WireChoice, WireChunk, WireDelta, WireFunction, WireTimings, WireUsage
from llamastream.types import Choice


class Resumed(Protocol):
    """Adapts the chunks of an attempt that goes on with an answer.

    Attributes:
        settled: chunks of text need no more care.
        swallowed: how many pieces were found to be known and taken away.
    """

    swallowed: int

    @property
    def settled(self) -> bool: ...

    def adapt(self, chunk: WireChunk) -> None:
        """Change a chunk to what the caller is to get of it.

        Raises:
            StreamDivergedError: it contradicts what the caller has.
        """


class ContinuedAnswer:
    """For a continued answer: takes a repeated beginning away, and has counts and times cover the whole.

    Args:
        text, reasoning: what the caller has. tokens: how many tokens that was; None: not known. as_prompt: how many
            they are for the server, which cuts the text anew; None: as many.
        decode_ms: how long their generation took, in milliseconds. chunks: in how many pieces they came.
        whole: the reply comes as one piece, which llama-server begins with the given beginning.
    """

    def __init__(
        self,
        *,
        text: str,
        reasoning: str,
        tokens: int | None,
        decode_ms: float,
        chunks: int,
        whole: bool,
        as_prompt: int | None = None,
    ) -> None:
        self.settled = False
        self.swallowed = 0
        self._text = text
        self._reasoning = reasoning
        self._tokens = tokens or 0
        self._as_prompt = self._tokens if as_prompt is None else as_prompt
        self._decode_ms = decode_ms
        # One piece of a continuation is a token or two. A first piece that begins with several earlier ones is a
        # repetition, as servers before `continue_final_message` sent it; with a single one before, nobody can tell.
        self._telling = whole or chunks > 1

    def adapt(self, chunk: WireChunk) -> None:
        for choice in chunk.choices or ():
            if choice.index == 0 and not self.settled:
                self._first(choice)
        if chunk.usage is not None:
            _correct_usage(chunk.usage, self._tokens, self._as_prompt)
        if chunk.timings is not None:
            _correct_timings(chunk.timings, self._tokens, self._as_prompt, self._decode_ms)

    def _first(self, choice: WireChoice) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            if delta.reasoning_content:
                delta.reasoning_content = self._without(delta.reasoning_content, self._reasoning)
                self.settled = not self._text
            if delta.content:
                delta.content = self._without(delta.content, self._text)
                self.settled = True
        elif choice.text:
            self.settled = True  # a completion never repeats its prompt

    def _without(self, piece: str, known: str) -> str:
        if known and self._telling and piece.startswith(known):
            self.swallowed += 1
            return piece[len(known) :]
        return piece


def _correct_usage(usage: WireUsage, tokens: int, as_prompt: int) -> None:
    """The server counted the answer's first `tokens` as prompt, where they are `as_prompt`."""
    prompt = max(0, (usage.prompt_tokens or 0) - as_prompt)
    completion = (usage.completion_tokens or 0) + tokens
    usage.prompt_tokens, usage.completion_tokens, usage.total_tokens = prompt, completion, prompt + completion
    details = usage.prompt_tokens_details
    if details is not None and details.cached_tokens:
        details.cached_tokens = min(details.cached_tokens, prompt)


def _correct_timings(timings: WireTimings, tokens: int, as_prompt: int, decode_ms: float) -> None:
    prompt = max(0, timings.cache_n + timings.prompt_n - as_prompt)
    timings.cache_n = min(timings.cache_n, prompt)
    timings.prompt_n = prompt - timings.cache_n
    timings.prompt_per_second = timings.prompt_n / timings.prompt_ms * 1e3 if timings.prompt_ms > 0 else None
    timings.predicted_n += tokens
    timings.predicted_ms += decode_ms
    timings.predicted_per_second = timings.predicted_n / timings.predicted_ms * 1e3 if timings.predicted_ms else None


class RepeatedAnswer:
    """For a repeated answer: compares it with what the caller has, and takes that away.

    Args:
        known: the choices as far as the caller has them.
    """

    def __init__(self, known: tuple[Choice, ...]) -> None:
        self.swallowed = 0
        self._known: dict[tuple[Any, ...], str] = {}
        self._logprobs: dict[tuple[int, str], list[_TokenOf]] = {}
        self._calls: dict[tuple[int, int], str] = {}  # the names of the calls that the caller has
        for choice in known:
            at = choice.index
            self._expect((at, "text"), choice.text)
            self._expect((at, "reasoning"), choice.reasoning)
            for number, call in enumerate(choice.tool_calls):
                self._calls[at, number] = call.name
                self._expect((at, number), call.arguments)
            for key, value in (choice.logprobs or {}).items():
                if isinstance(value, list) and value:
                    self._logprobs[at, key] = [_token_of(each) for each in value]
        self._unseen = set(self._calls)  # calls that have not come again yet
        self._finished = {choice.index for choice in known if choice.finish_reason is not None}

    def _expect(self, key: tuple[Any, ...], text: str) -> None:
        if text:
            self._known[key] = text

    @property
    def settled(self) -> bool:
        """All that the caller has came again."""
        return not (self._known or self._logprobs or self._unseen)

    def adapt(self, chunk: WireChunk) -> None:
        for choice in chunk.choices or ():
            if not self.settled or choice.index in self._finished:
                self._choice(choice)

    def _choice(self, choice: WireChoice) -> None:
        at = choice.index
        delta = choice.delta or choice.message
        if delta is not None:
            delta.reasoning_content = self._rest((at, "reasoning"), delta.reasoning_content)
            delta.content = self._rest((at, "text"), delta.content)
            self._tool_calls(at, delta)
        choice.text = self._rest((at, "text"), choice.text)
        if choice.logprobs:
            self._skip_logprobs(at, choice.logprobs)
        if choice.finish_reason is not None:
            missing = next((text for key, text in self._known.items() if key[0] == at), None)
            if missing is None:
                missing = next((self._calls[key] for key in self._unseen if key[0] == at), None)
            if missing is not None:
                raise StreamDivergedError(
                    f"the repeated answer ended before it came to {missing[:60]!r}, which the caller has already"
                )

    def _rest(self, key: tuple[Any, ...], piece: str | None) -> str | None:
        """What of a piece is new."""
        expected = self._known.get(key)
        if expected is None or not piece:
            if piece and key[0] in self._finished:
                self._goes_on(piece)
            return piece
        length = min(len(expected), len(piece))
        if expected[:length] != piece[:length]:
            raise StreamDivergedError(
                f"the repeated answer differs from what the caller has: {piece[:60]!r} "
                f"where there was {expected[:length][:60]!r}"
            )
        self.swallowed += 1
        if length == len(expected):
            del self._known[key]
            if length < len(piece) and key[0] in self._finished:
                self._goes_on(piece[length:])
        else:
            self._known[key] = expected[length:]
        return piece[length:] or None

    def _goes_on(self, piece: str) -> None:
        raise StreamDivergedError(
            f"the repeated answer goes on with {piece[:60]!r} where the one that the caller has was finished"
        )

    def _tool_calls(self, at: int, delta: WireDelta) -> None:
        calls = delta.tool_calls
        if not calls:
            return
        if len(calls) > 1 and all(call.index == 0 for call in calls):
            for position, call in enumerate(calls):  # whole messages number them by position
                call.index = position
        fresh = []
        for call in calls:
            key = (at, call.index)
            name = self._calls.get(key)
            if name is not None:
                self._unseen.discard(key)
                call.id = None  # made up anew with each generation; the caller has the first
                if not self._rest_of_call(key, name, call.function):
                    self.swallowed += 1
                    continue
            elif at in self._finished:
                self._goes_on((call.function.name if call.function is not None else None) or "a tool call")
            fresh.append(call)
        delta.tool_calls = fresh or None

    def _rest_of_call(self, key: tuple[int, int], name: str, function: WireFunction | None) -> bool:
        """Take from a piece of a known call what the caller has; whether anything is left."""
        if function is None:
            return False
        if name and function.name:
            if function.name != name:
                raise StreamDivergedError(
                    f"the repeated answer calls {function.name!r} where the caller has {name!r} already"
                )
            function.name = None
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        function.arguments = self._rest(key, arguments)
        return bool(function.name or function.arguments)

    def _skip_logprobs(self, at: int, logprobs: dict[str, Any]) -> None:
        """Take from the log probabilities what the caller has. The tokens must be the same; the figures need not be,
        since other requests in the same batch change their last digits."""
        for key, value in list(logprobs.items()):
            expected = self._logprobs.get((at, key))
            if expected is None or not isinstance(value, list):
                continue
            for known, each in zip(expected, value, strict=False):
                if not _same_token(known, _token_of(each)):
                    raise StreamDivergedError(
                        f"the repeated answer has the token {_token_of(each)!r} where there was {known!r}"
                    )
            if len(expected) < len(value):
                logprobs[key] = value[len(expected) :]
            else:
                del logprobs[key]
            if len(expected) <= len(value):
                del self._logprobs[at, key]
            else:
                self._logprobs[at, key] = expected[len(value) :]


_TokenOf: TypeAlias = tuple[Any, Any]


def _token_of(entry: Any) -> _TokenOf:
    """Id and text of the token of an entry of log probabilities; of parallel lists, as older servers send them, an
    entry is a text or a figure. None: it does not say."""
    if isinstance(entry, dict):
        return entry.get("id"), entry.get("token")
    return None, entry if isinstance(entry, str) else None


def _same_token(one: _TokenOf, other: _TokenOf) -> bool:
    return one[1] == other[1] and (one[0] == other[0] or None in (one[0], other[0]))
