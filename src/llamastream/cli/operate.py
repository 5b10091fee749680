"""What the buttons of the dashboard do: the same as the commands, without waiting for the end of it."""

from __future__ import annotations

from collections.abc import Callable

from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet.messages import AskDrain, AskRestart, AskUndrain, Done, Refused
from llamastream.fleet.operations import Host, carry_out

_ASKS: dict[str, Callable[[str], AskDrain | AskUndrain | AskRestart]] = {
    "drain": lambda instance: AskDrain(ids=(instance,), wait=False),
    "undrain": lambda instance: AskUndrain(ids=(instance,), wait=False),
    "restart": lambda instance: AskRestart(ids=(instance,), wait=False),
}


def operate(host: Host, action: str, instance: str) -> str:
    """Ask for it; what was asked for, in words.

    Raises:
        SettingError: there is no such action or instance. LlamaStreamError: it is refused.
    """
    if action not in _ASKS:
        raise SettingError(f"action = {action!r} is not allowed; allowed: {', '.join(_ASKS)}")
    said = ""
    for reply in carry_out(_ASKS[action](instance), host):
        if isinstance(reply, Refused):
            raise LlamaStreamError(reply.message)
        if isinstance(reply, Done):
            said = reply.message
    return said
