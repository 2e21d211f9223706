"""Downloads: ranges, headers, and nothing but what is listed."""

from __future__ import annotations

import pytest

from apps.artifacts import storage
from tests.factories import ArtifactFactory

DATA = bytes(range(256)) * 20  # 5,120 bytes


@pytest.fixture
def url(world) -> str:
    artifact = ArtifactFactory(project=world.project, content={"data.bin": DATA, "empty.bin": b""})
    (artifact.checkout() / "unlisted.txt").write_text("made later")
    return f"/api/v1/artifacts/{artifact.pk}/files"


def body(response) -> bytes:
    return b"".join(response)


def test_whole_file(url, client_of) -> None:
    response = client_of("viewer").get(f"{url}/data.bin")
    assert (response.status_code, body(response)) == (200, DATA)
    assert response["Content-Length"] == "5120"
    assert response["Content-Disposition"] == 'attachment; filename="data.bin"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Accept-Ranges"] == "bytes"
    assert body(client_of("viewer").get(f"{url}/empty.bin")) == b""


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=5000-", 5000, 5119),
        ("bytes=-20", 5100, 5119),
        ("bytes=0-99999", 0, 5119),
        ("bytes=-99999", 0, 5119),
    ],
)
def test_ranges(url, editor, header, start, stop) -> None:
    response = editor.get(f"{url}/data.bin", headers={"Range": header})
    assert (response.status_code, body(response)) == (206, DATA[start : stop + 1])
    assert response["Content-Range"] == f"bytes {start}-{stop}/5120"


@pytest.mark.parametrize("header", ["bytes=5120-", "bytes=9999-10000", "bytes=-0"])
def test_ranges_outside(url, editor, header) -> None:
    response = editor.get(f"{url}/data.bin", headers={"Range": header})
    assert response.status_code == 416
    assert response["Content-Range"] == "bytes */5120"


@pytest.mark.parametrize("header", ["bytes=5-1", "bytes=a-b", "items=0-1", "bytes=0-1,3-4", "bytes=-", ""])
def test_ranges_nobody_understands_are_ignored(url, editor, header) -> None:
    response = editor.get(f"{url}/data.bin", headers={"Range": header})
    assert (response.status_code, body(response)) == (200, DATA)


@pytest.mark.parametrize(
    "name",
    ["unlisted.txt", "nope", "../data.bin", "..%2Fdata.bin", "%2e%2e/data.bin", "/etc/passwd", "data.bin%00"],
)
def test_only_listed_files(url, editor, name) -> None:
    assert editor.get(f"{url}/{name}").status_code == 404


def test_links_are_not_listed(tmp_path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "sub" / "real.txt").write_text("x")
    (folder / ".hidden").write_text("x")
    assert [entry["path"] for entry in storage.list_files(folder)] == ["sub/real.txt"]


def test_moving_between_file_systems(tmp_path, monkeypatch) -> None:
    from pathlib import Path

    source = tmp_path / "a"
    source.mkdir()
    (source / "f").write_text("x")
    real = Path.rename

    def other_device(self, target):
        if self == source:
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", other_device)
    storage.move(source, tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c" / "f").read_text() == "x"
    assert not source.exists()
