"""`llamastream check`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
from typing import Annotated, Literal

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamastream._version import __version__
from llamastream.address import parse_address
from llamastream.cli.config import GROUPS
from llamastream.cli.options import unknown_variables, with_settings
from llamastream.cli.screen import print_json
from llamastream.client import StreamingClient
from llamastream.compose import PROBE_TIMEOUT
from llamastream.engine import facts
from llamastream.engine.demo import demo_model_path
from llamastream.engine.hub import hub_available
from llamastream.engine.options import EngineOptions
from llamastream.errors import LlamaStreamError, TransportError
from llamastream.fleet.configuration import DEFAULT_PORT
from llamastream.settings import ClientSettings
from llamastream.tools import ToolSupport

Verdict = Literal["ok", "note", "problem"]
_MARKS: dict[Verdict, tuple[str, str]] = {"ok": ("✓", "green"), "note": ("·", "yellow"), "problem": ("✗", "red")}


class Finding(Struct, frozen=True):
    """One line of the report. `advice` says what to do, "" if nothing is to be done."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


@with_settings(ClientSettings, "client", only=("base_url", "api_key", "ca_file"))
@with_settings(
    EngineOptions, "engine", only=("kind", "binary", "model", "host", "port"), defaults={"port": DEFAULT_PORT}
)
def check(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
    client: ClientSettings,
    client_sources: dict[str, str],
    engine: EngineOptions,
    engine_sources: dict[str, str],
) -> None:
    """Say what is here (engines, CPU, memory, model, port, server) and what to do about what is not.

    Exits with 1 if something must be mended before a server can run.
    """
    if engine_sources["port"] == "default":
        engine = msgspec.structs.replace(engine, port=DEFAULT_PORT)
    explicit = client_sources["base_url"] != "default"
    if not explicit:
        client = msgspec.structs.replace(client, base_url=f"http://localhost:{engine.port}")
    server = server_finding(client, explicit)
    tools = [tools_finding(client)] if server.verdict == "ok" and server.advice == "" else []
    findings = [
        Finding(
            "llamastream", "ok", f"{__version__}, Python {platform.python_version()} on {platform.platform(terse=True)}"
        ),
        *engine_findings(engine),
        cpu_finding(),
        memory_finding(),
        model_finding(engine),
        port_finding(engine, client if server.verdict == "ok" else None),
        server,
        *tools,
        hub_finding(),
        *(Finding("environment", "note", note) for note in _unknown_variables()),
    ]
    failed = any(finding.verdict == "problem" for finding in findings)
    if json:
        print_json({"ok": not failed, "findings": findings})
    else:
        _print(findings)
    raise typer.Exit(1 if failed else 0)


def _unknown_variables() -> list[str]:
    return unknown_variables(os.environ, GROUPS.values())


def engine_findings(options: EngineOptions) -> list[Finding]:
    """The engines; it is a problem only if the one that was asked for, or every one, is missing, or if an executable
    that cannot be used would be taken: by LLAMA_SERVER_BIN, for one."""
    found = facts.find_engines(options.binary)
    any_usable = any(fact.usable for fact in found)
    findings = []
    for fact in found:
        if fact.usable:
            where = f"{fact.path} (from {fact.found})" if fact.kind == "executable" else f"{fact.found} wheel"
            detail = f"{fact.version or 'version unknown'}, {where}; {flags_line(fact.flags)}"
            findings.append(Finding(f"{fact.kind} engine", "ok", detail))
            continue
        wanted = options.kind == fact.kind or (options.kind == "auto" and fact.found != "")
        verdict: Verdict = "problem" if wanted or not any_usable else "note"
        detail, _, advice = fact.problem.partition("; " if "; " in fact.problem else ": ")
        if fact.found not in detail:
            detail += f" (from {fact.found})"
        findings.append(Finding(f"{fact.kind} engine", verdict, detail, advice))
    return findings


def flags_line(flags: tuple[str, ...]) -> str:
    """`237 flags, with --log-jsonl --metrics; without --slot-save-path`: those that matter for streaming."""
    wanted = ("--metrics", "--slots", "--slot-save-path", "--cache-ram", "--log-jsonl")
    there = [flag for flag in wanted if flag in flags]
    missing = [flag for flag in wanted if flag not in flags]
    line = f"{len(flags)} flags" + (f", with {' '.join(there)}" if there else "")
    return line + (f"; without {' '.join(missing)}" if missing else "")


def cpu_finding() -> Finding:
    cores = facts.cores()
    features = facts.cpu_features()
    detail = f"{cores.usable} usable of {cores.physical} physical and {cores.logical} logical cores"
    detail += f"; {', '.join(features)}" if features else ""
    if platform.machine().lower() in ("x86_64", "amd64") and features and "avx2" not in features:
        return Finding("CPU", "note", detail, "without AVX2 decode is several times slower; use a newer machine")
    return Finding("CPU", "ok", detail)


def memory_finding() -> Finding:
    memory = facts.memory()
    detail = f"{gib(memory.available)} free of {gib(memory.total)}"
    if memory.limit is not None:
        detail += f", limited to {gib(memory.limit)} by the cgroup"
    if memory.available < 1 << 30:
        return Finding("memory", "note", detail, "free some memory, or use a smaller model and --ctx-size")
    return Finding("memory", "ok", detail)


def model_finding(options: EngineOptions) -> Finding:
    try:
        path = options.model or str(demo_model_path())
    except LlamaStreamError as error:
        return Finding("model", "problem", error.message)
    fact = facts.model_fact(path)
    if fact.info is None:
        return Finding("model", "problem", fact.problem)
    info = fact.info
    kind = "demo model" if options.model is None else path
    detail = f"{kind}: {info.architecture}, {info.size / 2**20:,.1f} MiB, context {info.n_ctx_train:,}"
    if not info.chat_template:
        return Finding("model", "note", detail, "the model has no chat template; chat answers may be poor")
    return Finding("model", "ok", detail)


def port_finding(options: EngineOptions, reachable: ClientSettings | None) -> Finding:
    """`reachable`: settings of a server that answers, which may be the one on this port."""
    fact = facts.port_fact(options.host, options.port)
    where = f"{options.host}:{options.port}"
    if fact.free:
        return Finding("port", "ok", f"{where} is free")
    if reachable is not None and parse_address(reachable.base_url).port == options.port:
        return Finding("port", "ok", f"{where} is in use, by a llama-server")
    return Finding("port", "note", fact.problem or f"{where} is in use", "serve on another one with --port")


def server_finding(settings: ClientSettings, explicit: bool) -> Finding:
    try:
        client = StreamingClient(settings=settings)
        health = client.health(timeout=PROBE_TIMEOUT)
    except TransportError as error:
        if explicit:
            return Finding("server", "problem", error.message)
        return Finding("server", "ok", f"none at {settings.base_url}", "`llamastream serve` starts one")
    except LlamaStreamError as error:
        return Finding("server", "problem" if explicit else "note", error.message)
    if not health.ok:
        return Finding(
            "server", "note", f"{client.base_url}: {health.detail or health.status}", "wait until it is ready"
        )
    try:
        props = client.props()
    except LlamaStreamError as error:
        return Finding("server", "note", f"{client.base_url} is ready, but {error.message}")
    build = str(props.get("build_info") or "unknown build").replace("b0-unknown", "unknown build")
    return Finding("server", "ok", f"{client.base_url} is ready: {build}, {props.get('total_slots', '?')} slots")


def tools_finding(settings: ClientSettings) -> Finding:
    """What a server that is ready does with requests that have tools."""
    try:
        support = StreamingClient(settings=settings).tool_support()
    except LlamaStreamError as error:
        return Finding("tool calls", "note", f"not known: {error.message}")
    return describe_tools(support)


def describe_tools(support: ToolSupport) -> Finding:
    """The finding, in the order of what matters."""
    several = {True: "; several at once", False: "; one at a time", None: ""}[support.parallel]
    if support.accepted is False:
        return Finding(
            "tool calls", "note", f"requests with tools are refused: {support.reason}", "start the server with --jinja"
        )
    if support.rendered is False:
        return Finding(
            "tool calls",
            "note",
            "the chat template does not show tools to the model, so that it calls none by itself",
            "start the server with a template that does (--chat-template-file), or take another model",
        )
    if support.streamed is False:
        return Finding(
            "tool calls",
            "note",
            f"as whole answers only{several}: {support.reason}; the client asks for them by itself",
            "use a llama.cpp of June 2025 or later",
        )
    if support.accepted is None:
        template = " (the chat template knows tools)" if support.rendered else ""
        return Finding("tool calls", "note", f"not known: the server has no /apply-template to ask{template}")
    return Finding("tool calls", "ok", f"streamed{several}")


def hub_finding() -> Finding:
    if hub_available():
        return Finding("downloads", "ok", "huggingface_hub is installed: -hf works with every engine")
    return Finding(
        "downloads",
        "note",
        "no huggingface_hub: -hf works with an executable only",
        "pip install 'llamastream[server]'",
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        text = Text(finding.detail)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="dim")
        table.add_row(Text(mark, style=style), Text(finding.name, style="bold"), text)
    console = Console(highlight=False)
    # In a pipe there is no width to keep to, and wrapped lines would only be in a program's way.
    console.print(table, width=None if console.is_terminal else 1000)
