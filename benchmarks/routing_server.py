"""One llama-server of the simulation: which slot it takes, what it keeps, and how quick it is.

As in llama.cpp's `get_available_slot` and `server_prompt_cache`: the slot that it was told, else the one with the most
in common with the prompt if that is more than a share of it (`--slot-prompt-similarity`), else the one that was used
longest ago. If more than half of what a slot holds would be lost, it is copied to the prompt cache in memory before,
and the best that is there takes its place; slots that do nothing are copied whenever a request begins.
"""

from __future__ import annotations

from dataclasses import dataclass

Sequence = tuple[tuple[tuple[int, int], int], ...]
"""Parts of a prompt: what, and its tokens."""


@dataclass(frozen=True)
class Speed:
    """Of one server, in tokens a second, where 1, 2, ... slots do it: reading, for all of them together, and
    generating, for each."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


def length(sequence: Sequence) -> int:
    """Tokens of all parts."""
    return sum(tokens for _, tokens in sequence)


def common(one: Sequence, other: Sequence) -> int:
    """Tokens that two sequences begin with in common."""
    found = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        found += a[1]
    return found


class Server:
    """One llama-server."""

    def __init__(self, slots: int, speed: Speed, kept: int, similarity: float) -> None:
        """`kept`: tokens that its prompt cache in memory holds. `similarity`: see above."""
        self.speed = speed
        self.slots: list[Sequence] = [()] * slots
        self.used = [0.0] * slots
        self.busy: set[int] = set()
        self.ends: dict[int, float] = {}  # of the requests that generate
        self.kept: list[Sequence] = []
        self.limit = kept
        self.similarity = similarity
        self.read_at = 0.0
        self.reading = 0

    def take(self, prompt: Sequence, now: float, wanted: int | None) -> tuple[int, int]:
        """A slot for a prompt, and how many of its tokens are there. `wanted`: the slot that it is told."""
        assert wanted not in self.busy
        total = length(prompt)
        free = [each for each in range(len(self.slots)) if each not in self.busy]
        best, slot = 0, -1 if wanted is None else wanted
        for each in free if wanted is None else [wanted]:
            same = common(self.slots[each], prompt)
            if same > best and same > self.similarity * total:
                best, slot = same, each
        if slot < 0:
            slot = min(free, key=self.used.__getitem__)
            self.swap(slot, prompt)
        elif self.slots[slot] and best < 0.5 * length(self.slots[slot]):
            self.swap(slot, prompt)
        cached = min(common(self.slots[slot], prompt), total - 1)
        self.slots[slot] = prompt
        self.busy.add(slot)
        self.used[slot] = now
        for each in free:
            if each != slot:
                self.save(self.slots[each])
        return slot, cached

    def save(self, old: Sequence) -> None:
        """Copy what a slot holds to the cache, unless it is there."""
        if not old or any(each is old for each in self.kept):  # the latter for speed alone
            return
        size = length(old)
        if size > self.limit or any(each[: len(old)] == old for each in self.kept):
            return
        self.kept = [each for each in self.kept if old[: len(each)] != each]
        while self.kept and sum(map(length, self.kept)) + size > self.limit:
            self.kept.pop(0)
        self.kept.append(old)

    def swap(self, slot: int, prompt: Sequence) -> None:
        """Copy what a slot holds to the cache, and move there what has more of the prompt."""
        self.save(self.slots[slot])
        old, found = self.slots[slot], None
        best = common(old, prompt)
        keep = best / length(old) if old else -1.0
        for each in self.kept:
            same = common(each, prompt)
            share = same / length(each)
            if share >= 0.25 and share > keep and same > best:
                best, keep, found = same, share, each
        if found is not None:
            self.kept.remove(found)
            self.slots[slot] = found
