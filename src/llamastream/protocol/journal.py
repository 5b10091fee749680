"""What the caller has of one answer, over all attempts, and the requests that go on from there."""

from __future__ import annotations

from typing import Any, Literal

from llamastream.protocol.assembler import Assembler
from llamastream.protocol.requests import CHAT_PATH, GenerationRequest
from llamastream.protocol.resume import ContinuedAnswer, RepeatedAnswer
from llamastream.types import ChoiceFinish, JournalState, Stats, StreamEvent, Usage

_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
_SEEDS = 2**32


def token_limit(request: GenerationRequest) -> int | None:
    """The most tokens that the answer may have, or None."""
    limits = [limit for key in _LIMITS if type(limit := request.body.get(key)) is int and limit > 0]
    return min(limits, default=None)


def repetition(request: GenerationRequest) -> Literal["no", "first", "only"]:
    """Whether a broken answer to this request cannot be continued, but `only` repeated and compared, or `first` that.

    - Tools: the assistant's message with tool calls cannot be continued, and a lazy grammar would lose its trigger.
    - Several choices and log probabilities: there is no message that holds them.
    - A raw grammar begins anew at its root, and so does the schema of a text completion (in the server that xllamacpp
      carries, whatever `generation_prompt` says).
    - A last message in parts (images) to go on with.

    A structured answer is better repeated first: llama-server takes blanks and fences around the JSON away, so that the
    text does not show all that the model wrote.
    """
    body = request.body
    if request.choices > 1 or body.get("logprobs") or body.get("n_probs") or body.get("grammar"):
        return "only"
    if request.path != CHAT_PATH:
        return "only" if body.get("json_schema") or not isinstance(body.get("prompt"), str | list) else "no"
    if request.offers_tools:
        return "only"
    last = body["messages"][-1]
    if last.get("role") == "assistant" and not isinstance(last.get("content"), str | None):
        return "only"
    return "first" if body.get("response_format") or body.get("json_schema") else "no"


def with_seed(request: GenerationRequest, seed: int) -> GenerationRequest:
    """The same request with a seed, unless it has one: the server never tells the one that it would choose."""
    given = request.body.get("seed")
    if type(given) is int and given >= 0:
        return request
    return GenerationRequest(request.path, {**request.body, "seed": seed}, request.choices)


class Journal:
    """The answer so far, and how to ask for the rest.

    Attributes:
        assembler: what has been received, over all attempts.
        request: as the caller made it. repeat: see `repetition`. diverged: a repetition was something else.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.assembler = Assembler()
        self.request = request
        self.repeat = repetition(request)
        self.diverged = False

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.assembler.text(0)

    @property
    def reasoning(self) -> str:
        """Reasoning of the first choice."""
        return self.assembler.reasoning(0)

    @property
    def characters(self) -> int:
        """Length of all that the caller has: texts, reasoning and the arguments of tool calls."""
        return sum(
            len(choice.text) + len(choice.reasoning) + sum(len(call.arguments) for call in choice.tool_calls)
            for choice in self.assembler.result(Stats()).choices
        )

    @property
    def counted(self) -> bool:
        """Whether the usage is there, or is not to be expected."""
        options = self.request.body.get("stream_options")
        wanted = isinstance(options, dict) and options.get("include_usage")
        return self.assembler.usage is not None or not wanted

    def generated_tokens(self, shown: int) -> int | None:
        """How many tokens were generated for a finished answer that shows `shown`; None: cannot be said."""
        reason = self.assembler.finish_reason()
        if self.repeat != "no" or (reason == "stop" and self.request.body.get("stop")):
            return None
        if self.reasoning and not self.text:
            return None  # whether the reasoning was closed does not show
        return shown + (reason == "stop")  # the end mark is a token that no text shows

    def state(self, *, held: bool, fruitless: int, seconds: float, recoveries: int, reported: int = 0) -> JournalState:
        """The facts that a decision rests on."""
        return JournalState(
            finished=self.assembler.finished(self.request.choices),
            emitted=self.assembler.content_chunks > 0,
            held=held,
            counted=self.counted,
            repeat=self.repeat,
            diverged=self.diverged,
            fruitless=fruitless,
            seconds=seconds,
            recoveries=recoveries,
            reported=reported,
        )

    def restart(self) -> None:
        """Nothing has reached the caller: begin with an empty answer."""
        self.assembler = Assembler()

    def repeated(self, *, whole: bool) -> tuple[GenerationRequest, RepeatedAnswer]:
        """The same request once more, and what compares its answer with what the caller has."""
        request = self.request.without_stream() if whole else self.request
        return request, RepeatedAnswer(self.assembler.result(Stats()).choices)

    def begun_message(self) -> list[dict[str, Any]]:
        """The messages, with what there is of the answer as the last one."""
        messages: list[dict[str, Any]] = list(self.request.body["messages"])
        begun: dict[str, Any] = {"role": "assistant", "content": ""}
        if messages[-1].get("role") == "assistant":
            begun = dict(messages.pop())  # the caller had begun the answer
        begun["content"] = (begun.get("content") or "") + self.text
        if self.reasoning:
            begun["reasoning_content"] = (begun.get("reasoning_content") or "") + self.reasoning
        return [*messages, begun]

    def continued(
        self,
        *,
        tokens: int | None,
        decode_ms: float,
        prompt_tokens: list[int] | None,
        whole: bool,
        as_prompt: int | None = None,
    ) -> tuple[GenerationRequest, ContinuedAnswer]:
        """A request for the rest, and what joins its answer to the part there is.

        Args:
            tokens: how many tokens the answer has so far. decode_ms: how long their generation took, in milliseconds.
            prompt_tokens: the text so far as token ids, where the prompt is token ids. whole: ask for one piece.
            as_prompt: how many tokens the text so far is for the server, which cuts it anew; None: as many.
        """
        body = {**self.request.body}
        if self.request.path == CHAT_PATH:
            body["messages"] = self.begun_message()
            # True means: go on with the content, or, where there is none, with the reasoning.
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False
        elif isinstance(body["prompt"], str):
            body["prompt"] = body["prompt"] + self.text
        else:
            body["prompt"] = [*body["prompt"], *(prompt_tokens or ())]
        done = tokens or 0
        for key in _LIMITS:
            if type(limit := body.get(key)) is int and limit > 0:
                body[key] = max(1, limit - done)
        # A budget of reasoning stays: the server counts what it is given to go on with.
        if type(seed := body.get("seed")) is int and seed >= 0:
            body["seed"] = (seed + done) % _SEEDS  # the same seed would begin its sequence anew
        request = GenerationRequest(self.request.path, body, self.request.choices)
        answer = ContinuedAnswer(
            text=body["messages"][-1]["content"] if self.request.path == CHAT_PATH else self.text,
            reasoning=self.reasoning,
            tokens=tokens,
            as_prompt=as_prompt,
            decode_ms=decode_ms,
            chunks=self.assembler.content_chunks,
            whole=whole,
        )
        return (request.without_stream() if whole else request), answer

    def complete(self, prompt: int | None, tokens: int | None) -> list[StreamEvent]:
        """All of the answer is there, only the end was lost: write it, with the token counts if they are known."""
        events: list[StreamEvent] = []
        if not self.assembler.finished(self.request.choices):
            self.assembler.close("length")
            events.append(ChoiceFinish("length"))
        if prompt is not None and tokens is not None:
            self.assembler.usage = Usage(prompt, tokens, prompt + tokens)
            events.append(self.assembler.usage)
        return events
