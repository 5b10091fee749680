"""What is asked: prompts of a wanted length that no cache knows, conversations, and prompts from a file. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.bench.lengths import Lengths
from llamastream.errors import SettingError

TOKENS_PER_WORD = 1.35
"""Where the server does not count tokens: what English text has in common vocabularies."""

_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my "
    "now over such our man even most made after also well many must before back through years where much your "
    "way down should because long each just state people those too good little world still see own work day "
    "men get here between life being under never same another know while last might us great old year off "
    "come since go against came right used take three "
)
_WORDS = tuple(_TEXT.split())


class Prompt(Struct, frozen=True):
    """One request.

    Attributes:
        messages: of a chat; empty where `text` is to be continued. max_tokens: None: no limit of its own.
    """

    messages: tuple[dict[str, Any], ...] = ()
    text: str = ""
    max_tokens: int | None = None


class Calibration(Struct, frozen=True):
    """How long a prompt of words is in tokens: `overhead` (the template) and so much for each word."""

    overhead: float = 0.0
    per_word: float = TOKENS_PER_WORD

    def words(self, tokens: int) -> int:
        """How many words make that many tokens, the template not counted."""
        return max(1, round(tokens / self.per_word))


def calibrate(short: tuple[int, int], long: tuple[int, int]) -> Calibration:
    """From two prompts, each as its words and its tokens."""
    (words, tokens), (more_words, more_tokens) = short, long
    if more_tokens <= tokens or more_words <= words:
        return Calibration()
    per_word = (more_tokens - tokens) / (more_words - words)
    return Calibration(max(0.0, tokens - per_word * words), per_word)


def some_words(count: int, chance: random.Random) -> str:
    """A text of words at random."""
    return " ".join(chance.choices(_WORDS, k=count))


class Conversation:
    """A made-up conversation: `next` gives the request of each turn, told what was answered to the one before."""

    def __init__(self, prefix: str, turns: Sequence[tuple[str, int]]) -> None:
        """Args:
        prefix: the system prompt, or "". turns: text of the user and `max_tokens` of each turn.
        """
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": prefix}] if prefix else []
        self._turns = list(turns)

    def next(self, answer: str | None) -> Prompt | None:
        """The next turn; None after the last.

        Args:
            answer: to the turn before; None at the beginning.
        """
        if answer is not None:
            self._messages.append({"role": "assistant", "content": answer})
        if not self._turns:
            return None
        text, max_tokens = self._turns.pop(0)
        self._messages.append({"role": "user", "content": text})
        return Prompt(messages=tuple(self._messages), max_tokens=max_tokens)


class Single:
    """A prompt of a file, as a conversation of one turn."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt: Prompt | None = prompt

    def next(self, answer: str | None) -> Prompt | None:  # as Conversation
        """The prompt, then None."""
        prompt, self._prompt = self._prompt, None
        return prompt


class Workload(Struct, frozen=True):
    """Where the requests of a measurement come from.

    Attributes:
        prompt, output: lengths in tokens. shared_prefix: tokens of the common system prompt. turns: of a conversation.
        prompts: of a file; empty: they are made up. seed: of the lengths: the same seed asks as much.
        nonce: of the words: another one for each measurement, since a server may well remember the prompts of the last.
    """

    prompt: Lengths
    output: Lengths
    shared_prefix: int = 0
    turns: int = 1
    prompts: tuple[Prompt, ...] = ()
    seed: int = 1
    nonce: str = ""
    calibration: Calibration = Calibration()

    def conversation(self, key: str, number: int) -> Conversation | Single:
        """The conversation `number` of a load and repeat, which `key` names. No two give the same prompts."""
        chance = random.Random(f"{self.seed} {key} {number}")
        if self.prompts:
            prompt = self.prompts[number % len(self.prompts)]
            if prompt.max_tokens is None:
                prompt = msgspec.structs.replace(prompt, max_tokens=self.output.draw(chance))
            return Single(prompt)
        prefix = ""
        if self.shared_prefix:
            prefix = some_words(self.calibration.words(self.shared_prefix), random.Random(f"{self.nonce} prefix"))
        wording = random.Random(f"{self.nonce} {key} {number}")
        turns = []
        for _ in range(self.turns):
            tokens = self.prompt.draw(chance)
            turns.append((some_words(self.calibration.words(tokens), wording), self.output.draw(chance)))
        return Conversation(prefix, turns)


def parse_prompts(text: str, source: str) -> tuple[Prompt, ...]:
    """The prompts of a JSON Lines file; empty lines are skipped.

    Raises:
        SettingError: a line is none of what is allowed, or there is none; the message names file and line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            found.append(_parse_line(line, f"{source}, line {number}"))
    if not found:
        raise SettingError(f"{source} has no prompts: each line is {_ALLOWED}")
    return tuple(found)


_ALLOWED = 'a JSON string, or an object with "messages" (a list) or "prompt" (a string), and perhaps "max_tokens"'


class _Line(Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    max_tokens: int | None = None


def _parse_line(line: str, where: str) -> Prompt:
    try:
        read = msgspec.json.decode(line.encode(), type=str | _Line)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise SettingError(f"{where}: {error}; allowed: {_ALLOWED}") from None
    if isinstance(read, str):
        read = _Line(messages=[{"role": "user", "content": read}])
    if (read.messages is None) == (read.prompt is None):
        raise SettingError(f"{where} must have one of messages and prompt; allowed: {_ALLOWED}")
    if read.max_tokens is not None and read.max_tokens < 1:
        raise SettingError(f"{where}: max_tokens is {read.max_tokens}; allowed: a whole number from 1")
    if read.messages is not None:
        if not read.messages:
            raise SettingError(f"{where}: messages is empty; allowed: {_ALLOWED}")
        return Prompt(messages=tuple(read.messages), max_tokens=read.max_tokens)
    return Prompt(text=read.prompt or "", max_tokens=read.max_tokens)
