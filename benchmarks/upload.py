"""A large file into the portal, cut again and again: what the web process needs for it, and whether it is whole.

Starts the whole portal on a folder of its own and sends a generated file over raw connections. Some are
closed after any number of bytes, within the head of a request, within a piece, or before its answer; now and
then the web process itself is killed. After each cut the sender asks how far the file is and goes on there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.contest import Settings
from benchmarks.report import Section, footer
from workbench.demo.portal import Portal
from workbench.supervisor import Supervisor, free_port, wait_for_web

_PASSWORD = "only-for-this-benchmark"
_BLOCK = 1 << 20
_MB = 1 << 20
_LIMIT_MB = 64  # what the web process may need over idle
_CUT_SHARE = 0.15
_TABLE = (
    "| pieces | sent | cuts | web killed | MB/s | idle MB | peak over idle, MB | slowest piece, s | SHA-256 |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclass
class Run:
    """One file in pieces of one size."""

    piece: int
    size: int
    kills: int
    cuts: int = 0
    killed: int = 0
    seconds: float = 0.0
    idle: float = 0.0
    peak: float = 0.0
    slowest: float = 0.0
    whole: bool = False

    @property
    def row(self) -> str:
        """Of the table."""
        rate = self.size / 1e6 / self.seconds
        return (
            f"| {self.piece // _MB} MB | {self.size / 1e9:.2f} GB | {self.cuts} | {self.killed} | {rate:.0f} "
            f"| {self.idle:.0f} | {self.peak - self.idle:.0f} | {self.slowest:.1f} "
            f"| {'as sent' if self.whole else 'DIFFERS'} |"
        )


def sections(settings: Settings) -> Iterator[Section]:
    """One table."""
    title = "Upload, memory of the web process"
    yield Section(title, lambda: _measure(settings, title))


def _measure(settings: Settings, title: str) -> str:
    with tempfile.TemporaryDirectory(prefix="upload-") as folder:
        rows = [run.row for run in measure(Path(folder), settings.upload_bytes, (4 * _MB, 16 * _MB))]
    about = (
        f"A file in pieces over connections that are cut at any byte, and a web process that is killed; goal: at "
        f"most {_LIMIT_MB} MB over idle, and the file as it was sent."
    )
    return "\n".join([f"## {title}", "", about, "", *_TABLE, *rows, "", footer(settings, 1)])


def content(number: int, base: bytes) -> bytes:
    """A megabyte like no other."""
    return number.to_bytes(16, "little") + base[16:]


@dataclass
class Source:
    """A file that is made while it is read."""

    size: int
    base: bytes = field(default_factory=lambda: random.Random(7).randbytes(_BLOCK))

    def read(self, start: int, length: int) -> bytes:
        """Bytes from a place on, fewer at the end."""
        stop = min(self.size, start + length)
        first = start // _BLOCK
        blocks = b"".join(content(number, self.base) for number in range(first, -(-stop // _BLOCK)))
        return blocks[start - first * _BLOCK : stop - first * _BLOCK]

    def sha256(self) -> str:
        """Of all of it."""
        seen = hashlib.sha256()
        for start in range(0, self.size, _BLOCK):
            seen.update(self.read(start, _BLOCK))
        return seen.hexdigest()


class Watch(threading.Thread):
    """Looks at the resident memory of the web process, which is another one after it was killed."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(daemon=True)
        self._child = next(child for child in supervisor.children if child.name == "web")
        self._over, self.peak = threading.Event(), 0.0

    def megabytes(self) -> float:
        """Of now; 0 while there is none."""
        with contextlib.suppress(psutil.Error):
            return float(psutil.Process(self._pid).memory_info().rss) / _MB
        return 0.0

    def kill(self) -> None:
        """``kill -9``; its supervisor starts the next one."""
        with contextlib.suppress(psutil.Error):
            psutil.Process(self._pid).kill()

    @property
    def _pid(self) -> int:
        return self._child.process.pid

    def run(self) -> None:
        """Until it is stopped."""
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self.megabytes())

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


class Sender:
    """Sends one file the way a bad network does."""

    def __init__(self, url: str, token: str, seed: int) -> None:
        self.port = int(url.rpartition(":")[2])
        self.token, self.random = token, random.Random(seed)
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=300)

    def announce(self, path: str, source: Source, digest: str) -> str:
        """The id of a new upload."""
        answer = self.http.post("/uploads", json={"path": path, "bytes": source.size, "sha256": digest})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def offset(self, upload: str) -> int:
        """How far the server says it is; waits for one that is being started again."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = self.http.head(f"/uploads/{upload}")
                if answer.status_code == 200:
                    return int(answer.headers["Upload-Offset"])
            time.sleep(0.1)

    def piece(self, upload: str, offset: int, data: bytes, stop_after: int | None) -> bool:
        """Send a piece; with ``stop_after`` the connection is closed when so many bytes have gone out.

        Returns:
            whether it was acknowledged.
        """
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        head = (
            f"PATCH /api/v1/uploads/{upload} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/offset+octet-stream\r\n"
            f"Tus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\nUpload-Checksum: sha256 {digest}\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        ).encode()
        message = head + data
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=300) as stream:
                stream.sendall(message if stop_after is None else message[:stop_after])
                if stop_after is not None:
                    return False
                return stream.recv(64).split(b" ")[1:2] == [b"204"]
        except OSError:
            return False

    def send(self, upload: str, source: Source, run: Run, watch: Watch) -> None:
        """All of it."""
        kills = sorted(self.random.randrange(source.size) for _ in range(run.kills))
        offset = 0
        while offset < source.size:
            data = source.read(offset, run.piece)
            cut = self.random.random() < _CUT_SHARE
            # The head is about 400 bytes; beyond the whole message the cut is before the answer.
            stop = self.random.choice((self.random.randrange(400), self.random.randrange(len(data) + 600)))
            if kills and offset >= kills[0]:
                kills.pop(0)
                threading.Timer(self.random.random() * 0.05, self._kill, [watch, run]).start()
            began = time.monotonic()
            done = self.piece(upload, offset, data, stop if cut else None)
            run.cuts += cut
            if done:
                run.slowest = max(run.slowest, time.monotonic() - began)
                offset += len(data)
            else:
                offset = self.offset(upload)

    def _kill(self, watch: Watch, run: Run) -> None:
        watch.kill()
        run.killed += 1


def measure(folder: Path, size: int, pieces: tuple[int, ...], kills: int = 2) -> list[Run]:
    """Send a file of ``size`` bytes once for each size of pieces."""
    source, runs = Source(size), []
    digest = source.sha256()
    supervisor = Supervisor(folder, free_port(0))
    try:
        supervisor.prepare()
        who = ["--username", "bench", "--email", "bench@example.org"]
        supervisor.manage("ensure_user", *who, extra={"WORKBENCH_PASSWORD": _PASSWORD})
        supervisor.start()
        wait_for_web(supervisor)
        person = Portal(supervisor.url, "bench", _PASSWORD)
        token = person.post("/tokens", {"name": "bench", "scopes": ["artifacts"]})["secret"]
        sender = Sender(supervisor.url, token, seed=11)
        for piece in pieces:
            run = Run(piece, size, kills)
            runs.append(run)
            watch = Watch(supervisor)
            # Idle is a web process that has served: what it loads for its first upload is there.
            small = Source(3 * _BLOCK)
            sender.send(sender.announce("small.bin", small, ""), small, Run(_BLOCK, small.size, 0), watch)
            run.idle = watch.megabytes()
            watch.start()
            upload = sender.announce("large.bin", source, digest)
            began = time.monotonic()
            sender.send(upload, source, run, watch)
            run.seconds = time.monotonic() - began
            watch.stop()
            run.peak = watch.peak
            run.whole = _digest_of(folder, upload) == digest
            sender.http.delete(f"/uploads/{upload}").raise_for_status()
    finally:
        supervisor.stop()
    return runs


def _digest_of(folder: Path, upload: str) -> str:
    [file] = [path for path in folder.rglob(upload) if path.is_file()]
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
