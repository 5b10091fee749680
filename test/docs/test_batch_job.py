"""The example of a batch job, for real: 1,000 prompts, interrupted, killed, gone on with, and never twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamastream.engine import Engine
from llamastream.testing import NumberedServer, Script, ServerDouble, http_answer, sse_answer
from polling import wait_for
from ports import free_port
from terminal import Chat, terminal_environ

SCRIPT = Path(__file__).parents[2] / "examples" / "batch_job.py"
COMMAND = [sys.executable, "-W", "error", str(SCRIPT)]
ALL = set(range(1000))


@contextmanager
def running(results: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A job, as a process; ended if the test leaves it."""
    words = [*COMMAND, "--results", str(results), "--json", *arguments]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=results.parent
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run(results: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """A job to its end: exit code, summary, stderr."""
    with running(results, *arguments) as process:
        out, err = process.communicate(timeout=100)
    return process.returncode, json.loads(out) if out else {}, err


def lines(results: Path) -> int:
    return results.read_bytes().count(b"\n") if results.exists() else 0


def records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_bytes().splitlines()]


def indices(results: Path) -> list[int]:
    return [record["index"] for record in records(results)]


def write_prompts(path: Path, *prompts: object) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(prompt) + b"\n" for prompt in prompts))
    return path


# -- a thousand prompts -----------------------------------------------------------------------------------------


def test_a_thousand_prompts_are_answered_once_each_and_once_only(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    code, summary, err = run(results, "--demo", "--max-tokens", "4")
    assert (code, err) == (0, "")
    expected = {"prompts": 1000, "answered": 1000, "errors": 0, "missing": 0, "new": 1000, "concurrency": 4}
    assert summary == summary | expected
    assert sorted(indices(results)) == sorted(ALL)
    for record in records(results):
        assert record["prompt"].endswith(f"({record['index'] + 1})")
        assert record["text"]
        assert record["usage"]["completion_tokens"] == record["timings"]["predicted_n"] == 4
    assert summary["tokens"] == 4000
    before = results.read_bytes()
    code, summary, _ = run(results, "--demo", "--max-tokens", "4")
    assert (code, summary["new"], summary["answered"]) == (0, 0, 1000)
    assert results.read_bytes() == before


def test_ctrl_c_finishes_what_is_under_way_and_a_new_run_goes_on(
    engine: Engine, tmp_path: Path, slots_free: Callable[[], float]
) -> None:
    results, job = tmp_path / "results.jsonl", ["--demo", "--max-tokens", "6", "--url", engine.url]
    with running(results, *job) as process:
        wait_for(lambda: lines(results) >= 100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    stopped = json.loads(out)
    assert (process.returncode, stopped["interrupted"]) == (130, True)
    assert "finishing the answers under way" in err
    done = indices(results)
    assert 100 <= len(done) == len(set(done)) == stopped["new"] < 1000
    slots_free()
    code, summary, _ = run(results, *job)
    assert (code, summary["new"], summary["missing"]) == (0, 1000 - len(done), 0)
    assert indices(results)[: len(done)] == done
    assert sorted(indices(results)) == sorted(ALL)


def test_a_kill_in_the_middle_and_a_torn_line_lose_nothing(engine: Engine, tmp_path: Path) -> None:
    results, job = tmp_path / "results.jsonl", ["--demo", "--max-tokens", "6", "--url", engine.url]
    for _ in range(2):
        before = lines(results)
        with running(results, *job) as process:
            wait_for(lambda least=before + 100: lines(results) >= least)  # type: ignore[misc]  # least has a default
            process.kill()
            process.wait(10)
        with results.open("ab") as torn:
            torn.write(b'{"index": 999, "prompt": "What is GGUF? (1000)", "te')
    whole = results.read_bytes().rpartition(b"\n")[0] + b"\n"
    code, summary, _ = run(results, *job)
    assert (code, summary["new"], summary["missing"]) == (0, 1000 - whole.count(b"\n"), 0)
    assert results.read_bytes().startswith(whole)
    assert sorted(indices(results)) == sorted(ALL)


# -- ways to stop ---------------------------------------------------------------------------------------------


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    results, prompts = tmp_path / "results.jsonl", write_prompts(tmp_path / "p.jsonl", *[{"prompt": "hi"}] * 9)
    with NumberedServer(tokens=3, gate=True) as server, running(results, str(prompts), "--url", server.url) as process:
        wait_for(lambda: server.generating == 4)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Ctrl-C again" in process.stderr.readline()
        assert server.generating == 4, "no token came since: they are still waited for"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
        wait_for(lambda: server.generating == 0)
        assert server.generations == 4
    summary = json.loads(out)
    assert (process.returncode, summary["new"], summary["missing"]) == (130, 0, 9)


def test_the_first_lets_the_answers_under_way_come_to_their_end(tmp_path: Path) -> None:
    results, prompts = tmp_path / "results.jsonl", write_prompts(tmp_path / "p.jsonl", *[{"prompt": "hi"}] * 9)
    with NumberedServer(tokens=3, gate=True) as server, running(results, str(prompts), "--url", server.url) as process:
        wait_for(lambda: server.generating == 4)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        process.stderr.readline()
        server.release(100)
        process.communicate(timeout=10)
        assert (process.returncode, server.generations) == (130, 4)
    assert [record["text"] for record in records(results)] == ["0 1 2 "] * 4


def test_ctrl_c_is_heard_while_the_server_says_nothing_at_all(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    with ServerDouble(Script(stall=True)) as server, running(results, "--demo", "--url", server.url) as process:
        wait_for(lambda: server.connections == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    summary = json.loads(out)
    assert (process.returncode, summary["interrupted"], summary["missing"], err) == (130, True, 1000, "")


def test_a_server_that_hangs_stops_the_job_and_is_nobodys_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASTREAM_FIRST_BYTE_TIMEOUT", "0.3")
    monkeypatch.setenv("LLAMASTREAM_MAX_RETRIES", "0")
    results = tmp_path / "results.jsonl"
    with ServerDouble(Script(stall=True)) as server:
        code, _, err = run(results, "--demo", "--concurrency", "1", "--url", server.url)
    assert code == 1
    assert err.startswith("error: ")
    assert err.endswith("; run the job again when that is mended, it goes on where it is\n")
    assert lines(results) == 0


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_nobody_need_read_the_summary(tmp_path: Path, form: list[str]) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", {"prompt": "hi"})
    reading, writing = os.pipe()
    os.close(reading)
    with ServerDouble(Script(sse_answer(["ok"]))) as server:
        words = [*COMMAND, str(prompts), "--concurrency", "1", "--url", server.url, *form]
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "p.jsonl.results.jsonl") == 1


def test_a_server_that_is_gone_stops_the_job_and_is_nobodys_result(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    code, _, err = run(results, "--demo", "--concurrency", "2", "--url", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    assert re.fullmatch(
        r"error: .*127\.0\.0\.1.*; run the job again when that is mended, it goes on where it is\n", err
    )
    assert lines(results) == 0


# -- errors ---------------------------------------------------------------------------------------------------


def test_an_error_is_recorded_and_repeated_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASTREAM_RECOVERY", "off")  # else there are requests between these, to drop generations
    refused = Script(http_answer("400 Bad Request", b'{"error":{"message":"no such thing","code":400}}'))
    results, prompts = tmp_path / "results.jsonl", tmp_path / "prompts.txt"
    prompts.write_text("first\nsecond\n\nthird\n", encoding="utf-8")
    good = Script(sse_answer(["fi", "ne"]))
    with ServerDouble(good, refused, good) as server:
        job = [str(prompts), "--concurrency", "1", "--url", server.url]
        code, summary, _ = run(results, *job)
        assert (code, summary["answered"], summary["errors"]) == (1, 2, 1)
        assert records(results)[1]["error"]["name"] == "BadRequestError"
        assert "no such thing" in records(results)[1]["error"]["message"]
        code, summary, _ = run(results, *job)
        assert (code, summary["new"], len(server.requests)) == (1, 0, 3)
        code, summary, _ = run(results, *job, "--retry-errors")
        assert (code, summary["new"], summary["errors"], len(server.requests)) == (0, 1, 0, 4)
        assert b'"second"' in server.requests[-1]
    assert indices(results) == [0, 2, 1]
    assert [record["text"] for record in records(results)] == ["fine"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt", "results.jsonl"]


def test_a_prompt_that_the_real_server_refuses_does_not_keep_the_others_from_their_answers(
    engine: Engine, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "What is a slot?"}]
    prompts = write_prompts(
        tmp_path / "p.jsonl", {"prompt": "What is GGUF?"}, {"prompt": "long " * 20_000}, {"messages": messages}
    )
    results = tmp_path / "results.jsonl"
    code, summary, _ = run(results, str(prompts), "--max-tokens", "5", "--url", engine.url)
    assert (code, summary["answered"], summary["errors"]) == (1, 2, 1)
    found = {record["index"]: record for record in records(results)}
    assert found[1]["error"]["name"] == "ContextSizeError"
    assert found[2]["messages"] == messages
    assert found[2]["text"].startswith("A slot")
    code, summary, _ = run(results, str(prompts), "--max-tokens", "5", "--url", engine.url)
    assert (code, summary["new"]) == (1, 0), "prompts with messages are known again"


# -- wrong input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", None, "p.txt cannot be read: No such file or directory; give a file of prompts, or --demo"),
        ("p.txt", b"\n \n", "p.txt has no prompts"),
        ("p.txt", b"caf\xe9\n", "p.txt is not UTF-8 (byte 3)"),
        ("p.jsonl", b'{"prompt": "hi"}\n{"prompt": ', "p.jsonl:2 is not JSON"),
        ("p.jsonl", b'\n{"text": "hi"}\n', 'p.jsonl:2 has neither a "prompt" that is text nor "messages"'),
        ("p.jsonl", b'{"prompt": 5}\n', "p.jsonl:1 has neither"),
        ("p.jsonl", b'"hi"\n', "p.jsonl:1 has neither"),
    ],
)
def test_prompts_that_are_none_are_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, _, err = run(tmp_path / "results.jsonl", str(path), "--url", "http://127.0.0.1:1")
    assert code == 2
    assert err.startswith(f"error: {tmp_path}")
    assert says in err
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a file of prompts, or --demo"),
        (["p.txt", "--demo"], "give a file of prompts, or --demo"),
        (["--demo", "--concurrency", "0"], "--concurrency must be a whole number from 1 upwards, not 0"),
        (["--demo", "--max-tokens", "-1"], "--max-tokens must be a whole number from 1 upwards, not -1"),
        (["--demo", "--temperature", "nan"], "--temperature must be a number from 0 upwards, not nan"),
        (["--demo", "--temperature", "inf"], "--temperature must be a number from 0 upwards, not inf"),
        (["--demo", "--results", "/dev/full"], "/dev/full is a directory, device or pipe; name a file with --results"),
        (["--demo", "--results", "/dev/null"], "/dev/null is a directory, device or pipe; name a file with --results"),
        (["--demo", "--results", "."], ". is a directory, device or pipe; name a file with --results"),
        (["results.jsonl"], "--results names the file of the prompts itself"),
        (["--demo", "--results", "no/such/directory/r.jsonl"], "cannot be written: No such file or directory"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, words: list[str], says: str) -> None:
    code, _, err = run(tmp_path / "results.jsonl", *words)
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"index": 0, "prompt": "another", "text": ""}\n', ":1 is not of this job, which has another prompt with"),
        ('{"index": 7, "prompt": "hi", "text": ""}\n', ":1 is not of this job"),
        ('{"index": 0, "prompt": "hi", "text": ""}\n' * 2, ":2 is a second result of the index 0"),
        ('{"name": "something else"}\n', ":1 is no result"),
        ("a letter\n", ":1 is no result"),
        ("a letter", " does not end in a result"),
        ('{"index": 0, "prompt": "hi", "text": ""}\nand a letter', " does not end in a result"),
        ('{"index": 0, "name": "something else"}', " does not end in a result"),
        ('{"index": 9, "prompt": "hi"', " does not end in a result"),
        ("{", " does not end in a result"),
        ('a letter\n{"index": 0, "prompt": "hi", "te', ":1 is no result"),
    ],
)
def test_a_file_that_belongs_to_something_else_is_left_as_it_is(tmp_path: Path, content: str, says: str) -> None:
    prompts, results = write_prompts(tmp_path / "p.jsonl", {"prompt": "hi"}), tmp_path / "results.jsonl"
    results.write_text(content, encoding="utf-8")
    code, _, err = run(results, str(prompts), "--url", "http://127.0.0.1:1", "--retry-errors")
    assert code == 2
    assert says in err
    assert "name another file with --results" in err
    assert results.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("torn", [b'{"index"', b'{"index": 1, "pro', b'{"index": 1, "prompt": "ho", "text": "a'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    prompts, results = write_prompts(tmp_path / "p.jsonl", *[{"prompt": "hi"}, {"prompt": "ho"}]), tmp_path / "r.jsonl"
    whole = b'{"index": 0, "prompt": "hi", "text": ""}\n'
    results.write_bytes(whole + torn)
    with ServerDouble(Script(sse_answer(["ok"]))) as server:
        code, summary, _ = run(results, str(prompts), "--concurrency", "1", "--url", server.url)
    assert (code, summary["new"]) == (0, 1)
    assert results.read_bytes().startswith(whole)
    assert indices(results) == [0, 1]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_the_prompts_by_another_name_are_not_taken_for_results(tmp_path: Path, link: Callable[..., None]) -> None:
    prompts, results = write_prompts(tmp_path / "p.jsonl", {"prompt": "hi"}), tmp_path / "link.jsonl"
    before = prompts.read_bytes()
    link(results, prompts)
    code, _, err = run(results, str(prompts), "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "--results names the file of the prompts itself" in err
    assert prompts.read_bytes() == before


def test_two_jobs_do_not_write_to_one_file(tmp_path: Path) -> None:
    results, prompts = tmp_path / "results.jsonl", write_prompts(tmp_path / "p.jsonl", {"prompt": "hi"})
    with NumberedServer(tokens=3, gate=True) as server, running(results, str(prompts), "--url", server.url) as process:
        wait_for(lambda: server.generating == 1)
        code, _, err = run(results, str(prompts), "--url", server.url)
        assert (code, server.generations) == (2, 1)
        assert "another job writes to" in err
        server.release(100)
        process.communicate(timeout=10)
        assert process.returncode == 0


# -- on a terminal --------------------------------------------------------------------------------------------


def test_a_terminal_shows_progress_speed_and_time_left(engine: Engine, tmp_path: Path) -> None:
    arguments = ["--demo", "--max-tokens", "4", "--url", engine.url, "--results", str(tmp_path / "results.jsonl")]
    with Chat(*arguments, environ=terminal_environ(tmp_path), command=COMMAND) as job:
        job.expect("/1000")
        job.expect("tokens/s")
        assert re.search(r"\d:\d\d:\d\d", job.expect("1000/1000"))
        job.expect("1000 of 1000 answered, 0 errors, 0 missing (1000 new)")
        assert job.end() == 0


def test_without_a_file_of_its_own_the_results_are_beside_the_prompts(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", {"prompt": "one\u2028line"})
    with ServerDouble(Script(sse_answer(["ok"]))) as server:
        words = [*COMMAND, str(prompts), "--concurrency", "1", "--url", server.url]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 of 1 answered, 0 errors, 0 missing (1 new)\n")
    assert records(tmp_path / "p.jsonl.results.jsonl")[0]["prompt"] == "one\u2028line"
