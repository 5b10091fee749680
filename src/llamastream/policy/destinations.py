"""What routing knows of an instance, what it decides, and what it is told when a request is over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from llamastream.policy.prefixes import NOTHING, Held, Prompt
from llamastream.policy.slots import Slots
from llamastream.policy.speeds import Mean, RunningMedian


class InstanceFacts(Struct, frozen=True):
    """An instance as its source describes it.

    Attributes:
        restored: the prompts in its slots came back with this generation. ours: all its requests come from here, so
            that their slots are chosen here.
    """

    id: str
    slots: int
    routable: bool = True
    generation: int = 0
    restored: bool = False
    ours: bool = False


class Instance:
    """What routing knows of an instance.

    Attributes:
        number: by which it is known here. facts: what its source says. load: requests that it has.
        reading: of these, prompts that are not read yet. read_at: when they will be.
        seats: its slots, where they are chosen here. misses: prompts in a row that were not where they had to be.
    """

    __slots__ = (
        "facts",
        "generation",
        "load",
        "misses",
        "number",
        "prefill",
        "rank",
        "read_at",
        "reading",
        "seats",
        "service",
    )

    def __init__(self, number: int, facts: InstanceFacts) -> None:
        self.number = number
        self.facts = facts
        self.generation = facts.generation
        self.load = 0
        self.reading = 0
        self.misses = 0
        self.read_at = 0.0
        self.prefill = RunningMedian(0.0)
        self.service = Mean()
        self.rank: tuple[float, int, int] | None = None  # its place among those with a free slot
        self.seats: Slots | None = Slots(facts.slots) if facts.ours else None

    @property
    def slots(self) -> int:
        return max(1, self.facts.slots)


NOBODY: Mapping[int, int] = {}


class Question(Struct, frozen=True):
    """What a decision is about.

    Attributes:
        prompt: of the request. now: the time. ahead: how many requests wait for each instance already.
        patient: it may wait for an instance although another has a free slot. behind: how many others wait.
        without: instances where it does not go.
    """

    prompt: Prompt
    now: float
    ahead: Mapping[int, int] = NOBODY
    patient: bool = True
    behind: int = 0
    without: Collection[int] = ()


class Decision(Struct, frozen=True):
    """Where a request goes.

    Attributes:
        instance: number of the instance. reason: `cached` (it has the most of the prompt), `least-busy`, `only` (there
        is
            no other), `round-robin`, `affinity`, `blocked` (all others failed lately).
        wait: seconds until it has a free slot; 0: now. seconds: from then to the first token.
        tokens: of the prompt, cached: of these in the cache, both estimated. held: what the cache was taken to have.
    """

    instance: int
    reason: str
    wait: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    cached: float = 0.0
    held: Held = NOTHING


class Report(Struct, frozen=True):
    """What is known of a request when it is over; None: the server did not say.

    Attributes:
        seconds: at work. prompt_tokens, cached_tokens, answer_tokens: as the server counted. prompt_ms: to read what
        was
            not cached.
    """

    seconds: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    answer_tokens: int | None = None
    prompt_ms: float | None = None
