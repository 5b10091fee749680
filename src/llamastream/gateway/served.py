"""What becomes known of a request while the gateway serves it, and the one event that is made of it at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from llamastream.address import parse_address
from llamastream.backends import BackendSource
from llamastream.errors import LlamaStreamError
from llamastream.events import RequestServed, is_refusal
from llamastream.gateway.admission import Lease
from llamastream.gateway.glimpse import Glimpse
from llamastream.gateway.passage import Passage
from llamastream.gateway.refusals import status_of
from llamastream.gateway.relay import Relay
from llamastream.policy.routing import Report

SCOPE_KEY = "llamastream.served"
OTHER = "other"
LEFT = 499
"""Status of a request whose client left before there was an answer (nginx's)."""


class Served:
    """One request, as far as it is known. What serves it fills in.

    Attributes:
        request_id, method, route, client: see `RequestServed`. key: the name of its key. model: that was asked for,
            None where none is. wanted: it is for an answer. asked: its body was read, and can be answered. runner:
            who brings the answer. queue_wait: seconds. status: of the answer, 0 before it began. ended: the answer is
            complete. error: what went wrong. Where `work` brings the answer, these say what that brought, and not how
            much of it the client stayed for.
        glimpse: reads along what is not read otherwise. owner: tells its key from all others, also where names change.
        work: what brings its answer apart from its connection, and may go on without that; None: nothing does.
        own: what the keys file says of its key. lease: its slot. report: what it took. headers: for its response.
        explain: its client wants to know why it went where it went.
        cache: what the response cache did: hit, miss, shared, or "". A miss is told of only where a server was asked.
    """

    def __init__(self, request_id: str, method: str, route: str, client: str) -> None:
        self.request_id = request_id
        self.method = method
        self.route = route
        self.client = client
        self.key = ""
        self.owner = ""
        self.cache = ""
        self.model: str | None = None
        self.wanted = False
        self.asked = False
        self.runner: Relay | Passage | None = None
        self.work: asyncio.Task[None] | None = None
        self.own: tuple[tuple[str, Any], ...] = ()
        self.lease: Lease | None = None
        self.report: Report | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.explain = False
        self.status = 0
        self.ended = False
        self.error = ""
        self._fault = 0
        self.glimpse: Glimpse | None = None
        self.first_body: float | None = None
        self._time = time.time()
        self._began = time.monotonic()

    def generation(self, body: dict[str, Any], runner: Relay | Passage) -> None:
        """It asks for an answer, which `runner` brings."""
        model = body.get("model")
        self.model = model if isinstance(model, str) else ""
        self.asked = True
        self.runner = runner
        if isinstance(runner, Passage):
            self.glimpse = Glimpse()

    def repeated(self, body: dict[str, Any], how: str) -> None:
        """It is answered by what was generated for another request."""
        model = body.get("model")
        self.model = model if isinstance(model, str) else ""
        self.asked = True
        self.cache = how
        self.glimpse = Glimpse()

    def failed(self, error: BaseException) -> None:
        """It ends by this error, of which a client that is in the middle of its answer sees no status."""
        self.error = type(error).__name__
        self._fault = status_of(error) if isinstance(error, LlamaStreamError) else 0

    def saw(self, message: MutableMapping[str, Any]) -> None:
        """Take note of what is sent as its answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.glimpse is not None:
                self.glimpse.stream = of_events(message)
        elif message["type"] == "http.response.body":
            if self.glimpse is not None and (body := message.get("body")):
                if self.first_body is None:
                    self.first_body = time.monotonic()
                self.glimpse.take(body)
            self.ended = not message.get("more_body", False)

    def instance(self, source: BackendSource) -> str:
        """The id of the server that answers, or ""."""
        if self.lease is not None and self.lease.id:
            return self.lease.id
        runner = self.runner
        if isinstance(runner, Passage):
            server = runner.server
        else:
            server = None if runner is None or runner.session is None else runner.session.server
        if server is None:
            return ""
        return next(
            (each.id for each in source.snapshot() if each.url and parse_address(each.url).url == server.url), ""
        )

    @property
    def queue_wait(self) -> float | None:
        """Seconds in line."""
        return None if self.lease is None else self.lease.waited

    def used_tokens(self) -> float | None:
        """Tokens of prompt and answer; None: not known."""
        if self.lease is None:
            return 0.0  # nobody was asked
        report = self.report
        if report is None or report.prompt_tokens is None:
            return None
        return float(report.prompt_tokens + (report.answer_tokens or 0))

    def own_headers(self, source: BackendSource) -> list[tuple[bytes, bytes]]:
        """The headers that say of a response what happened to its request."""
        found = [(b"x-request-id", self.request_id.encode()), *self.headers]
        if cached := self._cached:
            found.append((b"x-llamastream-cache", cached.encode()))
        if instance := self.instance(source):
            found.append((b"x-llamastream-instance", instance.encode()))
        if self.explain and self.lease is not None and (decision := self.lease.decision) is not None:
            found.append((b"x-llamastream-route-reason", decision.reason.encode()))
            seconds = f"{decision.seconds:.3f}".encode()
            found.append(
                (
                    b"x-llamastream-expected",
                    b"seconds=%b, tokens=%d, cached=%d" % (seconds, decision.tokens, decision.cached),
                )
            )
        return found

    @property
    def _cached(self) -> str:
        return "" if self.cache == "miss" and self.lease is None else self.cache

    def _expected(self) -> dict[str, Any]:
        """What routing thought of it, and what came of that."""
        lease = self.lease
        if lease is None or (decision := lease.decision) is None:
            return {}
        first = lease.first_token_at
        begun = None if first is None or first < lease.admitted_at else first - lease.admitted_at
        return {
            "route_reason": decision.reason,
            "expected_first_token": decision.seconds,
            "first_token": begun,
            "expected_cached_tokens": round(decision.cached),
        }

    def finish(self, source: BackendSource) -> RequestServed:
        """It is over."""
        known: dict[str, Any] = {}
        session = self.runner.session if isinstance(self.runner, Relay) else None
        if session is not None:
            stats = session.stats()
            begun = None if stats.time_to_first_token is None else stats.time_to_first_token + (self.queue_wait or 0.0)
            known = {
                "streamed": True,
                "finish_reason": session.finish_reason or "cancelled",
                "time_to_first_token": begun,
                "prompt_tokens": stats.prompt_tokens,
                "cached_tokens": stats.cached_tokens,
                "completion_tokens": stats.completion_tokens,
                "gaps": session.gaps(),
                "recoveries": tuple(recovery.kind for recovery in stats.recoveries),
            }
            if session.error is not None:
                known["error"] = type(session.error).__name__
                self._fault = self._fault or status_of(session.error)
        elif self.glimpse is not None:
            known = self._glimpsed(self.glimpse)
        if not self.ended:
            known["finish_reason"] = "cancelled" if self.asked and not self.error else known.get("finish_reason", "")
        if self.error:
            known |= {"error": self.error, "finish_reason": "error" if self.wanted else ""}
        known["finish_reason"] = self._outcome(known.get("finish_reason", ""))
        return RequestServed(
            time=self._time,
            request_id=self.request_id,
            method=self.method,
            route=self.route,
            status=self.status or LEFT,
            duration=time.monotonic() - self._began,
            model=known_model(self.model, source),
            queue_wait=self.queue_wait,
            instance=self.instance(source),
            key=self.key,
            client=self.client,
            cache=self._cached,
            **self._expected(),
            **known,
        )

    def _outcome(self, reason: str) -> str:
        """How it ended: whose fault it was, if it was one, and something for every answer."""
        if reason == "error":
            if not self.status:
                return "cancelled"  # nobody was there to be told
            return "refused" if is_refusal(self.status) or is_refusal(self._fault) else reason
        return reason or ("other" if self.asked else "")

    def _glimpsed(self, glimpse: Glimpse) -> dict[str, Any]:
        seen = glimpse.figures()
        reason = seen.finish_reason if self.status < 400 else "error"
        begun = None
        if glimpse.stream and self.first_body is not None:
            begun = self.first_body - self._began
        known = {"streamed": glimpse.stream, "finish_reason": reason, "time_to_first_token": begun}
        if self.cache in ("hit", "shared"):
            return known  # its tokens count where they were generated
        return known | {
            "prompt_tokens": seen.prompt_tokens,
            "cached_tokens": seen.cached_tokens,
            "completion_tokens": seen.completion_tokens,
        }


def of_events(start: MutableMapping[str, Any]) -> bool:
    """Whether a stream of events follows this beginning of a response."""
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start.get("headers", ())
    )


def known_model(asked: str | None, source: BackendSource) -> str:
    """The model that was asked for, out of those that exist: what clients write there must not become a new series."""
    if asked is None:
        return ""
    models = {name for backend in source.snapshot() for name in backend.models}
    if asked in models:
        return asked
    return next(iter(models)) if not asked and len(models) == 1 else OTHER


def served_of(scope: MutableMapping[str, Any]) -> Served:
    """What is known of a request."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, Served) else Served("", scope["method"], OTHER, "")
