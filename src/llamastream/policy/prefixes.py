"""Which server has the beginning of which prompt in its cache: an index over chained hashes of a prompt's parts.

The parts are the tools, then each message, in pieces of a bounded length. Each hash covers everything up to its part,
so two prompts have a beginning in common exactly as far as their hashes are the same. What an instance still holds
nobody
tells us: how likely a prompt is still there, so many others later, is learned from what the servers report. Bounded in
memory, for each instance and altogether. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from llamastream.policy.speeds import Mean

LIMIT = 1 << 18
"""Pairs of a hash and an instance that are kept altogether: some 40 MB."""
KEPT = 64
"""Prompts that are kept of one instance, or 8 for each slot if that is more."""


class Prompt(Struct, frozen=True):
    """A prompt as routing sees it.

    Attributes:
        chain: the hashes of its parts. ends: how many characters it has up to the end of each.
        session: what requests of one conversation have in common, or 0.
    """

    chain: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    session: int = 0

    @property
    def characters(self) -> int:
        return self.ends[-1] if self.ends else 0


LEAST = 16
"""Tokens: of less, nothing can be learned."""
_ONE_EACH = 2
_BUCKETS = 9

NO_PROMPT = Prompt()


class Held(Struct, frozen=True):
    """What an instance was given of a prompt.

    Attributes:
        parts: how many of its parts, in the last prompt that had so many of them. shared: how many of these others had
            since, so that they are there for certain. age: how many prompts came since. likely: the chance that the
            others are still there. answer: tokens of the answer that followed the last of them.
    """

    parts: int = 0
    shared: int = 0
    age: int = 0
    likely: float = 0.0
    answer: int = 0


NOTHING = Held()


class _Kept:
    """What one instance holds."""

    __slots__ = ("clock", "limit", "prompts", "slots")

    def __init__(self, slots: int) -> None:
        self.clock = 0  # prompts that came so far
        self.slots = slots
        self.limit = max(KEPT, 8 * slots)
        self.prompts: OrderedDict[int, tuple[tuple[int, ...], int, int]] = OrderedDict()  # chain, when, answer


class PrefixIndex:
    """What all instances hold; they are known by numbers.

    Attributes:
        entries: pairs of a hash and an instance.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.entries = 0
        self._limit = limit
        self._holders: dict[int, dict[int, int]] = {}  # hash: instance: when it was last used there
        self._kept: dict[int, _Kept] = {}
        self._survival = [Mean(0.05, 1.0 if each <= _ONE_EACH else 0.5, 4) for each in range(_BUCKETS)]
        self._oldest: OrderedDict[tuple[int, int], None] = OrderedDict()  # instance and last hash of all prompts

    def slots(self, instance: int, slots: int) -> None:
        """An instance has so many slots."""
        kept = self._kept.get(instance)
        if kept is None:
            self._kept[instance] = _Kept(max(1, slots))
        elif kept.slots != max(1, slots):
            kept.slots, kept.limit = max(1, slots), max(KEPT, 8 * slots)

    def add(self, instance: int, prompt: Prompt) -> None:
        """An instance reads this prompt."""
        kept = self._kept[instance]
        kept.clock += 1
        chain = prompt.chain[: self._limit // 4]
        if not chain:
            return
        when = kept.clock
        for value in chain:
            holders = self._holders.get(value)
            if holders is None:
                holders = self._holders[value] = {}
            if instance not in holders:
                self.entries += 1
            holders[instance] = when
        self._put(instance, kept, chain, when, 0)
        while len(kept.prompts) > kept.limit:
            self._drop(instance, kept, next(iter(kept.prompts)))
        while self.entries > self._limit:
            owner, last = next(iter(self._oldest))
            self._drop(owner, self._kept[owner], last)

    def answered(self, instance: int, prompt: Prompt, tokens: int) -> None:
        """An instance answered a prompt with so many tokens, which it holds behind it."""
        kept = self._kept.get(instance)
        if kept is None or not prompt.chain or (found := kept.prompts.get(prompt.chain[-1])) is None:
            return
        kept.prompts[prompt.chain[-1]] = (found[0], found[1], tokens)

    def held(self, instance: int, prompt: Prompt) -> Held:
        """What an instance was given of a prompt."""
        kept = self._kept[instance]
        chain = prompt.chain
        parts = self._reaches(instance, chain, 0, len(chain), 0)
        if not parts:
            return NOTHING
        last = chain[parts - 1]
        when = self._holders[last][instance]
        age = kept.clock - when
        found = kept.prompts.get(last)
        answer = found[2] if found is not None else 0
        if not age:
            return Held(parts, parts, 0, 1.0, answer)
        shared = self._reaches(instance, chain, 0, parts, when)
        return Held(parts, shared, age, self._survival[_bucket(age, kept.slots)].value, answer)

    def _reaches(self, instance: int, chain: tuple[int, ...], low: int, high: int, after: int) -> int:
        """How many parts an instance was given later than `after`: what it has of a prompt is a beginning of it."""
        holders = self._holders
        while low < high:
            middle = (low + high) >> 1
            there = holders.get(chain[middle])
            if there is not None and there.get(instance, 0) > after:
                low = middle + 1
            else:
                high = middle
        return low

    def holders(self, prompt: Prompt, most: int) -> Iterator[int]:
        """Instances that hold some of a prompt, those with the longest beginnings first: `most` at most, and none of a
        part that more of them hold."""
        seen: set[int] = set()
        for value in reversed(prompt.chain):
            there = self._holders.get(value)
            if there is None:
                continue
            if len(there) > most:
                return
            for instance in there:
                if instance not in seen:
                    seen.add(instance)
                    yield instance
            if len(seen) >= most:
                return

    def learn(self, instance: int, held: Held, sure: float, hoped: float, reported: float) -> None:
        """A server said how many tokens its cache saved of a prompt of which it had `held`: `sure` tokens that were
        there for certain, and `hoped` if all was."""
        kept = self._kept.get(instance)
        if kept is None or hoped - sure < LEAST or not held.age:
            return
        there = min(1.0, max(0.0, (reported - sure) / (hoped - sure)))
        self._survival[_bucket(held.age, kept.slots)].add(there)

    def crowded(self, instance: int) -> float:
        """How much of what an instance can hold for certain, one prompt in each slot, is taken: from 0 to 1."""
        kept = self._kept[instance]
        return min(1.0, len(kept.prompts) / kept.slots)

    def forget(self, instance: int, keep: int = 0) -> None:
        """An instance is another process now, which has but the `keep` newest prompts."""
        kept = self._kept.get(instance)
        if kept is None:
            return
        while len(kept.prompts) > keep:
            self._drop(instance, kept, next(iter(kept.prompts)))

    def remove(self, instance: int) -> None:
        """There is no such instance any more."""
        self.forget(instance)
        self._kept.pop(instance, None)

    def _put(self, instance: int, kept: _Kept, chain: tuple[int, ...], when: int, answer: int) -> None:
        last = chain[-1]
        kept.prompts[last] = (chain, when, answer)
        kept.prompts.move_to_end(last)
        self._oldest[instance, last] = None
        self._oldest.move_to_end((instance, last))
        # the prompt that this one goes on from is a part of it, and needs no place of its own
        for value in reversed(chain[:-1]):
            if value in kept.prompts:
                del kept.prompts[value]
                del self._oldest[instance, value]
                break

    def _drop(self, instance: int, kept: _Kept, last: int) -> None:
        chain, when, _ = kept.prompts.pop(last)
        del self._oldest[instance, last]
        for value in reversed(chain):
            there = self._holders.get(value)
            if there is None or there.get(instance) is None:
                continue
            if there[instance] > when:
                break  # from here on it belongs to a newer prompt too
            del there[instance]
            self.entries -= 1
            if not there:
                del self._holders[value]


def _bucket(age: int, slots: int) -> int:
    """Which ages are taken together: up to half the slots, up to the slots, twice as many, and so on."""
    return min(_BUCKETS - 1, (4 * age // slots).bit_length())


def chained(parts: Sequence[tuple[object, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The hashes and ends of parts that are given as something hashable and its characters."""
    chain, ends = [], []
    value, end = 0, 0
    for part, characters in parts:
        value = hash((value, part))
        end += characters
        chain.append(value)
        ends.append(end)
    return tuple(chain), tuple(ends)
