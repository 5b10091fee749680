"""What the gateway costs, beside nginx, HAProxy, FastAPI with httpx and LiteLLM's proxy: `make bench-gateway`.

One origin, one reader, one proxy at a time in between, in rounds. What counts is the CPU of the proxy's processes per
streamed event, and how much later an event comes than without it. A proxy that is not installed is left out; for
LiteLLM's, `LITELLM` names the executable. The gateway is `llamastream serve --upstream`, with everything that it does.
Proxies of which one core cannot carry the load get a hundredth of it, and are not judged by how late they are.

`--soak MINUTES` measures instead whether memory grows, and events come later, under 1,000 streams after the other.

Writes `docs/benchmarks/gateway.json`, and the table, or what a soak of ten minutes or more found, between its marks in
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
ENDS = str(HERE / "gateway_ends.py")
SLOW = ("FastAPI + httpx", "LiteLLM")
"""Proxies that get a smaller load."""
BEGIN, END = "<!-- gateway: begin -->", "<!-- gateway: end -->"
SOAK_BEGIN, SOAK_END = "<!-- gateway soak: begin -->", "<!-- gateway soak: end -->"

FASTAPI = """
import sys
import uvicorn
try:
    import httpx
except ImportError:
    import httpx2 as httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
app = FastAPI()
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None)
@app.post("/v1/chat/completions")
async def chat(request: Request):
    body = await request.body()
    async def stream():
        url = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"
        async with client.stream("POST", url, content=body) as answer:
            async for chunk in answer.aiter_bytes():
                yield chunk
    return StreamingResponse(stream(), media_type="text/event-stream")
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False, loop="uvloop",
            backlog=4096)
"""

NGINX = """
worker_processes 1; daemon off; master_process off; pid {directory}/pid; error_log {directory}/log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_buffering off; proxy_http_version 1.1;
      proxy_set_header Connection ""; }} }}
}}
"""

LITELLM = """
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{origin}/v1", api_key: none}}
"""

HAPROXY = """
global
  maxconn 4000
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout client 1h
  timeout server 1h
  timeout connect 5s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s 127.0.0.1:{origin}
"""


def program(name: str) -> str | None:
    """Where a server is installed: often not on the PATH of a user."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def proxy(name: str, origin: int) -> Iterator[tuple[int, psutil.Process | None]]:
    """A proxy that runs: its port, and its process (None: there is none in between)."""
    if name == "direct":
        yield origin, None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llamastream-bench-") as directory:
        if name == "nginx":
            file = Path(directory) / "nginx.conf"
            file.write_text(NGINX.format(directory=directory, port=port, origin=origin))
            command = [program("nginx") or "nginx", "-p", directory, "-c", str(file)]
        elif name == "HAProxy":
            file = Path(directory) / "haproxy.cfg"
            file.write_text(HAPROXY.format(port=port, origin=origin))
            command = [program("haproxy") or "haproxy", "-f", str(file), "-db"]
        elif name == "LiteLLM":
            file = Path(directory) / "litellm.yaml"
            file.write_text(LITELLM.format(origin=origin))
            command = [litellm() or "litellm", "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        elif name == "llamastream":
            command = [sys.executable, "-m", "llamastream", "serve", "--upstream", f"http://127.0.0.1:{origin}"]
            command += ["--port", str(port), "--log-format", "json"]
        else:
            command = [sys.executable, "-c", FASTAPI, str(origin), str(port)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment(directory)) as process:
            try:
                deadline = time.monotonic() + 90
                while True:
                    with contextlib.suppress(OSError):
                        if serves(port):
                            break
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise RuntimeError(f"{name} does not listen")
                    time.sleep(0.05)
                yield port, psutil.Process(process.pid)
            finally:
                process.terminate()
                process.wait()


def serves(port: int) -> bool:
    """Whether requests reach the origin."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        return b'"m"' in answer.read() or answer.status in (404, 405)


def environment(directory: str) -> dict[str, str]:
    """Without settings of the user's, and without a word to anybody outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
    return {**kept, "XDG_CONFIG_HOME": directory, "XDG_STATE_HOME": directory, "LITELLM_TELEMETRY": "False",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # fmt: skip


def litellm() -> str | None:
    return os.environ.get("LITELLM") or shutil.which("litellm")


def available() -> list[str]:
    names = ["direct", "llamastream"]
    names += ["nginx"] if program("nginx") else []
    names += ["HAProxy"] if program("haproxy") else []
    found = {name for name in ("fastapi", "httpx", "httpx2") if importlib.util.find_spec(name)}
    names += ["FastAPI + httpx"] if "fastapi" in found and len(found) > 1 else []
    names += ["LiteLLM"] if litellm() else []
    return names


def load(port: int, process: psutil.Process | None, streams: int, rate: int, seconds: float) -> dict[str, Any]:
    """One run: so many streams, each with `rate` events a second."""
    order = {"port": port, "streams": streams, "rate": rate, "events": int(rate * seconds)}
    with subprocess.Popen(
        [sys.executable, ENDS, "read", json.dumps(order)], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        before = sum(process.cpu_times()[:2]) if process else 0.0
        peak = 0
        while reader.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                reader.wait(0.5)
            if process:
                peak = max(peak, process.memory_info().rss)
        found: dict[str, Any] = json.loads(reader.stdout.readline())
        spent = sum(process.cpu_times()[:2]) - before if process else 0.0
    found |= {"cpu_us": spent / max(1, found["events"]) * 1e6, "peak_bytes": peak, "wanted": streams * order["events"]}
    return found


def measure(rounds: int, seconds: float, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All proxies in turn, round after round; 200 streams × 50 events/s."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with origin_process() as port:
        for number in range(rounds):
            for name in names:
                with proxy(name, port) as (entry, process):
                    streams, rate = (10, 10) if name in SLOW else (200, 50)
                    load(entry, process, 10, rate, 0.5)
                    found[name].append(load(entry, process, streams, rate, seconds))
                row = found[name][-1]
                print(f"round {number + 1}, {name}: {row['cpu_us']:.1f} µs, p99 {row['p99_ms']:.1f} ms", flush=True)
        for name in ("direct", "llamastream"):
            with proxy(name, port) as (entry, process):
                found[f"{name}, 1,000 streams"] = [load(entry, process, 1000, 20, seconds)]
    return found


@contextlib.contextmanager
def origin_process() -> Iterator[int]:
    """The origin, as a process of its own; its port."""
    with subprocess.Popen(
        [sys.executable, ENDS, "origin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as origin:
        assert origin.stdout is not None
        assert origin.stdin is not None
        try:
            yield int(origin.stdout.readline())
        finally:
            origin.stdin.close()


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""

    def median(name: str, field: str) -> float:
        return float(statistics.median(row[field] for row in found[name]))

    lines = [
        "200 streams × 50 events a second, medians:",
        "",
        "| | CPU, µs an event | ÷ nginx | event later by, p50 / p99, ms | first token later by, ms | memory, MiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in found:
        if name == "direct" or "streams" in name:
            continue
        share = f"{median(name, 'cpu_us') / median('nginx', 'cpu_us'):.2f}" if "nginx" in found else "–"
        cells = [name, f"{median(name, 'cpu_us'):.1f}", share]
        if name in SLOW:
            cells += ["–", "–"]
        else:
            later = [median(name, field) - median("direct", field) for field in ("p50_ms", "p99_ms", "first_p50_ms")]
            cells += [f"{later[0]:.2f} / {later[1]:.2f}", f"{later[2]:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {median(name, 'peak_bytes') / 2**20:.0f} |")
    direct, ours = found["direct, 1,000 streams"][0], found["llamastream, 1,000 streams"][0]
    many = (
        f"1,000 streams × 20 events a second through llamastream: {ours['cpu_us']:.1f} µs of CPU an event, "
        f"p99 later by {ours['p99_ms'] - direct['p99_ms']:.1f} ms, {ours['peak_bytes'] / 2**20:.0f} MiB, "
        f"{ours['whole']} of 1000 streams whole."
    )
    small = f"{' and '.join(name for name in SLOW if name in found)}: 10 streams × 10 events a second."
    return "\n".join([*lines, "", *([small, ""] if any(name in found for name in SLOW) else []), many])


SOAK_SECONDS = 20.0
"""How long each stream of a soak goes on: a round after the other, since a stream keeps its text for recovery."""


def soak(minutes: float) -> str:
    """Rounds of 1,000 streams × 20 events a second for so long: what memory does, and whether events come later."""
    found, peaks = [], []
    with origin_process() as port, proxy("llamastream", port) as (entry, process):
        assert process is not None
        began = time.monotonic()
        while time.monotonic() - began < minutes * 60:
            row = load(entry, process, 1000, 20, SOAK_SECONDS)
            found.append(row)
            peaks.append(((time.monotonic() - began) / 60, row["peak_bytes"] / 1024))
            mib = row["peak_bytes"] / 2**20
            print(f"{peaks[-1][0]:.1f} min: {mib:.1f} MiB, p99 {row['p99_ms']:.1f} ms", flush=True)
    warm = peaks[len(peaks) // 4 :]
    slope = statistics.linear_regression([when for when, _ in warm], [size for _, size in warm]).slope
    return (
        f"Rounds of 1,000 streams × 20 events a second for {minutes:g} minutes: "
        f"{sum(row['events'] for row in found):,} events, {sum(row['whole'] for row in found):,} of "
        f"{1000 * len(found):,} streams whole, p99 from {min(row['p99_ms'] for row in found):.1f} to "
        f"{max(row['p99_ms'] for row in found):.1f} ms; memory at most {peaks[0][1] / 1024:.1f} MiB in the first round "
        f"and {peaks[-1][1] / 1024:.1f} in the last, slope {slope:+.1f} KiB a minute after the first quarter."
    )


def publish(found: dict[str, list[dict[str, Any]]], docs: Path) -> None:
    """Write the JSON, and the table into the page."""
    (docs / "benchmarks" / "gateway.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    put(table(found), docs, BEGIN, END)


def put(text: str, docs: Path, begin: str, end: str) -> None:
    """Write it between two marks of the page."""
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description="What the gateway costs, beside other proxies.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only: memory under 1,000 streams for so long")
    options = parser.parse_args()
    if options.soak:
        said = soak(options.soak)
        print(said)
        if options.soak >= 10:
            put(said, DOCS, SOAK_BEGIN, SOAK_END)
        return
    found = measure(1 if options.quick else options.rounds, 3.0 if options.quick else options.seconds, available())
    print(table(found))
    if not options.quick:
        publish(found, DOCS)


if __name__ == "__main__":
    main()
