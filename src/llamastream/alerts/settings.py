"""When to alert, and whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from llamastream.errors import SettingError
from llamastream.settings.sizes import check_size, parse_size

Seconds = Annotated[float, Meta(gt=0, le=1e7)]
Patience = Annotated[float, Meta(ge=0, le=1e7)]
Share = Annotated[float, Meta(gt=0, le=1)]
MOST_SPEED = 1e7
Speed = Annotated[float, Meta(gt=0, le=MOST_SPEED)]

RuleName: TypeAlias = Literal[
    "instance_down",
    "crash_loop",
    "wedge",
    "memory",
    "memory_growth",
    "queue_wait",
    "queue_length",
    "time_to_first_token",
    "tokens_per_second",
    "error_rate",
    "recoveries",
    "disk",
]


def revealed(value: str | None, name: str) -> str | None:
    """A secret; of `@FILE` the file's text without blanks around it.

    Raises:
        SettingError: the file cannot be read, or is empty.
    """
    if value is None or not value.startswith("@"):
        return value
    path = value[1:]
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{name}: the file {path!r} cannot be read: {error}") from None
    if not text:
        raise SettingError(f"{name}: the file {path!r} is empty")
    return text


def check_url(url: str) -> bool:
    """Whether it is an address to post to."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_header(text: str) -> bool:
    """Whether it is `Name: value`."""
    name, _, value = text.partition(":")
    word = name.replace("-", "").replace("_", "")
    return word.isascii() and word.isalnum() and bool(value.strip()) and text.isascii() and text.isprintable()


def _checked(name: str, allowed: str, fits: Callable[[str], bool]) -> Callable[[str, str], None]:
    def check(value: str, source: str) -> None:
        if not value.startswith("@") and not fits(value):
            raise SettingError(f"{name} = (hidden) from {source} is not allowed; allowed: {allowed}, or @FILE")

    return check


def _off(description: str) -> Meta:
    return Meta(description=description, extra={"flags": []})


def _size(description: str) -> Meta:
    return Meta(description=description, extra={"flags": [], "check": check_size})


RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)


def known_rule(name: str) -> RuleName:
    """The rule of that name.

    Raises:
        SettingError: there is none.
    """
    for known in RULE_NAMES:
        if known == name:
            return known
    raise SettingError(f"there is no rule {name!r}; there are: {', '.join(RULE_NAMES)}")


def _check_rules(names: tuple[str, ...], source: str) -> None:
    for name in names:
        try:
            known_rule(name)
        except SettingError as error:
            raise SettingError(f"silenced from {source}: {error.message}") from None


def _check_bytes(text: str, source: str) -> None:
    if not parse_size(text):  # None, or a share of nothing
        raise SettingError(f"disk_free = {text!r} from {source} is not allowed; allowed: a size such as 500MiB")


def number_of(text: str) -> float | None:
    """The number that a text is; None: it is a name."""
    try:
        return float(text)
    except ValueError:
        return None


def _check_baseline(value: float | str, source: str) -> None:
    number = number_of(value) if isinstance(value, str) else value
    if value == "" or (number is not None and not 0 < number <= MOST_SPEED):
        raise SettingError(
            f"tokens_per_second_baseline = {value!r} from {source} is not allowed; allowed: a number above 0 up to "
            f"{MOST_SPEED:.0f}, or the name of a baseline"
        )


class AlertSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules, receivers and patience of alerts; times are in seconds. Secrets may be `@FILE`: what that file holds."""

    SECTION: ClassVar[str] = "alerts"

    watch: Annotated[
        bool,
        Meta(description="Watch for what is not well, and tell the receivers.", extra={"flags": ["--alerts"]}),
    ] = True
    silenced: Annotated[
        tuple[str, ...],
        Meta(description="Rules that are watched but never told of.", extra={"flags": [], "check": _check_rules}),
    ] = ()
    window: Annotated[Seconds, _off("Seconds over which requests, recoveries and crashes are judged.")] = 300.0
    group_seconds: Annotated[
        Patience, _off("Seconds that a message waits for others of its rule, to be one with them.")
    ] = 3.0
    clear_after: Annotated[Patience, _off("Seconds for which it must be well again before the recovery is told.")] = (
        10.0
    )
    repeat_after: Annotated[Patience, _off("Seconds after which an alert that goes on is told again (0: never).")] = (
        14400.0
    )
    min_requests: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)], _off("Requests in the window without which they are not judged.")
    ] = 10
    down_after: Annotated[
        Patience, _off("Seconds for which an instance may take no requests, unplanned, before `instance_down`.")
    ] = 30.0
    crash_loop_ends: Annotated[
        Annotated[int, Meta(ge=1, le=1000)],
        _off("Unplanned ends of an instance in the window, for `crash_loop`; one that has failed for good is one."),
    ] = 3
    memory: Annotated[
        str | None,
        _size("Memory of an instance for `memory`: 6GiB, 80%; unset: when the fleet warns of it (`memory_limit`)."),
    ] = None
    memory_growth: Annotated[
        str | None,
        _size("Steady growth of that memory in an hour, for `memory_growth`, such as 500MiB; unset: none."),
    ] = None
    queue_wait: Annotated[
        Seconds | None, _off("95th percentile of the seconds that requests wait for a slot; unset: none.")
    ] = 30.0
    queue_length: Annotated[
        Annotated[int, Meta(ge=1)] | None, _off("Requests that wait for a slot at the same time; unset: none.")
    ] = 64
    queue_length_for: Annotated[Patience, _off("Seconds for which so many wait.")] = 15.0
    time_to_first_token: Annotated[Seconds | None, _off("95th percentile of the time to first token; unset: none.")] = (
        60.0
    )
    tokens_per_second_baseline: Annotated[
        Speed | str | None,
        Meta(
            description="Tokens per second of one stream that are usual here, or the name of a measurement that "
            "`llamastream bench --save NAME` kept; unset: not judged.",
            extra={"flags": [], "check": _check_baseline},
        ),
    ] = None
    tokens_per_second_model: Annotated[
        str | None, _off("Model whose streams are judged so; unset: those of all, or of the model that was measured.")
    ] = None
    tokens_per_second_share: Annotated[
        Share, _off("Share of that baseline below which the median of streams is too slow.")
    ] = 0.7
    error_rate: Annotated[Share | None, _off("Share of requests that fail on the server's side; unset: none.")] = 0.05
    recoveries: Annotated[
        Annotated[int, Meta(ge=1)] | None, _off("Streams that had to be mended in the window; unset: none.")
    ] = 5
    disk_free: Annotated[
        str | None,
        Meta(
            description="Free space below which the disks of saved slots and of state are too full; unset: none.",
            extra={"flags": [], "check": _check_bytes},
        ),
    ] = "1GiB"
    webhook: Annotated[
        str | None,
        Meta(
            description="Address that messages are posted to as JSON.",
            extra={
                "flags": ["--alert-webhook"],
                "secret": True,
                "check": _checked("webhook", "an address that begins with http:// or https://", check_url),
            },
        ),
    ] = None
    webhook_header: Annotated[
        str | None,
        Meta(
            description="Header of these posts, such as `Authorization: Bearer TOKEN`.",
            extra={"flags": [], "secret": True, "check": _checked("webhook_header", "Name: value", is_header)},
        ),
    ] = None
    webhook_key: Annotated[
        str | None,
        Meta(
            description="Key of the HMAC-SHA256 of each post, in its header `X-Llamastream-Signature`.",
            extra={"flags": [], "secret": True},
        ),
    ] = None
    command: Annotated[
        tuple[str, ...],
        _off("Program and arguments that get each message as JSON on stdin; run without a shell."),
    ] = ()
    apprise: Annotated[
        str | None,
        Meta(
            description="Addresses of mail and chat services in the form of Apprise, separated by blanks (needs the "
            "extra `alerts`).",
            extra={"flags": [], "secret": True},
        ),
    ] = None
    timeout: Annotated[Seconds, _off("Seconds that one attempt to tell a receiver may take.")] = 10.0
    attempts: Annotated[Annotated[int, Meta(ge=1, le=20)], _off("Attempts for each message, with growing pauses.")] = 4

    @property
    def baseline(self) -> float | str | None:
        """`tokens_per_second_baseline` as the number that it is, or as a name: in the environment all is text."""
        value = self.tokens_per_second_baseline
        number = number_of(value) if isinstance(value, str) else value
        return value if number is None else number

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown, as far as it can be read."""
        found = set()
        for name in ("webhook", "webhook_header", "webhook_key", "apprise"):
            text = revealed(getattr(self, name), name)
            if text:
                found |= {text, *text.split()} - {"Bearer", "Basic"}
        if self.webhook_header:
            header = revealed(self.webhook_header, "webhook_header") or ""
            found.discard(header.split()[0])
        return frozenset(found)
