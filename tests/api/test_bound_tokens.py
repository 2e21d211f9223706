"""A token bound to one project: nothing outside exists for it, whoever made it and whatever its scopes."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse
from rest_framework.test import APIClient

from apps.accounts.scopes import Scope
from apps.artifacts import uploads
from apps.artifacts.models import Upload
from apps.core.ids import uuid7
from apps.jobs import leases
from apps.jobs.kinds import INCOMING
from apps.jobs.models import Job
from apps.projects.quotas import Holder, used_by
from tests.api.routes import ROUTES, SESSION, scopes_of
from tests.factories import MembershipFactory, UploadFactory, WorkerNodeFactory


def ids_of(value: Any) -> set[str]:
    """Every ``id`` and ``project`` anywhere in an answer."""
    if isinstance(value, list):
        return set().union(*map(ids_of, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    mine = {str(value[key]) for key in ("id", "project") if value.get(key)}
    return mine.union(*map(ids_of, value.values()))


LISTS = sorted(
    name
    for (name, method), how in ROUTES.items()
    if method == "get" and name.endswith("-list") and SESSION not in (scopes_of(method, how) or set())
)


@pytest.mark.parametrize("person", ["owner", "staff"])
def test_lists_and_their_rows_end_at_the_project(person, world, foreign, client_with) -> None:
    """Every list of the API, as somebody who may see both projects."""
    user = world.people[person]
    if person == "owner":
        MembershipFactory(project=foreign.project, user=user, role="owner")
    here = UploadFactory(created_by=user, project=world.project)
    there = UploadFactory(created_by=user, project=foreign.project)
    loose = UploadFactory(created_by=user)
    client = client_with(user, *Scope, project=world.project)
    seen = 0
    for name in LISTS:
        for query in ({}, {"project": str(foreign.project.pk)}, {"sae": str(foreign.sae.pk)}):
            found = client.get(reverse(name), query)
            if found.status_code == 400:  # a list that must be asked about something
                continue
            ids = ids_of(found.json())
            seen += len(found.json()["results"])
            foreign_rows = {str(row.pk) for row in vars(foreign).values() if hasattr(row, "pk")}
            assert not ids & (foreign_rows | {str(there.pk), str(loose.pk)}), (name, query)
    assert seen >= 12
    assert {row["id"] for row in client.get(reverse("upload-list")).json()["results"]} == {str(here.pk)}
    for upload, status in ((here, 200), (there, 404), (loose, 404)):
        assert client.get(reverse("upload-detail", kwargs={"pk": upload.pk})).status_code == status
        assert client.delete(reverse("upload-detail", kwargs={"pk": upload.pk})).status_code in (204, status)


@pytest.mark.parametrize("scopes", [(Scope.READ,), (Scope.READ, Scope.WRITE), tuple(Scope)])
def test_a_token_of_staff_sees_the_project_it_is_bound_to(scopes, world, foreign, client_with) -> None:
    """Staff are members of nothing; a token they bind to a project is for that project, within its scopes."""
    client = client_with(world.people["staff"], *scopes, project=world.project)
    assert client.get(reverse("project-detail", kwargs={"pk": world.project.pk})).status_code == 200
    assert client.get(reverse("project-detail", kwargs={"pk": foreign.project.pk})).status_code == 404
    listed = client.get(reverse("sae-list")).json()["results"]
    assert [row["id"] for row in listed] == [str(world.sae.pk)]
    renamed = client.patch(reverse("sae-detail", kwargs={"pk": world.sae.pk}), {"name": "other"})
    assert renamed.status_code == (200 if Scope.WRITE in scopes else 403)
    managed = client.patch(reverse("project-detail", kwargs={"pk": world.project.pk}), {"name": "other"})
    assert managed.status_code == (200 if Scope.ADMIN in scopes else 403)
    assert client.post(reverse("project-list"), {"name": "new"}).status_code == 403


def test_uploads_of_a_bound_token_belong_to_its_project(world, foreign, client_with, client_of) -> None:
    owner = world.people["owner"]
    MembershipFactory(project=foreign.project, user=owner, role="owner")
    here = client_with(owner, *Scope, project=world.project)
    there = client_with(owner, *Scope, project=foreign.project)
    made = here.post(reverse("upload-list"), {"path": "a.txt", "bytes": 3}).json()
    url = reverse("upload-detail", kwargs={"pk": made["id"]})
    piece = {"content_type": "application/offset+octet-stream", "headers": {"Upload-Offset": "0"}}
    assert there.generic("PATCH", url, b"abc", **piece).status_code == 404
    assert here.generic("PATCH", url, b"abc", **piece).status_code == 204
    body = {"name": "n", "uploads": [made["id"]]}
    elsewhere = there.post(reverse("corpus-import"), {**body, "project": str(foreign.project.pk)})
    assert elsewhere.status_code == 400
    assert here.post(reverse("corpus-import"), {**body, "project": str(world.project.pk)}).status_code == 202
    assert client_of("owner").get(url).json()["in_use"] is True


# --- what a failed import has read --------------------------------------------------------------------------


def _import(client: APIClient, world, upload: Upload, name: str = "n"):
    body = {"project": str(world.project.pk), "name": name, "uploads": [str(upload.pk)]}
    return client.post(reverse("corpus-import"), body)


@pytest.mark.parametrize("ending", ["fail", "cancel"])
def test_a_failed_import_is_counted_and_freed(
    ending, world, client_of, django_capture_on_commit_callbacks
) -> None:
    owner, client = world.people["owner"], client_of("owner")
    upload = UploadFactory(created_by=owner, content=b"x" * 1000, path="a.txt")
    project, person = Holder("project", world.project.pk), Holder("user", owner.pk)
    before = used_by("storage_bytes", project), used_by("storage_bytes", person)
    url = reverse("upload-detail", kwargs={"pk": upload.pk})
    job = Job.objects.get(pk=_import(client, world, upload).json()["job"]["id"])
    assert used_by("storage_bytes", project) == before[0] + 1000
    assert client.delete(url).status_code == 409
    with django_capture_on_commit_callbacks(execute=True):
        if ending == "fail":
            claimed = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
            uploads.lay_out(job.pk, leases.workdir(job.pk) / INCOMING)
            leases.fail(job=claimed, token=claimed.lease_token, code="x", message="m")
        else:
            client.post(reverse("job-cancel", kwargs={"pk": job.pk}))
    assert not (leases.workdir(job.pk) / INCOMING).exists()  # its links would keep the bytes
    assert used_by("storage_bytes", project) == before[0] + 1000
    assert used_by("storage_bytes", person) == before[1]
    assert client.get(url).json()["in_use"] is False
    # it can be tried once more, by the same job or by another, or be removed
    assert client.post(reverse("job-retry", kwargs={"pk": job.pk})).status_code == 200
    assert client.get(url).json()["in_use"] is True
    assert _import(client, world, upload, "other").status_code == 409
    client.post(reverse("job-cancel", kwargs={"pk": job.pk}))
    with django_capture_on_commit_callbacks(execute=True):
        assert client.delete(url).status_code == 204
    assert not upload.local_path.exists()
    assert used_by("storage_bytes", project) == before[0]
    assert client.post(reverse("job-retry", kwargs={"pk": job.pk})).status_code == 200
    with pytest.raises(uploads.Refused) as gone:
        uploads.lay_out(job.pk, leases.workdir(job.pk) / INCOMING)
    assert gone.value.code == "upload_gone"


def test_another_import_takes_what_a_failed_one_has_read(world, client_of) -> None:
    client = client_of("owner")
    upload = UploadFactory(created_by=world.people["owner"], content=b"some text", path="a.txt")
    first = _import(client, world, upload).json()["job"]["id"]
    client.post(reverse("job-cancel", kwargs={"pk": first}))
    assert _import(client, world, upload, "second").status_code == 202
    client.post(reverse("job-retry", kwargs={"pk": first}))
    upload.refresh_from_db()
    assert upload.used_by != Job.objects.get(pk=first).pk


# --- files on other hosts -----------------------------------------------------------------------------------


def test_a_missing_file_is_said_to_be_on_the_host_that_has_it(world, settings, tmp_path) -> None:
    from apps.registry.kinds import model_params
    from apps.registry.mixtures import corpus_params

    upload = UploadFactory(created_by=world.people["owner"], content=b"abc", host="web-7", used_by=uuid7())
    upload.local_path.unlink()
    artifact = world.artifact
    artifact.host = "compute-3"
    artifact.path = f"00/{uuid7()}"
    world.model.source, world.model.reference, world.model.host = "folder", "/nowhere/tiny", "compute-4"
    world.corpus.kind, world.corpus.reference, world.corpus.host = "builtin", "gone", "compute-5"
    for ask, host in (
        (lambda: uploads.lay_out(upload.used_by, tmp_path / "in"), "web-7"),
        (lambda: artifact.checkout(), "compute-3"),
        (lambda: model_params(world.model), "compute-4"),
        (lambda: corpus_params(world.corpus), "compute-5"),
    ):
        with pytest.raises(uploads.Refused, match=f"it is on {host}") as error:
            ask()
        assert error.value.code == "file_elsewhere"
        assert error.value.hint
