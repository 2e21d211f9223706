"""A real nginx with the proxy's configuration in front of a real web process."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contracts.test_web_process import PASSWORD, ROOT, Web, answers, web  # noqa: F401 (fixture)
from workbench.demo.portal import Portal
from workbench.supervisor import free_port

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]


@pytest.fixture(scope="module")
def proxy(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """Its address."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    folder, port = tmp_path_factory.mktemp("nginx"), free_port(0)
    site = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
    for ours, here in (
        ("server web:8000;", f"server {web.url.removeprefix('http://')};"),
        ("listen 80 default_server;", f"listen 127.0.0.1:{port};"),
        ("/var/cache/nginx/workbench", f"{folder}/cache"),
    ):
        assert site.count(ours) == 1, ours
        site = site.replace(ours, here)
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log {folder}/access.log; client_body_temp_path {folder}/body;\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        + f"include {folder}/site.conf; }}\n"
    )
    if Path("/proc/self").exists() and folder.owner() == "root":
        # its workers are nobody, and may not look into a folder of root
        (folder / "nginx.conf").write_text("user root;\n" + (folder / "nginx.conf").read_text())
    command = [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def test_pages_and_cached_files(proxy: str) -> None:
    assert httpx.get(f"{proxy}/livez", timeout=60).text == "ok\n"
    page = httpx.get(f"{proxy}/static/admin/css/base.css", timeout=60)
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/css")
    assert page.headers["content-encoding"] == "gzip"
    assert "content-security-policy" in httpx.get(f"{proxy}/api/v1/healthz", timeout=60).headers


def test_sign_in_sockets_and_uploads(proxy: str) -> None:
    alice = Portal(proxy, "alice", PASSWORD)
    project = alice.post("/projects", {"name": "Behind a proxy"})

    async def talk() -> None:
        async with alice.socket(f"/ws/jobs/?project={project['id']}") as jobs:
            assert (await jobs.expect("snapshot"))["jobs"] == []

    asyncio.run(talk())
    piece = 4 * 2**20
    upload = alice.post("/uploads", {"path": "a/b.bin", "bytes": 2 * piece})
    headers = {
        "Content-Type": "application/offset+octet-stream",
        "X-CSRFToken": alice._http.cookies.get("csrftoken") or "",
    }
    for offset in (0, piece):
        sent = alice._http.patch(
            f"/api/v1/uploads/{upload['id']}",
            content=b"x" * piece,
            headers=headers | {"Upload-Offset": str(offset)},
        )
        assert sent.status_code == 204, sent.text
    assert alice.get(f"/uploads/{upload['id']}")["complete"] is True


def test_too_much_is_refused_at_the_door(proxy: str) -> None:
    head = f"POST /api/v1/corpora HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2**30}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(proxy.rpartition(":")[2])), timeout=60) as stream:
        stream.sendall(head.encode())
        assert stream.recv(100).startswith(b"HTTP/1.1 413 ")
