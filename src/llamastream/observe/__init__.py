"""Listeners to the clients' events: logging today; metrics, tracing and alerts stand on the same interface."""

from llamastream.observe.logs import JsonFormatter, LoggingListener

__all__ = ["JsonFormatter", "LoggingListener"]
