"""What passes by itself is said as such: a locked database, a full disk, a database that is away are 503, in words."""

from __future__ import annotations

import errno
import sqlite3

import pytest
from django.db import InterfaceError, OperationalError, connection
from django.urls import reverse
from rest_framework.test import APIClient

from apps.artifacts.models import Upload
from apps.core.outages import outage_of
from apps.projects.models import Project
from tests.factories import PASSWORD
from tests.skips import only_on_sqlite


def assert_outage(answer, code: str) -> None:
    assert answer.status_code == 503, answer.content
    body = answer.json()
    assert (body["type"], body["errors"][0]["code"]) == ("server_error", code)
    assert body["errors"][0]["detail"]
    assert body["errors"][0]["hint"]
    assert int(answer["Retry-After"]) > 0


@pytest.fixture
def locked(transactional_db):
    """The database as a writer that does not end leaves it to everybody else."""

    class Locked:
        def __enter__(self) -> None:
            self.other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
            self.other.execute("BEGIN IMMEDIATE")
            connection.ensure_connection()
            connection.cursor().execute("PRAGMA busy_timeout = 50")

        def __exit__(self, *_: object) -> None:
            self.other.execute("ROLLBACK")
            self.other.close()
            connection.cursor().execute("PRAGMA busy_timeout = 20000")

    return Locked()


@only_on_sqlite
def test_a_locked_database(locked, world, client_of) -> None:
    owner, viewer = client_of("owner"), APIClient(raise_request_exception=False)
    url = reverse("project-detail", kwargs={"pk": world.project.pk})
    with locked:
        assert owner.get(url).status_code == 200  # who only reads is not held up
        assert_outage(owner.patch(url, {"name": "other"}), "database_busy")
        assert_outage(owner.post(reverse("upload-list"), {"path": "a", "bytes": 1}), "database_busy")
        # signing in is no view of the REST framework, and stores a session besides
        body = {"username": world.people["viewer"].username, "password": PASSWORD}
        signed = viewer.post("/_allauth/browser/v1/auth/login", body)
        assert_outage(signed, "database_busy")
    assert Project.objects.get(pk=world.project.pk).name == world.project.name
    assert owner.patch(url, {"name": "other"}).status_code == 200


@only_on_sqlite
def test_a_full_disk_below_the_database(transactional_db, world, client_of) -> None:
    owner = client_of("owner")
    url = reverse("project-detail", kwargs={"pk": world.project.pk})
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA page_count")
        pages = cursor.fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        try:
            answer = owner.patch(url, {"description": "x" * 4000})
            tried = 0
            while answer.status_code == 200 and tried < 200:  # until the free pages are used up
                tried += 1
                answer = owner.patch(url, {"description": chr(97 + tried % 26) * 4000})
            assert_outage(answer, "disk_full")
        finally:
            cursor.execute("PRAGMA max_page_count = 1073741823")
    assert owner.patch(url, {"description": "short"}).status_code == 200


def test_a_full_disk_below_the_files(world, client_of, monkeypatch) -> None:
    """Where uploads go, where answers are made, where temporary files are."""
    from apps.artifacts import blobs, tus

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = client_of("owner")
    monkeypatch.setattr(tus.tempfile, "SpooledTemporaryFile", full)
    upload = reverse("upload-detail", kwargs={"pk": world.upload.pk})
    piece = {"content_type": tus.PIECE, "headers": {"Upload-Offset": "0"}}
    assert_outage(owner.generic("PATCH", upload, b"abc", **piece), "disk_full")
    assert Upload.objects.get(pk=world.upload.pk).count_received() == 0
    monkeypatch.setattr(blobs.shutil, "rmtree", lambda *a, **k: None)
    monkeypatch.setattr("pathlib.Path.mkdir", full)
    assert_outage(owner.post(reverse("upload-list"), {"path": "a", "bytes": 1}), "disk_full")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperationalError("database is locked"), "database_busy"),
        (OperationalError("canceling statement due to lock timeout"), "database_busy"),
        (OperationalError("could not extend file: No space left on device"), "disk_full"),
        (OperationalError("database or disk is full"), "disk_full"),
        (OperationalError("connection to server failed: Connection refused"), "database_unavailable"),
        (InterfaceError("the connection is closed"), "database_unavailable"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
    ],
)
def test_what_passes(error, code) -> None:
    outage = outage_of(error)
    assert outage is not None
    assert outage.code == code
    wrapped = RuntimeError("while writing")
    wrapped.__cause__ = error
    assert outage_of(wrapped).code == code


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(errno.EACCES, "no"), ValueError("disk is full"), None]
)
def test_what_is_a_defect(error) -> None:
    assert outage_of(error) is None


@only_on_sqlite
def test_a_defect_of_sql_is_no_outage(db) -> None:
    with pytest.raises(OperationalError) as error, connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")
    assert outage_of(error.value) is None


def test_a_database_that_is_away(world, client_of, monkeypatch) -> None:
    """In the view, and in a middleware before it."""
    owner = client_of("owner")
    url = reverse("project-detail", kwargs={"pk": world.project.pk})

    def away(*args: object, **kwargs: object) -> None:
        raise OperationalError("could not connect to server")

    for place in (
        "apps.projects.views.ProjectViewSet.get_object",
        "workbench.middleware.StaticFiles.__call__",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, away)
            owner.raise_request_exception = False
            assert_outage(owner.get(url), "database_unavailable")
