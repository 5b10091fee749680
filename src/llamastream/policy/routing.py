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

from msgspec.structs import replace

from llamastream.policy.destinations import Decision as Decision
from llamastream.policy.destinations import Instance as Instance
from llamastream.policy.destinations import InstanceFacts as InstanceFacts
from llamastream.policy.destinations import Question as Question
from llamastream.policy.destinations import Report as Report
from llamastream.policy.expectation import Expectation
from llamastream.policy.prefixes import LEAST, PrefixIndex, Prompt
from llamastream.policy.slots import Seat, Slots
from llamastream.policy.speeds import FEWEST_TOKENS, Speeds

Strategy: TypeAlias = Literal["expected", "least-busy", "round-robin", "affinity", "prefix-only"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

EAGER = 1.0
BURDEN = 0.5
"""By so much what has to be read counts besides the time that it takes: an instance that reads keeps others waiting."""
IDLE_LOOKED_AT = 6
HOLDERS_LOOKED_AT = 12
CROWDED = 0.5
"""Share of a prompt that will be missed if another takes its place in a cache that is full."""


MISSES = 16
"""So many prompts in a row that were not in the slot where they had to be, and a server's slots are no longer chosen:
it does not heed the choice, or its model cannot use what a slot holds."""


class Router:
    """Decides, and keeps account of what every instance has to do.

    Attributes:
        free: slots that are free altogether. slots: how many there are on instances that take requests.
        unsure: instances the slots of which are chosen here, and have to be looked at before (see `policy.slots`).
    """

    def __init__(self, strategy: Strategy = "expected", index: PrefixIndex | None = None) -> None:
        self.strategy = strategy
        self.speeds = Speeds()
        self.index = PrefixIndex() if index is None else index
        self._expected = Expectation(self.index, self.speeds)
        self.unsure: set[int] = set()
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
                self._look_at(self._instances[number])
                self.index.slots(number, each.slots)
                self._rank(self._instances[number])
                continue
            instance = self._instances[number]
            if each == instance.facts:
                continue
            if each.routable and each.generation != instance.generation:  # before, nobody knows what came back
                instance.generation = each.generation
                instance.misses = 0
                self.index.forget(number, keep=each.slots if each.restored else 0)
                instance.seats = Slots(each.slots, instance.seats if each.restored else None) if each.ours else None
            elif each.ours != instance.facts.ours or each.slots != instance.facts.slots:
                instance.seats = Slots(each.slots) if each.ours else None
            elif each.routable and instance.seats is not None:
                instance.seats.doubt()  # whoever looked after it meanwhile, may have used it
            instance.facts = each
            self._look_at(instance)
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
        self.unsure.discard(number)

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
            speed = round(2 * log2(max(1e-6, self._expected.pace(instance))))
            instance.rank = (instance.load / instance.slots, speed, instance.number)
            insort(self._ranked, instance.rank)

    # -- what happens to requests ---------------------------------------------------------------------------

    def begin(self, decision: Decision, prompt: Prompt, now: float, *, placed: bool = False) -> Seat | None:
        """A request goes where it was decided; its seat, where slots are chosen here. `placed`: its body can say which
        slot it is to be put into."""
        instance = self._instances[decision.instance]
        self._load(instance, 1)
        instance.reading += 1
        reading = self._expected.reading(instance, decision.tokens - decision.cached)
        instance.read_at = max(now, instance.read_at) + reading
        self._turn = instance.number
        self.index.add(decision.instance, prompt)
        return self._sit(instance, prompt, placed=placed)

    def moved(self, before: int, after: int, prompt: Prompt) -> Seat | None:
        """A request goes on at another instance, in a slot that the server chooses; its seat, as above."""
        if before in self._instances:
            self._load(self._instances[before], -1)
        instance = self._instances.get(after)
        if instance is None:
            return None
        self._load(instance, 1)
        return self._sit(instance, prompt, placed=False)

    def _sit(self, instance: Instance, prompt: Prompt, *, placed: bool) -> Seat | None:
        if instance.seats is None:
            return None
        seat = instance.seats.begin(prompt, placed=placed)
        self._look_at(instance)
        return seat

    def may_look(self, number: int, now: float) -> bool:
        """Whether what `/slots` of an instance says from now on, can be trusted."""
        instance = self._instances.get(number)
        return instance is not None and instance.seats is not None and instance.seats.may_look(now)

    def looked(self, number: int, idle: Collection[int], now: float) -> None:
        """These slots of an instance were idle when it was asked."""
        instance = self._instances.get(number)
        if instance is not None and instance.seats is not None:
            instance.seats.looked(idle, now)
            self._look_at(instance)

    def left(self, number: int) -> None:
        """The seat of a request was left there."""
        if (instance := self._instances.get(number)) is not None:
            self._look_at(instance)

    def _look_at(self, instance: Instance) -> None:
        seats = instance.seats
        if seats is not None and seats.unsure and instance.facts.routable:
            self.unsure.add(instance.number)
        else:
            self.unsure.discard(instance.number)

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
        sure, hoped = self._expected.sure_and_hoped(prompt, decision.held)
        if instance.seats is not None and sure == hoped >= LEAST:
            instance.misses = instance.misses + 1 if cached < hoped / 2 else 0
            if instance.misses >= MISSES:
                instance.seats = None
                self._look_at(instance)
        self.index.learn(number, decision.held, sure, hoped, cached)
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
        return self._expected.tokens(prompt)

    def choose(self, question: Question, blocked: Callable[[int], bool] | None = None) -> Decision | None:
        """Where a request goes, now or when there is a free slot (`wait`); None: nowhere.

        Args:
            blocked: whether an instance failed lately.
        """
        without: set[int] = set()
        while True:
            decision = self._choose(question)
            if decision is None or decision.wait or blocked is None or not blocked(decision.instance):
                return decision if decision is not None or not without else self._last_resort(question)
            without.add(decision.instance)
            question = replace(question, without=without)

    def _last_resort(self, question: Question) -> Decision:
        number = min(question.without, key=lambda each: self._instances[each].load / self._instances[each].slots)
        return self._expected.of(self._instances[number], question.prompt, question.now, "blocked")

    def _choose(self, question: Question) -> Decision | None:
        if self.strategy == "expected":
            return self._soonest(question)
        if self.strategy == "prefix-only":
            return self._longest_prefix(question)
        found = self._same_as_before(question) if self.strategy == "affinity" else None
        if found is not None:
            return found
        free = [number for _, _, number in self._ranked if number not in question.without]
        if not free:
            return None
        if self.strategy == "round-robin":
            number = min(free, key=lambda each: (each <= self._turn, each))
            return self._expected.of(self._instances[number], question.prompt, question.now, "round-robin")
        return self._expected.of(self._instances[free[0]], question.prompt, question.now, "least-busy")

    def _soonest(self, question: Question) -> Decision | None:
        best: Decision | None = None
        best_cost, best_wait = inf, 0.0
        prompt, now, ahead, without = question.prompt, question.now, question.ahead, question.without
        numbers = [number for _, _, number in self._ranked[: IDLE_LOOKED_AT + len(without)]]
        seen = set(numbers)
        numbers += [each for each in self.index.holders(prompt, HOLDERS_LOOKED_AT) if each not in seen]
        crush = min(1.0, question.behind / max(1, self.slots))
        for number in numbers:
            if number in without:
                continue
            instance = self._instances[number]
            full = instance.load >= instance.slots
            if not instance.facts.routable or (
                full and (not question.patient or ahead.get(number, 0) >= instance.slots)
            ):
                continue
            decision = self._expected.of(instance, prompt, now)
            wait = self._expected.wait(instance, ahead.get(number, 0)) if full else 0.0
            burden = crush + BURDEN
            if decision.cached < 0.5 * decision.tokens:
                burden += CROWDED * self.index.crowded(number)
            reading = self._expected.reading(instance, decision.tokens - decision.cached)
            cost = EAGER * wait + decision.seconds + burden * reading
            if cost < best_cost:
                best, best_cost, best_wait = decision, cost, wait
        if best is None:
            return None
        only = len(self._instances) == 1
        reason = "only" if only else "cached" if best.held.parts else "least-busy"
        return replace(best, reason=reason, wait=best_wait)

    def _longest_prefix(self, question: Question) -> Decision | None:
        able = [
            each for each in self._instances.values() if each.facts.routable and each.number not in question.without
        ]
        if not able:
            return None
        expected, prompt = self._expected, question.prompt

        def order(instance: Instance) -> tuple[float, float, int]:
            held = expected.held(instance, prompt)
            return -expected.cached(prompt, held), instance.load / instance.slots, instance.number

        best = min(able, key=order)
        found = expected.of(best, prompt, question.now, "cached")
        return expected.later(found, best, question.ahead.get(best.number, 0))

    def _same_as_before(self, question: Question) -> Decision | None:
        """The instance of a conversation by consistent hashing with bounded loads: the next one around the ring that
        has a free slot; None: it says nothing, or there is none."""
        ring, prompt = self._ring, question.prompt
        if not (prompt.session and self._ranked):
            return None
        at = bisect_left(ring, (prompt.session, -1))
        for step in range(len(ring)):
            instance = self._instances[ring[(at + step) % len(ring)][1]]
            if instance.rank is not None and instance.number not in question.without:
                return self._expected.of(instance, prompt, question.now, "affinity")
        return None
