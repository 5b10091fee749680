"""Real servers: both kinds of engine pass the same tests."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine import startup as startup_module
from llamastream.engine.address import ServerAddress
from llamastream.engine.demo import demo_questions
from llamastream.engine.logs import RING_SIZE
from llamastream.engine.process import ServerProcess
from llamastream.errors import (
    EngineMemoryError,
    EngineMissingError,
    ModelFileError,
    PortInUseError,
    SettingError,
    UnsupportedFlagError,
)
from llamastream.types import LogRecord

Make = Callable[..., EngineOptions]


def get(engine: Engine, path: str, key: str | None = None) -> tuple[int, bytes]:
    port = engine.options.port
    return ServerAddress(host=engine.options.host, port=port, socket=engine.socket).get(path, api_key=key)


def post(engine: Engine, path: str, body: dict[str, Any]) -> Any:
    """POST to the server; the answer's JSON."""
    with closing(http.client.HTTPConnection("127.0.0.1", engine.options.port, timeout=30)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())


@contextmanager
def streams(engine: Engine, count: int) -> Iterator[None]:
    """Streams that are under way, each read by a thread; they are long, so that none ends by itself."""
    body = json.dumps({"prompt": "a", "n_predict": 60_000, "ignore_eos": True, "stream": True})
    started = threading.Barrier(count + 1)

    def read(connection: http.client.HTTPConnection) -> None:
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read(20)
        started.wait(30)
        with suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while response.read1():
                pass

    with ExitStack() as stack:
        address = "127.0.0.1", engine.options.port
        connections = [stack.enter_context(closing(http.client.HTTPConnection(*address))) for _ in range(count)]
        threads = [threading.Thread(target=read, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        started.wait(30)
        yield
        for connection in connections:
            assert connection.sock is not None
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_a_server_comes_and_goes(options: Make) -> None:
    with launch(options(ctx_size=512, alias="my-model")) as engine:
        assert engine.alive
        assert engine.url == f"http://127.0.0.1:{engine.options.port}"
        assert engine.kind == options().kind
        assert engine.warnings == []
        assert engine.options.threads_http == 8  # a thread for each stream, and a margin
        assert engine.options.threads is not None
        assert get(engine, "/health") == (200, b'{"status":"ok"}')
        assert get(engine, "/metrics")[1].startswith(b"# HELP llamacpp:")
        assert b"my-model" in get(engine, "/v1/models")[1]
        slots = json.loads(get(engine, "/slots")[1])
        assert [slot["n_ctx"] for slot in slots] == [512] * 4
        assert (engine.capabilities.slots, engine.capabilities.n_ctx) == (4, 512)
        assert engine.capabilities.slots_endpoint
        assert engine.capabilities.metrics_endpoint
        assert engine.capabilities.reattach
        assert engine.capabilities.build
        assert any("model loaded" in record.message for record in engine.logs)
        listening = [c.laddr for c in psutil.Process(engine.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert [address.port for address in listening if address] == [engine.options.port]
        assert repr(engine).endswith("running>")
    assert not engine.alive
    assert engine.wait() == 0
    assert engine.stop() == 0  # idempotent
    assert gone(engine.pid)
    assert repr(engine).endswith("exit code 0>")


def test_the_demo_model_is_the_default_and_starts_fast(kind: str) -> None:
    question = demo_questions()[0]
    with launch(EngineOptions(kind=kind)) as engine:  # type: ignore[arg-type]
        assert engine.start_seconds < 3.0
        assert engine.options.alias == "demo"
        assert b'"demo"' in get(engine, "/v1/models")[1]
        assert engine.capabilities.slots == 4
        body = {"messages": [{"role": "user", "content": question.question}], "temperature": 0}
        answer = post(engine, "/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"].strip() == question.answer


def test_start_and_stop_by_hand_from_many_threads(options: Make) -> None:
    engine = launch(options()).start()
    codes: list[int | None] = []
    threads = [threading.Thread(target=lambda: codes.append(engine.stop())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 5


def test_for_coroutines(options: Make) -> None:
    async def run() -> Engine:
        async with launch(options()) as engine:
            assert await asyncio.to_thread(get, engine, "/health") == (200, b'{"status":"ok"}')
        assert await engine.await_exit(1.0) == 0
        return engine

    assert gone(asyncio.run(run()).pid)


def test_two_at_once(options: Make) -> None:
    with launch(options()) as one, launch(options()) as two:
        assert one.url != two.url
        assert one.pid != two.pid
        assert get(one, "/health")[0] == get(two, "/health")[0] == 200


def test_a_port_of_ones_own_choice(options: Make) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with launch(options(port=port)) as engine:
        assert engine.url == f"http://127.0.0.1:{port}"


def test_a_unix_socket(options: Make, short_tmp: Path) -> None:
    path = short_tmp / "new" / "s.sock"
    with launch(options(socket=str(path), api_key="k3y")) as engine:
        assert engine.url == f"unix://{path}"
        assert engine.socket == str(path)
        assert get(engine, "/health")[0] == 200
        assert get(engine, "/props", "k3y")[0] == 200
        assert path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) == 0
        with pytest.raises(PortInUseError, match="already"):
            launch(options(socket=str(path))).start()
        assert get(engine, "/health")[0] == 200
    assert not path.exists()
    assert not path.parent.exists()  # made for it, removed with it


def test_the_key_is_needed_and_cannot_be_seen(options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    key = "very-secret-key-1234"
    with launch(options(api_key=key, extra_args=("--verbosity", "5"))) as engine:
        assert engine.api_key == key
        assert get(engine, "/health")[0] == 200
        assert get(engine, "/props")[0] == 401
        assert get(engine, "/props", key)[0] == 200
        server = psutil.Process(engine.pid)
        for process in (server, server.parent()):
            assert process is not None
            assert key not in " ".join(process.cmdline())
            assert key not in " ".join(process.environ().values())
        seen = " ".join(record.message for record in engine.logs)
        assert key not in seen
        assert "****1234" not in seen
        assert key not in f"{engine!r} {engine.options!r} {engine.command} {engine.warnings}"
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.iterdir()) == []


def test_flags_reach_the_server(options: Make) -> None:
    with launch(options(extra_args=("--temp", "0.25", "--mlock", "--log-format", "json"))) as engine:
        settings = json.loads(get(engine, "/props")[1])["default_generation_settings"]
        assert settings["params"]["temperature"] == 0.25
        assert any(warning.startswith("--log-format json ") for warning in engine.warnings) or engine.kind == "embedded"
        assert len(engine.warnings) >= 1


def test_saved_slots(options: Make, tmp_path: Path) -> None:
    with launch(options(slot_save_path=str(tmp_path / "saved"))) as engine:
        post(engine, "/completion", {"prompt": "hello", "n_predict": 4, "id_slot": 0})
        assert post(engine, "/slots/0?action=save", {"filename": "a.bin"})["n_saved"] > 0
    assert (tmp_path / "saved" / "a.bin").stat().st_size > 0


def test_without_metrics_and_slots(options: Make) -> None:
    with launch(options(metrics=False, slots=False)) as engine:
        assert get(engine, "/metrics")[0] != 200
        assert get(engine, "/slots")[0] != 200
        assert not engine.capabilities.metrics_endpoint
        assert not engine.capabilities.slots_endpoint
        assert engine.capabilities.slots == 4


def test_health_and_slots_answer_while_all_slots_stream(options: Make, long_model: str) -> None:
    with launch(options(model=long_model, ctx_size=61_000, threads_http=1)) as engine, streams(engine, 4):
        started = time.monotonic()
        assert get(engine, "/health")[0] == 200
        slots = json.loads(get(engine, "/slots")[1])
        assert sum(slot["is_processing"] for slot in slots) == 4
        assert time.monotonic() - started < 3.0


def test_stopping_in_the_middle_of_streams_is_over_in_time(options: Make, long_model: str) -> None:
    with launch(options(model=long_model, ctx_size=61_000)) as engine, streams(engine, 2):
        # now and then the executable hangs here, in its signal handler or waiting for its HTTP threads
        started = time.monotonic()
        code = engine.stop(3.0)
        assert time.monotonic() - started < 6.0
    assert code in (0, -9)
    assert gone(engine.pid)


def test_the_surroundings_change_nothing(options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "llama.cpp"
    config.mkdir()
    config.joinpath("config.ini").write_text("[*]\nalias = from-config\nn-predict = 1\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name, value in {"PORT": "1", "ALIAS": "from-env", "N_PARALLEL": "1", "CTX_SIZE": "256"}.items():
        monkeypatch.setenv(f"LLAMA_ARG_{name}", value)
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-others")
    with launch(options()) as engine:
        assert engine.capabilities.slots == 4
        assert "from" not in engine.capabilities.model_alias
        server = psutil.Process(engine.pid)
        assert "sk-of-others" not in server.environ().values()
        # Ctrl-C in a terminal reaches our process group only
        assert os.getsid(engine.pid) != os.getsid(0)
        body = {"prompt": "a", "n_predict": 5, "ignore_eos": True}
        answer = post(engine, "/completion", body)
        assert answer["tokens_predicted"] == 5


def test_a_flood_of_log_lines_never_blocks_the_server(options: Make) -> None:
    with launch(options(extra_args=("--verbosity", "5"))) as engine:
        # letters only: the server's debug log cannot carry the random model's broken UTF-8
        body = {"prompt": "a " * 200, "n_predict": 150, "grammar": "root ::= [a-z]{900}"}
        answer = post(engine, "/completion", body)
        assert answer["tokens_predicted"] == 150
        assert 500 < len(engine.logs) <= RING_SIZE
        assert all(len(record.message) < 10_000 for record in engine.logs)
        assert any(record.level == "debug" for record in engine.logs)


def test_an_observer_that_hangs_never_blocks_the_server(options: Make) -> None:
    release = threading.Event()
    seen: list[LogRecord] = []

    def on_log(record: LogRecord) -> None:
        seen.append(record)
        release.wait(60)

    with launch(options(), on_log=on_log) as engine:
        assert get(engine, "/health")[0] == 200
        assert len(engine.logs) > 5
        assert len(seen) == 1
        release.set()


def test_a_gpu_that_is_not_there_is_told(options: Make) -> None:
    with launch(options(gpu=True)) as engine:
        told = any("found none that it can use" in warning for warning in engine.warnings)
        assert told or any("offloaded" in record.message for record in engine.logs)


def test_a_crash_is_noticed(options: Make) -> None:
    with launch(options()) as engine:
        psutil.Process(engine.pid).kill()
        assert engine.wait(10.0) == -9
        assert not engine.alive
    assert engine.stop() == -9


def test_a_model_that_is_damaged_where_only_the_server_looks(options: Make, tmp_path: Path, tiny_bytes: bytes) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_bytes[:-20_000])
    with pytest.raises(ModelFileError, match="damaged or incomplete") as caught:
        launch(options(model=str(path))).start()
    assert any("not within the file bounds" in line for line in caught.value.log_lines)
    assert caught.value.exit_code == 1


def test_an_unknown_architecture(options: Make, tmp_path: Path, tiny_bytes: bytes) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny_bytes.replace(b"llama", b"zetaz"))
    with pytest.raises(ModelFileError, match="architecture zetaz"):
        launch(options(model=str(path))).start()


def test_models_that_cannot_be_used(options: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("I am no model")
    for path, said in (
        (tmp_path / "none.gguf", "does not exist"),
        (text, "no usable GGUF"),
        (tmp_path, "is a directory"),
    ):
        with pytest.raises(ModelFileError, match=said):
            launch(options(model=str(path))).start()


def test_a_taken_port(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match="is taken"):
            launch(options(port=port)).start()
        # taken between our look and the server's: its log says so
        monkeypatch.setattr(startup_module, "check_port", lambda *_: None)
        with pytest.raises(PortInUseError, match="cannot listen") as caught:
            launch(options(port=port)).start()
        assert caught.value.log_lines


def test_a_port_where_another_llama_server_answers(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "check_port", lambda *_: None)
    with launch(options()) as other, pytest.raises(PortInUseError):
        launch(options(port=other.options.port)).start()


def test_flags_that_cannot_be_used(options: Make) -> None:
    with pytest.raises(UnsupportedFlagError, match="--frobnicate"):
        launch(options(extra_args=("--frobnicate",))).start()


def test_a_context_beyond_all_memory(options: Make) -> None:
    with pytest.raises(EngineMemoryError, match="GiB"):
        launch(options(ctx_size=2_000_000_000)).start()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
def test_memory_that_runs_out_while_loading(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(command: tuple[str, ...], **more: Any) -> ServerProcess:
        return ServerProcess(["/bin/sh", "-c", 'ulimit -v 1048576 && exec "$@"', "sh", *command], **more)

    monkeypatch.setattr(startup_module, "ServerProcess", limited)
    monkeypatch.setattr("llamastream.engine.resolve.check_memory", lambda *_: None)
    with pytest.raises(EngineMemoryError, match="not enough memory") as caught:
        launch(options(ctx_size=8_000_000)).start()
    assert any("bad_alloc" in line or "allocate" in line for line in caught.value.log_lines)


def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_SERVER_BIN", raising=False)
    with pytest.raises(EngineMissingError, match="no llama-server executable"):
        launch(EngineOptions(kind="executable")).start()
    monkeypatch.setattr("llamastream.engine.embedded.embedded_version", lambda: None)
    for kind in ("auto", "embedded"):
        with pytest.raises(EngineMissingError, match="pip install"):
            launch(EngineOptions(kind=kind)).start()
    monkeypatch.setenv("LLAMA_SERVER_BIN", "/no/such/file")
    with pytest.raises(SettingError, match="LLAMA_SERVER_BIN"):
        launch(EngineOptions()).start()
