"""What the requests of one client share: the retry budget, the listeners, and which hints have been given."""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections.abc import Iterable
from typing import Protocol

import msgspec

from llamastream.client.forks import renew_after_fork
from llamastream.client.servers import Server, Servers
from llamastream.errors import LlamaStreamError
from llamastream.events import ClientEvent, Hint, Listener
from llamastream.policy.prompt_cache import PromptCacheWatch
from llamastream.policy.retry import Retry, RetryBudget, RetryState, decide
from llamastream.types import PromptFacts, Recovery, RetryPolicy

logger = logging.getLogger("llamastream")
recovery_logger = logging.getLogger("llamastream.recovery")
"""Apart, since a program that shows breaks in its own way may not want them in the log."""

_numbers = itertools.count(1)
"""Of the whole process: a listener may serve several clients."""


class Holdings(Protocol):
    """Keeps track of generations that servers hold under an id. Neither call waits for anything."""

    def add(self, server: Server, conversation_id: str) -> None: ...

    def drop(self, server: Server, conversation_id: str, *, begun: bool) -> None: ...


class ClientState:
    """Thread-safe. `servers` are the client's, `holdings` keeps track of what they hold for it."""

    def __init__(
        self, retry: RetryPolicy, listeners: Iterable[Listener], servers: Servers, holdings: Holdings | None = None
    ) -> None:
        self.retry = retry
        self.servers = servers
        self.holdings = holdings
        self._listeners = tuple(listeners)
        self.after_fork()
        renew_after_fork(self)
        self._budget = RetryBudget()
        self._hinted: set[str] = set()
        self._prompt_cache = PromptCacheWatch()

    def after_fork(self) -> None:
        """A lock of its own for the child of a fork."""
        self._lock = threading.Lock()

    def next_request_id(self) -> int:
        return next(_numbers)

    @staticmethod
    def new_conversation_id() -> str:
        """An id under which a server may hold a generation; who knows it may read and end it, so it is unguessable."""
        return f"llamastream-{secrets.token_hex(16)}"

    def hold(self, server: Server, conversation_id: str) -> None:
        """A server is about to hold a generation under this id."""
        if self.holdings is not None:
            self.holdings.add(server, conversation_id)

    def let_go(self, server: Server, conversation_id: str, *, begun: bool) -> None:
        """Have a server drop what it holds, in the background. `begun`: it has answered already."""
        if self.holdings is not None:
            self.holdings.drop(server, conversation_id, begun=begun)

    def notify(self, event: ClientEvent) -> None:
        """Tell every listener; what they raise is logged and goes no further."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                # Whatever a listener does, the stream goes on.
                logger.exception("a listener failed on %s", type(event).__name__)

    def hint(self, request_id: int, topic: str, message: str) -> None:
        """Give a hint, once for each topic: to the listeners, and to the log."""
        with self._lock:
            if topic in self._hinted:
                return
            self._hinted.add(topic)
        logger.warning(message)
        self.notify(Hint(request_id, topic, message))

    def log_recovery(self, recovery: Recovery) -> None:
        """A stream that broke in the middle goes on: a line in the log, unless a listener says that it tells."""
        if not any(getattr(listener, "tells_recoveries", False) for listener in self._listeners):
            recovery_logger.warning("%s", recovery.summary)

    def decide_retry(self, error: LlamaStreamError, state: RetryState, random: float) -> Retry | None:
        """Whether to send again; takes the cost from the budget."""
        with self._lock:
            retry = decide(error, msgspec.structs.replace(state, budget=self._budget.tokens), self.retry, random)
            if retry is not None:
                self._budget.spend(retry.cost)
            return retry

    def succeeded(self, prompt: PromptFacts | None) -> str | None:
        """A request ended well; a hint about the prompt cache, if there is one to give."""
        with self._lock:
            self._budget.earn()
            return None if prompt is None else self._prompt_cache.observe(prompt)
