"""The dashboard: a page at `/dashboard`, its events, and what its buttons do."""

from llamastream.gateway.dashboard.endpoints import Dashboard, Operate

__all__ = ["Dashboard", "Operate"]
