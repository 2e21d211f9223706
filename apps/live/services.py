"""The state of resident workers, and one-shot questions to them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from asgiref.sync import async_to_sync
from django.db import transaction
from django.db.models import Q

from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import NotVisible, Refused, unknown_reference
from apps.core.ids import uuid7
from apps.core.publish import publish_on_commit, resident_group
from apps.live.models import ResidentWorker
from apps.live.resident_client import ResidentClient, ResidentLost, checked
from apps.patches.models import Patch
from apps.patches.plans import adapter_map, check_plan, sae_map
from apps.patches.services import stored_plan
from apps.projects.policies import Action, require
from apps.registry.models import LanguageModel, ResultState
from apps.saes.models import Sae
from apps.saes.readiness import sae_not_ready
from microscope import protocol as p
from microscope.params import EditPlan

T = TypeVar("T")
# How long after its last heartbeat another host may take over a model.
CLAIM_LASTS = timedelta(seconds=30)
# How long a request waits for an SAE to be read.
ATTACH_SECONDS = 2.0


class SaePath(NamedTuple):
    """The folder of an SAE, how many features edits of it may name, and what people call it."""

    path: str
    width: int
    name: str


class Paths(NamedTuple):
    """What a session may use, by fingerprint: SAEs, and the folders of adapters."""

    saes: dict[str, SaePath]
    adapters: dict[str, str]


class Resident(NamedTuple):
    """A resident worker as a socket needs to know it."""

    address: str
    state: p.ResidentState


_ADVICE = {
    "absent": ("model_not_loaded", "The model is not in memory.", "Load it."),
    "starting": ("model_loading", "The model is being loaded.", "It is ready in a moment."),
    "stopped": ("model_not_loaded", "The model is not in memory.", "Load it."),
    "lost": ("resident_lost", "The process that held the model has died.", "It is being started again."),
}


def claim_resident(*, model_id: UUID, host: str) -> bool:
    """Make a host the one that holds a model; False when another does, or has been heard of lately.

    One conditional update decides between hosts that ask at the same time.
    """
    now = clock.now()
    if not LanguageModel.objects.filter(pk=model_id).exists():
        return False
    ResidentWorker.objects.get_or_create(
        model_id=model_id, defaults={"state": ResidentWorker.State.STOPPED, "host": host}
    )
    holds = Q(
        state__in=(ResidentWorker.State.STARTING, ResidentWorker.State.READY, ResidentWorker.State.LOST)
    )
    free = Q(host__in=("", host)) | ~holds | Q(heartbeat_at__lt=now - CLAIM_LASTS) | Q(heartbeat_at=None)
    claimed = ResidentWorker.objects.filter(free, model_id=model_id).update(host=host, heartbeat_at=now)
    return claimed == 1


def keep_claims(*, model_ids: Iterable[UUID], host: str) -> None:
    """The host is still at work on these models."""
    rows = ResidentWorker.objects.filter(model_id__in=list(model_ids), host=host)
    rows.update(heartbeat_at=clock.now())


def set_resident(*, model_id: UUID, state: str, host: str, **values: Any) -> bool:
    """Store what the agent of a host sees and tell the sockets of the model.

    False when the model is gone, or another host holds it by now.

    Args:
        values: columns of :class:`ResidentWorker`; what is not named is left, errors are cleared.
    """
    columns = {"error_code": "", "error_message": "", "error_hint": "", "heartbeat_at": clock.now()}
    mine = ResidentWorker.objects.filter(model_id=model_id, host=host)
    if not mine.update(**{**columns, **values, "state": state}):
        return False
    # Sockets read the row themselves: the message carries nothing that could be out of date.
    publish_on_commit(resident_group(model_id), {"type": "resident.changed"})
    return True


def record_heartbeat(*, model_id: UUID, host: str, memory_bytes: int) -> bool:
    """Store that a ready worker answers; False when another host holds the model by now."""
    mine = ResidentWorker.objects.filter(model_id=model_id, host=host, state=ResidentWorker.State.READY)
    return mine.update(memory_bytes=memory_bytes, heartbeat_at=clock.now()) == 1


@transaction.atomic
def unload_idle(*, model_id: UUID, minutes: float) -> None:
    """Nobody has asked the model anything for so long: it need not be in memory."""
    model = LanguageModel.objects.select_for_update().filter(pk=model_id, wanted_loaded=True).first()
    if model is not None:
        model.wanted_loaded = False
        model.save(update_fields=["wanted_loaded"])
        data = {"idle_minutes": minutes}
        audit.record(
            actor=None, action="model.unloaded_idle", target=model, project_id=model.project_id, data=data
        )


def resident_of(model: LanguageModel) -> Resident:
    """The worker of a model and what to tell people about it."""
    row = ResidentWorker.objects.filter(model_id=model.pk).first()
    if row is None:
        code, message, hint = _ADVICE["starting" if model.wanted_loaded else "absent"]
        state = "starting" if model.wanted_loaded else "stopped"
        return Resident("", p.ResidentState(state=state, code=code, message=message, hint=hint))
    code, message, hint = row.error_code, row.error_message, row.error_hint
    if not code and row.state in _ADVICE:
        code, message, hint = _ADVICE[row.state]
    info = None
    if row.state == ResidentWorker.State.READY:
        info = msgspec.convert(row.info, type=p.ModelInfo)
    shown = p.ResidentState(
        state=row.state, code=code, message=message, hint=hint, memory_bytes=row.memory_bytes, model=info
    )
    return Resident(row.address if row.state == ResidentWorker.State.READY else "", shown)


def live_paths(model: LanguageModel) -> Paths:
    """What a live session of the model may use."""
    saes = {
        fingerprint: SaePath(str(sae.artifact.checkout()), sae.width, sae.name)
        for fingerprint, sae in sae_map(model).items()
        if sae.artifact is not None
    }
    adapters = {
        fingerprint: str(adapter.artifact.checkout())
        for fingerprint, adapter in adapter_map(model).items()
        if adapter.artifact is not None
    }
    return Paths(saes, adapters)


def ready_address(model: LanguageModel) -> str:
    """Where the worker of a model listens.

    Raises:
        Refused: the model cannot be asked now, with the reason and the remedy.
    """
    resident = resident_of(model)
    if not resident.address:
        shown = resident.state
        raise Refused(shown.code or "model_not_loaded", shown.message, shown.hint, status=409)
    return resident.address


def attach_sae(*, actor: Any, sae: Sae) -> p.SaeAttached | p.Attaching:
    """Have the worker of the SAE's model load it now, instead of at its first use.

    A large one takes longer than a request should: then it is still attaching, the live sockets of the model are told
    when it is there, and asking again waits for the same reading.

    Raises:
        Refused: ``sae_not_ready`` or the model is not in memory.
    """
    require(actor, Action.USE_LIVE, sae.project_id)
    if sae.state != ResultState.READY or sae.artifact is None:
        raise sae_not_ready(sae)
    address, folder = ready_address(sae.model), str(sae.artifact.checkout())

    async def ask() -> p.SaeAttached | p.Attaching:
        client = await ResidentClient.connect(address)
        question = p.AttachSae(sae=sae.fingerprint, path=folder, wait_seconds=ATTACH_SECONDS)
        try:
            reply = await client.request(question, p.Message)
            return reply if isinstance(reply, p.Attaching) else checked(reply, p.SaeAttached)
        finally:
            client.close()

    return _ask(ask)


class Inference(NamedTuple):
    """The answer to a one-shot question."""

    opened: p.Opened
    result: p.Computed
    applied: list[Patch]
    skipped: list[Patch]


def infer(
    *,
    actor: Any,
    model: LanguageModel,
    prompt: str,
    patches: list[Patch] | None = None,
    plan: EditPlan | None = None,
    top: int = 10,
) -> Inference:
    """The next-token distribution of a prompt, unpatched and patched.

    Args:
        patches: those to apply; switched-off ones are skipped and reported. None means all of the
            model that are switched on, unless a plan is given.
        plan: edits to apply besides.

    Raises:
        Refused: the model is not in memory, a patch is of another model, or the plan does not fit.
        MicroscopeError: what the worker says.
    """
    require(actor, Action.USE_LIVE, model.project_id)
    if patches is None:
        chosen = [] if plan is not None else list(model.patches.filter(enabled=True).order_by("pk"))
    else:
        chosen = patches
    if any(patch.model_id != model.pk for patch in chosen):
        raise unknown_reference("patches")
    applied = [patch for patch in chosen if patch.enabled]
    edits = [edit for patch in applied for edit in stored_plan(patch).edits]
    whole = EditPlan(edits=(*edits, *(plan.edits if plan is not None else ())))
    check_plan(whole, model)
    address = ready_address(model)
    paths = live_paths(model)

    async def ask() -> Inference:
        client = await ResidentClient.connect(address)
        try:
            for fingerprint in whole.saes():
                await client.attach(fingerprint, paths.saes[fingerprint].path)
            for fingerprint in whole.adapters():
                await client.attach_adapter(fingerprint, paths.adapters[fingerprint])
            session = uuid7().hex
            opened = await client.request(p.Open(prompt=prompt, top=top), p.Opened, session)
            result = await client.request(p.Apply(rev=1, plan=whole, top=top), p.Computed, session)
            return Inference(opened, result, applied, [patch for patch in chosen if not patch.enabled])
        finally:
            client.close()

    return _ask(ask)


def _ask(question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return async_to_sync(question)()
    except ResidentLost as error:
        raise Refused(
            "resident_lost",
            "The process that holds the model does not answer.",
            "Try again in a moment.",
            status=503,
        ) from error


def visible_model(user: Any, model_id: UUID) -> LanguageModel:
    """The model, if the user may hold live sessions with it.

    Raises:
        NotVisible, Forbidden: they may not.
    """
    model = LanguageModel.objects.visible_to(user).filter(pk=model_id).first()
    if model is None:
        raise NotVisible
    require(user, Action.USE_LIVE, model.project_id)
    return model
