"""Which instance a request goes to: the one from which its first token is expected soonest.

That time has three parts: until a slot is free, until the prompts before it are read, and until its own prompt is read,
as far as the instance does not have it in its cache. Decisions look at a bounded number of instances: those that hold
the longest beginnings of the prompt, and those with the least to do. Not thread-safe; times are those of one monotonic
clock in seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from math import inf, log2
from typing import Literal, TypeAlias, get_args

from llamastream.policy.destinations import Decision as Decision
from llamastream.policy.destinations import Instance as Instance
from llamastream.policy.destinations import InstanceFacts as InstanceFacts
from llamastream.policy.destinations import Report as Report
from llamastream.policy.prefixes import NOTHING, Held, PrefixIndex, Prompt
from llamastream.policy.speeds import FEWEST_TOKENS, Speeds

Strategy: TypeAlias = Literal["expected", "least-busy", "round-robin", "affinity", "prefix-only"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

OVERHEAD = 0.005
"""Seconds that an answer takes to begin however short its prompt is."""
DECODE_LOAD = 0.03
"""By so much each other request at work slows a prefill down: it has a token in each batch."""
EAGER = 1.0
IDLE_LOOKED_AT = 6
HOLDERS_LOOKED_AT = 12
CROWDED = 0.5
"""Share of a prompt that will be missed if another takes its place in a cache that is full."""


class Router:
    """Decides, and keeps account of what every instance has to do.

    Attributes:
        free: slots that are free altogether. slots: how many there are on instances that take requests.
    """

    def __init__(self, strategy: Strategy = "expected", index: PrefixIndex | None = None) -> None:
        self.strategy = strategy
        self.speeds = Speeds()
        self.index = PrefixIndex() if index is None else index
        self.free = 0
        self.slots = 0
        self._instances: dict[int, Instance] = {}
        self._numbers: dict[str, int] = {}
        self._ranked: list[tuple[float, int, int]] = []  # those with free slots: load, speed, number
        self._ring: list[tuple[int, int]] = []
        self._turn = -1
        self._next = 0

    def number(self, id: str) -> int | None:  # noqa: A002  # that is its name everywhere
        """The number of an instance."""
        return self._numbers.get(id)

    def instance(self, number: int) -> Instance:
        return self._instances[number]

    def generation(self, number: int) -> int | None:
        """The how-manieth process an instance is; None: it is gone."""
        found = self._instances.get(number)
        return None if found is None else found.facts.generation

    # -- what there is --------------------------------------------------------------------------------------

    def update(self, facts: Iterable[InstanceFacts]) -> None:
        """These are the instances now."""
        found = {each.id: each for each in facts}
        changed = found.keys() != self._numbers.keys()
        for id_ in [id_ for id_ in self._numbers if id_ not in found]:
            self._remove(id_)
        for id_, each in found.items():
            number = self._numbers.get(id_)
            if number is None:
                number = self._numbers[id_] = self._next
                self._next += 1
                self._instances[number] = Instance(number, each)
                self.index.slots(number, each.slots)
                self._rank(self._instances[number])
                continue
            instance = self._instances[number]
            if each == instance.facts:
                continue
            if each.routable and each.generation != instance.generation:  # before, nobody knows what came back
                instance.generation = each.generation
                self.index.forget(number, keep=each.slots if each.restored else 0)
            instance.facts = each
            self.index.slots(number, each.slots)
            self._rank(instance)
        if changed:
            self._ring = sorted(
                (hash((id_, point)), number) for id_, number in self._numbers.items() for point in range(32)
            )
        self._count()

    def _remove(self, id_: str) -> None:
        number = self._numbers.pop(id_)
        instance = self._instances.pop(number)
        if instance.rank is not None:
            del self._ranked[bisect_left(self._ranked, instance.rank)]
        self.index.remove(number)

    def _count(self) -> None:
        able = [each for each in self._instances.values() if each.facts.routable]
        self.slots = sum(each.slots for each in able)
        self.free = sum(max(0, each.slots - each.load) for each in able)

    def _rank(self, instance: Instance) -> None:
        """Put it in its place among those with free slots."""
        if instance.rank is not None:
            del self._ranked[bisect_left(self._ranked, instance.rank)]
            instance.rank = None
        if instance.facts.routable and instance.load < instance.slots:
            speed = round(2 * log2(max(1e-6, self._pace(instance))))
            instance.rank = (instance.load / instance.slots, speed, instance.number)
            insort(self._ranked, instance.rank)

    # -- what happens to requests ---------------------------------------------------------------------------

    def begin(self, decision: Decision, prompt: Prompt, now: float) -> None:
        """A request goes where it was decided."""
        instance = self._instances[decision.instance]
        self._load(instance, 1)
        instance.reading += 1
        instance.read_at = max(now, instance.read_at) + self._reading(instance, decision.tokens - decision.cached)
        self._turn = instance.number
        self.index.add(decision.instance, prompt)

    def moved(self, before: int, after: int) -> None:
        """A request goes on at another instance."""
        if before in self._instances:
            self._load(self._instances[before], -1)
        if after in self._instances:
            self._load(self._instances[after], 1)

    def read(self, number: int, now: float) -> None:
        """The first token of a request is there: its prompt has been read."""
        instance = self._instances.get(number)
        if instance is not None and instance.reading:
            instance.reading -= 1
            if not instance.reading:
                instance.read_at = now

    def end(self, number: int, decision: Decision, prompt: Prompt, report: Report) -> None:
        """A request is over that `decision` sent somewhere and that ended at the instance `number`."""
        instance = self._instances.get(number)
        if instance is None:
            return
        self._load(instance, -1)
        if report.seconds > 0 and report.answer_tokens is not None:
            instance.service.add(report.seconds)
            self.speeds.service.add(report.seconds)
        if number != decision.instance or report.prompt_tokens is None:
            return
        self.speeds.prompt(prompt.characters, report.prompt_tokens)
        if report.answer_tokens is not None:
            self.index.answered(number, prompt, report.answer_tokens)
        cached = report.cached_tokens
        if cached is None:
            return
        self.index.learn(number, decision.held, *self._sure_and_hoped(prompt, decision.held), cached)
        read = report.prompt_tokens - cached
        if report.prompt_ms is not None and read >= FEWEST_TOKENS:
            pace = report.prompt_ms / 1000 / read
            self.speeds.prefill.add(pace)
            instance.prefill.add(pace)
            self._rank(instance)

    def _load(self, instance: Instance, change: int) -> None:
        before = max(0, instance.slots - instance.load)
        instance.load += change
        if instance.facts.routable:
            self.free += max(0, instance.slots - instance.load) - before
        self._rank(instance)

    # -- decisions ------------------------------------------------------------------------------------------

    def tokens(self, prompt: Prompt) -> float:
        """How many tokens a prompt has, by its characters."""
        return prompt.characters * self.speeds.tokens_per_character.value

    def choose(
        self,
        prompt: Prompt,
        now: float,
        ahead: dict[int, int],
        *,
        blocked: Callable[[int], bool] | None = None,
        patient: bool = True,
        behind: int = 0,
    ) -> Decision | None:
        """Where a request goes, now or when there is a free slot (`wait`); None: nowhere.

        Args:
            ahead: how many requests wait for each instance already. blocked: whether an instance failed lately.
            patient: it may wait for an instance although another has a free slot. behind: how many others wait.
        """
        without: set[int] = set()
        while True:
            decision = self._choose(prompt, now, ahead, without, patient, behind)
            if decision is None or decision.wait or blocked is None or not blocked(decision.instance):
                return decision if decision is not None or not without else self._last_resort(without, prompt, now)
            without.add(decision.instance)

    def _last_resort(self, blocked: Collection[int], prompt: Prompt, now: float) -> Decision | None:
        number = min(blocked, key=lambda each: self._instances[each].load / self._instances[each].slots)
        decision = self._expect(self._instances[number], prompt, now)
        return None if decision is None else _renamed(decision, "blocked")

    def _choose(
        self,
        prompt: Prompt,
        now: float,
        ahead: dict[int, int],
        without: Collection[int],
        patient: bool,
        behind: int,
    ) -> Decision | None:
        if not self._ranked and self.strategy in ("least-busy", "round-robin"):
            return None
        if self.strategy == "expected":
            return self._soonest(prompt, now, ahead, without, patient, behind)
        if self.strategy == "prefix-only":
            return self._longest_prefix(prompt, now, ahead, without)
        if self.strategy == "affinity":
            return self._same_as_before(prompt, now, without)
        free = [number for _, _, number in self._ranked if number not in without]
        if not free:
            return None
        if self.strategy == "round-robin":
            number = min(free, key=lambda each: (each <= self._turn, each))
            return _renamed(self._expect(self._instances[number], prompt, now), "round-robin")
        return _renamed(self._expect(self._instances[free[0]], prompt, now), "least-busy")

    def _soonest(
        self,
        prompt: Prompt,
        now: float,
        ahead: dict[int, int],
        without: Collection[int],
        patient: bool,
        behind: int,
    ) -> Decision | None:
        best: Decision | None = None
        best_cost = inf
        numbers = [number for _, _, number in self._ranked[: IDLE_LOOKED_AT + len(without)]]
        seen = set(numbers)
        numbers += [each for each in self.index.holders(prompt, HOLDERS_LOOKED_AT) if each not in seen]
        crush = min(1.0, behind / max(1, self.slots))
        only = len(self._instances) == 1
        for number in numbers:
            if number in without:
                continue
            instance = self._instances[number]
            full = instance.load >= instance.slots
            if not instance.facts.routable or (full and (not patient or ahead.get(number, 0) >= instance.slots)):
                continue
            decision = self._expect(instance, prompt, now)
            wait = self._wait(instance, ahead.get(number, 0)) if full else 0.0
            reading = self._reading(instance, decision.tokens - decision.cached)
            cost = EAGER * wait + decision.seconds + crush * reading
            if decision.cached < 0.5 * decision.tokens:
                cost += CROWDED * self.index.crowded(number) * reading
            if cost < best_cost:
                best_cost = cost
                reason = "only" if only else "cached" if decision.held.parts else "least-busy"
                best = Decision(number, reason, wait, decision.seconds, decision.tokens, decision.cached, decision.held)
        return best

    def _longest_prefix(
        self, prompt: Prompt, now: float, ahead: dict[int, int], without: Collection[int]
    ) -> Decision | None:
        able = [each for each in self._instances.values() if each.facts.routable and each.number not in without]
        if not able:
            return None

        def order(instance: Instance) -> tuple[float, float, int]:
            held = self.index.held(instance.number, prompt)
            return -self._cached(prompt, held), instance.load / instance.slots, instance.number

        return self._or_wait(min(able, key=order), prompt, now, ahead, "cached")

    def _same_as_before(self, prompt: Prompt, now: float, without: Collection[int]) -> Decision | None:
        """The instance of a conversation by consistent hashing with bounded loads: the next one around the ring that
        has a free slot."""
        ring = self._ring
        if prompt.session and self._ranked:
            at = bisect_left(ring, (prompt.session, -1))
            for step in range(len(ring)):
                instance = self._instances[ring[(at + step) % len(ring)][1]]
                if instance.rank is not None and instance.number not in without:
                    return _renamed(self._expect(instance, prompt, now), "affinity")
        free = next((number for _, _, number in self._ranked if number not in without), None)
        return None if free is None else _renamed(self._expect(self._instances[free], prompt, now), "least-busy")

    def _or_wait(self, instance: Instance, prompt: Prompt, now: float, ahead: dict[int, int], reason: str) -> Decision:
        found = self._expect(instance, prompt, now)
        full = instance.load >= instance.slots
        wait = max(0.001, self._wait(instance, ahead.get(instance.number, 0))) if full else 0.0
        return Decision(found.instance, reason, wait, found.seconds, found.tokens, found.cached, found.held)

    def _expect(self, instance: Instance, prompt: Prompt, now: float) -> Decision:
        """What is to be expected of an instance that has a free slot."""
        held = self.index.held(instance.number, prompt) if prompt.chain else NOTHING
        tokens = self.tokens(prompt)
        cached = self._cached(prompt, held)
        backlog = max(0.0, instance.read_at - now) if instance.reading else 0.0
        seconds = OVERHEAD + backlog + self._reading(instance, tokens - cached)
        return Decision(instance.number, "", 0.0, seconds, tokens, cached, held)

    def _cached(self, prompt: Prompt, held: Held) -> float:
        sure, hoped = self._sure_and_hoped(prompt, held)
        return sure + held.likely * (hoped - sure)

    def _sure_and_hoped(self, prompt: Prompt, held: Held) -> tuple[float, float]:
        """Tokens of a prompt that an instance has for certain, and if nothing was lost."""
        if not held.parts:
            return 0.0, 0.0
        ends, ratio = prompt.ends, self.speeds.tokens_per_character.value
        hoped = float(ends[held.parts - 1])
        if held.answer and held.parts < len(ends):
            hoped += min(held.answer / ratio, ends[held.parts] - hoped)
        sure = float(ends[held.shared - 1]) if held.shared else 0.0
        return (hoped if held.shared == held.parts else sure) * ratio, hoped * ratio

    def _reading(self, instance: Instance, tokens: float) -> float:
        others = max(0, instance.load - instance.reading)
        return max(1.0, tokens) * self._pace(instance) * (1.0 + DECODE_LOAD * others)

    def _pace(self, instance: Instance) -> float:
        """Seconds for a token of a prompt: the instance's own, or what is usual as long as nothing is known of it."""
        return instance.prefill.value if instance.prefill.count else self.speeds.prefill.value

    def _wait(self, instance: Instance, ahead: int) -> float:
        """Until a slot is free for one before which so many wait; however long the requests there have run already,
        since nobody knows how long they go on."""
        service = instance.service.value or self.speeds.service.value or 1.0
        return (ahead + 1) * service / instance.slots


def _renamed(decision: Decision, reason: str) -> Decision:
    return Decision(
        decision.instance, reason, decision.wait, decision.seconds, decision.tokens, decision.cached, decision.held
    )
