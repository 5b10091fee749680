"""Is a silent server at work? Two looks at `/slots` tell a long prefill from a stall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def made_progress(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any slot worked between two looks: it has another task, or processed or decoded more tokens.

    All slots share one decode loop (continuous batching), so progress of one shows that the loop is alive.
    """
    known = {slot.get("id"): _work(slot) for slot in before}
    return any(known.get(slot.get("id")) != _work(slot) for slot in after if slot.get("is_processing"))


def _work(slot: Mapping[str, Any]) -> tuple[object, ...]:
    next_token = slot.get("next_token")
    first = next_token[0] if isinstance(next_token, list) and next_token else next_token
    decoded = first.get("n_decoded") if isinstance(first, Mapping) else None
    return (slot.get("id_task"), slot.get("n_prompt_tokens"), slot.get("n_prompt_tokens_processed"), decoded)
