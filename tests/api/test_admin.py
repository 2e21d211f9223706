"""The administration: every page opens, actions go through the services, history cannot be edited."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import RequestFactory
from django.urls import reverse

from apps.accounts.models import User
from apps.artifacts.models import Blob
from apps.audit.models import AuditEvent
from apps.jobs import leases
from apps.jobs.leases import NewEvent
from apps.jobs.models import Job
from tests.api.routes import ADMIN_ACTIONS
from tests.conftest import PEOPLE
from tests.factories import (
    JobFactory,
    NotificationFactory,
    PreferenceFactory,
    QuotaFactory,
    ResidentWorkerFactory,
    WorkerNodeFactory,
)

OWN = sorted(
    (
        model
        for model in apps.get_models()
        if model.__module__.startswith("apps.") and admin.site.is_registered(model)
    ),
    key=lambda m: m._meta.label,
)


@pytest.fixture
def staff(world, client_of):
    node = WorkerNodeFactory()
    leases.claim(job_id=world.job.pk, node=node)
    ResidentWorkerFactory(model=world.model)
    NotificationFactory(user=world.people["owner"])
    PreferenceFactory(user=world.people["owner"])
    QuotaFactory(project=world.project)
    Blob.objects.get_or_create(sha256="0" * 64, defaults={"bytes": 1})
    return client_of("staff")


def test_every_model_of_ours_is_there() -> None:
    ours = {model for model in apps.get_models() if model.__module__.startswith("apps.")}
    inline = {"Membership", "GraphComment", "JobEvent", "PatchVersion", "RecordingPart"}
    fleeting = {"WsTicket", "LiveSeat"}
    assert {model.__name__ for model in ours - set(OWN)} == inline | fleeting


@pytest.mark.parametrize("model", OWN, ids=lambda model: model._meta.label)
def test_pages_open(model, staff, world) -> None:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    listed = staff.get(reverse(f"{name}_changelist"), {"q": "a"})
    assert listed.status_code == 200
    AuditEvent.objects.create(actor=None, action="x.y", target_type="x", target_id="1")
    row = model._default_manager.first()
    assert row is not None
    assert staff.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200


@pytest.mark.parametrize("model", OWN, ids=lambda model: model._meta.label)
def test_only_staff(model, staff, world, client_of) -> None:
    """Every page of every model sends everybody else to the sign-in page, whether they ask or act."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    AuditEvent.objects.create(actor=None, action="x.y", target_type="x", target_id="1")
    row = model._default_manager.first()
    urls = [reverse(f"{name}_{page}") for page in ("changelist", "add")]
    urls += [reverse(f"{name}_{page}", args=[row.pk]) for page in ("change", "delete", "history")]
    for person in PEOPLE[:-1]:
        client = client_of(person)
        for url in urls:
            for response in (client.get(url), client.post(url, {}, format="multipart")):
                assert (response.status_code, response["Location"].startswith("/admin/login/")) == (302, True)
    assert model._default_manager.filter(pk=row.pk).exists()


def admin_actions() -> set[tuple[str, str]]:
    """Every action somebody could choose in a list, by model."""
    request = RequestFactory().get("/")
    request.user = User(is_staff=True, is_superuser=True, is_active=True)
    return {
        (model._meta.label, action)
        for model in OWN
        for action in admin.site.get_model_admin(model).get_actions(request)
        if action != "delete_selected"
    }


def test_every_action_is_in_the_matrix() -> None:
    missing = sorted(admin_actions() - set(ADMIN_ACTIONS))
    rows = "\n".join(f'    ("{label}", "{action}"): "…",' for label, action in missing)
    assert not missing, f"Add to ADMIN_ACTIONS in tests/api/routes.py, with a thing of the world:\n{rows}"
    assert not set(ADMIN_ACTIONS) - admin_actions()


@pytest.mark.parametrize(("label", "action"), sorted(ADMIN_ACTIONS))
def test_actions_are_for_staff(label, action, world, client_of) -> None:
    thing = getattr(world, ADMIN_ACTIONS[label, action])
    model = type(thing)
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    body = {"action": action, "_selected_action": [str(thing.pk)]}
    before = model._default_manager.filter(pk=thing.pk).values().get()
    for person in PEOPLE[:-1]:
        response = client_of(person).post(url, body, format="multipart")
        assert (response.status_code, response["Location"].startswith("/admin/login/")) == (302, True)
        assert model._default_manager.filter(pk=thing.pk).values().get() == before
    response = client_of("staff").post(url, body, format="multipart")
    assert response.status_code in (200, 302)
    assert model._default_manager.filter(pk=thing.pk).values().get() != before


def act(client, action: str, *jobs: Job):
    data = {"action": action, "_selected_action": [str(job.pk) for job in jobs]}
    return client.post(reverse("admin:jobs_job_changelist"), data, format="multipart", follow=True)


def test_actions_cancel_retry_and_mark_failed(staff, world) -> None:
    queued = JobFactory(project=world.project)
    page = act(staff, "cancel_jobs", queued, world.job, world.failed_job)
    assert "2 jobs cancelled" in page.content.decode()
    assert "failed already" in page.content.decode()
    states = {job.pk: job.state for job in Job.objects.all()}
    assert states[queued.pk] == "cancelled"
    assert states[world.job.pk] == "cancelling"
    act(staff, "mark_jobs_failed", world.job)
    assert Job.objects.get(pk=world.job.pk).error_code == "marked_failed"
    act(staff, "retry_jobs", queued, world.job)
    assert set(Job.objects.filter(pk__in=[queued.pk, world.job.pk]).values_list("state", flat=True)) == {
        "queued"
    }
    actions = list(AuditEvent.objects.values_list("action", flat=True))
    assert actions.count("job.cancelled") == 2
    assert actions.count("job.retried") == 2
    assert actions.count("job.marked_failed") == 1


def test_job_page_shows_the_newest_events_only(staff, world) -> None:
    token = Job.objects.get(pk=world.job.pk).lease_token
    events = [NewEvent(kind="log", message=f"line-{i}.") for i in range(80)]
    leases.report(job_id=world.job.pk, token=token, events=events)
    page = staff.get(reverse("admin:jobs_job_change", args=[world.job.pk])).content.decode()
    assert "line-79." in page
    assert "line-29." not in page


def test_history_cannot_be_changed(staff, world) -> None:
    event = AuditEvent.objects.create(actor=None, action="x.y", target_type="x", target_id="1")
    change = reverse("admin:audit_auditevent_change", args=[event.pk])
    assert staff.post(change, {"action": "other"}, format="multipart").status_code == 403
    delete = reverse("admin:audit_auditevent_delete", args=[event.pk])
    assert staff.post(delete, {"post": "yes"}, format="multipart").status_code == 403
    for attempt in (event.save, event.delete, AuditEvent.objects.all().delete):
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(TypeError):
        AuditEvent.objects.update(action="other")


def test_storage_by_project(staff, world) -> None:
    page = staff.get(reverse("admin:projects_project_changelist")).content.decode()
    assert world.project.name in page
    assert "KB" in page


def test_people_can_be_made_and_switched_off(staff, world) -> None:
    body = {
        "username": "dora",
        "email": "dora@example.org",
        "usable_password": "true",
        "password1": "correct horse battery",
        "password2": "correct horse battery",
    }
    made = staff.post(reverse("admin:accounts_user_add"), body, format="multipart")
    assert made.status_code == 302
    assert User.objects.get(username="dora").check_password("correct horse battery")
    assert AuditEvent.objects.filter(action="user.created", target_name="dora").exists()
    page = staff.get(reverse("admin:accounts_user_changelist"))
    assert "dora@example.org" in page.content.decode()
