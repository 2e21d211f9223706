"""A real nginx with the proxy's configuration, and what it passes on to whatever is behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.proxying import proxy

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]


class Behind:
    """What stands behind the proxy, and whoever talks to the proxy."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self.listener, self.port = listener, port

    def ask(self, head: str, body: bytes = b"") -> socket.socket:
        """Send the beginning of a request to the proxy."""
        asking = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        asking.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return asking

    def arrived(self, until: bytes) -> bytes:
        """What arrives behind the proxy, up to these bytes."""
        passed, _ = self.listener.accept()
        passed.settimeout(20)
        found = b""
        while until not in found:
            found += passed.recv(2**16)
        passed.close()
        return found


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with proxy(f"127.0.0.1:{listener.getsockname()[1]}", tmp_path) as url:
            yield Behind(listener, int(url.rpartition(":")[2]))


def test_nobody_in_front_is_believed_about_addresses(behind: Behind) -> None:
    head = (
        "GET /api/v1/me HTTP/1.1\nHost: lab.example.org\nX-Forwarded-For: 1.2.3.4\nX-Forwarded-Proto: https"
    )
    with behind.ask(head):
        lines = behind.arrived(b"\r\n\r\n").decode().lower().splitlines()
    passed_on = sorted(line for line in lines if line.startswith("x-forwarded-"))
    assert passed_on == ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"]
    assert "host: lab.example.org" in lines


@pytest.mark.parametrize("path", ["/ws/jobs/", "/api/v1/uploads/1"])
def test_sockets_are_opened_through_it(behind: Behind, path: str) -> None:
    """Wherever it is asked for; without the wish nothing is upgraded."""
    with behind.ask(f"GET {path} HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: websocket"):
        lines = behind.arrived(b"\r\n\r\n").decode().lower().splitlines()
    assert {"connection: upgrade", "upgrade: websocket"} <= set(lines)
    with behind.ask(f"GET {path} HTTP/1.1\nHost: h"):
        assert b"upgrade" not in behind.arrived(b"\r\n\r\n").lower()


def test_a_piece_of_an_upload_is_passed_on_while_it_arrives(behind: Behind) -> None:
    """Otherwise every file would be written to the proxy's disk first."""
    head = f"PATCH /api/v1/uploads/1 HTTP/1.1\nHost: h\nContent-Length: {2**24}"
    with behind.ask(head, b"the first bytes of many"):
        assert b"the first bytes of many" in behind.arrived(b"of many")


def test_too_much_is_refused_at_the_door(behind: Behind) -> None:
    with behind.ask(f"POST /api/v1/corpora HTTP/1.1\nHost: h\nContent-Length: {2**30}") as asking:
        assert asking.recv(100).startswith(b"HTTP/1.1 413 ")
