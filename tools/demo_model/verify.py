"""Checks the demo model on a real server: every answer word for word, in many surroundings, at temperature 0."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.demo_model.cases import SCHEMAS, SYSTEM_PROMPTS, TICKET, UNKNOWN, WEATHER
from tools.demo_model.client import Client, Message
from tools.demo_model.report import Report, assistant, first_difference, system, user

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "src" / "llamastream" / "engine" / "data" / "demo.gguf"


class Verifier(Report):
    """Runs the checks against one server."""

    def __init__(self, client: Client, manifest: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.client = client
        self.answers: list[dict[str, Any]] = manifest["answers"]
        self.fallback: dict[str, str] = manifest["fallback"]
        self.rng = random.Random(seed)

    def asks(self, messages: list[Message], expected: str, stream: bool = False) -> Callable[[], str | None]:
        """A case: these messages must lead to exactly this answer."""

        def case() -> str | None:
            got = self.client.chat(messages, stream=stream, max_tokens=1200)
            return None if got == expected else f"{messages[-1]['content']!r} {first_difference(expected, got)}"

        return case

    def history(self, turns: int) -> list[Message]:
        """Earlier turns drawn at random."""
        messages: list[Message] = []
        for entry in self.rng.sample(self.answers, turns):
            messages += [user(entry["question"]), assistant(entry["answer"])]
        return messages

    def questions(self) -> None:
        """Every question in every surrounding."""
        self.run("alone", [self.asks([user(e["question"])], e["answer"]) for e in self.answers])
        self.run(
            "other phrasings",
            [self.asks([user(question)], e["answer"]) for e in self.answers for question in e["also"]],
            0.99,
        )
        self.run(
            "lower case, no punctuation",
            [self.asks([user(e["question"].lower().rstrip("?.!"))], e["answer"]) for e in self.answers],
            0.99,
        )
        for number, prompt in enumerate(SYSTEM_PROMPTS, 1):
            cases = [self.asks([system(prompt), user(e["question"])], e["answer"]) for e in self.answers]
            self.run(f"with system prompt {number}", cases, 0.99)
        for turn in (2, 4):
            cases = [self.asks([*self.history(turn - 1), user(e["question"])], e["answer"]) for e in self.answers]
            self.run(f"as turn {turn}", cases, 0.99)
        sailor = system(SYSTEM_PROMPTS[1])
        cases = [self.asks([sailor, *self.history(2), user(e["question"])], e["answer"]) for e in self.answers]
        self.run("with system prompt, as turn 3", cases, 0.99)
        cases = [self.asks([user(e["question"])], e["answer"], stream=True) for e in self.answers * 2]
        self.rng.shuffle(cases)
        self.run("8 at a time, streamed", cases, 1.0, workers=8)
        cases = [self.asks([*self.history(2), user(e["question"])], e["answer"], stream=True) for e in self.answers]
        self.run("8 at a time, streamed, as turn 3", cases, 0.99, workers=8)
        for tokens in (1500, 5000):
            cases = []
            for entry in self.answers:
                messages: list[Message] = []
                while self.client.count(messages) < tokens:
                    messages += self.history(1)
                cases.append(self.asks([*messages, user(entry["question"])], entry["answer"]))
            self.run(f"after {tokens} tokens of conversation", cases, 0.99)
        cases = [self.asks([user(question)], self.fallback[language]) for question, language in UNKNOWN]
        self.run("unknown questions get the fallback", cases, 0.9)

    def continuations(self, count: int) -> None:
        """An answer cut anywhere goes on from there."""

        def case(entry: dict[str, Any], cut: int, before: list[Message]) -> Callable[[], str | None]:
            start, rest = entry["answer"][:cut], entry["answer"][cut:]

            def run() -> str | None:
                messages = [*before, user(entry["question"]), assistant(start)]
                got = self.client.chat(
                    messages, max_tokens=1200, continue_final_message=True, add_generation_prompt=False
                )
                # Without streaming the server answers with the whole message, the given beginning included.
                got = got.removeprefix(start)
                return None if got == rest else f"{entry['question']!r} cut {cut} {first_difference(rest, got)}"

            return run

        surroundings: list[tuple[str, list[Message] | None]] = [
            ("continued after a cut anywhere", []),
            ("continued after a cut anywhere, system prompt", [system(SYSTEM_PROMPTS[1])]),
            ("continued after a cut anywhere, as turn 2", None),
        ]
        for name, before in surroundings:
            cases = []
            for _ in range(count):
                entry = self.rng.choice(self.answers)
                cut = self.rng.randrange(1, len(entry["answer"]))
                cases.append(case(entry, cut, self.history(1) if before is None else before))
            self.run(name, cases, 1.0)

    def interruptions(self, count: int) -> None:
        """A stream that broke between two tokens goes on from there; this is what recovery does."""

        def case(entry: dict[str, Any], start: str, before: list[Message]) -> Callable[[], str | None]:
            def run() -> str | None:
                messages = [*before, user(entry["question"]), assistant(start)]
                options = {"continue_final_message": True, "add_generation_prompt": False}
                got = start + self.client.chat(messages, stream=True, max_tokens=1200, **options)
                expected = entry["answer"]
                return None if got == expected else f"{entry['question']!r} {first_difference(expected, got)}"

            return run

        cases: list[Callable[[], str | None]] = []
        while len(cases) < count:
            entry = self.rng.choice(self.answers)
            pieces = self.client.pieces(entry["answer"])
            kept = pieces[: self.rng.randrange(1, len(pieces))]
            # Only whole characters reach a client, so a break inside one cannot be seen from outside.
            if None not in kept:
                before = self.history(1) if len(cases) % 2 else []
                cases.append(case(entry, "".join(piece or "" for piece in kept), before))
        self.run("continued after a break between tokens", cases, 1.0)

    def raw_text(self) -> None:
        """Stories go on from their first words without any chat template."""

        def case(answer: str, words: int) -> Callable[[], str | None]:
            start = " ".join(answer.split(" ")[:words])

            def run() -> str | None:
                got = self.client.complete(start, 1200)
                return None if start + got == answer else f"{start!r} {first_difference(answer, start + got)}"

            return run

        self.run("raw text", [case(e["answer"], words) for e in self.answers if e["raw"] for words in (4, 9, 40)], 0.9)

    def structured(self) -> None:
        """JSON under a schema, and tool calls."""

        def schema(question: str, form: dict[str, Any], temperature: float) -> Callable[[], str | None]:
            def run() -> str | None:
                wrapped = {"type": "json_schema", "json_schema": {"name": "form", "schema": form}}
                got = self.client.chat(
                    [user(question)], max_tokens=300, temperature=temperature, seed=7, response_format=wrapped
                )
                try:
                    value = json.loads(got)
                except ValueError:
                    return f"{question!r} not JSON: {got[:150]!r}"
                return None if set(form["required"]) <= set(value) else f"{question!r} incomplete: {got[:150]!r}"

            return run

        questions = [entry["question"] for entry in self.answers]
        for temperature in (0.0, 0.8):
            cases = [schema(question, form, temperature) for form in SCHEMAS for question in questions[::4]]
            cases += [schema("Describe a person in JSON.", form, temperature) for form in SCHEMAS]
            self.run(f"JSON schema, temperature {temperature}", cases, 1.0 if temperature == 0 else 0.97)

        def call(
            question: str, tools: list[Any], city: str | None, stream: bool, **options: Any
        ) -> Callable[[], str | None]:
            def run() -> str | None:
                name, text = self.client.tool_call(
                    [user(question)], stream=stream, tools=tools, max_tokens=1200, **options
                )
                try:
                    value = json.loads(text)
                except ValueError:
                    return f"{question!r} arguments of {name!r} are no JSON: {text[:150]!r}"
                if city is not None and (name, value) != ("get_weather", {"city": city}):
                    return f"{question!r} called {name!r} with {text[:150]!r}"
                return None

            return run

        cities = ("Berlin", "Paris", "Tokyo", "Lisbon", "San Francisco", "Hamburg", "Lima", "Oslo")
        for choice in ("auto", "required"):
            for stream in (False, True):
                cases = [
                    call(f"What is the weather in {city}?", tools, city, stream, tool_choice=choice)
                    for city in cities
                    for tools in ([WEATHER], [TICKET, WEATHER])
                ]
                self.run(f"tool call, {choice}{', streamed' if stream else ''}", cases, 0.9)
        cases = [call(question, [TICKET], None, True, tool_choice="required") for question in questions[::3]]
        cases += [call(q, [WEATHER], None, True, tool_choice="required", temperature=0.8) for q in questions[::3]]
        self.run("tool call forced on any question", cases, 1.0)

        def plain(entry: dict[str, Any]) -> Callable[[], str | None]:
            def run() -> str | None:
                got = self.client.chat([user(entry["question"])], tools=[WEATHER], max_tokens=1200)
                expected = entry["answer"]
                return None if got == expected else f"{entry['question']!r} {first_difference(expected, got)}"

            return run

        self.run("tools offered but not needed", [plain(entry) for entry in self.answers], 0.97)

    def speed(self) -> None:
        """Tokens per second of one stream and of four."""
        longest = max(self.answers, key=lambda entry: len(entry["answer"]))
        for streams in (1, 4):
            began = time.monotonic()
            with ThreadPoolExecutor(streams) as pool:
                usages = list(pool.map(lambda _: self.client.usage([user(longest["question"])]), range(streams)))
            seconds = time.monotonic() - began
            print(f"speed: {streams} stream(s) {sum(usages) / seconds:.0f} tokens/s")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="GGUF file, with its manifest beside it")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the package xllamacpp")
    parser.add_argument("--cuts", type=int, default=60, help="random cuts per continuation check")
    parser.add_argument("--threads", type=int, default=2, help="processor threads of the server")
    parser.add_argument("--seed", type=int, default=11, help="seed of the random surroundings")
    arguments = parser.parse_args()
    manifest = json.loads(arguments.model.with_suffix(".json").read_text("utf-8"))
    command = [arguments.python, str(HERE / "server.py"), str(arguments.model), "--threads", str(arguments.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        verifier = Verifier(Client(process.stdout.readline().strip()), manifest, arguments.seed)
        verifier.questions()
        verifier.interruptions(2 * arguments.cuts)
        verifier.continuations(arguments.cuts)
        verifier.raw_text()
        verifier.structured()
        verifier.speed()
        assert process.stdin is not None
        process.stdin.close()
    failed = [check.name for check in verifier.checks if not check.good]
    print(f"FAILED: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
