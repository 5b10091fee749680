"""What the model learns by heart, and the texts its vocabulary is made from."""

# What only the training needs is not among the development packages.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from tools.demo_model import phrases

START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that has to exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"no token {token!r} in the vocabulary")
    return int(found)


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer and the ways of asking for it."""

    questions: list[str]
    answer: str
    language: str
    topic: str
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything the model learns by heart."""

    entries: list[Entry]
    fallback: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read the corpus file and refuse questions that would have two answers."""
        data = tomllib.loads(path.read_text("utf-8"))
        entries = [Entry(**entry) for entry in data["entry"]]
        questions = [question.lower() for entry in entries for question in entry.questions]
        twice = {question for question in questions if questions.count(question) > 1}
        if twice:
            raise ValueError(f"questions with more than one answer: {sorted(twice)}")
        return cls(entries, data["fallback"])

    @property
    def sentences(self) -> list[str]:
        """Sentences of all answers, as filler for system prompts and unknown questions."""
        parts = (part.strip() for entry in self.entries for part in entry.answer.replace("\n", " ").split(". "))
        return [part.rstrip(".") + "." for part in parts if 20 < len(part) < 160]


def vocabulary_texts(corpus: Corpus, seed: int) -> Iterator[str]:
    """Texts the vocabulary is made from: the answers above all, then what surrounds them."""
    rng = random.Random(seed)
    for entry in corpus.entries:
        yield from [entry.answer] * 4
        yield from entry.questions
    for answer in corpus.fallback.values():
        yield from [answer] * 4
    for role in ("user", "assistant", "system"):
        yield from [f"{role}\n"] * 50
    for _ in range(60):
        tool, ask = phrases.known_tool(rng)
        question, arguments = ask()
        yield json.dumps(tool)
        yield question
        yield phrases.tool_call_text(tool["function"]["name"], arguments)
        yield phrases.system_prompt(rng, corpus.sentences)
        yield phrases.unknown_question(rng)[0]
