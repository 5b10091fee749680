"""The rows of the table: each breaks real answers in one way, as often as it says, and counts what came of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import LlamaStreamError
from llamastream.testing import (
    ChaosProxy,
    Duplicate,
    EndlessHeaders,
    Fault,
    Garbage,
    Gzip,
    HalfClose,
    HtmlError,
    NumberedServer,
    Refuse,
    Reset,
    SlowHeaders,
    Stall,
    Trickle,
    TruncatedChunk,
    Unavailable,
    WrongChunkSize,
)
from llamastream.types import RetryPolicy, Timeouts
from tools.faults.asking import (
    SYSTEM,
    Answer,
    Ask,
    How,
    answer,
    chat,
    completion,
    events_of,
    losses,
    structured,
    tool_call,
    undisturbed,
)
from tools.faults.breaking import WrongAnswerError, cut, divergence, in_order
from tools.faults.models import THINKING, write_random_model
from tools.faults.storm import storm

STORY = "Tell me a story."
LIMIT = 300
HOWS: tuple[How, ...] = ("sync", "asyncio")
SHORT = Timeouts(connect=1, first_byte=2, prefill=2, content_idle=0.5, total=30)
QUICK = RetryPolicy(base_delay=0.02)
STREAMS = 50
BABBLE = (
    "the model babbles on here, beyond what it knows by heart: a text that is read anew may be cut into other tokens"
)
LONG_SCHEMA = {
    "type": "object",
    "properties": {
        "words": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 50, "maxItems": 50}
    },
    "required": ["words"],
    "additionalProperties": False,
}


class Row(Struct):
    """One line of the table. `survived`: byte-identical; `errors`: ended with a clear error; `other`: was
    continued, but the model went on with other words (`verified` is False); `wrong`: none of these."""

    group: str
    fault: str
    tried: int = 0
    survived: int = 0
    errors: int = 0
    other: int = 0
    wrong: int = 0
    longest_gap: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    notes: str = ""
    details: list[str] = field(default_factory=list)
    lenient: bool = False

    def count(self, got: Answer | BaseException) -> None:
        self.tried += 1
        if isinstance(got, Answer):
            self.survived += 1
            self.longest_gap = max(self.longest_gap, got.longest_gap)
            self.kinds = dict(collections.Counter(self.kinds) + collections.Counter(got.kinds))
            return
        if isinstance(got, LlamaStreamError):
            self.errors += 1
        elif isinstance(got, WrongAnswerError) and got.owned:
            self.other += 1
        else:
            self.wrong += 1
        if len(self.details) < 20:
            self.details.append(f"try {self.tried}: {type(got).__name__}: {got}"[:400])

    @property
    def good(self) -> bool:
        return not self.wrong and (self.lenient or not (self.errors or self.other))


def attempt(work: Callable[[], Answer | LlamaStreamError]) -> Answer | BaseException:
    """What came of it, whatever it was."""
    try:
        return work()
    except (WrongAnswerError, LlamaStreamError) as error:
        return error


class Table:
    """Fills the rows, one after the other. `thin`: of the many places of a cut take one in so many. `only`: what is
    to be run of resets, tools, faults, reasoning, storms, noise, numbers; empty: all."""

    def __init__(self, thin: int, workspace: Path, only: Collection[str] = ()) -> None:
        self._thin = thin
        self._workspace = workspace
        self._only = only

    def rows(self) -> Iterator[Row]:
        """All rows, each as soon as it is full."""
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "resets": self._resets,
            "tools": self._tool_calls,
            "reasoning": self._reasoning,
            "noise": self._noise,
            "faults": self._faults,
            "storms": self._storms,
            "numbers": self._numbered,
        }
        for name, part in parts.items():
            if not self._only or name in self._only:
                yield from part()

    # -- a reset behind each event -----------------------------------------------------------------------

    def _resets(self) -> Iterator[Row]:
        with launch(EngineOptions(threads=1)) as engine:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": LONG_SCHEMA}}
            for title, ask, counted in (
                ("chat with `max_tokens`", chat(STORY, max_tokens=LIMIT), True),
                ("chat without a limit", chat(STORY), True),
                ("with a system prompt, without a limit", chat(STORY, system=SYSTEM), True),
                ("text completion without a limit", completion(STORY), True),
                ("JSON schema without a limit", structured(STORY).with_body(response_format=form), False),
            ):
                step = 1 if title.startswith("chat") else 3  # for the second client
                yield from self._each_event(engine, title, ask, counted=counted, step=step)

    def _each_event(
        self,
        engine: Engine,
        title: str,
        ask: Ask,
        *,
        counted: bool,
        reattach: bool = True,
        step: int = 1,
        lenient: bool = False,
        notes: str = "",
    ) -> Iterator[Row]:
        expected = undisturbed(engine.url, ask)
        for how in HOWS:
            stride = 1 if how == "sync" else step
            fault = f"{title}, {how}" + ("" if stride == 1 else f", every {stride}rd event")
            row = Row("reset behind each single event", fault, lenient=lenient, notes=notes)
            for events in range(1, events_of(expected), stride * self._thin):
                reset = Reset(after_events=events)
                row.count(
                    attempt(
                        lambda reset=reset, how=how: cut(  # type: ignore[misc]
                            engine.url, ask, expected, reset, how=how, counted=counted, reattach=reattach
                        )
                    )
                )
            yield row

    def _tool_calls(self) -> Iterator[Row]:
        with launch(EngineOptions(threads=1)) as engine:
            short = {"city": {"type": "string", "maxLength": 40}, "days": {"type": "integer", "maximum": 99}}
            parameters = {"type": "object", "properties": short, "required": ["city", "days"]}
            tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
            yield from self._each_event(engine, "tool call", tool_call(tools=tools), counted=False)
            limited = tool_call(tools=tools, max_tokens=LIMIT)
            yield from self._each_event(engine, "tool call with `max_tokens`", limited, counted=True)

    def _reasoning(self) -> Iterator[Row]:
        with launch(EngineOptions(threads=1, extra_args=("--chat-template", THINKING))) as engine:
            ask = chat(STORY, reasoning_budget_tokens=100, ignore_eos=True, max_tokens=LIMIT)
            yield from self._each_event(engine, "reasoning and text, `max_tokens`", ask, counted=True, step=3)
            title = "the same from a server without `/v1/stream`"
            yield from self._each_event(
                engine, title, ask, counted=True, reattach=False, step=3, lenient=True, notes=BABBLE
            )

    # -- every fault of the kit --------------------------------------------------------------------------

    def _faults(self) -> Iterator[Row]:
        with launch(EngineOptions(threads=1)) as engine:
            asks = [
                (chat(STORY, max_tokens=LIMIT), True),
                (chat(STORY), True),
                (structured("Hello!"), False),
            ]
            expected = [undisturbed(engine.url, ask) for ask, _ in asks]
            in_the_middle: list[tuple[str, Callable[[int], Fault]]] = [
                ("orderly end (FIN)", lambda n: HalfClose(after_events=n)),
                ("silence", lambda n: Stall(after_events=n)),
                ("garbage between two chunks", lambda n: Garbage(after_events=n)),
                ("a chunk shorter than it says", lambda n: TruncatedChunk(after_events=n)),
                ("a chunk size that is no number", lambda n: WrongChunkSize(after_events=n)),
                ("a chunk size that is too large", lambda n: WrongChunkSize(after_events=n, size=b"fffff")),
            ]
            for title, fault in in_the_middle:
                row = Row("any other fault in the middle", title)
                if title == "silence":
                    row.notes = f"`content_idle={SHORT.content_idle:g}` is part of the gap"
                for (ask, counted), whole in zip(asks, expected, strict=True):
                    last = events_of(whole) - 3
                    for position, how in enumerate(HOWS * 3):
                        events = 2 + (last - 3) * position // 5
                        row.count(self._cut(engine, ask, whole, fault(events), how=how, counted=counted))
                yield row
            after: list[tuple[str, list[Fault]]] = [
                ("503 four times", [Unavailable(times=4, message="busy")]),
                ("503 «Loading model» four times", [Unavailable(times=4)]),
                ("connections that end without an answer", [Refuse(), Refuse(reset=True)]),
                ("a proxy's web page (502)", [HtmlError()]),
                ("a response head one byte at a time", [SlowHeaders(delay=0.001)]),
                ("one byte at a time", [Trickle()]),
                ("the next connection is cut too, five times", [Reset(after_events=n) for n in (3, 2, 4, 3, 5)]),
                ("a compressed answer", [Gzip()]),
                ("header lines for ever, once", [EndlessHeaders(delay=0.001)]),
            ]
            for title, faults in after:
                row = Row("a reset, and then on the way back", title)
                if isinstance(faults[0], Gzip):
                    row.lenient = True
                    row.notes = "a compressed stream cannot be taken up; the error says so"
                for (ask, counted), whole in zip(asks, expected, strict=True):
                    for how in HOWS:
                        row.count(
                            self._cut(engine, ask, whole, Reset(after_events=20), *faults, how=how, counted=counted)
                        )
                yield row
            row = Row("undetectable", "an event twice, correctly framed", lenient=True)
            ask, whole = asks[0][0], expected[0]
            for how in HOWS:
                with ChaosProxy(engine.url, Duplicate(event=9)) as proxy:
                    got = answer(proxy.url, ask, how)
                row.tried += 1
                row.survived += not losses(got, whole)
            row.notes = "events carry no numbers: nobody can tell a piece that comes twice from a word said twice"
            yield row

    @staticmethod
    def _cut(
        engine: Engine, ask: Ask, whole: Answer, *faults: Fault, how: How, counted: bool
    ) -> Answer | BaseException:
        return attempt(
            lambda: cut(engine.url, ask, whole, *faults, how=how, counted=counted, timeouts=SHORT, retry=QUICK)
        )

    # -- servers that die --------------------------------------------------------------------------------

    def _storms(self) -> Iterator[Row]:
        limited = chat("Tell me a long story.", max_tokens=2000)
        for number, what in ((signal.SIGKILL, "killed (SIGKILL)"), (signal.SIGSTOP, "stopped (SIGSTOP)")):
            for title, ask in (("`max_tokens`", limited), ("no limit", chat("Tell me a long story."))):
                row = Row(f"{STREAMS} streams over two servers, one dies", f"{what}, {title}")
                options: dict[str, Any] = {}
                if number is signal.SIGSTOP:
                    # No answer within so many seconds means a dead server: it has a slot for each stream.
                    options = {"timeouts": Timeouts(connect=2, first_byte=10, prefill=10, content_idle=2)}
                    row.notes = "`content_idle=2`, `first_byte=10`"
                with ExitStack() as stack:
                    first, second = (
                        stack.enter_context(
                            launch(EngineOptions(threads=1, parallel=STREAMS, ctx_size=1024, stop_timeout=0))
                        )
                        for _ in range(2)
                    )
                    stack.callback(_go_on, first)
                    expected = undisturbed(second.url, ask)
                    undisturbed(first.url, ask)
                    urls = [first.url, second.url]
                    for got in asyncio.run(storm(urls, ask, STREAMS, first.pid, number, **options)):
                        lost = losses(got, expected) if isinstance(got, Answer) else []
                        row.count(WrongAnswerError("; ".join(lost)) if lost else got)
                row.notes = f"{sum(row.kinds.values())} streams were hit. {row.notes}".strip()
                yield row

    # -- a model that never says the same twice ----------------------------------------------------------

    def _noise(self) -> Iterator[Row]:
        path = self._workspace / "noise.gguf"
        write_random_model(path)
        with launch(EngineOptions(threads=1, model=str(path))) as engine:
            ask = chat("hi", ignore_eos=True, max_tokens=100).with_body(temperature=1, seed=7)
            expected = undisturbed(engine.url, ask)
            yield from self._each_event(engine, "random weights, temperature 1, `max_tokens`", ask, counted=True)
            row = Row("a model that never repeats itself", "continued, not taken up again", lenient=True)
            same: list[float] = []
            for events in range(2, events_of(expected) - 5, self._thin):
                got, common = divergence(engine.url, ask, expected, events)
                if got.kinds != ["continue"]:
                    continue
                row.tried += 1
                row.survived += got.result.text == expected.result.text
                row.wrong += got.recoveries[0].verified  # it must not be called exact
                row.wrong += not got.result.text.startswith(expected.result.text[: got.recoveries[0].text_at_break])
                row.longest_gap = max(row.longest_gap, got.longest_gap)
                row.kinds = {"continue": row.tried}
                same.append(common - got.recoveries[0].text_at_break)
            mean = sum(same) / max(1, len(same))
            row.notes = (
                "«survived» here: the same as undisturbed, which is chance. What was given out stays, the rest is "
                f"another answer (the same for {mean:.0f} characters on average); `verified` is False each time"
            )
            yield row

    # -- the server that counts --------------------------------------------------------------------------

    def _numbered(self) -> Iterator[Row]:
        """Random faults before a server whose tokens are numbers: a gap or a repetition shows by itself."""
        sequences = 1000 // self._thin
        row = Row("random sequences of faults", f"`NumberedServer`, {sequences:,} sequences of up to 5 faults")
        chance = random.Random(1)
        options: dict[str, Any] = {
            "retry": RetryPolicy(base_delay=0.001, max_delay=0.01, max_retries=8),
            "timeouts": Timeouts(connect=1, first_byte=0.3, prefill=0.3, content_idle=0.1, total=30),
        }
        with NumberedServer(tokens=30) as plain, NumberedServer(tokens=30, reattach=False) as older:
            for _ in range(sequences):
                server = chance.choice((plain, older))
                limit: dict[str, Any] = chance.choice(({}, {"max_tokens": 20}, {"max_tokens": 500}))
                ask = chat("count", **limit)
                faults = [random_fault(chance, 25) for _ in range(chance.randrange(1, 6))]
                tokens = min(30, limit.get("max_tokens", 30))
                how = chance.choice(HOWS)
                with ChaosProxy(server.url, in_order(*faults), everything=True) as proxy:
                    try:
                        got: Answer | BaseException = answer(proxy.url, ask, how, **options)
                    except LlamaStreamError as error:
                        got = error
                text = "".join(f"{number} " for number in range(tokens))
                if isinstance(got, Answer) and got.result.text != text:
                    got = WrongAnswerError(f"{got.result.text!r} after {faults}")
                row.count(got)
        row.lenient = True
        row.notes = (
            f"gaps and repetitions: {row.wrong}. An answer that is garbled, or hangs, before its first content is "
            "not asked for again from a single server"
        )
        yield row


def random_fault(chance: random.Random, events: int) -> Fault | None:
    """Anything that can be mended, behind one of the first events."""
    after = chance.randrange(events)
    return chance.choice(
        (
            None, Reset(after_events=after), Reset(after_events=after), Reset(), HalfClose(after_events=after),
            Stall(after_events=after), Garbage(after_events=after), TruncatedChunk(after_events=after),
            WrongChunkSize(after_events=after), Refuse(), Refuse(reset=True),
            Unavailable(times=chance.randrange(1, 3), message="busy"), HtmlError(), SlowHeaders(delay=0), Trickle(),
        )
    )  # fmt: skip


def _go_on(server: Engine) -> None:
    if server.alive:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Files that live as long as the run; what clients write down of it goes there too, and not to the user's home."""
    with tempfile.TemporaryDirectory(prefix="llamastream-faults-") as directory:
        os.environ["XDG_STATE_HOME"] = directory
        yield Path(directory)
