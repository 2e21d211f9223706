"""The states of a job and every way between them. Nothing else in the code may change a state."""

from __future__ import annotations

import dataclasses

from django.db import models


class State(models.TextChoices):
    """Where a job stands."""

    WAITING = "waiting"  # for the job before it
    QUEUED = "queued"
    CLAIMED = "claimed"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ResultState(models.TextChoices):
    """Whether a job has filled a row in."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


LEASED = (State.CLAIMED, State.RUNNING, State.CANCELLING)
ACTIVE = (State.WAITING, State.QUEUED, *LEASED)
FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclasses.dataclass(frozen=True)
class Transition:
    """A way from some states to one; ``fenced`` ones are a worker's and need its lease."""

    sources: tuple[State, ...]
    target: State
    fenced: bool


TRANSITIONS: dict[str, Transition] = {
    # by the worker that holds the lease (claiming is what creates it)
    "claim": Transition((State.QUEUED,), State.CLAIMED, fenced=False),
    "start": Transition((State.CLAIMED,), State.RUNNING, fenced=True),
    "succeed": Transition((State.RUNNING,), State.SUCCEEDED, fenced=True),
    "fail": Transition((State.CLAIMED, State.RUNNING), State.FAILED, fenced=True),
    "confirm_cancel": Transition((State.CANCELLING,), State.CANCELLED, fenced=True),
    "give_back": Transition((State.CLAIMED, State.RUNNING), State.QUEUED, fenced=True),
    # by the end of the job before it
    "release": Transition((State.WAITING,), State.QUEUED, fenced=False),
    "abandon": Transition((State.WAITING,), State.CANCELLED, fenced=False),
    # by people
    "cancel_queued": Transition((State.WAITING, State.QUEUED), State.CANCELLED, fenced=False),
    "ask_cancel": Transition((State.CLAIMED, State.RUNNING), State.CANCELLING, fenced=False),
    "retry": Transition((State.FAILED, State.CANCELLED), State.QUEUED, fenced=False),
    "retry_waiting": Transition((State.FAILED, State.CANCELLED), State.WAITING, fenced=False),
    "mark_failed": Transition(ACTIVE, State.FAILED, fenced=False),
    # when a lease ran out or its holder died: fenced by the token of that lease
    "lose": Transition((State.CLAIMED, State.RUNNING), State.QUEUED, fenced=True),
    "lose_for_good": Transition((State.CLAIMED, State.RUNNING), State.FAILED, fenced=True),
    "lose_cancelled": Transition((State.CANCELLING,), State.CANCELLED, fenced=True),
}
