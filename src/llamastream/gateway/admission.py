"""Requests wait here until a slot is theirs: the shell around `policy.scheduling` with a clock and an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from math import ceil, inf
from time import monotonic

from llamastream.backends import Backend
from llamastream.client.core import ClientCore
from llamastream.client.servers import Server
from llamastream.errors import RateLimitedError, UnavailableError
from llamastream.gateway.seating import SlotWatch, ours
from llamastream.gateway.settings import GatewaySettings
from llamastream.policy.breaker import BreakerState
from llamastream.policy.fairness import LineFullError, Priority
from llamastream.policy.prefixes import NO_PROMPT, Prompt
from llamastream.policy.routing import InstanceFacts, Report, Router
from llamastream.policy.scheduling import Scheduler, Ticket
from llamastream.policy.speeds import Mean

LONGEST_RETRY_AFTER = 120
LONGEST_APART = 1.0
"""Seconds for which a request does not go to a server that failed it, even if there is no other."""

Sign = Callable[[], Awaitable[None]]


class Lease(Ticket):
    """A request in line, and then at work.

    Attributes:
        server: where it is to go, None: whoever is best. id: that instance's. waited: seconds before it began.
        failures: servers that failed it, one after the other, since it last got something.
    """

    __slots__ = ("_admission", "admitted_at", "failures", "first_token_at", "id", "server", "turn", "waited")

    def __init__(self, admission: Admission, prompt: Prompt, key: str, weight: float, priority: Priority) -> None:
        super().__init__(prompt, key, weight, priority)
        self._admission = admission
        self.server: Server | None = None
        self.id = ""
        self.turn: asyncio.Future[None] | None = None
        self.waited = 0.0
        self.admitted_at = 0.0
        self.failures = 0
        self.first_token_at: float | None = None

    def slot_at(self, server: Server) -> int | None:
        """The slot of this server that it is to be put into; None: the server chooses, as each does but its own."""
        return self.seat.slot if self.seat is not None and server is self.server else None

    def at(self, server: Server) -> None:
        """It is this server that works on it now."""
        if server is not self.server:
            self._admission.moved(self, server)

    def begun(self) -> None:
        """Its first token is there, or the first since a server failed it."""
        self.failures = 0
        if self.first_token_at is None:
            self.first_token_at = monotonic()
        self._admission.begun(self)

    async def again(self, sign: Sign | None, sign_every: float) -> None:
        """See `Admission.again`."""
        await self._admission.again(self, sign, sign_every)


class Admission:
    """The line before the slots of some servers. Belongs to one event loop.

    Attributes:
        admitted, refused: counts since the start. scheduler: who waits, and what is known of the servers.
    """

    def __init__(
        self,
        core: ClientCore,
        backends: Callable[[], Iterable[Backend]],
        settings: GatewaySettings,
        *,
        alone: bool = False,
    ) -> None:
        """`backends`: the servers as they are now, which `core` knows too. `alone`: no other line sends them any
        requests."""
        self._core = core
        self._backends = backends
        self._timeout = settings.queue_timeout
        self._slot_choice = settings.slot_choice
        self._alone = alone
        self.scheduler = Scheduler(Router(settings.routing), settings.queue_limit, settings.queue_limit_per_key)
        self._servers: dict[int, tuple[str, Server | None]] = {}  # by the numbers that routing gives
        self._numbers: dict[Server, int] = {}
        self._service = Mean()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._watch = SlotWatch(core, self.scheduler.router, self._server)
        self._closing = False
        self.admitted = 0
        self.refused = 0
        self._take_over()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self.scheduler.waiting

    @property
    def active(self) -> int:
        """Requests at work."""
        return self.scheduler.active

    def at_work(self) -> dict[str, int]:
        """Requests at work on each instance, by its id."""
        router, found = self.scheduler.router, {}
        for number, (id_, _) in tuple(self._servers.items()):
            with contextlib.suppress(KeyError):  # gone in this moment, where another thread asks
                found[id_] = router.instance(number).load
        return found

    async def enter(
        self,
        prompt: Prompt = NO_PROMPT,
        key: str = "",
        weight: float = 1.0,
        priority: Priority = "normal",
        *,
        placeable: bool = False,
        sign: Sign | None = None,
        sign_every: float = 10.0,
    ) -> Lease:
        """Wait for a slot. `leave` is to be called afterwards.

        Args:
            placeable: its body can say which slot it is to be put into. sign: tells the client, every `sign_every`
                seconds, that it waits.

        Raises:
            RateLimitedError: there is no place in line, or it was taken by a request that comes before.
            UnavailableError: no slot within the time.
        """
        now = monotonic()
        lease = Lease(self, prompt, key, weight, priority)
        lease.placeable = placeable
        try:
            lost = self.scheduler.submit(lease, now)
            if isinstance(lost, Lease) and lost.turn is not None and not lost.turn.done():
                lost.turn.set_exception(self._full(by_key=False))
            self._dispatch()
            self.scheduler.turn_away(lease)
            if self._closing and lease.decision is None:
                self.scheduler.leave(lease)
                raise self._shut_down()
        except LineFullError as error:
            raise self._full(by_key=error.by_key) from None
        if lease.decision is None:
            await self._turn(lease, now, sign, sign_every)
        lease.admitted_at = monotonic()
        lease.waited = lease.admitted_at - now if lease.turn is not None else 0.0
        return lease

    async def again(self, lease: Lease, sign: Sign | None, sign_every: float) -> None:
        """The server of a request failed it: give back its slot, and wait for another, before all that have not begun.

        Raises:
            UnavailableError: no slot within the time. The request has none then.
        """
        self._take_over()
        now = monotonic()
        apart = min(LONGEST_APART, 0.1 * 2.0 ** min(lease.failures, 8)) if lease.failures else 0.0
        breaker = None if lease.server is None else lease.server.breaker
        if breaker is not None and breaker.state(now) is not BreakerState.CLOSED:
            apart = max(apart, min(LONGEST_APART, (breaker.open_until or now) - now))
        lease.failures += 1
        lease.turn = None
        self.scheduler.give_back(lease, now, apart)
        self._dispatch()
        if not lease.placed:
            await self._turn(lease, now, sign, sign_every)
        lease.admitted_at = monotonic()

    async def _turn(self, lease: Lease, began: float, sign: Sign | None, every: float) -> None:
        lease.turn = asyncio.get_running_loop().create_future()
        deadline = began + self._timeout
        sign_at = inf if sign is None else began + every
        try:
            while True:
                now = monotonic()
                if now >= deadline:
                    raise TimeoutError
                await asyncio.wait((lease.turn,), timeout=max(0.0, min(deadline, sign_at) - now))
                if lease.turn.done():
                    lease.turn.result()
                    return
                # a timer may be early (uvloop's are, by up to a millisecond): that is no time for a sign yet
                if sign is not None and sign_at <= monotonic() < deadline:
                    await sign()
                    sign_at = monotonic() + every
        except BaseException as error:
            if lease.placed:
                self.leave(lease, Report(0.0))  # the turn came in the same moment: it is somebody else's now
            else:
                self.scheduler.leave(lease)
                self._dispatch()
            if isinstance(error, TimeoutError):
                self.refused += 1
                late = UnavailableError(f"no slot was free within {self._timeout:g} s (queue_timeout)", status=503)
                late.retry_after = self.retry_after()
                raise late from None
            raise

    def shut(self) -> None:
        """Nobody waits here any more: those in line are told that the gateway ends, and so is whoever would have to
        wait from now on. What is at work goes on."""
        self._closing = True
        for _, ticket in tuple(self.scheduler.line.order()):
            if isinstance(ticket, Lease) and ticket.turn is not None and not ticket.turn.done():
                self.refused += 1
                ticket.turn.set_exception(self._shut_down())

    def _shut_down(self) -> UnavailableError:
        error = UnavailableError("the gateway is shutting down: no request waits for a slot any more", status=503)
        error.retry_after = self.retry_after()
        return error

    def _full(self, *, by_key: bool) -> RateLimitedError:
        self.refused += 1
        line = self.scheduler.line
        limit = (
            f"{line.limit_per_key} requests of this key wait for one, which is the limit (queue_limit_per_key)"
            if by_key
            else f"{len(line)} requests wait for one, which is the limit (queue_limit)"
        )
        error = RateLimitedError(f"all slots are taken and {limit}", status=429)
        error.retry_after = self.retry_after()
        return error

    def leave(self, lease: Lease, report: Report) -> None:
        """A request is over."""
        if report.seconds > 0:
            self._service.add(report.seconds)
        self.scheduler.finish(lease, report, monotonic())
        self._dispatch()

    def moved(self, lease: Lease, server: Server) -> None:
        """A request goes on at another server."""
        if server not in self._numbers:
            self._take_over()
        number = self._numbers.get(server)
        lease.server = server
        if number is not None:
            lease.id = self._servers[number][0]
            self.scheduler.moved(lease, number, monotonic())
            self._dispatch()

    def begun(self, lease: Lease) -> None:
        """The first token of a request is there."""
        self.scheduler.read(lease, monotonic())
        self._watch.look()

    def look(self) -> None:
        """Something changed with the servers."""
        self._take_over()
        self._dispatch()

    def retry_after(self) -> int:
        """Seconds until a request that comes now would be at work, by what requests take here."""
        rounds = (self.waiting + 1) / max(1, self.scheduler.router.slots)
        return max(1, min(LONGEST_RETRY_AFTER, ceil(rounds * self._service.value)))

    def _take_over(self) -> None:
        self._core.servers.catch_up()
        router, following = self.scheduler.router, self._core.following
        backends = [each for each in self._backends() if each.url]
        router.update(
            InstanceFacts(
                each.id,
                each.slots,
                each.routable,
                each.generation,
                each.restored,
                self._alone and ours(each, self._slot_choice),
            )
            for each in backends
        )
        self._servers.clear()
        self._numbers.clear()
        for each in backends:
            number = router.number(each.id)
            server = None if following is None else following.server(each.id)
            assert number is not None
            self._servers[number] = each.id, server
            if server is not None:
                self._numbers[server] = number

    def _server(self, number: int) -> Server | None:
        found = self._servers.get(number)
        return None if found is None else found[1]

    def _blocked(self, number: int) -> bool:
        server = self._servers[number][1]
        return server is not None and server.breaker.state(monotonic()) is not BreakerState.CLOSED

    def _dispatch(self) -> None:
        now = monotonic()
        for ticket in self.scheduler.dispatch(now, self._blocked):
            assert isinstance(ticket, Lease)
            self.admitted += 1
            ticket.id, ticket.server = self._servers[ticket.instance]
            if ticket.turn is not None and not ticket.turn.done():
                ticket.turn.set_result(None)
        self._watch.look()
        wake = self.scheduler.wake_at
        if wake != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = wake
            self._timer = (
                None if wake is None else asyncio.get_running_loop().call_later(max(0.001, wake - now), self._wake)
            )

    def _wake(self) -> None:
        self._timer = self._timer_at = None
        self._dispatch()

    def reload(self, settings: GatewaySettings) -> None:
        """Take over other settings; those who wait already, wait as long as they were told."""
        self._timeout = settings.queue_timeout
        self.scheduler.line.bound(settings.queue_limit, settings.queue_limit_per_key)
        self.scheduler.router.strategy = settings.routing
        self._slot_choice = settings.slot_choice
        self._take_over()

    def close(self) -> None:
        """Nothing more is to be done."""
        self._watch.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_at = None
