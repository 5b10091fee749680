"""What a client is made with, checked while it is made: a mistake found later would be far from where it was made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from typing import Any

from llamastream.errors import InvalidRequestError, LlamaStreamError, SettingError
from llamastream.events import Listener
from llamastream.settings import ClientSettings
from llamastream.types import RetryPolicy, Timeouts

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""What a header's name may be (RFC 9110 section 5.6.2)."""

_OURS = {
    "host": "it follows from base_url",
    "content-length": "it follows from the request",
    "transfer-encoding": "it follows from the request",
    "connection": "the client manages its connections",
    "keep-alive": "the client manages its connections",
    "proxy-connection": "the client manages its connections",
    "upgrade": "the client speaks HTTP/1.1 only",
    "te": "the client speaks HTTP/1.1 only",
    "trailer": "the client sends none",
    "expect": "the client sends a request in one go",
    "x-conversation-id": "the client gives each request an id of its own, to take a broken stream up again",
}
"""Headers that nobody else may set, and why: they frame the request, or belong to a single one."""


def joined_urls(base_url: Any, name: str = "base_url") -> str | None:
    """One text for one or several addresses, as the settings have them.

    Raises:
        SettingError: it is neither text nor a list of texts, or an empty list.
    """
    if base_url is None or isinstance(base_url, str):
        return base_url
    if isinstance(base_url, bytes | Mapping) or not isinstance(base_url, Iterable):
        raise SettingError(f"{name} must be a str or a list of str, not {_kind(base_url)}; as in http://localhost:8080")
    urls = list(base_url)
    if not urls:
        raise SettingError(f"{name} is an empty list; give at least one address, or None for the default")
    for number, url in enumerate(urls):
        if not isinstance(url, str):
            raise SettingError(f"{name}[{number}] must be a str such as http://localhost:8080, not {_kind(url)}")
        if not url.strip():
            raise SettingError(f"{name}[{number}] is empty; give an address such as http://localhost:8080")
    return " ".join(urls)


def checked_settings(settings: Any) -> ClientSettings | None:
    """`settings=`, or None. Its values are checked together with the arguments that win over them.

    Raises:
        SettingError: it is something else.
    """
    if settings is None or isinstance(settings, ClientSettings):
        return settings
    raise SettingError(
        f"settings must be a llamastream.ClientSettings, not {type(settings).__name__}; "  # it may hold a key
        "for an object or a dict with llm_base_url and so on there is from_settings()"
    )


_OTHER_NAMES = {
    "timeout": "a stream has five clocks; use timeouts=Timeouts(connect=..., first_byte=..., prefill=..., "
    "content_idle=..., total=...), or timeouts=Timeouts.all(SECONDS) for each step alike",
    "max_retries": "use retry=RetryPolicy(max_retries=NUMBER), or the setting max_retries",
    "url": "use base_url",
    "default_headers": "use headers",
}
"""What other clients call their arguments, and what to write instead."""


def unknown_argument(client: str, name: str, value: Any) -> Exception:
    """The error for an argument that a client does not have."""
    if name not in _OTHER_NAMES:
        return TypeError(f"{client}.__init__() got an unexpected keyword argument {name!r}")
    shown = f" = {value!r}" if isinstance(value, int | float) else ""
    return SettingError(f"{name}{shown} is no argument of {client}: {_OTHER_NAMES[name]}")


def check_timeouts(timeouts: Any, error: type[LlamaStreamError] = InvalidRequestError) -> None:
    """Raises `error` unless it is a `Timeouts` with numbers that a clock can have, or None."""
    if timeouts is None:
        return
    if not isinstance(timeouts, Timeouts):
        raise error(
            f"timeouts must be a llamastream.Timeouts, not {_kind(timeouts)}; "
            "for one limit on every step: Timeouts.all(30)"
        )
    for name in Timeouts.__struct_fields__:
        seconds = getattr(timeouts, name)
        if seconds is not None and not (_is_number(seconds) and seconds > 0):
            raise error(
                f"Timeouts.{name} must be a number of seconds above 0, not {_kind(seconds)}; None switches it off"
            )


_COUNTS = frozenset({"max_retries", "max_recoveries"})
_ENDLESS = frozenset({"max_retry_after", "loading_patience", "recovery_patience"})


def check_retry(retry: Any) -> None:
    """Nothing happens where it is a `RetryPolicy` whose numbers can be, or None.

    Raises:
        SettingError: it is something else; the message names the field.
    """
    if retry is None:
        return
    if not isinstance(retry, RetryPolicy):
        example = retry if type(retry) is int and retry >= 0 else 3
        raise SettingError(
            f"retry must be a llamastream.RetryPolicy, not {_kind(retry)}; "
            f"as in RetryPolicy(max_retries={example}), where 0 switches retries off"
        )
    for name in RetryPolicy.__struct_fields__:
        value = getattr(retry, name)
        if name in _COUNTS:
            good, allowed = type(value) is int and value >= 0, "a whole number from 0 upwards"
        elif name == "loading_interval":  # at 0 a server that loads would be asked without a pause
            good, allowed = _is_number(value) and 0 < value < inf, "a number of seconds above 0"
        else:
            good = _is_number(value) and value >= 0 and (value < inf or name in _ENDLESS)
            allowed = "a number of seconds from 0 upwards"
        if not good:
            raise SettingError(f"RetryPolicy.{name} must be {allowed}, not {_kind(value)}")


def checked_listeners(listeners: Any) -> tuple[Listener, ...]:
    """The listeners, each something that can be called.

    Raises:
        SettingError: they are no list, or one of them cannot be called, or would have to be awaited.
    """
    if listeners is None:
        return ()
    if isinstance(listeners, str | bytes | Mapping) or not isinstance(listeners, Iterable):
        name = getattr(listeners, "__name__", "listener")
        fix = f"for one: listeners=[{name}]" if callable(listeners) else "as in listeners=[LoggingListener()]"
        raise SettingError(f"listeners must be a list of functions, not {_kind(listeners)}; {fix}")
    found = tuple(listeners)
    for number, listener in enumerate(found):
        if not callable(listener):
            raise SettingError(f"listeners[{number}] must be a function of one event, not {_kind(listener)}")
        if inspect.iscoroutinefunction(listener) or inspect.iscoroutinefunction(getattr(listener, "__call__", None)):  # noqa: B004
            raise SettingError(
                f"listeners[{number}] is an async function, but listeners are called and not awaited; "
                "give a plain function, which may start a task"
            )
    return found


def checked_headers(headers: Any) -> dict[str, str]:
    """The caller's headers as they may be sent.

    Raises:
        SettingError: a name or a value cannot be sent, is given twice, or is the client's own business.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise SettingError(
            f'headers must be a dict of str to str, as in {{"X-Team": "a"}}, not {type(headers).__name__}'
        )
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise SettingError(f"headers has the name {name!r}; allowed: letters, digits and - as in X-Team")
        lower = name.lower()
        if lower in _OURS:
            raise SettingError(f"headers may not set {name}: {_OURS[lower]}; leave it out")
        if lower in seen:
            raise SettingError(f"headers has both {seen[lower]!r} and {name!r}, which are one header; give it once")
        seen[lower] = name
        found[name] = _checked_value(name, value)
    return found


def _checked_value(name: str, value: Any) -> str:
    # The value is not shown: it may be a secret.
    if not isinstance(value, str):
        raise SettingError(f"headers[{name!r}] must be a str, not {type(value).__name__}")
    bad = next((c for c in value if (c < " " and c != "\t") or c == "\x7f" or c > "\xff"), None)
    if bad is not None:
        raise SettingError(
            f"headers[{name!r}] contains {bad!r}, which cannot be in a header; "
            "allowed: one line of Latin-1 characters (percent-encode others)"
        )
    if name.lower() == "accept-encoding" and value.strip().lower() != "identity":
        raise SettingError(
            f"headers may set {name} to 'identity' only: compressed streams come in lumps, and are not read"
        )
    return value


def replaced(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Both; where a name is in both, whatever its case, theirs."""
    names = {name.lower() for name in theirs}
    return {**{name: value for name, value in ours.items() if name.lower() not in names}, **theirs}


def _is_number(value: Any) -> bool:
    """NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (isfinite(value) or value == inf)


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
