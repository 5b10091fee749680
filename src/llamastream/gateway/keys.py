"""API keys: who may do what. Only digests are kept, and none of them is ever shown."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct, structs

from llamastream.errors import SettingError
from llamastream.policy.fairness import Priority
from llamastream.settings import describe_type

Scope: TypeAlias = Literal["inference", "metrics", "admin"]
"""What a key may do: ask models; read `/metrics` and `/fleet`; change servers, and all of the others."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
SHORTEST = 16
"""Characters that a key has at least: what is shorter can be found from its digest by trying."""
LONGEST = 512

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASHED = "sha256:"
_FORMS = (
    "KEY, NAME:SCOPE[,SCOPE]:KEY, or either with sha256:HEX in place of KEY; behind it, separated by blanks, what it "
    "may use: weight=, priority=, requests_per_minute=, tokens_per_minute=, requests_at_once="
)


_Number = Annotated[int, Meta(ge=0, le=1 << 40)]
_OWN: dict[str, Any] = {
    "weight": Annotated[float, Meta(ge=0.01, le=1000)],
    "priority": Priority,
    "requests_per_minute": _Number,
    "tokens_per_minute": _Number,
    "requests_at_once": _Number,
}
"""What a line may say of its key; 0: no limit."""


class Key(Struct, frozen=True):
    """One key. `name` stands in logs; `scopes` is what it may do; `digest` is the SHA-256 of its text; `own`: what it
    may use, as far as that is not as for all keys (fields of `policy.allowance.Allowance`)."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    own: tuple[tuple[str, Any], ...] = ()

    def may(self, scope: Scope) -> bool:
        """Whether it is good for this."""
        return scope in self.scopes or "admin" in self.scopes

    def __repr__(self) -> str:
        return f"<Key {self.name} {','.join(sorted(self.scopes))}>"


class KeyRing:
    """All keys of a gateway. Without any, everybody may ask models and read metrics."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        """Raises:
        SettingError: two keys have the same name, or are the same.
        """
        self._keys = tuple(keys)
        names: set[str] = set()
        digests: set[bytes] = set()
        for key in self._keys:
            if key.name in names or key.digest in digests:
                what = "has the same name as" if key.name in names else "is the same as"
                raise SettingError(f"the API key {key.name!r} {what} one before it")
            names.add(key.name)
            digests.add(key.digest)

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRing) and self._keys == other._keys

    __hash__ = None  # type: ignore[assignment]  # it is compared, and kept nowhere by its hash

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(key.name for key in self._keys) or 'empty'}>"

    def find(self, presented: str) -> Key | None:
        """The key with this text. Takes equally long whichever it is, and whether there is one."""
        digest = hashlib.sha256(presented[: LONGEST + 1].encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def parse_keys(lines: Iterable[str], source: str) -> list[Key]:
    """Keys from lines; empty ones and comments (`#`) are left out.

    A bare key may ask models, and no more.

    Args:
        source: where they are from, for messages, which never quote a line.

    Raises:
        SettingError: a line is none of the forms.
    """
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            keys.append(_parse(text, f"line {number} of {source}", f"key-{number}"))
    return keys


def key_texts(api_keys: str | None) -> frozenset[str]:
    """The keys in the setting `api_keys` as their owners send them, so that they can be kept out of logs."""
    found = set()
    for word in (api_keys or "").split():
        _, named, text = word.partition(":")[2].partition(":")
        text = text if named else word
        if len(text) >= SHORTEST and not text.startswith(_HASHED) and text.partition("=")[0] not in _OWN:
            found.add(text)
    return frozenset(found)


def _parse(text: str, where: str, name: str) -> Key:
    scopes: frozenset[Scope] = frozenset({"inference"})
    if ":" in text and not text.startswith(_HASHED):
        name, _, rest = text.partition(":")
        words, separator, text = rest.partition(":")
        if not separator or not _NAME.fullmatch(name):
            raise SettingError(f"{where} is no API key; allowed: {_FORMS}; a name has letters, digits, '_', '.', '-'")
        given = {word.strip() for word in words.split(",")}
        scopes = frozenset(scope for scope in SCOPES if scope in given)
        if unknown := given.difference(SCOPES):
            raise SettingError(f"{where}: the scope {min(unknown)!r} is unknown; allowed: {', '.join(SCOPES)}")
    text, *words_behind = text.split() or [""]
    own = _own(words_behind, where)
    if text.startswith(_HASHED):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text.removeprefix(_HASHED)):
            raise SettingError(f"{where}: {_HASHED} must be followed by 64 hexadecimal digits")
        return Key(name, scopes, bytes.fromhex(text.removeprefix(_HASHED)), own)
    if not SHORTEST <= len(text) <= LONGEST or not text.isascii() or not text.isprintable() or " " in text:
        raise SettingError(
            f"{where}: the key is not allowed; allowed: {SHORTEST} to {LONGEST} printable ASCII characters without "
            "blanks (`llamastream keys new` makes one)"
        )
    return Key(name, scopes, digest_of(text), own)


def _own(words: Sequence[str], where: str) -> tuple[tuple[str, Any], ...]:
    """What stands behind a key."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in _OWN or name in found:
            raise SettingError(
                f"{where}: a key is printable ASCII without blanks, and behind it, separated by blanks, may stand what "
                f"it may use, each once: {', '.join(f'{each}=' for each in _OWN)}"
            )
        try:
            found[name] = msgspec.convert(value, _OWN[name], strict=False)
        except msgspec.ValidationError:
            raise SettingError(f"{where}: {name} is not allowed; allowed: {describe_type(_OWN[name])}") from None
    return tuple((name, None if value == 0 else value) for name, value in found.items())


def read_key_file(path: str) -> tuple[list[Key], list[str]]:
    """The keys in a file, one in each line, and what a person should know about it.

    Raises:
        SettingError: it cannot be read, or a line is no key.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"keys_file = {path!r} cannot be read: {error}") from None
    keys = parse_keys(text.splitlines(), path)
    plain = any(line.strip() and not line.startswith("#") and _HASHED not in line for line in text.splitlines())
    notes = []
    if plain and mode & (stat.S_IRGRP | stat.S_IROTH):
        notes.append(f"{path} holds keys as plain text, and others may read it: chmod 600, or hash them")
    return keys, notes


def load_keys(keys_file: str | None, api_keys: str | None) -> tuple[KeyRing, list[str]]:
    """All keys from a file and from text (lines, or separated by blanks), and what a person should know about them.

    Raises:
        SettingError: something in them is not allowed, or the file holds none.
    """
    keys: list[Key] = []
    notes: list[str] = []
    if keys_file is not None:
        keys, notes = read_key_file(keys_file)
        if not keys:
            raise SettingError(f"keys_file = {keys_file!r} holds no key; `llamastream keys new` makes one")
    if api_keys is not None:
        given = parse_keys(api_keys.split(), "api_keys")
        keys += [structs.replace(key, name=f"env-{key.name}") if _unnamed(key) else key for key in given]
    return KeyRing(keys), notes


def _unnamed(key: Key) -> bool:
    return re.fullmatch(r"key-\d+", key.name) is not None


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def new_key(name: str, scopes: Sequence[str]) -> tuple[str, str]:
    """A fresh key, to be shown once, and the line with its digest for the file.

    Raises:
        SettingError: name or scopes are not allowed.
    """
    key = f"sk-llamastream-{secrets.token_urlsafe(32)}"
    line = f"{name}:{','.join(scopes)}:{_HASHED}{digest_of(key).hex()}"
    parse_keys([line], "the new key")
    return key, line


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request shows: `Authorization: Bearer`, else `x-api-key`."""
    other = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, text = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return text.strip()
        elif name == b"x-api-key":
            other = value.decode("latin-1").strip()
    return other
