"""Did something between the server and us hold the stream back, and which setting lets it flow?"""

from __future__ import annotations

from collections.abc import Mapping

from llamastream.types import Stats, Timings

_LONG_MS = 1000.0
"""Shorter generations cannot be told from a fast server."""


SILENCE = 2.0
"""Seconds of silence before an answer that came all at once, for it to be suspicious where the server gave no times."""
_SUSPICIOUS_CHUNKS = 40
"""So many chunks of content at once are no first words."""


def looks_buffered(stats: Stats, timings: Timings | None, silence: float = 0.0) -> bool:
    """Whether an answer that took the server a while to generate arrived all at once.

    `silence`: for how long the reader waited for the last attempt's header, if that came together with content; else 0.
    Servers send the header when they begin, so where it comes with the whole of a long answer, somebody held both.
    """
    if timings is None:
        if silence < SILENCE or stats.chunks < _SUSPICIOUS_CHUNKS or stats.time_to_first_token is None:
            return False
        return stats.duration - stats.time_to_first_token < 0.01
    if stats.time_to_first_token is None or stats.chunks < 2 or timings.predicted_ms < _LONG_MS:
        return False
    spread_ms = (stats.duration - stats.time_to_first_token) * 1000.0
    return spread_ms < 0.1 * timings.predicted_ms


def buffering_advice(headers: Mapping[str, str]) -> str:
    """What to change, going by the response header (field names in lower case)."""
    start = "the answer was generated token by token but arrived all at once: something on the way buffers it. "
    server = f"{headers.get('server', '')} {headers.get('via', '')}".lower()
    if "cf-ray" in headers or "cloudflare" in server:
        return (
            start + "Cloudflare: send `Cache-Control: no-transform` from the origin and switch off response buffering"
        )
    if "nginx" in server or "openresty" in server:
        return start + "nginx: set `proxy_buffering off;` and `gzip off;` in the location of the API"
    if "uvicorn" in server:
        return start + "uvicorn: remove GZipMiddleware and BaseHTTPMiddleware from the routes that stream"
    return start + (
        "Look for a proxy, a compressing middleware or an anti-virus in between "
        "(nginx: `proxy_buffering off;`, Cloudflare: `no-transform`, uvicorn: no GZipMiddleware)"
    )
