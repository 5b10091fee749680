"""The short way for the one kind of event that a stream is made of: the next piece of text.

From one chunk to the next llama-server changes nothing but the text (and once a second `created`). So the bytes around
the text are learned from a chunk that was decoded in full; as long as the next one has the same bytes before and after
its text, and what stands in between is one JSON string and nothing more, decoding it in full would give the same chunk
with that text. Whatever differs takes the long way.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

_EVENT_START = b"data: "
_PROBE = b"another text"
_decode_string = msgspec.json.Decoder(str).decode


class TextTemplate:
    """The bytes around the text of the last chunk, or nothing yet.

    Attributes:
        known: something was learned. before, after: the bytes; the quotes of the text belong to them.
    """

    __slots__ = (
        "_after_length",
        "_before_length",
        "_event_after",
        "_event_before",
        "after",
        "before",
        "known",
    )

    def __init__(self) -> None:
        self.known = False
        self.before = b""
        self.after = b""
        self._before_length = 0
        self._after_length = 0
        self._event_before = b""
        self._event_after = b""

    def learn(self, data: bytes, text: str, read: Callable[[bytes], str | None]) -> bool:
        """Learn, if there is something new; whether there was.

        `data` is the JSON of a chunk that holds `text` and nothing else of interest; `read` decodes one in full.
        """
        if self.known and data.startswith(self.before) and data.endswith(self.after):
            return False
        raw = text.encode("utf-8", "surrogatepass")
        start = data.find(b'"' + raw + b'"')
        if not text or start < 0 or not _plain(text) or data.find(b'"' + raw + b'"', start + 1) >= 0:
            return False  # escaped, or not the only place where it stands
        before, after = data[: start + 1], data[start + 1 + len(raw) :]
        # A text written with escapes could happen to stand, plainly, as the value of something else: prove the place.
        if read(before + _PROBE + after) != _PROBE.decode():
            return False
        if b"\n" in before or b"\n" in after:
            return False
        self.before, self._before_length = before, len(before)
        self.after, self._after_length = after, len(after)
        self._event_before = _EVENT_START + before
        self._event_after = after + b"\n\n"
        self.known = True
        return True

    def text(self, data: bytes) -> str | None:
        """The text of a chunk's JSON that differs from the learned one in nothing else; None: decode it in full."""
        if self.known and data.startswith(self.before) and data.endswith(self.after):
            return _string(data[self._before_length - 1 : 1 - self._after_length])
        return None

    def event(self, data: bytes) -> str | None:
        """The same for bytes that are one whole event, framing included: `data: {...}\\n\\n`."""
        if not (self.known and data.startswith(self._event_before) and data.endswith(self._event_after)):
            return None
        return _string(data[self._before_length + 5 : -1 - self._after_length])


def _string(quoted: bytes) -> str | None:
    """The text of a JSON string, given with its quotes, if it is one and not empty."""
    try:
        return _decode_string(quoted) or None
    except ValueError:  # not a JSON string, or not UTF-8
        return None


def _plain(text: str) -> bool:
    """Nothing in it that JSON might escape, so that it stands in the bytes as it is."""
    return text.isprintable() and '"' not in text and "\\" not in text
