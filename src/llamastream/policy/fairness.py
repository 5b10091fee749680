"""Who is next in line: weighted fair queueing between keys, first come first served within one.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996): each key has a virtual clock that advances by 1 ÷ weight
with each of its requests, and the key whose clock is furthest behind is next. A key that was idle begins at the common
time, so it saves nothing up, and a key with a thousand requests in line delays a single one of another key by one turn.
Higher priorities go first, always. Every operation costs at most the logarithm of the number of keys. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

T = TypeVar("T")

Priority: TypeAlias = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

_IDLE_FLOWS = 1024
"""Keys without anything in line that are remembered at most."""


class LineFullError(Exception):
    """There is no place in line. `by_key`: because of this key's own share, not because of all."""

    def __init__(self, *, by_key: bool) -> None:
        super().__init__("the line is full")
        self.by_key = by_key


class _Flow(Generic[T]):
    """The requests of one key with one priority."""

    __slots__ = ("entry", "finish", "key", "level", "line", "weight")

    def __init__(self, key: str, level: int) -> None:
        self.key = key
        self.level = level
        self.weight = 1.0
        self.finish = 0.0  # where its clock will stand after the last request that was taken
        self.line: dict[int, T] = {}  # by number, in the order of arrival
        self.entry: tuple[int, float, int] | None = None  # its place among the flows: priority, start, number


class FairLine(Generic[T]):
    """Requests that wait, in the order in which they are to go.

    Attributes:
        limit: requests at most. limit_per_key: of one key at most; None: as many as of all.
    """

    def __init__(self, limit: int, limit_per_key: int | None = None) -> None:
        self.bound(limit, limit_per_key)
        self._flows: dict[tuple[str, int], _Flow[T]] = {}
        self._order: list[tuple[tuple[int, float, int], _Flow[T]]] = []  # a heap; entries that changed are left in it
        self._clock = [0.0] * len(PRIORITIES)  # the common time: the start of the last request taken
        self._numbers = count()
        self._where: dict[int, _Flow[T]] = {}
        self._by_key: dict[str, int] = {}
        self._lengths: list[dict[int, dict[str, _Flow[T]]]] = [{} for _ in PRIORITIES]  # flows by their length
        self._longest = [0] * len(PRIORITIES)

    def bound(self, limit: int, limit_per_key: int | None = None) -> None:
        """So many may wait from now on."""
        self.limit = limit
        self.limit_per_key = limit_per_key

    def __len__(self) -> int:
        return len(self._where)

    def waiting(self, key: str) -> int:
        """How many of this key wait."""
        return self._by_key.get(key, 0)

    def keys(self) -> dict[str, int]:
        """How many wait of each key that has any."""
        return dict(self._by_key)

    def push(
        self, item: T, key: str, weight: float = 1.0, priority: Priority = "normal", *, beyond: bool = False
    ) -> tuple[int, T | None]:
        """Put a request in line: its number, and the request that lost its place to it.

        When the line is full, the youngest request of the lowest priority goes; among equals that of the key with the
        most in line, if it has more than this one will. `beyond`: whatever the limits, since it may go at once.

        Raises:
            LineFullError: there is no place for it.
        """
        level = PRIORITIES.index(priority)
        if not beyond and self.limit_per_key is not None and self._by_key.get(key, 0) >= self.limit_per_key:
            raise LineFullError(by_key=True)
        lost = None
        if not beyond and len(self._where) >= self.limit:
            lost = self._make_room(key, level)
        flow = self._flows.get((key, level))
        if flow is None:
            self._sweep()
            flow = self._flows[key, level] = _Flow(key, level)
        flow.weight = weight
        number = next(self._numbers)
        flow.line[number] = item
        self._where[number] = flow
        self._by_key[key] = self._by_key.get(key, 0) + 1
        self._resized(flow, -1)
        if flow.entry is None:
            self._enlist(flow, max(self._clock[level], flow.finish))
        return number, lost

    def remove(self, number: int) -> bool:
        """Take a request out of the line, as if it had never come; whether it was there."""
        flow = self._where.pop(number, None)
        if flow is None:
            return False
        del flow.line[number]
        left = self._by_key[flow.key] - 1
        if left:
            self._by_key[flow.key] = left
        else:
            del self._by_key[flow.key]
        self._resized(flow, 1)
        if not flow.line:
            flow.entry = None
        return True

    def take(self, number: int) -> T:
        """Take out a request that goes now. It need not be the first: the others keep their order."""
        flow = self._where[number]
        item = flow.line[number]
        start = self._start(flow)
        flow.finish = start + 1.0 / flow.weight
        self._clock[flow.level] = max(self._clock[flow.level], start)
        self.remove(number)
        if flow.line:
            self._enlist(flow, flow.finish)
        return item

    def order(self) -> Iterator[tuple[int, T]]:
        """The requests with their numbers, in the order in which they are to go. Ends when the line is changed."""
        while self._order and self._order[0][1].entry is not self._order[0][0]:
            heappop(self._order)
        if self._order:
            first = self._order[0][1]
            number = next(iter(first.line))
            yield number, first.line[number]
            if number not in self._where:
                return
        heads = [(entry, 0, flow, iter(tuple(flow.line))) for entry, flow in self._order if flow.entry is entry]
        heapify(heads)
        skip = 1 if heads else 0
        while heads:
            (level, start, _), place, flow, rest = heads[0]
            following = next(rest, None)
            if following is None:
                heappop(heads)
                continue
            heapreplace(heads, ((level, start + 1.0 / flow.weight, next(self._numbers)), place + 1, flow, rest))
            if skip:
                skip = 0
                continue
            yield following, flow.line[following]
            if following not in self._where:
                return

    def overfull(self, key: str) -> LineFullError | None:
        """Why there are more than there may be, of all or of this key; None: there are not."""
        if self.limit_per_key is not None and self._by_key.get(key, 0) > self.limit_per_key:
            return LineFullError(by_key=True)
        return LineFullError(by_key=False) if len(self._where) > self.limit else None

    def _start(self, flow: _Flow[T]) -> float:
        assert flow.entry is not None
        return flow.entry[1]

    def _enlist(self, flow: _Flow[T], start: float) -> None:
        flow.entry = (flow.level, start, next(self._numbers))
        heappush(self._order, (flow.entry, flow))
        if len(self._order) > 64 + 2 * len(self._flows):
            self._order = [each for each in self._order if each[1].entry is each[0]]
            heapify(self._order)

    def _resized(self, flow: _Flow[T], before: int) -> None:
        """Note how long a flow is now; `before`: how many more it had."""
        lengths = self._lengths[flow.level]
        now = len(flow.line)
        if (old := lengths.get(now + before)) is not None:
            old.pop(flow.key, None)
            if not old:
                del lengths[now + before]
        if now:
            lengths.setdefault(now, {})[flow.key] = flow
        longest = self._longest[flow.level]
        if now > longest:
            self._longest[flow.level] = now
        elif longest and longest not in lengths:
            self._longest[flow.level] = longest - 1  # one that had the longest has one less

    def _make_room(self, key: str, level: int) -> T:
        victims = next((each for each in reversed(range(len(PRIORITIES))) if self._longest[each]), 0)
        longest = self._longest[victims]
        own = self._flows.get((key, level))
        if victims < level or not longest or (victims == level and longest <= (len(own.line) if own else 0) + 1):
            raise LineFullError(by_key=False)
        flow = next(iter(self._lengths[victims][longest].values()))
        number = next(reversed(flow.line))
        item = flow.line[number]
        self.remove(number)
        return item

    def _sweep(self) -> None:
        if len(self._flows) > _IDLE_FLOWS:
            self._flows = {
                name: flow for name, flow in self._flows.items() if flow.line or flow.finish > self._clock[flow.level]
            }
