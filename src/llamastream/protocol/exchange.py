"""One generation over HTTP, as a machine without I/O: response bytes in, typed events out.

`feed` never raises for what the server does. It returns the events that were complete and then sets `error`, so that
text which arrived in the same read as a failure still reaches the caller before the failure does.
"""

from __future__ import annotations

from array import array

from llamastream.errors import (
    ConnectionLostError,
    EventTooLargeError,
    LlamaStreamError,
    ProtocolError,
    ServerError,
    StreamTruncatedError,
)
from llamastream.protocol.assembler import Assembler
from llamastream.protocol.chunks import NO_ERROR, decode_chunk
from llamastream.protocol.failures import MAX_ERROR_BODY, mid_stream_error, response_error, unexpected_response
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.resume import Resumed
from llamastream.protocol.sse import DEFAULT_MAX_EVENT_BYTES, SseDecoder
from llamastream.protocol.steady import SteadyText
from llamastream.protocol.template import TextTemplate
from llamastream.protocol.toolcalls import without_answer
from llamastream.types import Stats, StreamEvent, StreamStart, TextDelta

_DONE = b"[DONE]"


class GenerationExchange:
    """Reads the response to one streaming request of `/v1/chat/completions` or `/v1/completions`.

    Attributes:
        url: of the endpoint, for messages.
        assembler: the answer so far.
        done: the stream has ended, well or not; nothing more will come of it.
        error: why it did not end well, or None.
        steady: takes the next read, if it is armed and that is one more piece of text; None before there was one.
        pieces: how many it has taken, as far as they are counted.
        terminated: the end mark (`[DONE]`, or the last chunk) came.
        bodies: what the last read, where `feed` took it, had of the de-chunked body.
        accepted: the response header is there. whole: the answer comes as one JSON body, not as a stream.
    """

    def __init__(
        self,
        url: str,
        *,
        expected_choices: int = 1,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        accept_whole: bool = False,
        assembler: Assembler | None = None,
        resumed: Resumed | None = None,
        arrivals: array[float] | None = None,
        offers_tools: bool = False,
    ) -> None:
        """`assembler`: one that has a part of the answer already; `resumed`: adapts what comes to that part.
        `arrivals`: gets the time of each piece of text that `steady` takes. `offers_tools`: the model may call tools,
        and must give some answer."""
        self.url = url
        self.assembler = Assembler() if assembler is None else assembler
        self.resumed = resumed
        self.done = False
        self.error: LlamaStreamError | None = None
        self.accepted = False
        self.terminated = False
        self._expected_choices = expected_choices
        self._offers_tools = offers_tools
        self._reader = ResponseReader()
        self.bodies: list[bytes] = []
        self._decoder = SseDecoder(max_event_bytes)
        self._template = TextTemplate()
        self.steady: SteadyText | None = None
        self.pieces = 0
        self._arrivals = array("d") if arrivals is None else arrivals
        self.whole = False
        self._accept_whole = accept_whole
        self._max_body = max_event_bytes
        self._body = bytearray()  # of an answer that is no event stream
        self._rejected = False
        self._unnamed = False  # no content type: the first character tells JSON from all else
        self._exact = True

    @property
    def event_boundary(self) -> int | None:
        """How many bytes of the de-chunked body belong to events that were taken; None: cannot be said."""
        if self._rejected:
            return 0  # the body is somebody else's
        return self.body_bytes - self._decoder.unfinished_bytes if self._exact and not self.whole else None

    @property
    def status(self) -> int:
        return self._reader.status

    @property
    def body_bytes(self) -> int:
        """Length of the de-chunked body so far, in bytes."""
        return self._reader.body_bytes + (0 if self.steady is None else self.steady.body_bytes)

    @property
    def reader(self) -> ResponseReader:
        """The reader of the response, for whoever keeps the connection."""
        return self._reader

    @property
    def headers(self) -> dict[str, str]:
        return self._reader.headers

    def count(self) -> None:
        """Count what `steady` has taken."""
        if self.steady is not None:
            self.pieces += self.steady.pieces
            self.assembler.content_chunks += self.steady.pieces
            self._reader.body_bytes += self.steady.body_bytes
            self.steady.forget()

    def rest(self) -> None:
        """The next read goes the long way, whatever it is."""
        self.count()
        if self.steady is not None:
            self.steady.armed = False

    def leave(self) -> None:
        """No more is read."""
        self.rest()
        self._reader.leave()

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Take bytes from the connection; returns the events that they complete."""
        out: list[StreamEvent] = []
        self.bodies = []
        if self.done:
            return out
        self.rest()
        reader = self._reader
        try:
            self.bodies = reader.feed(data)
            decoder, template, assembler = self._decoder, self._template, self.assembler
            for body in self.bodies:
                # llama-server sends each event in an HTTP chunk of its own.
                if decoder.between_events and (text := template.event(body)) is not None:
                    assembler.add_text(text)
                    out.append(TextDelta(text))
                    continue
                if not self.accepted:
                    self._begin(out)
                if self._unnamed:
                    self._look_at_unnamed(body, out)
                if self._rejected:
                    self._body += body[: MAX_ERROR_BODY - len(self._body)]
                elif self.whole:
                    self._body += body
                    if len(self._body) > self._max_body:
                        raise EventTooLargeError(
                            f"{self.url}: the answer is larger than {self._max_body} bytes (max_event_bytes)"
                        )
                else:
                    self._feed_body(body, out)
            if not self.done:
                if reader.failure is not None:
                    raise reader.failure
                if reader.header_complete and not self.accepted:
                    self._begin(out)
                if self.steady is not None:
                    self.steady.armed = reader.between_chunks and self._decoder.between_events
                if reader.complete or (self._rejected and len(self._body) >= MAX_ERROR_BODY):
                    self._finish(out)
        except LlamaStreamError as error:
            self._exact = reader.failure is error  # else a body was left in the middle
            self._fail(error)
        return out

    def feed_eof(self) -> list[StreamEvent]:
        """The server closed the connection; returns what that completes."""
        out: list[StreamEvent] = []
        if self.done:
            return out
        self.rest()
        if self._rejected or self._reader.feed_eof():
            try:
                self._finish(out)
            except LlamaStreamError as error:
                self._fail(error)
        elif self.assembler.finished(self._expected_choices):
            self._succeed()  # all that was asked for is here; only the end marks are missing
        elif not self._reader.header_complete:
            self._fail(ConnectionLostError(f"{self.url} closed the connection without an answer"))
        else:
            self._fail(ConnectionLostError(f"{self.url} broke off in the middle of the answer"))
        return out

    def _begin(self, out: list[StreamEvent]) -> None:
        """The response header is there: is it the stream that was asked for?"""
        self.accepted = True
        reader = self._reader
        content_type = reader.headers.get("content-type", "").split(";")[0].strip().lower()
        encoding = reader.headers.get("content-encoding", "identity").strip().lower()
        if 200 <= reader.status < 300 and content_type == "text/event-stream" and encoding in ("", "identity"):
            out.append(StreamStart(reader.status, reader.headers.get("server", "")))
        elif (
            self._accept_whole
            and 200 <= reader.status < 300
            and content_type in ("application/json", "")
            and encoding in ("", "identity")
        ):
            self.whole = True
            self._unnamed = not content_type
            if content_type:
                out.append(StreamStart(reader.status, reader.headers.get("server", "")))
        else:
            self._rejected = True

    def _look_at_unnamed(self, body: bytes, out: list[StreamEvent]) -> None:
        """A body whose type nobody told begins."""
        start = body.lstrip()
        if start:
            self._unnamed = False
            self.whole = start.startswith(b"{")
            self._rejected = not self.whole
            if self.whole:
                out.append(StreamStart(self._reader.status, self._reader.headers.get("server", "")))

    def _feed_body(self, body: bytes, out: list[StreamEvent]) -> None:
        template, assembler = self._template, self.assembler
        for event in self._decoder.feed(body):
            data = event.data
            text = template.text(data)
            if text is not None:
                assembler.add_text(text)
                out.append(TextDelta(text))
                continue
            if data == _DONE:
                self._finish(out)
                return
            if event.event == "error":
                raise self._reported(data)
            self._add(data, out)
        if self._decoder.error_lines:
            raise self._reported(self._decoder.error_lines[0])

    def _add(self, data: bytes, out: list[StreamEvent]) -> None:
        chunk = decode_chunk(data)
        if chunk.error is not NO_ERROR and bytes(chunk.error) != b"null":
            raise self._reported(bytes(chunk.error))
        if self.resumed is not None:
            self.resumed.adapt(chunk)
            if not self.resumed.settled:
                self.assembler.add(chunk, out)
                return
        self.assembler.add(chunk, out)
        text = self.assembler.sole_text(chunk)
        if text and self._template.learn(data, text, self._read_text):
            self.count()
            template = self._template
            self.steady = SteadyText(template.before, template.after, self.assembler.text_writer(), self._arrivals)

    def _reported(self, raw: bytes) -> ServerError:
        return mid_stream_error(raw, self.url, begun=self.assembler.content_chunks > 0, whole=self.whole)

    def _read_text(self, data: bytes) -> str | None:
        try:
            return self.assembler.sole_text(decode_chunk(data))
        except ProtocolError:
            return None

    def _finish(self, out: list[StreamEvent]) -> None:
        """`[DONE]`, or the proper end of the body."""
        reader = self._reader
        self.terminated = True
        if self._unnamed:  # and empty
            self.whole, self._rejected = False, True
        if self.whole:
            self._add(bytes(self._body), out)
        if self._rejected:
            body = bytes(self._body)
            if reader.status >= 400:
                self._fail(response_error(reader.status, reader.headers, body, self.url))
            else:
                self._fail(unexpected_response(reader.status, reader.headers, body, self.url))
        elif self.assembler.finished(self._expected_choices):
            self._succeed()
        elif self.whole:
            self._fail(unexpected_response(reader.status, reader.headers, bytes(self._body), self.url, "an answer"))
        else:
            self._fail(
                StreamTruncatedError(f"{self.url} ended the stream without a finish reason: the answer is not complete")
            )

    def _succeed(self) -> None:
        self.done = True
        if self._offers_tools and (error := without_answer(self.assembler.result(Stats()), self.url)):
            self._fail(error)

    def _fail(self, error: LlamaStreamError) -> None:
        self.done = True
        self.rest()
        if self.url not in error.message:
            error = type(error)(f"{self.url}: {error.message}", status=error.status)
        if error.status is None and self._reader.status >= 400:
            error.status = self._reader.status
        self.error = error
