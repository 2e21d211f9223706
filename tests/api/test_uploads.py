"""Resumable uploads: the protocol, cuts at random bytes, and whatever else a client may send."""

from __future__ import annotations

import base64
import hashlib
import random
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from apps.artifacts import uploads
from apps.artifacts.models import Upload
from apps.core.errors import Refused
from apps.core.ids import uuid7
from tests.factories import UploadFactory

pytestmark = pytest.mark.postgres

PIECE = "application/offset+octet-stream"


@pytest.fixture
def client(world, client_of) -> APIClient:
    return client_of("editor")


def announce(client, size: int, path: str = "sae/model.safetensors", **more):
    return client.post("/api/v1/uploads", {"path": path, "bytes": size, **more})


def send(client, url: str, offset: int, data: bytes, **headers):
    return client.generic(
        "PATCH", url, data, content_type=PIECE, headers={"Upload-Offset": str(offset), **headers}
    )


def test_the_protocol(client, world) -> None:
    made = client.generic(
        "POST",
        "/api/v1/uploads",
        b"",
        content_type="application/octet-stream",
        headers={
            "Tus-Resumable": "1.0.0",
            "Upload-Length": "11",
            "Upload-Metadata": f"filename {base64.b64encode('größe.txt'.encode()).decode()},empty",
        },
    )
    assert made.status_code == 201, made.content
    assert (made.status_code, made["Tus-Resumable"], made["Upload-Offset"]) == (201, "1.0.0", "0")
    url = made["Location"]
    assert Upload.objects.get(created_by__username=world.people["editor"].username).path == "größe.txt"
    digest = base64.b64encode(hashlib.sha1(b"hello ").digest()).decode()
    first = send(client, url, 0, b"hello ", **{"Upload-Checksum": f"sha1 {digest}"})
    assert (first.status_code, first["Upload-Offset"], first.content) == (204, "6", b"")
    head = client.head(url)
    assert (head["Upload-Offset"], head["Upload-Length"], head["Cache-Control"]) == ("6", "11", "no-store")
    assert head["Upload-Expires"].endswith("GMT")
    assert send(client, url, 6, b"world").status_code == 204
    upload = Upload.objects.get(created_by__username=world.people["editor"].username)
    assert upload.is_complete()
    assert upload.local_path.read_bytes() == b"hello world"
    options = client.options("/api/v1/uploads")
    assert options.status_code == 204
    assert set(options["Tus-Extension"].split(",")) == {"creation", "checksum", "expiration", "termination"}
    assert client.delete(url).status_code == 204
    assert client.head(url).status_code == 404


def test_cuts_at_random_bytes_lose_nothing(client, world) -> None:
    """The sender knows nothing but what HEAD says; pieces arrive cut, twice and out of order."""
    rng = random.Random(5)
    data = rng.randbytes(300_000)
    made = announce(client, len(data), sha256=hashlib.sha256(data).hexdigest()).json()
    url = f"/api/v1/uploads/{made['id']}"
    requests = 0
    while (offset := int(client.head(url)["Upload-Offset"])) < len(data):
        piece = data[offset : offset + rng.randrange(1, 40_000)]
        cut = piece[: rng.randrange(len(piece) + 1)]
        assert send(client, url, offset, cut).status_code == 204
        if cut:
            again = send(client, url, offset, cut)
            assert again.status_code == 409
            assert again.json()["errors"][0]["code"] == "offset_conflict"
        assert send(client, url, offset + len(cut) + 1, b"x").status_code == 409
        requests += 1
    assert requests > 5
    assert (
        Upload.objects.get(created_by__username=world.people["editor"].username).local_path.read_bytes()
        == data
    )


def test_damage_is_noticed(client) -> None:
    made = announce(client, 4, sha256=hashlib.sha256(b"good").hexdigest()).json()
    url = f"/api/v1/uploads/{made['id']}"
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    answer = send(client, url, 0, b"go", **{"Upload-Checksum": f"sha256 {wrong}"})
    assert (answer.status_code, client.head(url)["Upload-Offset"]) == (460, "0")
    assert send(client, url, 0, b"bad!").json()["errors"][0]["code"] == "upload_damaged"
    assert client.head(url)["Upload-Offset"] == "0"
    assert send(client, url, 0, b"good").status_code == 204


def test_limits(client, settings, world) -> None:
    settings.WORKBENCH_UPLOAD_CHUNK_MB = 1
    url = f"/api/v1/uploads/{announce(client, 3 << 20).json()['id']}"
    assert send(client, url, 0, bytes((1 << 20) + 1)).status_code == 413
    assert client.head(url)["Upload-Offset"] == "0"
    assert send(client, url, 0, bytes(1 << 20)).status_code == 204
    short = f"/api/v1/uploads/{announce(client, 2).json()['id']}"
    assert send(client, short, 0, b"abc").status_code == 413
    settings.WORKBENCH_UPLOAD_MAX_GB = 1
    refused = announce(client, 1 << 30)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (413, "upload_too_large")
    assert announce(client, 2**61).status_code in (413, 507)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "../x",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "C:/x",
        "a\\b",
        "x\x00y",
        ".hidden",
        "a/.ssh/b",
        "con.\n",
        "a.",
        "x" * 501,
        "/".join("abcdefghi"),
        "a/\u202eb",
    ],
)
def test_paths_that_leave_their_folder(client, path) -> None:
    with pytest.raises(Refused, match=r"no path"):
        uploads.clean_path(path)
    assert announce(client, 1, path=path).status_code in (400, 422)


def test_somebody_elses_upload_is_invisible_even_in_the_project(world, client_of) -> None:
    owner = client_of("owner").get("/api/v1/uploads").json()
    assert [row["id"] for row in owner["results"]] == [str(world.upload.pk)]
    assert client_of("editor").get("/api/v1/uploads").json()["results"] == []


def test_a_job_takes_over_only_what_is_whole_and_ones_own(world) -> None:
    editor, job = world.people["editor"], uuid7()
    done = UploadFactory(created_by=editor, content=b"abc", path="a.json")
    for rows, code in (
        ([UploadFactory(created_by=editor)], "upload_incomplete"),
        ([UploadFactory(content=b"abc")], "does_not_exist"),
        ([done, UploadFactory(created_by=editor, content=b"x", path="A.json")], "path_twice"),
        ([], "does_not_exist"),
    ):
        with pytest.raises(Refused) as error:
            uploads.take(actor=editor, ids=[row.pk for row in rows], project_id=world.project.pk, used_by=job)
        assert error.value.code == code
    uploads.take(actor=editor, ids=[done.pk], project_id=world.project.pk, used_by=job)
    done.refresh_from_db()
    assert done.used_by == job
    with pytest.raises(Refused, match="taken this upload over"):
        uploads.cancel_upload(actor=editor, upload=done)


def test_expired_uploads_are_collected(world, django_capture_on_commit_callbacks) -> None:
    old = UploadFactory(content=b"abc", expires_at=timezone.now() - timedelta(seconds=1))
    kept = UploadFactory(content=b"abc")
    call_command("collect_garbage", dry_run=True)
    assert old.local_path.exists()
    with django_capture_on_commit_callbacks(execute=True):
        call_command("collect_garbage")
    assert not old.local_path.exists()
    assert kept.local_path.read_bytes() == b"abc"
    assert set(Upload.objects.values_list("pk", flat=True)) == {kept.pk, world.upload.pk}


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
REQUESTS = st.tuples(
    st.sampled_from(["POST", "PATCH", "HEAD", "DELETE", "GET", "PUT", "OPTIONS"]),
    st.binary(max_size=64),
    st.sampled_from([PIECE, "application/json", "text/plain", "multipart/form-data; boundary=x", ""]),
    st.fixed_dictionaries(
        {},
        optional={
            "Upload-Offset": st.one_of(st.integers(-5, 12).map(str), HEADER),
            "Upload-Length": st.one_of(st.integers(-5, 2**70).map(str), HEADER),
            "Upload-Metadata": HEADER,
            "Upload-Checksum": st.one_of(HEADER, st.just("sha256 AAAA"), st.just("md5 AAAA")),
            "Tus-Resumable": st.sampled_from(["1.0.0", "0.2", ""]),
            "Content-Length": st.sampled_from(["3", "0"]),
        },
    ),
)


@pytest.mark.django_db
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(REQUESTS, min_size=1, max_size=6))
def test_no_request_is_answered_with_a_defect(world, client, calls) -> None:
    """Some 350 malformed requests: every answer is a clear one, and the upload never grows past its length."""
    upload = UploadFactory(created_by=world.people["editor"])
    for method, data, content_type, headers in calls:
        url = "/api/v1/uploads" if method == "POST" else f"/api/v1/uploads/{upload.pk}"
        if int(headers.get("Content-Length", 0)) > len(data):
            # a server waits for the announced bytes, the test client raises in its place
            headers = {**headers, "Content-Length": str(len(data))}
        answer = client.generic(method, url, data, content_type=content_type, headers=headers)
        assert answer.status_code < 500 or answer.status_code == 507, (method, data, headers)
        assert upload.count_received() <= upload.bytes
