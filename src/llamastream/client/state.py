"""What the requests of one client share: the retry budget, the listeners, and which hints have been given."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable

import msgspec

from llamastream.errors import LlamaStreamError
from llamastream.events import ClientEvent, Hint, Listener
from llamastream.policy.prompt_cache import PromptCacheWatch
from llamastream.policy.retry import Retry, RetryBudget, RetryState, decide
from llamastream.types import PromptFacts, RetryPolicy

logger = logging.getLogger("llamastream")


class ClientState:
    """Thread-safe."""

    def __init__(self, retry: RetryPolicy, listeners: Iterable[Listener]) -> None:
        self.retry = retry
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self._budget = RetryBudget()
        self._numbers = itertools.count(1)
        self._hinted: set[str] = set()
        self._prompt_cache = PromptCacheWatch()

    def next_request_id(self) -> int:
        return next(self._numbers)

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
