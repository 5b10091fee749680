"""Is the prompt cache being wasted? A system prompt that differs from call to call makes every prefill start anew."""

from __future__ import annotations

from llamastream.types import PromptFacts

_SEEN = 3
"""So many different system prompts in a row, none of them reused, are a pattern."""

_MIN_TOKENS = 64
"""Below this the waste is not worth a hint."""


class PromptCacheWatch:
    """Watches the prompts of one client (not thread-safe)."""

    __slots__ = ("_changes", "_last", "_said")

    def __init__(self) -> None:
        self._last: str | None = None
        self._changes = 0
        self._said = False

    def observe(self, facts: PromptFacts) -> str | None:
        """A request ended; a hint, at most once, if nothing could be reused because the system prompt changes."""
        previous, self._last = self._last, facts.system_prompt
        if self._said or not facts.system_prompt or previous is None or previous == facts.system_prompt:
            self._changes = 0 if previous == facts.system_prompt else self._changes
            return None
        shared = _common_prefix(previous, facts.system_prompt)
        reused = facts.cached_tokens / max(1, facts.prompt_tokens)
        if facts.prompt_tokens < _MIN_TOKENS or reused > 0.5 or not _alike(previous, facts.system_prompt):
            return None
        self._changes += 1
        if self._changes + 1 < _SEEN:
            return None
        self._said = True
        around = facts.system_prompt[max(0, shared - 20) : shared + 20]
        return (
            f"the system prompt changes from call to call (at character {shared}: {around!r}), so the prompt cache "
            f"saved {facts.cached_tokens} of {facts.prompt_tokens} tokens; put what changes (a date, a name) at the "
            "end of the conversation instead"
        )


def _common_prefix(a: str, b: str) -> int:
    length = min(len(a), len(b))
    low, high = 0, length
    while low < high:  # the longest prefix by halving: comparing slices is quicker than looking at characters
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _alike(a: str, b: str) -> bool:
    """Whether two prompts are one with a changing part, not two different ones: most of the text after the change
    is the same."""
    start = _common_prefix(a, b)
    end = _common_prefix(a[start:][::-1], b[start:][::-1])
    return (start + end) * 2 >= max(len(a), len(b))
