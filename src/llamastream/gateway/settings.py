"""How the gateway admits, bounds and protects."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0, le=1e7)]


class GatewaySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the gateway; times are in seconds."""

    SECTION: ClassVar[str] = "gateway"

    queue_limit: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Requests that may wait for a slot; more are refused with 429.")
    ] = 256
    queue_timeout: Annotated[
        Seconds, Meta(description="Seconds that a request may wait for a slot; then it is refused with 503.")
    ] = 300.0
    max_body: Annotated[
        int, Meta(ge=1024, le=1 << 32, description="Largest body of a request in bytes; more is refused with 413.")
    ] = 32 * 1024 * 1024
    body_timeout: Annotated[Seconds, Meta(description="Seconds that the body of a request may take to come.")] = 60.0
    stall_timeout: Annotated[
        Seconds, Meta(description="Seconds for which a client may not take any of its answer; then it is hung up on.")
    ] = 60.0
    drain_timeout: Annotated[
        Annotated[float, Meta(ge=0, le=1e7)], Meta(description="Seconds that running streams have at shutdown.")
    ] = 30.0
