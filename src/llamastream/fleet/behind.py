"""Pools behind a gateway: on sockets that nobody else reaches, with the gateway on the address that was theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.fleet.settings import Pool

LOCAL = "127.0.0.1"
SIMILARITY = 0.75
"""Share of a prompt that a slot must hold to be taken for that of its conversation: with less, the server copies what
the slot holds to its prompt cache before it is overwritten, and looks there for what has more of the prompt. By its own
0.1 any conversation with the same system prompt is taken for this one."""


class Front(Struct, frozen=True, kw_only=True):
    """Where a gateway listens in place of its servers, and the keys that were to be asked for there.

    Attributes:
        host, port: the address. socket: path of a Unix socket instead. api_keys: of the servers; never shown.
    """

    host: str = LOCAL
    port: int = 0
    socket: str | None = None
    api_keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = self.socket or f"{self.host}:{self.port}"
        return f"<Front {where}{f', {len(self.api_keys)} keys' if self.api_keys else ''}>"


def front_of(pools: Sequence[Pool]) -> Front:
    """Where the gateway listens: where the servers would have, without it.

    Raises:
        SettingError: the models are to be at different addresses.
    """
    first = pools[0].options
    for pool in pools[1:]:
        for name in ("host", "port", "socket"):
            mine, other = getattr(first, name), getattr(pool.options, name)
            if mine != other:
                raise SettingError(
                    f"{name} = {other!r} of the model {pool.name!r} differs from {mine!r} of {pools[0].name!r}, but "
                    "they are behind one gateway: say where it listens in [serve], or serve without it (--no-gateway)"
                )
    keys = dict.fromkeys(pool.options.api_key for pool in pools if pool.options.api_key is not None)
    return Front(host=first.host or LOCAL, port=first.port, socket=first.socket, api_keys=tuple(keys))


def behind(pools: Sequence[Pool], directory: Path) -> tuple[Pool, ...]:
    """The same pools on Unix sockets in a directory that nobody else can enter; they need no keys there."""
    return tuple(replace(pool, options=_behind(pool, directory)) for pool in pools)


def _behind(pool: Pool, directory: Path) -> EngineOptions:
    options = replace(pool.options, host=LOCAL, port=0, socket=_socket(pool, directory), api_key=None)
    if options.slot_prompt_similarity is None and options.cache_ram != 0:
        options = replace(options, slot_prompt_similarity=SIMILARITY)
    return options


def _socket(pool: Pool, directory: Path) -> str:
    # of the name alone, so that it stays when other models come and go; short, since paths of sockets must be
    return str(directory / f"{hashlib.sha256(pool.name.encode()).hexdigest()[:8]}.sock")
