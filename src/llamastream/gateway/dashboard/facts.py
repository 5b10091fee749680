"""What the dashboard reads of a gateway and its servers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llamastream.address import parse_address
from llamastream.gateway.operations import reports_of
from llamastream.observe.dashboard import Facts

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway

logger = logging.getLogger("llamastream.gateway")

Alerts = Callable[[], Sequence[Any]]
"""The alerts that are active, as structs or mappings with `rule`, `severity`, `message` (or `what` and `shown`) and
`instance` (or `subject`), as far as known."""


class Reader:
    """Reads what there is now."""

    def __init__(self, gateway: Gateway, alerts: Alerts | None, connections: Callable[[], int] | None) -> None:
        self._gateway = gateway
        self._alerts = alerts
        self._connections = connections
        self._complained = False

    async def read(self) -> Facts:
        """What there is now. Other people's parts of it are asked in a thread: they may wait for a lock."""
        reports, alerts = await asyncio.to_thread(self._ask_others)
        lanes = self._gateway.lanes
        return Facts(
            instances=self._instances(reports),
            waiting=lanes.waiting,
            active=lanes.active,
            refused=lanes.refused,
            connections=None if self._connections is None else self._connections(),
            alerts=alerts,
            response_cache=self._gateway.sharing.cache_figures(),
        )

    def _ask_others(self) -> tuple[Sequence[Any] | None, Sequence[Any]]:
        reports = reports_of(self._gateway.source)
        try:
            alerts = [] if self._alerts is None else [msgspec.to_builtins(each) for each in self._alerts()]
        except Exception:
            # a fault there must not take the rest of the page with it; it is said once, and not each second
            if not self._complained:
                self._complained = True
                logger.exception("the alerts for the dashboard cannot be read")
            return reports, []
        return reports, alerts

    def _instances(self, reports: Sequence[Any] | None) -> list[Mapping[str, Any]]:
        """Servers with what is known of them; requests at work are counted here, and so up to date."""
        backends = self._gateway.source.snapshot()
        working = self._working()
        here = {each.id: working.get(parse_address(each.url).url, 0) for each in backends if each.url}
        if reports is not None:
            found: list[Mapping[str, Any]] = []
            for report in reports:
                known = {name: getattr(report, name) for name in report.__struct_fields__ if name != "url"}
                known["in_flight"] = max(known["in_flight"], here.get(report.id, 0))
                found.append(known)
            return found
        return [
            {
                "id": each.id,
                "model": ", ".join(each.models),
                "state": each.state,
                "reason": each.url,
                "slots": each.slots,
                "in_flight": max(each.in_flight, here.get(each.id, 0)),
            }
            for each in backends
        ]

    def _working(self) -> Counter[str]:
        """Requests at work by the address of their server."""
        found: Counter[str] = Counter()
        for lane in self._gateway.lanes:
            for server in lane.core.servers.all:
                found[server.url] += server.in_flight
        return found
