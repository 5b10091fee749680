"""A batch job: an answer to each prompt of a file, as many at once as the server has slots, with a results file.

python examples/batch_job.py prompts.jsonl [--url http://localhost:8080] [--results answers.jsonl]
python examples/batch_job.py --demo        # 1,000 made-up prompts for the demo engine

Prompts are lines of text, or in a `.jsonl` file lines of JSON: `{"prompt": "..."}` or `{"messages": [...]}`. Each
answer becomes a line of the results file as soon as it is complete: `index` (of the prompt, from 0), the prompt,
`text`, `finish_reason`, `usage`, `timings` and `seconds`, or `error` instead of these. The order is that of their ends.

Ctrl-C finishes the answers under way and stops; a second one stops at once, and so does one before the first request.
The same command goes on with exactly what is missing, also after a crash. Errors are results, too, unless you say
`--retry-errors`. The exit code is 0 if all prompts are answered, 1 if there are errors, 2 for a wrong input, 130 after
Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llamastream import AsyncStreamingClient, LlamaStreamError, launch
from llamastream.errors import (
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    StreamTimeoutError,
    TransportError,
    UnavailableError,
)

Prompt = dict[str, Any]
"""`{"prompt": ...}` or `{"messages": ...}`."""

NOT_OF_THE_PROMPT = (
    AuthenticationError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    StreamTimeoutError,
    TransportError,
    UnavailableError,
)
"""With these (after the client's own retries) the next prompt would fail as well: the job stops, to be resumed."""


class JobError(Exception):
    """The job cannot begin, or not go on; the message says why, and what to do."""


# -- prompts --------------------------------------------------------------------------------------------------


def read_prompts(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028, too
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}; give a file of prompts, or --demo") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None
    as_json = path.suffix.lower() in (".jsonl", ".ndjson")
    prompts = [
        json_prompt(line, f"{path}:{number}") if as_json else {"prompt": line.rstrip("\r")}
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise JobError(f"{path} has no prompts: one in each line is needed")
    return prompts


def json_prompt(line: str, where: str) -> Prompt:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise JobError(
            f'{where} is not JSON ({error}); a line is {{"prompt": "..."}} or {{"messages": [...]}}'
        ) from None
    if isinstance(read, dict):
        for name, kind in (("prompt", str), ("messages", list)):
            if isinstance(read.get(name), kind) and read[name]:
                return {name: read[name]}
    raise JobError(f'{where} has neither a "prompt" that is text nor "messages" that are a list')


def demo_prompts() -> list[Prompt]:
    questions = ("What is a slot?", "What is a token?", "What is streaming?", "What is GGUF?")
    return [{"prompt": f"{questions[number % len(questions)]} ({number + 1})"} for number in range(1000)]


# -- results --------------------------------------------------------------------------------------------------


class Results:
    """The results file: what is answered, and one line for each further answer. Two jobs cannot write to one file."""

    def __init__(self, path: Path, prompts: list[Prompt], *, retry_errors: bool) -> None:
        self.path = path
        self._descriptor = self._open()
        try:
            self.records = dict(self._read(prompts))
            failed = {index for index, record in self.records.items() if "error" in record}
            if retry_errors and failed:
                self.records = {index: record for index, record in self.records.items() if index not in failed}
                self._rewrite()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        try:
            if self.path.exists() and not self.path.is_file():
                raise JobError(f"{self.path} is a directory, device or pipe; name a file with --results")
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JobError(f"{self.path} cannot be written: {error.strerror}; name another with --results") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == self.path.stat().st_ino:
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        raise JobError(f"another job writes to {self.path}; wait for its end, or name another file with --results")

    def _read(self, prompts: list[Prompt]) -> Iterator[tuple[int, dict[str, Any]]]:
        data = self.path.read_bytes()
        whole, end, torn = data.rpartition(b"\n")
        seen: set[int] = set()
        for number, line in enumerate((whole + end).splitlines(), 1):
            try:
                record = json.loads(line)
                index = record["index"]
                known = 0 <= index < len(prompts) and prompts[index].items() <= record.items()
            except (ValueError, TypeError, KeyError):
                raise JobError(f"{self.path}:{number} is no result; name another file with --results") from None
            if not known or index in seen:
                what = "is a second result of" if known else "is not of this job, which has another prompt with"
                raise JobError(f"{self.path}:{number} {what} the index {index}; name another file with --results")
            seen.add(index)
            yield index, record
        if torn and not begins_like_a_record(torn, prompts):
            raise JobError(f"{self.path} does not end in a result; name another file with --results")
        if torn:  # a job was killed while it wrote this line, and only now it is sure that the file is a job's
            os.ftruncate(self._descriptor, len(data) - len(torn))

    def _rewrite(self) -> None:
        """Leave the errors out: the new file takes the place of the old in one step."""
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_bytes(b"".join(map(as_line, self.records.values())))
        descriptor = os.open(new, os.O_RDWR | os.O_APPEND)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fsync(descriptor)
        new.replace(self.path)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def add(self, record: dict[str, Any]) -> None:
        """Append a record: one write, so that a kill leaves all of the line or a torn end, which is repaired."""
        line = as_line(record)
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise JobError(
                f"{self.path} cannot be written: {error.strerror}; mend that, and run the job again"
            ) from None
        if written < len(line):
            raise JobError(f"{self.path} cannot be written: the disk is full; make room, and run the job again")
        self.records[record["index"]] = record

    def close(self) -> None:
        os.close(self._descriptor)


def begins_like_a_record(torn: bytes, prompts: list[Prompt]) -> bool:
    """Whether a line without an end may be one of this job's, of which the rest was not written."""
    begins = (f'{{"index": {index}, "{next(iter(prompt))}": '.encode() for index, prompt in enumerate(prompts))
    return torn.startswith(b'{"index"') and any(torn[: len(begin)] == begin[: len(torn)] for begin in begins)


def as_line(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(record).encode() + b"\n"


# -- the job --------------------------------------------------------------------------------------------------


class Job:
    """Some workers, each with one prompt at a time."""

    def __init__(self, prompts: list[Prompt], results: Results, body: dict[str, Any], progress: Progress) -> None:
        self.stopping = False
        self.new = 0
        self.tokens = 0
        self.started = time.monotonic()
        self._prompts = prompts
        self._results = results
        self._body = body
        self._progress = progress
        self._bar = progress.add_task("", total=len(prompts), completed=len(results.records), speed="")
        self._missing = iter([index for index in range(len(prompts)) if index not in results.records])
        self._whole = asyncio.current_task()
        self._workers: list[asyncio.Task[None]] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    async def run(self, client: AsyncStreamingClient, concurrency: int) -> None:
        self._workers = [asyncio.create_task(self._work(client)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*self._workers)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)

    def interrupt(self) -> None:
        """Ctrl-C: the first time, no further prompt is taken; the second time, the answers under way are left.

        Before there are any (the server has not even said how many slots it has), there is nothing to wait for.
        """
        at_once, self.stopping = self.stopping or not self._workers, True
        if not at_once:
            self._progress.console.print("finishing the answers under way; Ctrl-C again stops at once")
        elif self._workers:
            for worker in self._workers:
                worker.cancel()
        elif self._whole is not None:
            self._whole.cancel()

    async def _work(self, client: AsyncStreamingClient) -> None:
        for index in self._missing:
            prompt = self._prompts[index]
            try:
                told = await self._answer(client, prompt)
            except NOT_OF_THE_PROMPT as error:
                raise JobError(f"{error}; run the job again when that is mended, it goes on where it is") from error
            except LlamaStreamError as error:
                told = {"error": {"name": type(error).__name__, "message": error.message, "status": error.status}}
            self._results.add({"index": index, **prompt, **told})
            self.new += 1
            self._show()
            if self.stopping:
                return

    async def _answer(self, client: AsyncStreamingClient, prompt: Prompt) -> dict[str, Any]:
        messages = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
        began = time.monotonic()
        stream = client.stream_chat(messages, **self._body)
        async for _ in stream:
            self.tokens += 1  # a piece is a token, nearly always; the server's count replaces it at the end
        result = await stream.result()
        if result.usage is not None:
            self.tokens += result.usage.completion_tokens - result.stats.chunks
        return {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "usage": None if result.usage is None else msgspec.structs.asdict(result.usage),
            "timings": None if result.timings is None else msgspec.structs.asdict(result.timings),
            "seconds": round(time.monotonic() - began, 3),
        }

    def _show(self) -> None:
        speed = f"{self.tokens / max(self.seconds, 0.001):,.0f} tokens/s"
        self._progress.update(self._bar, completed=len(self._results.records), speed=speed)


async def slots(client: AsyncStreamingClient) -> int:
    """How many answers the server generates at once."""
    try:
        return int((await client.props()).get("total_slots") or 1)
    except NotFoundError:
        return 1  # no llama-server, or one behind something that hides this


async def run(url: str, prompts: list[Prompt], results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
    async with AsyncStreamingClient(url) as client:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            job = Job(prompts, results, body, progress)
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, job.interrupt)
            concurrency = arguments.concurrency
            with contextlib.suppress(asyncio.CancelledError):
                concurrency = concurrency or await slots(client)
                await job.run(client, concurrency)
    errors = sum("error" in record for record in results.records.values())
    return {
        "prompts": len(prompts), "answered": len(results.records) - errors, "errors": errors,
        "missing": len(prompts) - len(results.records), "new": job.new, "interrupted": job.stopping,
        "seconds": round(job.seconds, 3), "tokens": job.tokens,
        "tokens_per_second": round(job.tokens / max(job.seconds, 0.001), 1), "concurrency": concurrency,
        "results": str(results.path),
    }  # fmt: skip


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer each prompt of a file; run it again to go on.")
    parser.add_argument("prompts", type=Path, nargs="?", help="lines of text, or .jsonl")
    parser.add_argument("--demo", action="store_true", help="1,000 made-up prompts instead of a file")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    parser.add_argument("--results", type=Path, help="the results file (default: the prompts' name and .results.jsonl)")
    parser.add_argument("--concurrency", type=int, help="answers at once (default: the server's slots)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of each answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    parser.add_argument("--retry-errors", action="store_true", help="answer again what ended in an error")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")
    arguments = parser.parse_args(words)
    if arguments.demo == (arguments.prompts is not None):
        parser.error("give a file of prompts, or --demo")
    for name, value in (("--concurrency", arguments.concurrency), ("--max-tokens", arguments.max_tokens)):
        if value is not None and value < 1:
            parser.error(f"{name} must be a whole number from 1 upwards, not {value}")
    if not 0 <= arguments.temperature < math.inf:
        parser.error(f"--temperature must be a number from 0 upwards, not {arguments.temperature}")
    if arguments.results is None:
        prompts = arguments.prompts or Path("demo")
        arguments.results = prompts.with_name(f"{prompts.name}.results.jsonl")
    if arguments.prompts is not None and same_file(arguments.prompts, arguments.results):
        parser.error("--results names the file of the prompts itself")
    return arguments


def same_file(one: Path, other: Path) -> bool:
    """Also by another name: a symbolic or a hard link."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist yet, or cannot be looked at
        return one.absolute() == other.absolute()


def say(*lines: str) -> None:
    """Print; nobody need be there to read it (`| head`)."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at its end


def main() -> int:
    arguments = parse()
    try:
        prompts = demo_prompts() if arguments.demo else read_prompts(arguments.prompts)
        results = Results(arguments.results, prompts, retry_errors=arguments.retry_errors)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if arguments.url:
            summary = asyncio.run(run(arguments.url, prompts, results, arguments))
        else:
            with launch() as engine:
                summary = asyncio.run(run(engine.url, prompts, results, arguments))
    except (JobError, LlamaStreamError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first answer, or after the last
        return 128 + signal.SIGINT
    finally:
        results.close()
    if arguments.json:
        say(json.dumps(summary))
    else:
        say(
            "{answered} of {prompts} answered, {errors} errors, {missing} missing ({new} new)".format(**summary),
            "{tokens} tokens in {seconds:.2f} s: {tokens_per_second:.0f} tokens/s in all".format(**summary),
            str(arguments.results),
        )
    return 128 + signal.SIGINT if summary["interrupted"] else 1 if summary["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
