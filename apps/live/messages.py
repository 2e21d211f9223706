"""Messages of ``/ws/jobs/``, and the schema of both WebSockets, from which ``ws_schema.json`` is made.

Every frame is one JSON object whose ``type`` names the message. Those of ``/ws/live/<model>/`` are in
:mod:`microscope.protocol`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from apps.jobs.summary import EventSummary, JobSummary
from microscope.params.fields import Integer
from microscope.params.schema import schema_components
from microscope.protocol import Failure, LiveAnswer, LiveRequest, Message, Ping, Pong, Request


class Subscribe(Request, tag="subscribe", frozen=True):
    """Follow the jobs of a project; answered with ``snapshot``. Say it again to get a fresh snapshot."""

    project: UUID


class Unsubscribe(Request, tag="unsubscribe", frozen=True):
    """Stop following a project."""

    project: UUID


class Watch(Request, tag="watch", frozen=True):
    """Follow log lines and curves of one job; answered with the events after ``after``."""

    job: UUID
    after: Integer = 0


class Unwatch(Request, tag="unwatch", frozen=True):
    """Stop following a job."""

    job: UUID


class Snapshot(Message, tag="snapshot", frozen=True):
    """All unfinished jobs of a project and its newest finished ones, newest first."""

    project: UUID
    jobs: list[JobSummary]


class JobChanged(Message, tag="job", frozen=True):
    """A job as it is now.

    Durable changes raise ``job.seq`` by one: after a gap, subscribe again. A ``transient`` one is
    progress in between and repeats the number; missing it does no harm.
    """

    job: JobSummary
    transient: bool = False


class JobEvents(Message, tag="events", frozen=True):
    """Events of a watched job. When the first is not ``last seen + 1``, watch again from the last seen."""

    job: UUID
    events: list[EventSummary]
    last: int


JobsRequest = Subscribe | Unsubscribe | Watch | Unwatch | Ping
JobsAnswer = Snapshot | JobChanged | JobEvents | Failure | Pong


TICKET = "a ticket of POST /api/v1/ws-tickets, for clients with an API token"
LIVE_QUERY = {
    "ticket": TICKET,
    "page": "a UUID the client makes up: connecting again under it takes over the place it had, however full it is",
}
JOBS_QUERY = {"ticket": TICKET, "project": "id of a project to subscribe to at once"}
CLOSE_CODES = {
    "4401": "not signed in, or no longer",
    "4403": "your role does not allow it",
    "4404": "no such model or project, or not for you",
    "4408": "another connection of the same page took the place of this one",
    "4429": "all live sessions of the person or of the project are open; the failure before says how many",
}


def schema() -> dict[str, Any]:
    """JSON Schema of both sockets: what each side may say, and the components."""
    unions = {
        "LiveRequest": LiveRequest,
        "LiveAnswer": LiveAnswer,
        "JobsRequest": JobsRequest,
        "JobsAnswer": JobsAnswer,
    }
    schemas, components = schema_components(unions.values(), "#/$defs/{name}")
    definitions = {**components, **dict(zip(unions, schemas, strict=True))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "WebSocket messages of the portal",
        "sockets": {
            "/ws/live/{model}/": {"request": "LiveRequest", "answer": "LiveAnswer", "query": LIVE_QUERY},
            "/ws/jobs/": {"request": "JobsRequest", "answer": "JobsAnswer", "query": JOBS_QUERY},
        },
        "close_codes": CLOSE_CODES,
        "$defs": dict(sorted(definitions.items())),
    }
