"""The two WebSockets: one to a model, one to the jobs of projects."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from channels.db import database_sync_to_async

from apps.core.errors import Forbidden, MicroscopeError, NotVisible
from apps.core.metrics import LIVE_SESSIONS, TOGGLES
from apps.core.publish import job_group, project_jobs_group, resident_group
from apps.jobs.models import Job
from apps.jobs.summary import EventSummary, JobSummary, summaries, summarise_event
from apps.live import messages as m
from apps.live.resident_client import pool
from apps.live.seats import leave_seat, renewer, take_seat
from apps.live.services import Paths, Resident, live_paths, resident_of, visible_model
from apps.live.session import LiveSession
from apps.live.sockets import FORBIDDEN, NOT_FOUND, SEAT_LOST, TOO_MANY, Socket
from apps.projects.models import Project
from apps.projects.quotas import QuotaExceeded
from apps.registry.models import LanguageModel
from microscope import protocol as p

SNAPSHOT_FINISHED = 50
MAX_EVENTS = 2000
MAX_SUBSCRIPTIONS = 50


class UnknownRoute(Socket):
    """Any other path: told so and closed."""

    requests = p.Ping

    async def admit(self) -> int | None:
        """Nobody."""
        return NOT_FOUND


class LiveConsumer(Socket):
    """``/ws/live/<model>/``: prompts and plans in, distributions out.

    ``?page=<uuid>`` names the page, so that it gets its place back at once when it connects again.
    """

    requests = p.LiveRequest
    session: LiveSession | None = None
    seat: UUID | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection; however it ends, its seat is renewed no more."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.seat is not None:
                renewer.release(self.seat)

    async def admit(self) -> int | None:
        """People who may hold live sessions with the model."""
        self.model_id: UUID = self.scope["url_route"]["kwargs"]["model_id"]
        code: int | None = await self.check_access()
        if code is not None:
            return code
        try:
            page = UUID(named[0]) if (named := self.asked("page")) else None
        except ValueError:
            await self.fail("bad_page", f"page is {named[0][:40]!r}, which is no UUID.", "Make one up.")
            return NOT_FOUND
        try:
            self.seat = await self._take_seat(page)
        except QuotaExceeded as error:
            await self.fail(error.code, error.message, error.hint)
            return TOO_MANY
        renewer.hold(self.seat, lambda: self.spawn(self._lose_seat()))
        LIVE_SESSIONS.inc()
        self.session = LiveSession(
            model_id=self.model_id,
            pool=pool,
            say=self.say,
            spawn=self.spawn,
            look=self._look,
            read_paths=self._read_paths,
        )
        # Joined before looking, so that no change falls in between.
        await self.join(resident_group(self.model_id))
        await self.session.show_state()
        return None

    async def handle(self, message: Any) -> None:
        """Dispatch; nothing here waits for the model."""
        assert self.session is not None
        match message:
            case p.Open():
                self.session.open(message)
            case p.Apply():
                TOGGLES.inc()
                self.session.apply(message)
            case p.ReadFeatures():
                self.session.read_features(message)
            case p.ReadPositions():
                self.session.read_positions(message)
            case p.Generate():
                self.session.generate(message)
            case p.StopGeneration():
                self.session.stop_generation()
            case p.ReadProvenance():
                self.session.graphs.read(message)
            case p.StopProvenance():
                self.session.graphs.stop()
            case p.ReadAttended():
                self.session.read_attended(message)

    async def leave(self) -> None:
        """End the session."""
        if self.session is not None:
            LIVE_SESSIONS.dec()
            self.session.end()
        if self.seat is not None:
            await database_sync_to_async(leave_seat)(self.seat)

    async def _lose_seat(self) -> None:
        await self.fail(
            "seat_lost", "Another connection of the same page took the place of this one.", "Use that one."
        )
        await self.shut(SEAT_LOST)

    async def resident_changed(self, event: dict[str, Any]) -> None:
        """The agent saw something change."""
        if self.session is not None:
            self.session.look_soon()

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def check_access(self) -> int | None:
        """Whether the model is still visible and live sessions allowed."""
        try:
            visible_model(self.user, self.model_id)
        except Forbidden:
            return FORBIDDEN
        except NotVisible:
            return NOT_FOUND
        return None

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _take_seat(self, page: UUID | None) -> UUID:
        project = LanguageModel.objects.values_list("project_id", flat=True).get(pk=self.model_id)
        return take_seat(user=self.user, project_id=project, page=page).pk

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _look(self) -> Resident:
        return resident_of(LanguageModel.objects.get(pk=self.model_id))

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _read_paths(self) -> Paths:
        return live_paths(LanguageModel.objects.get(pk=self.model_id))


class JobsConsumer(Socket):
    """``/ws/jobs/``: states, log lines and curves of jobs. ``?project=<id>`` subscribes at once."""

    requests = m.JobsRequest

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.projects: set[UUID] = set()
        self.jobs: dict[UUID, UUID] = {}
        self.told: dict[UUID, int] = {}  # newest event said of each watched job

    async def admit(self) -> int | None:
        """Anybody signed in; a project in the address must be theirs."""
        wanted = self.asked("project")
        if not wanted:
            return None
        try:
            project = UUID(wanted[0])
        except ValueError:
            return NOT_FOUND
        try:
            await self._subscribe(project)
        except NotVisible:
            return NOT_FOUND
        return None

    async def handle(self, message: Any) -> None:
        """Follow and unfollow."""
        match message:
            case m.Subscribe():
                await self._subscribe(message.project)
            case m.Unsubscribe():
                self.projects.discard(message.project)
                await self.part(project_jobs_group(message.project))
            case m.Watch():
                await self._watch(message)
            case m.Unwatch():
                self.jobs.pop(message.job, None)
                self.told.pop(message.job, None)
                await self.part(job_group(message.job))

    async def _subscribe(self, project: UUID) -> None:
        self._limit(project in self.projects)
        # Joined before reading, so that nothing falls in between; what was read is checked first, though.
        await self._require_project(project)
        self.projects.add(project)
        await self.join(project_jobs_group(project))
        await self.say(m.Snapshot(project=project, jobs=await self._snapshot(project)))

    async def _watch(self, message: m.Watch) -> None:
        self._limit(message.job in self.jobs)
        project = await self._project_of(message.job)
        self.jobs[message.job] = project
        await self.join(job_group(message.job))
        events, last = await self._events(message.job, message.after)
        self.told[message.job] = events[-1].seq if events else message.after
        await self.say(m.JobEvents(job=message.job, events=events, last=last))

    def _limit(self, known: bool) -> None:
        if not known and len(self.projects) + len(self.jobs) >= MAX_SUBSCRIPTIONS:
            raise MicroscopeError(
                "too_many_subscriptions",
                f"{MAX_SUBSCRIPTIONS} subscriptions are the limit.",
                "End some first.",
            )

    # --- from the channel layer -----------------------------------------------------------------------

    async def job_changed(self, event: dict[str, Any]) -> None:
        """A job of a followed project."""
        job = msgspec.convert(event["job"], type=JobSummary)
        if job.project in self.projects:
            await self.say(m.JobChanged(job=job, transient=event["transient"]))

    async def job_events(self, event: dict[str, Any]) -> None:
        """New events of a watched job; what was read when watching began may be announced once more."""
        job = UUID(event["job"])
        said = self.told.get(job, 0)
        events = [e for e in msgspec.convert(event["events"], type=list[EventSummary]) if e.seq > said]
        if job in self.jobs and events:
            self.told[job] = events[-1].seq
            await self.say(m.JobEvents(job=job, events=events, last=events[-1].seq))

    # --- access ---------------------------------------------------------------------------------------

    async def check_access(self) -> int | None:
        """Drop what may no longer be seen; the socket closes when that was a project it followed."""
        wanted = self.projects | set(self.jobs.values())
        if wanted - await self._visible(wanted):
            return NOT_FOUND
        return None

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _visible(self, projects: set[UUID]) -> set[UUID]:
        return set(Project.objects.visible_to(self.user).filter(pk__in=projects).values_list("pk", flat=True))

    async def _require_project(self, project: UUID) -> None:
        if not await self._visible({project}):
            raise NotVisible("There is no such project")

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _project_of(self, job_id: UUID) -> UUID:
        project = (
            Job.objects.visible_to(self.user).filter(pk=job_id).values_list("project_id", flat=True).first()
        )
        if project is None:
            raise NotVisible("There is no such job")
        return project

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _snapshot(self, project: UUID) -> list[JobSummary]:
        rows = Job.objects.filter(project_id=project).for_display()
        finished = rows.exclude(pk__in=rows.active().values("pk"))[:SNAPSHOT_FINISHED]
        jobs = [*rows.active(), *finished]
        return summaries(sorted(jobs, key=lambda job: job.pk, reverse=True))

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _events(self, job_id: UUID, after: int) -> tuple[list[EventSummary], int]:
        job = Job.objects.get(pk=job_id)
        rows = job.events.filter(seq__gt=max(after, 0)).order_by("-seq")[:MAX_EVENTS]
        return [summarise_event(event) for event in reversed(rows)], job.event_seq
