"""Resident processes of one host: started, watched, pinged, restarted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone

from apps.core import heartbeat
from apps.live import services
from apps.live.models import ResidentWorker
from apps.live.resident_client import ResidentClient, ResidentError, ResidentLost
from apps.registry.models import LanguageModel
from microscope import protocol as p
from microscope.processes.group import Backoff, ProcessGroup
from microscope.processes.sockets import short_path
from worker.environment import child_environment, names_the_hub

log = structlog.get_logger(__name__)

State = ResidentWorker.State
PING_SECONDS = 5.0
HANGS_SECONDS = 60.0
STOP_SECONDS = 5.0
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
STABLE_SECONDS = 60.0

_UNLOADED: dict[str, Any] = {"address": "", "pid": None, "memory_bytes": None}
_ended = ("resident_lost", "The process that held the model ended{how}.", "It is being started again.")


def _too_idle() -> dict[str, str]:
    minutes = settings.WORKBENCH_RESIDENT_IDLE_MINUTES
    return {
        "error_code": "model_idle",
        "error_message": f"Nobody asked the model anything for {minutes} min, so it left memory.",
        "error_hint": "Load it to go on.",
    }


def socket_path(model_id: UUID) -> Path:
    """Where the process of a model listens."""
    return short_path(Path(settings.WORKBENCH_RUN_DIR), f"m{model_id.hex[-12:]}.sock")


class Wanted(NamedTuple):
    """A model that should be in memory."""

    model_id: UUID
    reference: str
    revision: str
    dtype: str
    asked_at: datetime | None


class ResidentProcess:
    """The process of one model, over all its restarts."""

    def __init__(self, wanted: Wanted, host: str) -> None:
        self.wanted, self._host = wanted, host
        self._process: ProcessGroup | None = None
        self._stopping = False
        self._idle = False
        self.claim_lost = False  # another host was quicker, or thought this one dead
        self._task = asyncio.create_task(self._run())

    @property
    def over(self) -> bool:
        """Whether it gave up: the model cannot be loaded."""
        return self._task.done()

    async def stop(self) -> None:
        """End the process and wait for it."""
        self._stopping = True
        if self._process is not None:
            await self._process.stopped(STOP_SECONDS)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._store(State.STOPPED, **_UNLOADED, **(_too_idle() if self._idle else {}))

    async def _run(self) -> None:
        """Start the process again and again until it is stopped or says that it cannot load the model."""
        backoff = Backoff(RESTART_SECONDS, stable=STABLE_SECONDS)
        while not self._stopping:
            started = time.monotonic()
            try:
                refused = await self._run_once()
            except Exception:  # a locked database must not leave the model unattended
                log.exception("resident_not_watched", model=str(self.wanted.model_id))
                refused = False
            if refused or self._stopping:
                return
            await asyncio.sleep(backoff.after(time.monotonic() - started))

    async def _run_once(self) -> bool:
        """Start, announce, watch; True when the worker refused the model, which trying again would not change."""
        host, path = settings.WORKBENCH_RESIDENT_HOST, socket_path(self.wanted.model_id)
        if not await self._store(State.STARTING, **_UNLOADED, started_at=timezone.now()):
            self.claim_lost = True
            return True
        process = self._process = self._start(f"tcp:{host}:0" if host else f"unix:{path}")
        try:
            return await self._watch(process)
        finally:
            await process.stopped(0.0)
            path.unlink(missing_ok=True)

    async def _watch(self, process: ProcessGroup) -> bool:
        try:
            said = await asyncio.wait_for(
                self._ready_line(process), settings.WORKBENCH_RESIDENT_START_SECONDS
            )
        except TimeoutError:
            seconds = settings.WORKBENCH_RESIDENT_START_SECONDS
            error = (
                "model_load_timeout",
                f"The model did not load within {seconds:g} s.",
                "Try a smaller one.",
            )
            await self._store_error(State.FAILED, *error)
            return True
        if said.get("event") == "error":
            await self._store_error(State.FAILED, said["code"], said["message"], said.get("hint", ""))
            return True
        if said.get("event") == "ready":
            log.info("resident_ready", model=str(self.wanted.model_id), pid=process.pid)
            info = msgspec.convert(said["model"], type=p.ModelInfo)
            await self._store(
                State.READY, address=said["address"], pid=process.pid, info=msgspec.to_builtins(info)
            )
            await self._note_fingerprint(info.fingerprint)
            await self._ping(process, said["address"])
        if not self._stopping:
            status = process.reap() if await process.ended(1.0) else None  # None: it hangs
            how = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
            code, message, hint = _ended
            if status == -signal.SIGKILL:
                hint = "It is being started again. If that repeats, the machine is short of memory."
            log.warning("resident_lost", model=str(self.wanted.model_id), status=status)
            await self._store_error(State.LOST, code, message.format(how=how), hint)
        return False

    async def _ping(self, process: ProcessGroup, address: str) -> None:
        """Ping until the process ends or no longer answers."""
        answered = time.monotonic()
        client: ResidentClient | None = None
        try:
            while process.running:
                try:
                    if client is None or client.closed:
                        client = await ResidentClient.connect(address)
                    async with asyncio.timeout(PING_SECONDS):
                        status = await client.request(p.ReadStatus(), p.Status)
                    answered = time.monotonic()
                    if not await self._note(status):
                        return
                except (ResidentLost, ResidentError, TimeoutError):
                    if time.monotonic() - answered > HANGS_SECONDS:
                        log.error("resident_hangs", model=str(self.wanted.model_id), pid=process.pid)
                        return
                await process.ended(PING_SECONDS)
        finally:
            if client is not None:
                client.close()

    async def _note(self, status: p.Status) -> bool:
        """Store a heartbeat and ask to be stopped when idle; False when the model is another host's by now."""
        mine = await sync_to_async(services.record_heartbeat)(
            model_id=self.wanted.model_id, host=self._host, memory_bytes=status.rss_bytes
        )
        minutes = settings.WORKBENCH_RESIDENT_IDLE_MINUTES
        if minutes and status.idle_seconds > 60 * minutes:
            self._idle = True
            await sync_to_async(services.unload_idle)(model_id=self.wanted.model_id, minutes=minutes)
        return mine

    def _start(self, address: str) -> ProcessGroup:
        wanted = self.wanted
        command = [
            str(settings.WORKBENCH_ENGINE_PYTHON),
            "-m",
            "worker.resident",
            "--model",
            wanted.reference,
        ]
        command += ["--dtype", wanted.dtype, "--listen", address]
        command += ["--cache-mb", str(settings.WORKBENCH_RESIDENT_CACHE_MB)]
        command += ["--sae-mb", str(settings.WORKBENCH_RESIDENT_SAE_MB)]
        if wanted.revision:
            command += ["--revision", wanted.revision]
        logs = Path(settings.WORKBENCH_LOG_DIR)
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"resident-{wanted.model_id.hex[-12:]}.log").open("ab") as errors:
            return ProcessGroup(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                environment=child_environment(
                    hub=names_the_hub({"model": wanted.reference}),
                    hub_token=settings.HF_TOKEN,
                    resident=bool(settings.WORKBENCH_RESIDENT_HOST),
                    more=settings.WORKBENCH_CHILD_ENVIRONMENT,
                ),
            )

    async def _ready_line(self, process: ProcessGroup) -> dict[str, Any]:
        """The one JSON line it prints; an empty answer when it ends before."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, process.stdout)
        while line := await reader.readline():
            with contextlib.suppress(msgspec.DecodeError):
                said = msgspec.json.decode(line)
                if isinstance(said, dict):
                    return said
        return {}

    async def _store(self, state: str, **values: Any) -> bool:
        """False when the model is gone, or another host's."""
        return await sync_to_async(services.set_resident)(
            model_id=self.wanted.model_id, state=state, host=self._host, **values
        )

    async def _store_error(self, state: str, code: str, message: str, hint: str) -> None:
        await self._store(
            state,
            **_UNLOADED,
            error_code=code[:60],
            error_message=message,
            error_hint=hint,
        )

    async def _note_fingerprint(self, fingerprint: str) -> None:
        rows = LanguageModel.objects.filter(pk=self.wanted.model_id, fingerprint="")
        await rows.aupdate(fingerprint=fingerprint)


class Residents:
    """All resident processes of this host."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._running: dict[UUID, ResidentProcess] = {}
        self._heartbeat_at = 0.0

    @property
    def models(self) -> frozenset[UUID]:
        """Those whose processes it looks after."""
        return frozenset(self._running)

    async def mark_stopped(self) -> None:
        """Processes of an earlier agent ended with it: their rows say so from now on."""

        def forget() -> None:
            stale = ResidentWorker.objects.filter(host=self._host, state__in=(State.STARTING, State.READY))
            for row in stale:
                services.set_resident(
                    model_id=row.model_id, state=State.STOPPED, host=self._host, **_UNLOADED
                )

        await sync_to_async(forget)()

    async def tick(self) -> None:
        """One comparison of what is wanted with what runs."""
        try:
            wanted = await sync_to_async(self._read)()
        except Exception as error:  # a locked database: look again in half a second
            log.warning("agent_cannot_look", error=str(error))
            return
        for model_id, running in list(self._running.items()):
            asked = wanted.get(model_id)
            asked_again = asked is not None and running.over and asked.asked_at != running.wanted.asked_at
            if asked is None or asked_again or running.claim_lost:
                del self._running[model_id]
                await running.stop()
        for model_id, asked in wanted.items():
            if model_id not in self._running and await self._claim(model_id):
                log.info("resident_starting", model=str(model_id), reference=asked.reference)
                self._running[model_id] = ResidentProcess(asked, self._host)
        if time.monotonic() - self._heartbeat_at > PING_SECONDS:
            self._heartbeat_at = time.monotonic()
            with contextlib.suppress(OSError):  # on a full disk models stay where they are
                heartbeat.beat(Path(settings.WORKBENCH_RUN_DIR), "agent")
            at_work = [model_id for model_id, running in self._running.items() if not running.over]
            with contextlib.suppress(DatabaseError):  # said again in a moment
                await sync_to_async(services.keep_claims)(model_ids=at_work, host=self._host)

    async def _claim(self, model_id: UUID) -> bool:
        """Whether this host is the one to hold the model; agents of several hosts want the same models."""
        try:
            return await sync_to_async(services.claim_resident)(model_id=model_id, host=self._host)
        except DatabaseError as error:
            log.warning("agent_cannot_claim", error=str(error))
            return False

    async def stop_all(self) -> None:
        """Stop every process, because the agent ends."""
        await asyncio.gather(*(running.stop() for running in self._running.values()))
        self._running.clear()

    @staticmethod
    def _read() -> dict[UUID, Wanted]:
        rows = LanguageModel.objects.filter(wanted_loaded=True)
        return {
            row.pk: Wanted(row.pk, row.locate(), row.revision, row.dtype, row.load_asked_at) for row in rows
        }
