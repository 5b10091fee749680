"""What each API key has used of what it may use."""

from __future__ import annotations

from time import monotonic

from msgspec import Struct, structs

from llamastream.errors import RateLimitedError
from llamastream.gateway.settings import GatewaySettings
from llamastream.policy.allowance import Account, Allowance

ACCOUNTS = 4096
"""Keys that are remembered although nothing of theirs is used up."""

_WORDS = {
    "requests_per_minute": "{} requests a minute",
    "tokens_per_minute": "{} tokens a minute",
    "requests_at_once": "{} requests at the same time",
}


class Charge(Struct):
    """What was taken from a key's account for one request."""

    account: Account
    tokens: float
    key: str


class Limiter:
    """The accounts of all keys. Belongs to one event loop.

    Attributes:
        refused: how many requests, by the name of the limit that they went beyond.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._accounts: dict[str, Account] = {}
        self.reload(settings)
        self.refused: dict[str, int] = dict.fromkeys(_WORDS, 0)

    def reload(self, settings: GatewaySettings) -> None:
        """Take over other settings."""
        self._default = Allowance(
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            requests_at_once=settings.requests_at_once,
        )

    def allowance(self, own: tuple[tuple[str, object], ...]) -> Allowance:
        """What a key may use of which the keys file says this."""
        return structs.replace(self._default, **dict(own)) if own else self._default

    def begin(self, key: str, allowance: Allowance, tokens: float) -> Charge:
        """A request begins whose prompt has about so many tokens.

        Raises:
            RateLimitedError: it is beyond what the key may use.
        """
        now = monotonic()
        account = self._account(key, allowance, now)
        refusal = account.begin(tokens, now)
        if refusal is not None:
            self.refused[refusal.limit] += 1
            whose = f"the API key {key!r}" if key else "everybody together"
            error = RateLimitedError(
                f"{whose} may have {_WORDS[refusal.limit].format(refusal.value)} ({refusal.limit})", status=429
            )
            error.retry_after = refusal.retry_after
            raise error
        return Charge(account, tokens, key)

    def left(self, key: str, allowance: Allowance) -> list[tuple[bytes, bytes]]:
        """What is left to a key, for a response that takes nothing of it."""
        self._account(key, allowance, monotonic())
        return self.headers(key)

    def end(self, charge: Charge, used: float | None) -> None:
        """The request is over, and used so many tokens; None: not known."""
        charge.account.end(charge.tokens, used, monotonic())

    def headers(self, key: str) -> list[tuple[bytes, bytes]]:
        """What is left to a key, for its responses."""
        account = self._accounts.get(key)
        if account is None:
            return []
        return [(name.encode(), value.encode()) for name, value in account.headers(monotonic())]

    def _account(self, key: str, allowance: Allowance, now: float) -> Account:
        account = self._accounts.get(key)
        if account is None:
            self._sweep(now)
            account = self._accounts[key] = Account(allowance, now)
        elif account.allowance != allowance:
            account.changed(allowance, now)
        return account

    def _sweep(self, now: float) -> None:
        if len(self._accounts) >= ACCOUNTS:
            self._accounts = {key: each for key, each in self._accounts.items() if not each.idle(now)}
