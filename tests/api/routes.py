"""Every route with what it takes to call it and who may: the permission matrix, checked by test_permissions.

A new route needs one row in ``ROUTES`` (REST), ``SOCKETS`` (WebSocket) or ``ADMIN_ACTIONS``; the tests name what is
missing. A row says who may (``grant``) and how a correct call looks; people, API tokens and foreign keys into other
projects are tried from that.

``grant`` is an action of the policy table, or one of the four names below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from apps.accounts.scopes import Scope
from apps.projects.models import Role
from apps.projects.policies import POLICY, SCOPES, Action
from apps.registry.models import LanguageModel
from tests.conftest import PEOPLE, World
from tests.factories import document_for, plan_for

PUBLIC, SIGNED_IN, OWN, PERSONAL, STAFF = "public", "signed in", "own", "personal", "staff"
SESSION = "session"  # in place of a scope: API tokens are kept out


def allowed(grant: Action | str) -> set[str]:
    """Who passes."""
    if grant == PUBLIC:
        return set(PEOPLE)
    if grant == SIGNED_IN:
        return set(PEOPLE) - {"anonymous"}
    if grant == OWN:
        return {"owner", "staff"}
    if grant == PERSONAL:
        return {"owner"}
    if grant == STAFF:
        return {"staff"}
    return {"staff"} | {role.value for role in Role if grant in POLICY[role]}


@dataclasses.dataclass(frozen=True)
class Call:
    """One method of one route.

    Args:
        grant: an action of the policy table, PUBLIC, SIGNED_IN, OWN (a thing of the world's owner that exists for
            nobody else but staff) or PERSONAL (not even for staff).
        kwargs: of the route.
        body: of a correct request; ids in it are also tried with those of another project.
        hidden: status for people to whom the object is invisible: 404, or 400 where its id comes in the body.
        takes_upload: its body names the world's upload, which must be the caller's own.
        raw: content type, bytes and headers of a body that is not JSON.
        scope: what an API token needs (several: all of them), or SESSION. Follows from the action; routes outside
            of projects that change something must say it.
    """

    grant: Action | str
    kwargs: Callable[[World], dict[str, Any]] = lambda world: {}
    body: Callable[[World], dict[str, Any]] | None = None
    query: Callable[[World], dict[str, Any]] = lambda world: {}
    hidden: int = 404
    raw: tuple[str, bytes, dict[str, str]] | None = None
    takes_upload: bool = False
    scope: Any = None


def scopes_of(method: str, how: Call) -> set[Any] | None:
    """What a token needs for it besides ``read``; {SESSION} keeps tokens out, None means that the row should say it."""
    if how.scope is not None:
        return set(how.scope if isinstance(how.scope, tuple) else (how.scope,)) - {Scope.READ}
    if isinstance(how.grant, Action):
        return {SCOPES[how.grant]} - {Scope.READ}
    return set() if method == "get" else None


def _of(thing: str, /, **more: str) -> Callable[[World], dict[str, Any]]:
    return lambda w: {"pk": getattr(w, thing).pk, **more}


def _member(w: World) -> dict[str, Any]:
    return {"pk": w.project.pk, "user_id": w.guest.pk}


def _link(w: World) -> dict[str, Any]:
    return {"text": f"link-{w.project.pk}"}


def _adapter(w: World) -> dict[str, Any]:
    # Uploads belong to a person and to no project: a model that is not ready refuses everybody who may ask alike.
    LanguageModel.objects.filter(pk=w.model.pk).update(state="pending")
    return {"model": str(w.model.pk), "name": "n", "uploads": ["01900000-0000-7000-8000-000000000000"]}


def _document(w: World) -> dict[str, Any]:
    return msgspec.to_builtins(document_for(w.model))


ROUTES: dict[tuple[str, str], Call] = {
    ("healthz", "get"): Call(PUBLIC),
    ("schema", "get"): Call(PUBLIC),
    ("docs", "get"): Call(PUBLIC),
    ("me", "get"): Call(SIGNED_IN),
    ("me", "patch"): Call(SIGNED_IN, body=lambda w: {"first_name": "Ada"}, scope=SESSION),
    ("me-usage", "get"): Call(SIGNED_IN),
    ("me-totp-qr", "get"): Call(SIGNED_IN, scope=SESSION),  # nothing is being set up: 409
    ("token-list", "get"): Call(SIGNED_IN, scope=SESSION),
    ("token-list", "post"): Call(SIGNED_IN, body=lambda w: {"name": "n", "scopes": ["write"]}, scope=SESSION),
    ("token-detail", "get"): Call(PERSONAL, _of("token"), scope=SESSION),
    ("token-detail", "delete"): Call(PERSONAL, _of("token"), scope=SESSION),
    ("token-rotate", "post"): Call(PERSONAL, _of("token"), scope=SESSION),
    # a session has no token to renew or to trade: 409
    ("token-rotate-current", "post"): Call(SIGNED_IN, scope=Scope.READ),
    ("ws-tickets", "post"): Call(SIGNED_IN, scope=Scope.READ),
    ("job-kinds", "get"): Call(SIGNED_IN),
    ("edit-kinds", "get"): Call(SIGNED_IN),
    # projects
    ("project-list", "get"): Call(SIGNED_IN),
    ("project-list", "post"): Call(SIGNED_IN, body=lambda w: {"name": "New"}, scope=Scope.ADMIN),
    ("project-detail", "get"): Call(Action.VIEW, _of("project")),
    ("project-detail", "patch"): Call(Action.MANAGE, _of("project"), lambda w: {"name": "Renamed"}),
    ("project-lineage", "get"): Call(Action.VIEW, _of("project")),
    ("project-members", "get"): Call(Action.VIEW, _of("project")),
    ("project-members", "post"): Call(
        Action.MANAGE, _of("project"), lambda w: {"user": w.people["outsider"].username, "role": "viewer"}
    ),
    ("project-member", "patch"): Call(Action.MANAGE, _member, lambda w: {"role": "editor"}),
    ("project-member", "delete"): Call(Action.MANAGE, _member),
    ("project-transfer", "post"): Call(  # staff are no owner who could hand it on: 409
        Action.MANAGE, _of("project"), lambda w: {"user": str(w.guest.pk)}
    ),
    ("project-usage", "get"): Call(Action.VIEW, _of("project")),
    ("project-invitations", "get"): Call(Action.MANAGE, _of("project")),
    ("project-invitations", "post"): Call(
        Action.MANAGE, _of("project"), lambda w: {"email": "new@example.org", "role": "viewer"}
    ),
    ("project-invitation", "delete"): Call(
        Action.MANAGE, lambda w: {"pk": w.project.pk, "invitation_id": w.invitation.pk}
    ),
    # who has the link needs no account to look at it
    ("invitation-look", "post"): Call(PUBLIC, body=_link, scope=Scope.WRITE),
    ("invitation-accept", "post"): Call(SIGNED_IN, body=_link, scope=SESSION),
    ("invitation-decline", "post"): Call(PUBLIC, body=_link, scope=Scope.WRITE),
    ("project-export", "post"): Call(Action.RUN_JOBS, _of("project"), scope=(Scope.JOBS, Scope.ARTIFACTS)),
    ("project-import", "post"): Call(
        SIGNED_IN,
        body=lambda w: {"name": "n", "uploads": [str(w.upload.pk)]},
        takes_upload=True,
        scope=(Scope.ADMIN, Scope.JOBS),
    ),
    # artifacts
    ("artifact-detail", "get"): Call(Action.VIEW, _of("artifact")),
    ("artifact-file", "get"): Call(Action.DOWNLOAD, _of("artifact", name="report.json")),
    ("artifact-archive", "get"): Call(Action.DOWNLOAD, _of("artifact")),
    # uploads
    ("upload-list", "get"): Call(SIGNED_IN),
    ("upload-list", "post"): Call(
        SIGNED_IN, body=lambda w: {"path": "a/b.json", "bytes": 3}, scope=Scope.ARTIFACTS
    ),
    ("upload-detail", "get"): Call(OWN, _of("upload"), scope=Scope.READ),
    ("upload-detail", "patch"): Call(
        OWN,
        _of("upload"),
        raw=("application/offset+octet-stream", b"abc", {"Upload-Offset": "0"}),
        scope=Scope.ARTIFACTS,
    ),
    ("upload-detail", "delete"): Call(OWN, _of("upload"), scope=Scope.ARTIFACTS),
    # jobs
    ("job-list", "get"): Call(SIGNED_IN),
    ("job-detail", "get"): Call(Action.VIEW, _of("job")),
    ("job-events", "get"): Call(Action.VIEW, _of("job")),
    ("job-cancel", "post"): Call(Action.CONTROL_ANY_JOB, _of("job")),
    ("job-retry", "post"): Call(Action.CONTROL_ANY_JOB, _of("failed_job")),
    ("job-detail", "patch"): Call(STAFF, _of("job"), lambda w: {"priority": 3}, scope=Scope.ADMIN),
    ("job-clone", "post"): Call(Action.RUN_JOBS, _of("job")),
    ("pipeline-list", "get"): Call(SIGNED_IN),
    ("pipeline-list", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {
            "name": "n",
            "recording": str(w.recording.pk),
            "train": {"layer": 2, "width": 64, "k": 4},
        },
        hidden=400,
    ),
    ("pipeline-detail", "get"): Call(Action.VIEW, _of("pipeline")),
    ("pipeline-cancel", "post"): Call(Action.CONTROL_ANY_JOB, _of("pipeline")),
    ("pipeline-retry", "post"): Call(Action.CONTROL_ANY_JOB, _of("broken_pipeline")),
    # notifications
    ("notification-list", "get"): Call(SIGNED_IN, scope=SESSION),
    ("notification-unread", "get"): Call(SIGNED_IN, scope=SESSION),
    ("notification-mark-read", "post"): Call(SIGNED_IN, scope=SESSION),
    ("notification-preferences", "get"): Call(SIGNED_IN, scope=SESSION),
    ("notification-preferences", "patch"): Call(SIGNED_IN, body=lambda w: {"email": "all"}, scope=SESSION),
    ("webhook-list", "get"): Call(SIGNED_IN),
    ("webhook-list", "post"): Call(
        Action.MANAGE,
        body=lambda w: {
            "project": str(w.project.pk),
            "url": "https://hooks.example.org/x",
            "events": ["job.failed"],
        },
        hidden=400,
    ),
    ("webhook-detail", "get"): Call(Action.MANAGE, _of("webhook")),
    ("webhook-detail", "patch"): Call(Action.MANAGE, _of("webhook"), lambda w: {"enabled": False}),
    ("webhook-detail", "delete"): Call(Action.MANAGE, _of("webhook")),
    ("webhook-ping", "post"): Call(Action.MANAGE, _of("webhook")),
    ("webhook-deliveries", "get"): Call(Action.MANAGE, _of("webhook")),
    # models
    ("model-list", "get"): Call(SIGNED_IN),
    ("model-list", "post"): Call(
        Action.EDIT,
        body=lambda w: {"project": str(w.project.pk), "name": "n", "source": "hub", "reference": "a/b"},
        hidden=400,
        scope=(Scope.WRITE, Scope.JOBS),  # a job looks at it
    ),
    ("model-detail", "get"): Call(Action.VIEW, _of("model")),
    ("model-detail", "patch"): Call(Action.EDIT, _of("model"), lambda w: {"name": "Renamed"}),
    ("model-detail", "delete"): Call(Action.DELETE, _of("model")),
    ("model-load", "post"): Call(Action.LOAD_MODELS, _of("model")),
    ("model-unload", "post"): Call(Action.LOAD_MODELS, _of("model")),
    # corpora
    ("corpus-list", "get"): Call(SIGNED_IN),
    ("corpus-list", "post"): Call(
        Action.EDIT,
        body=lambda w: {"project": str(w.project.pk), "name": "n", "kind": "builtin", "reference": "words"},
        hidden=400,
    ),
    ("corpus-import", "post"): Call(
        Action.EDIT,
        body=lambda w: {"project": str(w.project.pk), "name": "n", "uploads": [str(w.upload.pk)]},
        hidden=400,
        takes_upload=True,
        scope=(Scope.WRITE, Scope.JOBS),  # a job reads it
    ),
    ("corpus-builtin", "get"): Call(SIGNED_IN),
    ("corpus-detail", "get"): Call(Action.VIEW, _of("corpus")),
    ("corpus-detail", "patch"): Call(Action.EDIT, _of("corpus"), lambda w: {"name": "Renamed"}),
    ("corpus-detail", "delete"): Call(Action.DELETE, _of("corpus")),
    # recordings
    ("recording-list", "get"): Call(SIGNED_IN),
    ("recording-list", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {
            "model": str(w.model.pk),
            "corpus": str(w.corpus.pk),
            "name": "n",
            "params": {"layers": [1]},
        },
        hidden=400,
    ),
    ("recording-import", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {"model": str(w.model.pk), "name": "n", "uploads": [str(w.upload.pk)]},
        hidden=400,
        takes_upload=True,
    ),
    ("recording-export", "post"): Call(Action.RUN_JOBS, _of("recording")),
    ("recording-detail", "get"): Call(Action.VIEW, _of("recording")),
    ("recording-detail", "patch"): Call(Action.EDIT, _of("recording"), lambda w: {"name": "Renamed"}),
    ("recording-detail", "delete"): Call(Action.DELETE, _of("recording")),
    # SAEs
    ("sae-list", "get"): Call(SIGNED_IN),
    ("sae-list", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {"recording": str(w.recording.pk), "name": "n", "params": {"layer": 1}},
        hidden=400,
    ),
    ("sae-detail", "get"): Call(Action.VIEW, _of("sae")),
    ("sae-detail", "patch"): Call(Action.EDIT, _of("sae"), lambda w: {"name": "Renamed"}),
    ("sae-detail", "delete"): Call(Action.DELETE, _of("sae")),
    ("sae-evaluate", "post"): Call(Action.RUN_JOBS, _of("sae"), lambda w: {"params": {}}),
    ("sae-analyse", "post"): Call(Action.RUN_JOBS, _of("sae"), lambda w: {"params": {}}),
    ("sae-import", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {"model": str(w.model.pk), "name": "n", "uploads": [str(w.upload.pk)]},
        hidden=400,
        takes_upload=True,
    ),
    ("sae-export", "post"): Call(Action.RUN_JOBS, _of("sae"), lambda w: {"params": {"format": "saelens"}}),
    ("sae-attach", "post"): Call(Action.USE_LIVE, _of("sae")),
    ("evaluation-list", "get"): Call(SIGNED_IN),
    ("evaluation-detail", "get"): Call(Action.VIEW, _of("evaluation")),
    ("evaluation-report", "get"): Call(Action.VIEW, _of("evaluation")),
    # features: a list names its SAE, and that of others is empty rather than missing
    ("feature-list", "get"): Call(SIGNED_IN, query=lambda w: {"sae": str(w.sae.pk)}),
    ("feature-detail", "get"): Call(Action.VIEW, _of("feature")),
    ("feature-detail", "patch"): Call(Action.EDIT, _of("feature"), lambda w: {"label": "Paris"}),
    # patches
    ("patch-list", "get"): Call(SIGNED_IN),
    ("patch-list", "post"): Call(
        Action.EDIT,
        body=lambda w: {"model": str(w.model.pk), "name": "n", "plan": plan_for(w.sae)},
        hidden=400,
    ),
    ("patch-detail", "get"): Call(Action.VIEW, _of("patch")),
    ("patch-detail", "patch"): Call(Action.EDIT, _of("patch"), lambda w: {"name": "other"}),
    ("patch-detail", "delete"): Call(Action.DELETE, _of("patch")),
    ("patch-toggle", "post"): Call(Action.EDIT, _of("patch"), lambda w: {"enabled": False}),
    ("patch-restore", "post"): Call(Action.EDIT, _of("patch"), lambda w: {"version": 1}),
    ("patch-versions", "get"): Call(Action.VIEW, _of("patch")),
    ("patch-targets", "get"): Call(Action.VIEW, _of("patch")),
    ("patch-export", "post"): Call(Action.RUN_JOBS, _of("patch"), lambda w: {"target": "bundle"}),
    # graphs
    ("graph-list", "get"): Call(SIGNED_IN),
    ("graph-list", "post"): Call(
        Action.RUN_JOBS,
        body=lambda w: {
            "model": str(w.model.pk),
            "name": "n",
            "prompt": "one two",
            "target": {"kind": "feature", "sae": str(w.sae.pk), "index": 3},
            "saes": [str(w.sae.pk)],
        },
        hidden=400,
    ),
    ("graph-save", "post"): Call(
        Action.EDIT,
        body=lambda w: {"model": str(w.model.pk), "name": "n", "document": _document(w)},
        hidden=400,
    ),
    ("graph-import", "post"): Call(
        Action.EDIT,
        body=lambda w: {
            "project": str(w.project.pk),
            "model": str(w.model.pk),
            "name": "n",
            "document": _document(w),
        },
        hidden=400,
    ),
    ("graph-upstream", "post"): Call(
        Action.RUN_JOBS, body=lambda w: {"sae": str(w.sae.pk), "corpus": str(w.corpus.pk)}, hidden=400
    ),
    ("graph-detail", "get"): Call(Action.VIEW, _of("graph")),
    ("graph-detail", "patch"): Call(Action.EDIT, _of("graph"), lambda w: {"note": "look"}),
    ("graph-detail", "delete"): Call(Action.DELETE, _of("graph")),
    ("graph-document", "get"): Call(Action.VIEW, _of("graph")),
    ("graph-export", "get"): Call(Action.DOWNLOAD, _of("graph")),
    ("graph-comments", "get"): Call(Action.VIEW, _of("graph")),
    ("graph-comments", "post"): Call(Action.EDIT, _of("graph"), lambda w: {"text": "look"}),
    ("graph-comment", "delete"): Call(Action.EDIT, lambda w: {"pk": w.graph.pk, "comment_id": w.comment.pk}),
    # exports
    ("export-list", "get"): Call(SIGNED_IN),
    ("export-detail", "get"): Call(Action.VIEW, _of("export")),
    ("export-detail", "delete"): Call(Action.DELETE, _of("export")),
    ("export-certify", "post"): Call(Action.RUN_JOBS, _of("export"), lambda w: {"params": {}}),
    ("export-override", "post"): Call(
        Action.OVERRIDE_GATES, _of("blocked"), lambda w: {"reason": "it is for a test bench only"}
    ),
    ("export-file", "get"): Call(Action.DOWNLOAD, _of("export", name="model.safetensors")),
    ("export-archive", "get"): Call(Action.DOWNLOAD, _of("export")),
    ("export-certificate", "get"): Call(Action.VIEW, _of("export")),
    ("export-report", "get"): Call(Action.VIEW, _of("export")),
    # adapters
    ("adapter-list", "get"): Call(SIGNED_IN),
    ("adapter-list", "post"): Call(Action.EDIT, body=_adapter, hidden=400, scope=(Scope.WRITE, Scope.JOBS)),
    ("adapter-detail", "get"): Call(Action.VIEW, _of("adapter")),
    ("adapter-detail", "delete"): Call(Action.DELETE, _of("adapter")),
    # live
    ("inference", "post"): Call(
        Action.USE_LIVE, body=lambda w: {"model": str(w.model.pk), "prompt": "x"}, hidden=400
    ),
}


@dataclasses.dataclass(frozen=True)
class SocketCall:
    """One WebSocket route.

    Args:
        grant: as in :class:`Call`.
        path: of a connection, query included.
    """

    grant: Action | str
    path: Callable[[World], str]


SOCKETS: dict[str, SocketCall] = {
    "ws-live": SocketCall(Action.USE_LIVE, lambda w: f"/ws/live/{w.model.pk}/"),
    "ws-jobs": SocketCall(Action.VIEW, lambda w: f"/ws/jobs/?project={w.project.pk}"),
}

# Every action of the administration with the thing of the world it is tried on.
ADMIN_ACTIONS: dict[tuple[str, str], str] = {
    ("accounts.ApiToken", "revoke"): "token",
    ("jobs.Job", "cancel_jobs"): "job",
    ("jobs.Job", "retry_jobs"): "failed_job",
    ("jobs.Job", "mark_jobs_failed"): "job",
    ("jobs.Job", "raise_priority"): "job",
    ("jobs.Job", "lower_priority"): "job",
    ("notifications.Webhook", "switch_off"): "webhook",
    ("notifications.Delivery", "send_again"): "delivery",
}
