"""What is known of a server and of a broken stream: the snapshots that decisions rest on."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.tools import ToolSupport

Task: TypeAlias = Literal["generate", "embed", "rerank"]
"""What a llama-server is for: one that was started for embeddings or for reranking does nothing else."""


class LogRecord(Struct, frozen=True):
    """One line of a server's log.

    `time` is seconds since the epoch when we read the line; `level` one of debug, info, warning, error;
    `source` the function or component that the server names, or "".
    """

    time: float
    level: Literal["debug", "info", "warning", "error"]
    message: str
    source: str = ""


class Capabilities(Struct, frozen=True):
    """What a server can do, as probed from `--help`, `/props` and behaviour, not guessed from its version.

    Attributes:
        build: build or version text (`b11549-...`, `version: 0.5.0-dev`), "" if unknown.
        slots: number of parallel slots. n_ctx: context of one slot, in tokens.
        slots_endpoint, metrics_endpoint: whether `/slots`, `/metrics` answer.
        reattach: whether `GET /v1/stream` can replay a running generation; None: not known.
        continues: whether a begun answer can be continued (`continue_final_message`); None: not known.
        chat_template_caps: `chat_template_caps` of `/props` (names vary with the build; `--jinja` is not in it).
        tools: what it does with requests that have tools.
        model_alias, model_path: as `/props` gives them.
        tasks: what it is for; empty: not known.
    """

    build: str = ""
    slots: int = 0
    n_ctx: int = 0
    slots_endpoint: bool = False
    metrics_endpoint: bool = False
    reattach: bool | None = None
    continues: bool | None = None
    chat_template_caps: dict[str, bool] = {}
    tools: ToolSupport = ToolSupport()
    model_alias: str = ""
    model_path: str = ""
    tasks: tuple[Task, ...] = ()


class JournalState(Struct, frozen=True, kw_only=True):
    """What the caller has of an answer, and what kind of request it was, when the stream broke.

    Attributes:
        finished: every choice has its finish reason: only end marks are missing. counted: its usage came too, or was
            not asked for.
        emitted: content (text, reasoning, a piece of a tool call) has reached the caller.
        held: the server holds the generation under an id (`X-Conversation-Id`), so that it can be taken up again.
        repeat: `only`: the answer cannot be continued, only repeated and compared (tools, several choices, log
            probabilities, raw grammars, schemas of text completions, a message of several parts to go on with).
            `first`: better repeated (structured answers, of which the server hides blanks and fences), else continued.
        diverged: a repetition was something else.
        fruitless: attempts in a row whose answer began and broke without new content.
        seconds: since the break.
        recoveries: breaks of this stream that were mended.
        reported: how often in a row a server that lives ended it with the same error at about the same place.
    """

    finished: bool = False
    counted: bool = True
    emitted: bool = False
    held: bool = False
    repeat: Literal["no", "first", "only"] = "no"
    diverged: bool = False
    fruitless: int = 0
    seconds: float = 0.0
    recoveries: int = 0
    reported: int = 0


class Failure(Struct, frozen=True, kw_only=True):
    """Why a stream broke.

    Attributes:
        kind: `cut` (the connection, or what came over it, is broken), `stall` (a clock ran out), `refused` (no
            connection), `unavailable` (429, 502 to 504), `server_error` (500, or an error inside the stream),
            `diverged` (a repetition is something else), or `final` (anything that another attempt would meet again).
        elsewhere: there is another server, not tried since the break, that could go on with it.
    """

    kind: Literal["cut", "stall", "refused", "unavailable", "server_error", "diverged", "final"]
    elsewhere: bool = False
