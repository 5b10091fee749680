"""The load generator: closed loops, open loops, each once through."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic, process_time

from llamastream.bench.asking import Asker, Place
from llamastream.bench.loads import Extent, Load, arrival_times
from llamastream.bench.samples import INTERRUPTED, Lap, Sample
from llamastream.bench.settings import Arrivals
from llamastream.bench.workload import Workload

AFTER_FAILURE = 0.05
"""Seconds that a closed loop waits after a failure, so that a server that refuses at once is not hammered."""


class Generator:
    """Puts one load on a server, once.

    Attributes:
        samples: of the requests that are over. running: requests that are under way.
    """

    def __init__(
        self,
        asker: Asker,
        workload: Workload,
        load: Load,
        repeat: int,
        on_change: Callable[[Generator], None] = lambda generator: None,
    ) -> None:
        """Args:
        repeat: from 1; 0 is for warming up. on_change: called when a request begins or ends.
        """
        self.load = load
        self.repeat = repeat
        self.samples: list[Sample] = []
        self.running = 0
        self._asker = asker
        self._workload = workload
        self._on_change = on_change
        self._began = 0.0
        self._cpu = 0.0
        self._steady: float | None = None
        self._next = 0

    async def run(self, extent: Extent, arrivals: Arrivals = "poisson", seed: int = 1) -> Lap:
        """From the first request to the end of the last. If that is cancelled, `lap` still has what there was."""
        self._began, self._cpu = monotonic(), process_time()
        async with asyncio.TaskGroup() as tasks:
            if self.load.kind == "closed":
                for _ in range(int(self.load.value)):
                    tasks.create_task(self._loop(extent))
            else:
                await self._open(tasks, extent, arrivals, seed)
        return self.lap()

    def lap(self) -> Lap:
        """What was measured so far."""
        seconds = monotonic() - self._began
        steady = seconds if self._steady is None else self._steady
        good = [sample for sample in self.samples if sample.error != INTERRUPTED or sample.first is not None]
        return Lap(self.load, self.repeat, tuple(good), seconds, steady, process_time() - self._cpu)

    async def _loop(self, extent: Extent) -> None:
        first = True
        while first or self._more(extent):
            number, self._next = self._next, self._next + 1
            if not await self._converse(number, monotonic()):
                await asyncio.sleep(AFTER_FAILURE)
            first = False
        if self._steady is None:
            self._steady = monotonic() - self._began

    def _more(self, extent: Extent) -> bool:
        return (extent.requests is None or self._next < extent.requests) and (
            extent.seconds is None or monotonic() - self._began < extent.seconds
        )

    async def _open(self, tasks: asyncio.TaskGroup, extent: Extent, arrivals: Arrivals, seed: int) -> None:
        chance = random.Random(f"{seed} {self.load.label} {self.repeat} arrivals")
        for number, due in enumerate(arrival_times(self.load.value, extent, arrivals, chance)):
            scheduled = self._began + due
            if (left := scheduled - monotonic()) > 0:
                await asyncio.sleep(left)
            tasks.create_task(self._converse(number, scheduled))

    async def _converse(self, number: int, scheduled: float) -> bool:
        """One conversation: its first turn is due at `scheduled`, each other one when the one before is answered."""
        conversation = self._workload.conversation(f"{self.load.label} {self.repeat}", number)
        answer: str | None = None
        turn = 0
        while (prompt := conversation.next(answer)) is not None:
            place = Place(self.repeat, number, turn, self._began, scheduled)
            self.running += 1
            self._on_change(self)
            try:
                answer = await self._asker.ask(prompt, place, self.samples.append)
            finally:
                self.running -= 1
                self._on_change(self)
            if answer is None:
                return False
            turn += 1
            scheduled = monotonic()
        return True
