"""Contents kept once, folders made of them, garbage collected and nothing else; the same on S3."""

from __future__ import annotations

import os
import zipfile
from datetime import timedelta
from io import BytesIO

import pytest
from django.core.files.storage import storages
from django.core.management import call_command
from django.utils import timezone

from apps.artifacts import blobs, services, storage
from apps.artifacts.models import Artifact, Blob
from apps.artifacts.stores import LinkStore, blob_store, key_of
from apps.core.errors import NotVisible, Refused
from apps.core.ids import uuid7
from tests.factories import ArtifactFactory
from workbench.settings.env import artifact_storage

DAY = timedelta(hours=24)


def finished(folder, **content: bytes):
    """A finished folder, committed the way a job's is."""
    source = folder / f"work-{uuid7()}"
    (source / "sub").mkdir(parents=True)
    for name, data in content.items():
        (source / "sub" / name).write_bytes(data)
    return source


def commit(project, source, run, kind="other") -> Artifact:
    listed = services.list_folder(source)
    with run(execute=True):
        return services.commit_folder(
            project_id=project.pk, kind=kind, source=source, name=uuid7(), files=listed
        )


@pytest.fixture
def run(django_capture_on_commit_callbacks):
    return django_capture_on_commit_callbacks


def age(days: int = 2) -> None:
    """Make everything old."""
    past = timezone.now() - timedelta(days=days)
    Blob.objects.update(touched_at=past)
    Artifact.objects.update(created_at=past)


def test_equal_contents_are_one_file(world, files, run) -> None:
    one = commit(world.project, finished(files, a=b"same" * 1000, b=b"other"), run)
    two = commit(world.project, finished(files, c=b"same" * 1000), run, kind="sae")
    assert (one.checkout() / "sub/a").stat().st_ino == (two.checkout() / "sub/c").stat().st_ino
    assert Blob.objects.count() == 2
    assert blobs.stored_bytes() == 4005
    assert os.access(one.checkout() / "sub/a", os.R_OK)
    assert (one.checkout() / "sub/a").stat().st_mode & 0o222 == 0


def test_a_folder_comes_back_from_its_blobs(world, files, run) -> None:
    artifact = commit(world.project, finished(files, a=b"1", b=b"22"), run)
    storage.remove(artifact.local_path)
    assert (artifact.checkout() / "sub/b").read_bytes() == b"22"
    copy = services.create_from_blobs(project_id=world.project.pk, kind="sae", files=artifact.files)
    assert not copy.local_path.exists()
    assert storage.list_files(copy.checkout()) == artifact.files
    with pytest.raises(Refused, match="not in the store"):
        services.create_from_blobs(
            project_id=world.project.pk, kind="sae", files=[{"path": "x", "bytes": 1, "sha256": "0" * 64}]
        )
    storage.remove(artifact.local_path)
    LinkStore().delete(artifact.files[0]["sha256"])
    with pytest.raises(NotVisible):
        _ = artifact.checkout()
    assert not artifact.local_path.exists()


def test_a_failed_commit_leaves_the_work_unshared(world, files) -> None:
    """Work that is taken back is written to again: its files must not be blobs of somebody else."""
    source = finished(files, a=b"1")
    listed = services.list_folder(source)
    name = uuid7()
    services.commit_folder(project_id=world.project.pk, kind="other", source=source, name=name, files=listed)
    Artifact.objects.all().filter(kind="other").delete()
    services.uncommit_folder(kind="other", name=name, source=source)
    assert (source / "sub/a").stat().st_nlink == 1
    assert not Blob.objects.exists()


def test_collection_keeps_everything_referenced(world, files, run) -> None:
    made = Artifact.objects.all()
    for artifact in made:
        blobs.keep(artifact.local_path, artifact.files)
    before = {artifact.pk: storage.list_files(artifact.checkout()) for artifact in made}
    orphan = commit(world.project, finished(files, a=b"nobody wants it"), run)
    stray = storage.root_of("sae") / "aa" / str(uuid7())
    stray.mkdir(parents=True)
    (stray / "f").write_bytes(b"left behind")
    age()
    waste = blobs.collect(older_than=-DAY, dry_run=True)
    assert set(waste) == {"artifacts", "folders"}
    assert orphan.local_path.is_dir()
    assert stray.is_dir()
    waste = blobs.collect(older_than=-DAY, dry_run=False)
    assert [name for name, _ in waste["blobs"]] == [orphan.files[0]["sha256"]]
    assert not orphan.local_path.exists()
    assert not stray.exists()
    assert {a.pk: storage.list_files(a.checkout()) for a in Artifact.objects.all()} == before
    assert set(Blob.objects.values_list("pk", flat=True)) == blobs.referenced()
    assert set(LinkStore().digests()) == blobs.referenced()
    # Folders can be made again from what is left.
    for artifact in Artifact.objects.all():
        storage.remove(artifact.local_path)
        assert storage.list_files(artifact.checkout()) == before[artifact.pk]


def test_what_is_young_stays(world, files, run) -> None:
    orphan = commit(world.project, finished(files, a=b"x"), run)
    call_command("collect_garbage")
    assert orphan.local_path.is_dir()
    assert LinkStore().exists(orphan.files[0]["sha256"])


def test_artifacts_from_before_blobs_are_given_theirs(world) -> None:
    artifact = ArtifactFactory(project=world.project, kind="sae")
    assert not Blob.objects.exists()
    blobs.collect(older_than=DAY, dry_run=False)
    storage.remove(artifact.local_path)
    assert storage.list_files(artifact.checkout()) == artifact.files


def test_archive(world, files, run, client_of) -> None:
    data = os.urandom(3_000_000)
    artifact = commit(world.project, finished(files, **{"a.bin": data, "ü.json": b"{}"}), run)
    answer = client_of("viewer").get(f"/api/v1/artifacts/{artifact.pk}/zip")
    assert answer["Content-Type"] == "application/zip"
    parts = list(answer)
    assert max(map(len, parts)) < 2 << 20
    with zipfile.ZipFile(BytesIO(b"".join(parts))) as archive:
        assert archive.testzip() is None
        assert archive.read("sub/a.bin") == data
        assert archive.read("sub/ü.json") == b"{}"


@pytest.fixture
def s3(settings, monkeypatch):
    """A real S3-compatible server on this machine, and the setting that uses it."""
    import boto3  # slow to import, and needed by no other test
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="lab")
    settings.STORAGES = {**settings.STORAGES, **artifact_storage("s3://lab/prefix", address)}
    yield boto3.client("s3", endpoint_url=address)
    server.stop()


def test_the_same_on_s3(s3, world, files, run, client_of) -> None:
    import urllib.request

    assert not blob_store().local
    source = finished(files, a=b"weights" * 1000, b=b"same", c=b"same")
    listed = services.list_folder(source)
    # Everything is there before the manifest says so.
    assert {o["Key"] for o in s3.list_objects_v2(Bucket="lab")["Contents"]} == {
        f"prefix/{key_of(entry['sha256'])}" for entry in listed
    }
    artifact = commit(world.project, source, run)
    assert Blob.objects.count() == 2
    storage.remove(artifact.local_path)  # another machine, or a disk that was emptied
    address = client_of("viewer").get(f"/api/v1/artifacts/{artifact.pk}/files/sub/a")
    assert address.status_code == 302
    with urllib.request.urlopen(address["Location"]) as answer:
        assert answer.read() == b"weights" * 1000
        assert 'filename="a"' in answer.headers["Content-Disposition"]
    assert storage.list_files(artifact.checkout()) == artifact.files
    Artifact.objects.filter(pk=artifact.pk).delete()
    age()
    blobs.collect(older_than=DAY, dry_run=True)
    assert blob_store().exists(listed[0]["sha256"])
    blobs.collect(older_than=DAY, dry_run=False)
    assert not [digest for digest in blob_store().digests() if digest in {e["sha256"] for e in listed}]
    assert storages["artifacts"].bucket_name == "lab"
