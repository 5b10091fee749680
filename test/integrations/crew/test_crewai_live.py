"""`stream_task` and `astream_task`: a task's output while it is generated."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from commandline import read_until
from crewwork import agent, asked, crew, task
from llamastream import Engine
from llamastream.errors import ConnectionLostError, InvalidRequestError, StreamConsumedError
from llamastream.integrations.crewai import LlamaServerLLM, Piece, StoppedError, astream_task, create_llm, stream_task
from llamastream.integrations.crewai.coalescing import Coalescer, Delta
from llamastream.integrations.crewai.terminal import Terminal
from llamastream.testing import NumberedServer, Script, ServerDouble, sse_answer
from llamastream.types import ReasoningDelta, TextDelta, ToolCallDelta
from polling import wait_for


def model(url: str, **more: Any) -> LlamaServerLLM:
    return LlamaServerLLM(base_url=url, **{"temperature": 0, "max_tokens": 200, **more})


def endless(engine: Engine) -> LlamaServerLLM:
    """A model that goes on for as long as its context lasts."""
    return model(engine.url, max_tokens=None, ignore_eos=True)


# -- blocking -----------------------------------------------------------------------------------------------


def test_a_task_is_shown_in_the_terminal_and_nothing_else_is(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    output = stream_task(task(agent(model(engine.url)), name="greeting"))
    assert output.raw
    assert capsys.readouterr().out == f"== Teller: greeting\n{output.raw}\n"


def test_a_crew_is_shown_task_by_task(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [task(agent(model(engine.url), role), f"Tell {{what}} as a {role}.") for role in ("Teller", "Critic")]
    output = stream_task(crew(*tasks), inputs={"what": "stories"})
    one, two = (done.raw for done in output.tasks_output)
    shown = f"== Teller: Tell stories as a Teller.\n{one}\n\n== Critic: Tell stories as a Critic.\n{two}\n"
    assert capsys.readouterr().out == shown


def test_a_callback_gets_each_piece_before_the_next_is_generated() -> None:
    pieces: list[Piece] = []

    def show(piece: Piece) -> None:
        pieces.append(piece)
        server.release(1)

    with NumberedServer(tokens=3, reasoning_tokens=2, gate=True) as server:
        server.release(1)
        work = task(agent(model(server.url)))
        output = stream_task(work, show)
    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("reasoning", "r0 "),
        ("reasoning", "r1 "),
        ("text", "0 "),
        ("text", "1 "),
        ("text", "2 "),
    ]
    assert {(piece.task, piece.task_id, piece.agent) for piece in pieces} == {
        (work.description, str(work.id), "Teller")
    }
    assert output.raw == "0 1 2 "


def test_the_output_of_an_earlier_task_is_context(engine: Engine) -> None:
    with NumberedServer(tokens=1) as server:
        stream_task(task(agent(model(server.url))), lambda piece: None, context="It was blue.")
        sent = asked(server)[0].body
    assert "It was blue." in str(sent["messages"])


@pytest.mark.parametrize("streaming", [True, False])
def test_models_that_do_not_stream_otherwise_stream_for_it(
    engine: Engine, streaming: bool, closing: Callable[[Any], Any]
) -> None:
    settings = {"llm_base_url": engine.url, "llm_temperature": 0, "llm_max_tokens": 200}
    llm = create_llm(settings, stream=False) if streaming else closing(create_llm(settings, streaming=False))
    pieces: list[Piece] = []
    output = stream_task(task(agent(llm)), pieces.append)
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == output.raw
    assert not llm.stream


def test_what_the_callback_raises_ends_the_run_and_frees_the_slot(
    engine: Engine, slots_free: Callable[[], float]
) -> None:
    called: list[Piece] = []

    def show(piece: Piece) -> None:
        called.append(piece)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        stream_task(crew(task(agent(endless(engine)))), show)
    assert len(called) == 1
    slots_free()


def test_an_error_of_the_model_comes_through() -> None:
    answer = sse_answer(["a", "b", "c"])
    pieces: list[Piece] = []
    with ServerDouble(Script(answer, cut_at=answer.index(b'"c"'))) as server, pytest.raises(ConnectionLostError):
        stream_task(task(agent(model(server.url, recovery="off"))), pieces.append)
    assert [piece.text for piece in pieces] == ["a", "b"]


def test_two_runs_at_the_same_time_are_kept_apart() -> None:
    seen: dict[str, list[str]] = {"one": [], "two": []}

    def run(name: str, url: str) -> None:
        stream_task(task(agent(model(url))), lambda piece: seen[name].append(piece.text))

    with NumberedServer(tokens=3) as one, NumberedServer(tokens=5) as two:
        threads = [
            threading.Thread(target=run, args=(name, server.url)) for name, server in zip(seen, (one, two), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert seen == {"one": ["0 ", "1 ", "2 "], "two": ["0 ", "1 ", "2 ", "3 ", "4 "]}


def test_what_does_not_fit_is_refused() -> None:
    llm = model("http://127.0.0.1:1")
    one = task(agent(llm))
    lonely = task(agent(llm))
    lonely.agent = None
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("story", {}, "only a Task or a Crew of crewai can be watched, not str"),
        (one, {"inputs": {}}, "inputs are for a crew"),
        (crew(one), {"context": ""}, "context is for a single task"),
        (crew(one, stream=True), {}, "this crew has stream=True"),
        (lonely, {}, "has no agent"),
    ]
    for work, arguments, message in wrong:
        for function in (stream_task, astream_task):
            with pytest.raises(InvalidRequestError, match=message):
                function(work, **arguments)


SCRIPT = """
import sys
from crewai import Agent, Crew, Task
from llamastream.integrations.crewai import LlamaServerLLM, stream_task
llm = LlamaServerLLM(base_url=sys.argv[1])
agent = Agent(role="Teller", goal="Tell stories", backstory="You like short words.", llm=llm)
stream_task(Crew(agents=[agent], tasks=[Task(description="Tell.", expected_output="A story.", agent=agent)]))
"""


def test_ctrl_c_ends_the_run_at_once() -> None:
    with NumberedServer(tokens=1000, gate=True) as server:  # without an end: only three are ever generated
        server.release(3)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            read_until(process.stdout.fileno(), b"2 ", 60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
        wait_for(lambda: server.generating == 0)
        assert server.cancelled == 1
    assert b"KeyboardInterrupt" in said


# -- asyncio ------------------------------------------------------------------------------------------------


def test_pieces_can_be_awaited_and_the_output_too() -> None:
    async def run() -> tuple[list[str], str]:
        live = astream_task(crew(task(agent(model(server.url)))))
        with pytest.raises(StreamConsumedError, match="no output"):
            _ = live.output
        texts = []
        async for piece in live:
            texts.append(piece.text)
            server.release(1)
        with pytest.raises(StreamConsumedError, match="watched already"):
            live.__aiter__()
        return texts, live.output.raw

    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        texts, raw = asyncio.run(run())
    assert texts == ["0 ", "1 ", "2 ", "3 ", "4 "]
    assert raw == "0 1 2 3 4 "


def test_leaving_the_loop_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    async def leave() -> None:
        live = astream_task(task(agent(endless(engine))))
        async for _ in live:
            break
        await asyncio.to_thread(slots_free)
        with pytest.raises(StreamConsumedError, match="no output"):
            _ = live.output

    asyncio.run(leave())


def test_leaving_the_block_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    async def leave() -> None:
        async with astream_task(task(agent(endless(engine)))) as live:
            await anext(aiter(live))

    asyncio.run(leave())
    slots_free()


def test_cancelling_who_watches_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    async def cancel() -> None:
        begun = asyncio.Event()

        async def watch() -> None:
            async with astream_task(task(agent(endless(engine)))) as live:
                async for _ in live:
                    begun.set()

        watching = asyncio.create_task(watch())
        await begun.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    asyncio.run(cancel())
    slots_free()


def test_a_run_that_was_ended_before_it_began_asks_nothing() -> None:
    async def run() -> None:
        live = astream_task(task(agent(model(server.url))))
        await live.aclose()
        with pytest.raises(StoppedError, match="has left"):
            [piece async for piece in live]

    with NumberedServer(tokens=3) as server:
        asyncio.run(run())
        assert server.generations == 0


def test_the_run_can_be_ended_from_another_task() -> None:
    async def run() -> None:
        begun = asyncio.Event()
        live = astream_task(task(agent(model(server.url))))

        async def watch() -> None:
            async for _ in live:
                begun.set()

        watching = asyncio.create_task(watch())
        await begun.wait()
        await live.aclose()
        with pytest.raises(StoppedError):
            await watching

    with NumberedServer(tokens=3, gate=True) as server:
        server.release(1)
        asyncio.run(run())
        wait_for(lambda: server.generating == 0)
        assert server.cancelled == 1


def test_an_error_is_raised_behind_the_last_piece() -> None:
    answer = sse_answer(["a", "b", "c"])
    texts: list[str] = []

    async def run() -> None:
        async for piece in astream_task(task(agent(model(server.url, recovery="off")))):
            texts.append(piece.text)  # noqa: PERF401  # what came before the error is to be kept

    with ServerDouble(Script(answer, cut_at=answer.index(b'"c"'))) as server, pytest.raises(ConnectionLostError):
        asyncio.run(run())
    assert texts == ["a", "b"]


# -- the parts ----------------------------------------------------------------------------------------------


def test_reasoning_and_tools_are_marked_and_nothing_obeys_the_model() -> None:
    written = io.StringIO()
    terminal = Terminal(written)
    who = {"task": "t", "task_id": "1", "agent": "A\x1b[31m", "agent_id": "1", "call": "1"}
    terminal(Piece(kind="reasoning", text="hm\x1b[2J", **who))
    terminal(Piece(kind="text", text="Let me see.", **who))
    terminal(Piece(kind="tool_call", text='{"city": ', tool="look", **who))
    terminal(Piece(kind="tool_call", text='"x"}', tool="look", **who))
    terminal(Piece(kind="text", text="It is x.", **{**who, "call": "2"}))
    terminal.end()
    assert written.getvalue() == ('== A␛[31m: t\n(reasoning) hm␛[2J\nLet me see.\nlook {"city": "x"}\nIt is x.\n')


def test_pieces_are_put_together_by_time_and_kind() -> None:
    coalescer = Coalescer(1.0)
    fed: list[tuple[Delta, float]] = [
        (TextDelta("a"), 0.0),
        (TextDelta("b"), 0.1),
        (TextDelta("c"), 0.2),
        (ReasoningDelta("r"), 0.3),
        (TextDelta("d"), 1.5),
        (ToolCallDelta(0, "id", "look", "{"), 1.6),
        (ToolCallDelta(0, arguments="}"), 1.7),
        (ToolCallDelta(1, "id2", "look", "{}"), 1.8),
    ]
    out = [[*coalescer.feed(delta, now)] for delta, now in fed]
    assert out == [
        [TextDelta("a")],
        [],
        [],
        [TextDelta("bc")],
        [ReasoningDelta("r"), TextDelta("d")],
        [],
        [],
        [ToolCallDelta(0, "id", "look", "{}")],
    ]
    assert [*coalescer.flush()] == [ToolCallDelta(1, "id2", "look", "{}")]
    assert [*coalescer.flush()] == []
