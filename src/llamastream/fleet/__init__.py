"""Supervised llama-servers: one or many, kept healthy, restarted and drained. Knows nothing of the gateway."""

from llamastream.fleet.fleet import Fleet
from llamastream.fleet.report import InstanceReport
from llamastream.fleet.settings import FleetSettings, Pool

__all__ = ["Fleet", "FleetSettings", "InstanceReport", "Pool"]
