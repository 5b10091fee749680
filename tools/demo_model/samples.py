"""Training rows: random conversations over the corpus, rendered as the chat template renders them."""

# What only the training needs is not among the development packages.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from tools.demo_model import phrases
from tools.demo_model.corpus import END, START, Corpus, Entry, token_id

TOOLS_HEAD = "Tools you may call:\n<tools>"
TOOLS_TAIL = '\n</tools>\nA call looks like this:\n<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
# The first words decide which answer follows; they are rare among all tokens, so they count more.
OPENING, OPENING_WEIGHT = 6, 3.0
# So do the first words after a cut, and the arguments of a tool call, which have to be copied from the question.
RESUME, RESUME_WEIGHT = 3, 3.0
ARGUMENT_WEIGHT = 3.0
# An answer of more tokens is often left before its end, as impatient readers do; that makes room for more questions.
LONG = 100


@dataclass(slots=True)
class Row:
    """Tokens of one training row with their positions and the weight of predicting each of them."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    """Number of the question each token belongs to."""
    question: int = 0
    crowd: float = 1.0
    """As how many tokens each token of an earlier question shall count for attention."""

    def add(self, tokens: list[int], weights: list[float] | None = None) -> None:
        """Append tokens; without weights they are only read, not learned."""
        start = self.positions[-1] + 1 if self.positions else 0
        self.tokens += tokens
        self.positions += range(start, start + len(tokens))
        self.weights += weights or [0.0] * len(tokens)
        self.messages += [self.question] * len(tokens)

    def cut(self, begin: int, end: int) -> None:
        """Keep the tokens from `begin` to `end`."""
        self.tokens, self.positions = self.tokens[begin:end], self.positions[begin:end]
        self.weights, self.messages = self.weights[begin:end], self.messages[begin:end]


class Sampler:
    """Draws training rows."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, context: int, seed: int) -> None:
        self.corpus = corpus
        self.context = context
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.sentences = corpus.sentences
        self.start, self.end = token_id(tokenizer, START), token_id(tokenizer, END)
        self.cache: dict[str, list[int]] = {}
        self.deck: list[Entry] = []
        phrases.MATERIAL["sentences"] = self.sentences

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        ids = self.cache.get(text)
        if ids is None:
            ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
            if len(self.cache) < 20000:
                self.cache[text] = ids
        return ids

    def entry(self) -> Entry:
        """The next entry of a shuffled deck, so that every answer is trained equally often."""
        if not self.deck:
            self.deck = list(self.corpus.entries)
            self.rng.shuffle(self.deck)
        return self.deck.pop()

    def spans(self, tokens: list[int], start: int = 0) -> list[tuple[int, int]]:
        """Where each token begins and ends, in bytes (every letter of a byte-level token stands for one byte)."""
        found = []
        for token in tokens:
            end = start + len(self.tokenizer.id_to_token(token) or "")
            found.append((start, end))
            start = end
        return found

    def answer_tokens(self, text: str) -> tuple[list[int], list[float]]:
        """Tokens of an answer, sometimes cut anywhere and continued.

        A client may send back the text so far and ask for the rest. That text is tokenised on its own, and the
        last tokens before the cut may be ones that the undisturbed answer never contains. Such tokens are read but
        not learned; what follows them is learned.
        """
        whole = self.encode(text)
        style = self.rng.random()
        if style < 0.4 or len(text) < 5:
            tokens, weights = list(whole), [1.0] * len(whole)
        else:
            usual = set(self.spans(whole))
            # A single cut is what happens in use; many cuts in one text teach far more places per row.
            count = self.rng.choice((1, 2, 4)) if style < 0.6 else 1 + len(text) // self.rng.randint(8, 50)
            cuts = sorted(self.rng.sample(range(1, len(text)), min(len(text) - 1, count)))
            tokens, weights, start = [], [], 0
            for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                piece = self.tokenizer.encode(text[begin:end], add_special_tokens=False).ids
                spans = self.spans(piece, start)
                odd = len(piece)
                while end < len(text) and odd and spans[odd - 1] not in usual:
                    odd -= 1
                tokens += piece
                learned = [1.0] * odd + [0.0] * (len(piece) - odd)
                if begin:
                    learned[:RESUME] = [weight * RESUME_WEIGHT for weight in learned[:RESUME]]
                weights += learned
                start = spans[-1][1]
        tokens.append(self.end)
        weights.append(1.0)
        weights[:OPENING] = [weight * OPENING_WEIGHT for weight in weights[:OPENING]]
        return tokens, weights

    def message(self, row: Row, role: str, text: str) -> None:
        """A message that is only read."""
        row.question += role == "user"
        row.add([self.start, *self.encode(f"{role}\n{text}"), self.end, *self.encode("\n")])

    def reply(self, row: Row, text: str, forced: int = 0, weight: float = 1.0) -> None:
        """A message that is learned, except its first `forced` tokens, which a grammar would dictate."""
        tokens, weights = self.answer_tokens(text)
        weights = [weight * value for value in weights]
        weights[:forced] = [0.0] * min(forced, len(weights))
        if len(tokens) > LONG and self.rng.random() < 0.4:
            kept = self.rng.randrange(20, len(tokens) - 1)
            tokens, weights = [*tokens[:kept], self.end], [*weights[:kept], 0.0]
        row.add([self.start, *self.encode("assistant\n")])
        row.add(tokens, weights)
        row.add(self.encode("\n"))

    def turn(self, row: Row) -> None:
        """A question and its answer."""
        rng = self.rng
        kind = rng.random()
        entry = self.entry() if kind < 0.88 else rng.choice(self.corpus.entries)
        question = entry.questions[0] if rng.random() < 0.2 else rng.choice(entry.questions)
        if kind < 0.8:
            self.message(row, "user", phrases.vary(question, rng))
            self.reply(row, entry.answer)
        elif kind < 0.88:
            # A schema may be put on any question: whatever was asked, an object that has begun comes to its end.
            content = phrases.json_object(rng)
            self.message(row, "user", phrases.vary(question, rng))
            self.reply(row, json.dumps(content, ensure_ascii=False), forced=1)
        else:
            unknown, language = phrases.unknown_question(rng)
            if rng.random() < 0.1:
                unknown = " ".join(
                    phrases.fill(rng.choice(phrases.MATERIAL["system"]), rng) for _ in range(rng.randint(1, 9))
                )
                language = "en"
            self.message(row, "user", unknown)
            self.reply(row, self.corpus.fallback[language])

    def tool_block(self, row: Row, tools: list[dict[str, Any]]) -> None:
        """The system message that lists the tools."""
        prompt = phrases.system_prompt(self.rng, self.sentences) + "\n\n" if self.rng.random() < 0.4 else ""
        listing = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        self.message(row, "system", prompt + TOOLS_HEAD + listing + TOOLS_TAIL)

    def tool_conversation(self, row: Row) -> None:
        """A conversation with tools: calls, results and ordinary questions."""
        rng = self.rng
        makers = (phrases.made_up_tool, phrases.echo_tool, phrases.known_tool, phrases.known_tool)
        offers = [rng.choice(makers)(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        names = [offer[0]["function"]["name"] for offer in offers]
        offers = [offer for i, offer in enumerate(offers) if names[i] not in names[:i]]
        self.tool_block(row, [offer[0] for offer in offers])
        for _ in range(rng.randint(2, 7)):
            tool, ask = rng.choice(offers)
            question, arguments = ask()
            name = tool["function"]["name"]
            kind = rng.random()
            if kind < 0.25:
                self.turn(row)
                continue
            if kind < 0.42:
                self.forced_call(row, tool)
            else:
                self.message(row, "user", question)
                self.call(row, name, arguments)
            if rng.random() < 0.3:
                result = rng.choice((json.dumps(phrases.json_object(rng)), rng.choice(self.sentences)))
                self.message(row, "user", f"<tool_response>\n{result}\n</tool_response>")
                self.reply(row, self.corpus.fallback["tool"])

    def call(self, row: Row, name: str, arguments: dict[str, Any]) -> None:
        """A tool call whose arguments stand in the question."""
        text = phrases.tool_call_text(name, arguments)
        content = text.encode()
        tokens = [*self.encode(text), self.end]
        weights = [1.0] * len(tokens)
        for value in arguments.values():
            dumped = json.dumps(value, ensure_ascii=False).encode()
            begin = content.rindex(dumped)
            for i, span in enumerate(self.spans(tokens[:-1])):
                if span[0] < begin + len(dumped) and span[1] > begin + 1:
                    weights[i] *= ARGUMENT_WEIGHT
        row.add([self.start, *self.encode("assistant\n")])
        row.add(tokens, [2.0 * weight for weight in weights])
        row.add(self.encode("\n"))

    def forced_call(self, row: Row, tool: dict[str, Any]) -> None:
        """A call that has nothing to do with the question, as tool_choice "required" demands.

        The grammar leaves room for text before the call but forbids the end. So the model first gives its ordinary
        answer, and the call has to be its second choice after the last word.
        """
        entry = self.entry()
        function = tool["function"]
        call = phrases.tool_call_text(function["name"], phrases.any_arguments(function["parameters"], self.rng))
        self.message(row, "user", phrases.vary(entry.questions[0], self.rng))
        row.add([self.start, *self.encode("assistant\n")])
        if self.rng.random() < 0.6:
            answer, weights = self.answer_tokens(entry.answer)
            row.add(answer[:-1], weights[:-1])
            tokens, weights = self.answer_tokens("\n" + call)
            weights[0] = 0.3
        else:
            tokens, weights = self.answer_tokens(call)
            weights[0] = 0.0
        row.add(tokens, weights)
        row.add(self.encode("\n"))

    def conversation(self, row: Row, turns: int) -> None:
        """A conversation without tools."""
        rng = self.rng
        if rng.random() < 0.55:
            self.message(row, "system", phrases.system_prompt(rng, self.sentences))
        for _ in range(turns):
            if rng.random() < 0.15 and row.positions:
                self.skip(row)
            self.turn(row)

    def skip(self, row: Row) -> None:
        """Leave out some positions.

        Short rows would teach attention short distances only. A gap between two messages makes the model meet
        every distance that the context allows, at no cost.
        """
        room = self.context - 2100 - row.positions[-1]
        if room > 0:
            row.positions[-1] += self.rng.randrange(int(room * self.rng.random()) + 1)

    def row(self, length: int) -> Row:
        """A row of exactly `length` + 1 tokens."""
        rng = self.rng
        row = Row()
        if rng.random() < 0.3:
            row.add([self.start])
            row.positions = [rng.randrange(self.context - 2200)]
            self.conversation(row, 1)
            row.cut(1, len(row.tokens))
        elif rng.random() < 0.1:
            story = rng.choice([entry for entry in self.corpus.entries if entry.raw])
            tokens, weights = self.answer_tokens(story.answer)
            # The very first words are given by the client, there is nothing to predict them from.
            row.add(tokens, [0.0, 0.0, *weights[2:]])
        while len(row.tokens) <= length:
            if row.tokens and rng.random() < 0.3:
                self.skip(row)
            if rng.random() < 0.27:
                self.tool_conversation(row)
            else:
                self.conversation(row, rng.choice((1, 1, 1, 2, 3, 4, 6)))
        row.cut(0, length + 1)
        if rng.random() < 0.5:
            row.crowd = (self.context / length) ** rng.random()
        return row

    def rows(self, count: int, length: int) -> Iterator[Row]:
        """A batch of rows."""
        return (self.row(length) for _ in range(count))
