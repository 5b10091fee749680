"""How the gateway admits, bounds and protects."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta, Struct

from llamastream.address import parse_address
from llamastream.errors import SettingError
from llamastream.policy.routing import Strategy

Seconds = Annotated[float, Meta(gt=0, le=1e7)]
SlotChoice: TypeAlias = Literal["auto", "on", "off"]


def _check_upstreams(urls: tuple[str, ...], source: str) -> None:
    for url in urls:
        try:
            parse_address(url)
        except SettingError as error:
            raise SettingError(f"upstreams = {url!r} from {source}: {error.message}") from None


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\sA-Z/?#@\\]+")


def check_origins(origins: tuple[str, ...], source: str) -> None:
    """Refuse what no browser sends as an origin.

    Raises:
        SettingError: one of them is none.
    """
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise SettingError(
                f"cors_origins = {origin!r} from {source} is no origin; allowed: SCHEME://HOST[:PORT] as a browser "
                "sends it, in lower case and without a path, such as https://chat.example; or * for all"
            )


class GatewaySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the gateway; times are in seconds."""

    SECTION: ClassVar[str] = "gateway"

    enabled: Annotated[
        bool,
        Meta(
            description="Listen with the gateway, before servers that nobody else can reach; off: the servers listen "
            "themselves, each on a port of its own.",
            extra={"flags": ["--gateway"]},
        ),
    ] = True
    upstreams: Annotated[
        tuple[str, ...],
        Meta(
            description="Address of a server that already runs: the gateway stands before those that are named, and "
            "none is started. May be given several times.",
            extra={"flags": ["--upstream"], "check": _check_upstreams},
        ),
    ] = ()
    upstream_api_key: Annotated[
        str | None, Meta(description="Key that these servers ask for.", extra={"secret": True})
    ] = None
    queue_limit: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Requests that may wait for a slot; more are refused with 429.")
    ] = 256
    queue_timeout: Annotated[
        Seconds, Meta(description="Seconds that a request may wait for a slot; then it is refused with 503.")
    ] = 300.0
    queue_limit_per_key: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(description="Requests of one API key that may wait for a slot; unset: as many as of all together."),
    ] = None
    routing: Annotated[
        Strategy,
        Meta(
            description="Which instance a request goes to: `expected` (the one from which its first token is expected "
            "soonest), `least-busy`, `round-robin`, `affinity` (a conversation stays where it was), or `prefix-only` "
            "(the longest cached prompt, however busy; for comparisons)."
        ),
    ] = "expected"
    slot_choice: Annotated[
        SlotChoice,
        Meta(
            description="Tell servers which slot to put a request into (`id_slot`), so that a conversation is found "
            "again in its own, and is not overwritten by another one with the same system prompt: `auto` (servers that "
            "were started here and that nobody else can reach), `on` (all; nobody may send them requests past the "
            "gateway), `off` (servers choose)."
        ),
    ] = "auto"
    requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 40)] | None,
        Meta(
            description="Requests to models that an API key may make in a minute; more are refused with 429. Unset: no "
            "limit. What the keys file says of a key wins; without keys, all clients share it."
        ),
    ] = None
    tokens_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 40)] | None,
        Meta(description="Tokens of prompts and answers that an API key may use in a minute; as above."),
    ] = None
    requests_at_once: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(description="Requests to models that an API key may have in line and at work; as above."),
    ] = None
    strict_model: Annotated[
        bool,
        Meta(
            description="Refuse requests for a model that does not exist also where there is but one, which otherwise "
            "answers to any name."
        ),
    ] = False
    max_body: Annotated[
        int, Meta(ge=1024, le=1 << 32, description="Largest body of a request in bytes; more is refused with 413.")
    ] = 32 * 1024 * 1024
    max_bodies: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 40,
            description="Bytes that the bodies of all requests together may take, from their first byte to the end of "
            "the answer; more are refused with 503. Bodies of up to 64 KiB do not count.",
        ),
    ] = 256 * 1024 * 1024
    body_timeout: Annotated[Seconds, Meta(description="Seconds that the body of a request may take to come.")] = 60.0
    max_head: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 20,
            description="Largest request line and headers of a request together, in bytes; more is refused with 431.",
        ),
    ] = 64 * 1024
    head_timeout: Annotated[
        Seconds, Meta(description="Seconds that the head of a request may take to come; then its client is hung up on.")
    ] = 20.0
    idle_timeout: Annotated[
        Seconds, Meta(description="Seconds that a connection may be idle after an answer; then it is closed.")
    ] = 15.0
    stall_timeout: Annotated[
        Seconds, Meta(description="Seconds for which a client may not take any of its answer; then it is hung up on.")
    ] = 60.0
    drain_timeout: Annotated[
        float,
        Meta(
            ge=0,
            le=1e7,
            description="Seconds that running streams have at shutdown.",
            extra={"flags": []},  # that of the fleet stands for both
        ),
    ] = 30.0
    max_connections: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Connections of clients at the same time; more are refused with 503.")
    ] = 4096
    max_connections_per_client: Annotated[
        Annotated[int, Meta(ge=1, le=1 << 20)] | None,
        Meta(
            description="Connections from one address at the same time; more are refused with 429; unset: no limit. "
            "Behind a proxy all clients have its address."
        ),
    ] = None
    detach_grace: Annotated[
        Seconds,
        Meta(
            description="Seconds for which a stream with an X-Conversation-Id goes on while nobody reads it; then it "
            "is ended, and its slot is free."
        ),
    ] = 30.0
    replay_ttl: Annotated[
        Seconds, Meta(description="Seconds for which such a stream can still be read after its end.")
    ] = 300.0
    replay_bytes: Annotated[
        int,
        Meta(ge=4096, le=1 << 30, description="Bytes of each such stream that are kept; of a longer one, the last."),
    ] = 4 * 1024 * 1024
    replay_memory: Annotated[
        int, Meta(ge=4096, le=1 << 40, description="Bytes of all such streams together that are kept.")
    ] = 64 * 1024 * 1024
    response_cache: Annotated[
        bool,
        Meta(
            description="Keep answers to deterministic requests (temperature 0, or a seed of the client's), and give "
            "them again to the same request."
        ),
    ] = False
    response_cache_dir: Annotated[
        str | None,
        Meta(description="Directory where they are kept, so that they survive a restart; unset: in memory only."),
    ] = None
    response_cache_size: Annotated[
        int, Meta(ge=1 << 18, le=1 << 40, description="Bytes that they may take on disk.")
    ] = 1024 * 1024 * 1024
    response_cache_memory: Annotated[
        int, Meta(ge=1 << 16, le=1 << 40, description="Bytes that they may take in memory.")
    ] = 64 * 1024 * 1024
    response_cache_ttl: Annotated[Seconds, Meta(description="Seconds for which they are good.")] = 86400.0
    response_cache_shared: Annotated[
        bool, Meta(description="Give answers also to other API keys than the one whose request they answered.")
    ] = False
    keys_file: Annotated[
        str | None,
        Meta(
            description="File of API keys, one in each line: KEY, NAME:SCOPE[,SCOPE]:KEY, or either with sha256:HEX "
            "in place of KEY; scopes: inference, metrics, admin.",
        ),
    ] = None
    api_keys: Annotated[
        str | None,
        Meta(
            description="API keys, in the forms of the keys file, separated by blanks.",
            extra={"secret": True, "flags": []},
        ),
    ] = None
    allow_open: Annotated[
        bool, Meta(description="Listen on addresses that others can reach although there are no API keys.")
    ] = False
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins of web pages that may ask from a browser, such as https://chat.example; none: CORS "
            "is off.",
            extra={"flags": ["--cors-origin"], "check": check_origins},
        ),
    ] = ()
    dashboard: Annotated[
        bool,
        Meta(
            description="A page at /dashboard that shows how everything is: for keys with the scope admin, or, without "
            "keys, for this machine only."
        ),
    ] = True
    dashboard_actions: Annotated[
        bool,
        Meta(
            description="Let the dashboard drain and restart servers also where there are no API keys: for every user "
            "of this machine."
        ),
    ] = False
    tls_cert_file: Annotated[
        str | None, Meta(description="PEM file of the gateway's certificate, with the chain; unset: no TLS.")
    ] = None
    tls_key_file: Annotated[str | None, Meta(description="PEM file of the certificate's key.")] = None
