"""What is to be expected of an instance: how much of a prompt it has in its cache, and when a first token comes."""

from __future__ import annotations

from msgspec.structs import replace

from llamastream.policy.destinations import Decision, Instance
from llamastream.policy.prefixes import NOTHING, Held, PrefixIndex, Prompt
from llamastream.policy.speeds import Speeds

OVERHEAD = 0.005
"""Seconds that an answer takes to begin however short its prompt is."""
DECODE_LOAD = 0.03
"""By so much each other request at work slows a prefill down: it has a token in each batch."""


class Expectation:
    """Expects by what is known: the index of prompts, and the speeds."""

    def __init__(self, index: PrefixIndex, speeds: Speeds) -> None:
        self._index = index
        self._speeds = speeds

    def tokens(self, prompt: Prompt) -> float:
        """How many tokens a prompt has, by its characters."""
        return prompt.characters * self._speeds.tokens_per_character.value

    def of(self, instance: Instance, prompt: Prompt, now: float, reason: str = "") -> Decision:
        """What a request that goes there now has to expect, if there is a free slot."""
        held = self.held(instance, prompt)
        tokens = self.tokens(prompt)
        sure, hoped = self.sure_and_hoped(prompt, held)
        cached = sure + held.likely * (hoped - sure)
        backlog = max(0.0, instance.read_at - now) if instance.reading else 0.0
        seconds = OVERHEAD + backlog + self.reading(instance, tokens - cached)
        return Decision(instance.number, reason, 0.0, seconds, tokens, cached, held)

    def held(self, instance: Instance, prompt: Prompt) -> Held:
        """What an instance was given of a prompt; in a slot of which it is known, it is there for certain."""
        if not prompt.chain:
            return NOTHING
        held = self._index.held(instance.number, prompt)
        seats = instance.seats
        if seats is not None and held.parts and seats.holds(prompt.chain[held.parts - 1]):
            return Held(held.parts, held.parts, 0, 1.0, held.answer)
        return held

    def cached(self, prompt: Prompt, held: Held) -> float:
        """How many tokens of a prompt come from the cache."""
        sure, hoped = self.sure_and_hoped(prompt, held)
        return sure + held.likely * (hoped - sure)

    def sure_and_hoped(self, prompt: Prompt, held: Held) -> tuple[float, float]:
        """Tokens of a prompt that an instance has for certain, and if nothing was lost."""
        if not held.parts:
            return 0.0, 0.0
        ends, ratio = prompt.ends, self._speeds.tokens_per_character.value
        hoped = float(ends[held.parts - 1])
        if held.answer and held.parts < len(ends):
            hoped += min(held.answer / ratio, ends[held.parts] - hoped)
        sure = float(ends[held.shared - 1]) if held.shared else 0.0
        return (hoped if held.shared == held.parts else sure) * ratio, hoped * ratio

    def reading(self, instance: Instance, tokens: float) -> float:
        """Seconds to read so many tokens."""
        others = max(0, instance.load - instance.reading)
        return max(1.0, tokens) * self.pace(instance) * (1.0 + DECODE_LOAD * others)

    def pace(self, instance: Instance) -> float:
        """Seconds for a token of a prompt: the instance's own, or what is usual as long as nothing is known of it."""
        return instance.prefill.value if instance.prefill.count else self._speeds.prefill.value

    def wait(self, instance: Instance, ahead: int) -> float:
        """Until a slot is free for one before which so many wait; however long the requests there have run already,
        since nobody knows how long they go on."""
        service = instance.service.value or self._speeds.service.value or 1.0
        return (ahead + 1) * service / instance.slots

    def later(self, found: Decision, instance: Instance, ahead: int) -> Decision:
        """The same if the instance has no free slot: after a wait."""
        full = instance.load >= instance.slots
        return replace(found, wait=max(0.001, self.wait(instance, ahead))) if full else found
