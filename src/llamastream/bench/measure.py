"""A whole measurement: looks at the server, finds out how long words are, warms up, and goes through the loads."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from llamastream.bench.asking import Asker
from llamastream.bench.generator import Generator
from llamastream.bench.lengths import Lengths, parse_lengths
from llamastream.bench.loads import Extent, Load, extent_of, loads_of
from llamastream.bench.machine import describe_machine
from llamastream.bench.report import Report, ServerFacts, notes_on, summarise
from llamastream.bench.samples import INTERRUPTED, Lap
from llamastream.bench.settings import BenchSettings
from llamastream.bench.workload import Calibration, Prompt, Workload, calibrate, parse_prompts, some_words
from llamastream.client import AsyncStreamingClient
from llamastream.errors import BenchError, LlamaStreamError, SettingError
from llamastream.settings import ClientSettings

MANY = 1 << 14
"""Connections that the client may have: an open loop must wait for the server, never for us."""

CALIBRATION_WORDS = (16, 144)


@dataclasses.dataclass
class Watcher:
    """Hears how a measurement goes."""

    on_begin: Callable[[Sequence[Load], int], None] = lambda loads, repeats: None
    on_change: Callable[[Generator], None] = lambda generator: None
    on_lap: Callable[[Lap], None] = lambda lap: None


class Measurement:
    """One measurement of one server.

    Attributes:
        settings, watcher: as given. loads: that are measured. laps: what is there of it so far. interrupted: it was
            broken off.
    """

    def __init__(
        self,
        client: ClientSettings,
        settings: BenchSettings,
        watcher: Watcher | None = None,
        *,
        server: ServerFacts | None = None,
    ) -> None:
        """Args:
        client: how to reach the server. server: what is known of it already, as of one of our own.

        Raises:
            SettingError: settings do not fit together, or the file of prompts cannot be used.
        """
        self.laps: list[Lap] = []
        self.interrupted = False
        self._asker: Asker | None = None
        self._client = msgspec.structs.replace(client, max_connections=max(client.max_connections, MANY))
        self.settings = settings
        self.watcher = watcher or Watcher()
        self._server = server or ServerFacts()
        self.loads = loads_of(settings)
        self._extent = extent_of(settings)
        self._workload = workload_of(settings)

    async def run(self) -> None:
        """Measure. Cancelling it once ends the streams and keeps what was measured: then `interrupted` is set.

        Raises:
            LlamaStreamError: the server cannot be reached, or refuses the first requests.
        """
        await run_in_turn([self])

    def client(self) -> AsyncStreamingClient:
        """A client of the server, for `prepare` and `lap`."""
        # A gateway's response cache would be measured in place of the model, from the second time of a prompt on.
        return AsyncStreamingClient(settings=self._client, headers={"Cache-Control": "no-store"})

    async def prepare(self, client: AsyncStreamingClient) -> None:
        """Look at the server, and find out how long words are.

        Raises:
            LlamaStreamError: it does not answer.
        """
        settings = self.settings
        is_llama = await self._look(client)
        body: dict[str, Any] = {}
        if self._client.temperature is None:
            body["temperature"] = 0.0
        if settings.ignore_eos == "on" or (settings.ignore_eos == "auto" and is_llama and not settings.prompts):
            body["ignore_eos"] = True
        self._asker = Asker(client, body, settings.model_name)
        if not self._workload.prompts:
            calibration = await calibration_of(self._asker)
            self._workload = msgspec.structs.replace(self._workload, calibration=calibration)

    async def lap(self, load: Load, repeat: int) -> None:
        """Go through a load once, after `prepare`; before its first repeat it is warmed up.

        Raises:
            BenchError: not one request of the warm-up succeeded.
        """
        assert self._asker is not None
        if repeat == 1 and self.settings.warm_up:
            await self._warm_up(self._asker, load)
        generator = Generator(self._asker, self._workload, load, repeat, self.watcher.on_change)
        try:
            lap = await generator.run(self._extent, self.settings.arrivals, self.settings.seed)
        except asyncio.CancelledError:
            lap = generator.lap()
            if lap.samples:
                self.laps.append(lap)
            raise
        self.laps.append(lap)
        self.watcher.on_lap(lap)

    async def _warm_up(self, asker: Asker, load: Load) -> None:
        """Raises:
        BenchError: not one request succeeded.
        """
        at_once = int(load.value) if load.kind == "closed" else 1
        generator = Generator(asker, self._workload, Load("closed", at_once), 0)
        lap = await generator.run(Extent(self.settings.warm_up * at_once, None))
        failed = [sample for sample in lap.samples if not sample.ok]
        if failed and len(failed) == len(lap.samples):
            raise BenchError(f"no request succeeds: {failed[0].error}: {failed[0].message}")

    async def _look(self, client: AsyncStreamingClient) -> bool:
        """Learn what the server says of itself; whether it is a llama-server."""
        try:
            props = await client.props()
        except LlamaStreamError:
            return False  # no llama-server, or a key that may not ask; requests will tell whether it can be used
        context = props.get("default_generation_settings", {}).get("n_ctx")
        self._server = msgspec.structs.replace(
            self._server,
            where=self._server.where or public_address(self._client),
            build=self._server.build or str(props.get("build_info") or ""),
            model=self._server.model or Path(str(props.get("model_alias") or props.get("model_path") or "")).name,
            slots=self._server.slots or props.get("total_slots"),  # of a fleet, all of them
            n_ctx=context if isinstance(context, int) else None,
        )
        return "total_slots" in props

    def report(self, *, host: bool = False) -> Report:
        """What was found.

        Args:
            host: name the machine.
        """
        settings = self.settings
        results = summarise(self.laps, settings.seed)
        return Report(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine(host=host),
            server=self._server,
            settings=msgspec.structs.asdict(settings),
            loads=results,
            interrupted=self.interrupted,
            notes=notes_on(results, self._server.slots),
        )

    @property
    def succeeded(self) -> bool:
        """Whether any request did."""
        return any(sample.ok for lap in self.laps for sample in lap.samples)

    @property
    def first_failure(self) -> str:
        """The first request that failed, in words; "" if none did."""
        failed = (s for lap in self.laps for s in lap.samples if s.error not in ("", INTERRUPTED))
        return next((f"{sample.error}: {sample.message}" for sample in failed), "")


async def run_in_turn(measurements: Sequence[Measurement]) -> None:
    """Measure several servers lap by lap, with the settings of the first, so that whatever else happens on the machine
    meets all of them alike. As `Measurement.run`."""
    first = measurements[0]
    settings = first.settings
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(measurement.client()) for measurement in measurements]
        try:
            for measurement, client in zip(measurements, clients, strict=True):
                await measurement.prepare(client)
            first.watcher.on_begin(first.loads, settings.repeats)
            for repeat in range(1, settings.repeats + 1):
                # There and back, so that a machine that becomes slower or faster meets all loads alike.
                for load in first.loads if repeat % 2 else reversed(first.loads):
                    for measurement in measurements if repeat % 2 else reversed(measurements):
                        await measurement.lap(load, repeat)
        except asyncio.CancelledError:
            for measurement in measurements:
                measurement.interrupted = True
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()


def workload_of(settings: BenchSettings) -> Workload:
    """What the settings ask for.

    Raises:
        SettingError: the file of prompts cannot be read or used.
    """
    prompts: tuple[Prompt, ...] = ()
    if settings.prompts is not None:
        try:
            text = Path(settings.prompts).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"prompts: {settings.prompts!r} cannot be read: {error}") from None
        prompts = parse_prompts(text, settings.prompts)
    prompt: Lengths = parse_lengths(settings.prompt_tokens, "prompt_tokens")
    output = parse_lengths(settings.output_tokens, "output_tokens")
    return Workload(
        prompt, output, settings.shared_prefix, settings.turns, prompts, settings.seed, secrets.token_hex(8)
    )


async def calibration_of(asker: Asker) -> Calibration:
    """Ask for one token twice, and see how long the prompts were.

    Raises:
        LlamaStreamError: the server does not answer.
    """
    counted = []
    for words in CALIBRATION_WORDS:
        text = some_words(words, random.Random(words))
        prompt = Prompt(messages=({"role": "user", "content": text},), max_tokens=1)
        usage = (await asker.stream(prompt).result()).stats.prompt_tokens
        if usage is None:
            return Calibration()
        counted.append((words, usage))
    return calibrate(counted[0], counted[1])


def public_address(client: ClientSettings) -> str:
    """Where the server is, if that says nothing of a machine's name."""
    local = {"localhost", "127.0.0.1", "::1"}
    addresses = client.addresses
    if all(address.socket is not None for address in addresses):
        return "a Unix socket"
    return " ".join(address.url for address in addresses) if {a.host for a in addresses} <= local else "elsewhere"
