"""Which servers a request may go to: one lane for each kind of work and model, each with connections and a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from llamastream.backends import Backend, BackendSource
from llamastream.client import AsyncStreamingClient
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.core import ClientCore
from llamastream.errors import UnavailableError
from llamastream.events import Listener
from llamastream.gateway.admission import Admission
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.tasks import Doing, doing, elsewhere, nobody_does
from llamastream.settings import ClientSettings
from llamastream.types import Task


class UnservedTaskError(LookupError):
    """No server is for this kind of work; `str` of it is for the client."""


class UnknownModelError(LookupError):
    """No server serves this model; `str` of it is for the client."""


def lane_names(backends: Iterable[Backend]) -> dict[str, str]:
    """For each name that a client may ask for, the model whose lane that is: the first name of the servers that have
    it."""
    names: dict[str, str] = {}
    for backend in backends:
        if backend.models:
            first = names.get(backend.models[0], backend.models[0])
            for name in backend.models:
                names.setdefault(name, first)
    return names


def lane_of(asked: str | None, names: dict[str, str], *, strict: bool) -> str | None:
    """The model whose lane a request takes; None: that of all servers, since nobody knows yet what they serve.

    Args:
        asked: the model that it names, None or "" if it names none. names: see `lane_names`. strict: a name has to be
            right even where there is but one model.

    Raises:
        UnknownModelError: there is no such model, or several and the request names none.
    """
    if asked and asked in names:
        return names[asked]
    models = set(names.values())
    if not models and not (asked and strict):
        return None
    if len(models) == 1 and not (asked and strict):
        return next(iter(models))
    there = ", ".join(sorted(names)) or "none yet"
    if asked:
        raise UnknownModelError(f"the model {asked[:200]!r} does not exist; there are: {there}")
    raise UnknownModelError(f"name a model; there are: {there}")


class Lane:
    """The servers of one model, the connections to them, and the line before their slots. Belongs to one event loop.

    Attributes:
        model: its name; None: whatever the servers serve. core, pools: what the runners of requests are built of.
        admission: the line.
    """

    def __init__(
        self, source: BackendSource, model: str | None, settings: GatewaySettings, listeners: Iterable[Listener]
    ) -> None:
        self.model = model
        self._source = source
        self._client = AsyncStreamingClient(
            source, model=model, settings=ClientSettings(first_byte_timeout=None), listeners=tuple(listeners)
        )
        # the runners of its streams are built of the same parts, with another end
        self.core: ClientCore = self._client._core  # noqa: SLF001
        self.pools: Sequence[AsyncConnectionPool] = self._client._pools  # noqa: SLF001
        # without a name it may have the servers of other lanes, too
        self.admission = Admission(self.core, self.backends, settings, alone=model is not None)

    def backends(self) -> Iterator[Backend]:
        """Its servers, as they are now."""
        for backend in self._source.snapshot():
            if self.model is None or self.model in backend.models:
                yield backend

    async def close(self) -> None:
        """Close the connections."""
        self.admission.close()
        await self._client.close()


class Lanes:
    """The lanes of a source: each is made when the first request takes it. Belongs to one event loop."""

    def __init__(self, source: BackendSource, settings: GatewaySettings, listeners: Iterable[Listener] = ()) -> None:
        self._source = source
        self._settings = settings
        self._listeners = tuple(listeners)
        self._lanes: dict[tuple[Task, str | None], Lane] = {}
        self._shut = False

    def __iter__(self) -> Iterator[Lane]:
        return iter(tuple(self._lanes.values()))

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return sum(lane.admission.waiting for lane in self)

    @property
    def active(self) -> int:
        """Requests at work."""
        return sum(lane.admission.active for lane in self)

    def at_work(self) -> dict[str, int]:
        """Requests at work on each instance, by its id. From any thread."""
        counts: Counter[str] = Counter()
        for lane in self:
            counts.update(lane.admission.at_work())
        return dict(counts)

    @property
    def admitted(self) -> int:
        """Requests that got a slot, since the start."""
        return sum(lane.admission.admitted for lane in self)

    @property
    def refused(self) -> int:
        """Requests that got none."""
        return sum(lane.admission.refused for lane in self)

    def find(self, asked: str | None, task: Task = "generate") -> Lane:
        """The lane for a request of this kind that names this model, or none.

        Raises:
            UnknownModelError: there is no such lane.
            UnservedTaskError: no server is for that.
            UnavailableError: there is no server yet.
        """
        every = self._source.snapshot()
        able = doing(every, task)
        if every and not able:
            raise UnservedTaskError(nobody_does(task))
        names = lane_names(able)
        if asked and asked not in names and (reason := elsewhere(asked, every, task)) is not None:
            raise UnknownModelError(reason)
        return self._lane(task, lane_of(asked, names, strict=self._settings.strict_model))

    def about(self, asked: str | None) -> Lane:
        """The lane for a question that every server of a model answers, whatever it is for. Raises as `find`."""
        every = self._source.snapshot()
        named = next((each for each in every if asked in each.models), None)
        if named is not None:
            return self.of(named)
        return self.find(asked) if not every or doing(every, "generate") else self.any()

    def of(self, backend: Backend) -> Lane:
        """The lane of a server."""
        task: Task = backend.tasks[0] if backend.tasks else "generate"
        names = lane_names(doing(self._source.snapshot(), task))
        return self._lane(task, names.get(backend.models[0]) if backend.models else None)

    def any(self) -> Lane:
        """A lane for what every server answers: that of the first one that takes requests, if possible of one that
        generates.

        Raises:
            UnavailableError: there is none.
        """
        backends = sorted(self._source.snapshot(), key=lambda each: not each.does("generate"))
        ready = next((each for each in backends if each.routable), None)
        return self.find(None) if ready is None else self.of(ready)

    def reload(self, settings: GatewaySettings) -> None:
        """Take over other settings; those who wait already, wait as long as they were told."""
        self._settings = settings
        for lane in self:
            lane.admission.reload(settings)

    def look(self) -> None:
        """Something changed with the servers."""
        for lane in self:
            lane.admission.look()

    def shut(self) -> None:
        """Nobody waits in line any more (see `Admission.shut`)."""
        self._shut = True
        for lane in self:
            lane.admission.shut()

    async def close(self) -> None:
        """Close all of them."""
        for lane in self:
            await lane.close()

    def _lane(self, task: Task, model: str | None) -> Lane:
        found = self._lanes.get((task, model))
        if found is None:
            source = Doing(self._source, task)
            if not any(backend.url for backend in source.snapshot()):
                raise UnavailableError("no server is up yet", status=503)
            found = self._lanes[task, model] = Lane(source, model, self._settings, self._listeners)
            if self._shut:
                found.admission.shut()
        return found
