"""WebSockets that ask and never read, over a real server: memory stays bounded and they are dropped in the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import websockets

ROOT = Path(__file__).parents[2]
STALL_SECONDS = 4
PATIENCE = 60


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    address = str(tmp_path / "web.sock")
    command = [sys.executable, "-m", "tests.contracts.generous_daphne", address, str(STALL_SECONDS)]
    process = psutil.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + PATIENCE
    while not Path(address).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, address
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


async def test_who_asks_and_never_reads_takes_little_and_is_dropped(
    served: tuple[psutil.Process, str],
) -> None:
    process, address = served
    async with websockets.unix_connect(address, "ws://localhost/", max_size=None) as other:
        before = process.memory_info().rss
        reader, writer = await asyncio.open_unix_connection(address, limit=2**16)
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        writer.write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + key
            + b"\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        frame = b"\x81\x84" + b"\x00" * 4 + b"more"
        writer.write(frame * 500)  # half a gibibyte, if somebody took it
        most = 0
        deadline = time.monotonic() + STALL_SECONDS + PATIENCE
        while True:
            most = max(most, process.memory_info().rss - before)
            await other.send("ended")  # others are served meanwhile
            if await asyncio.wait_for(other.recv(), PATIENCE) == "1":
                break
            assert time.monotonic() < deadline, "the connection was never given up"
            await asyncio.sleep(0.1)
        writer.transport.abort()
        assert most < 64 * 2**20

        # Whoever reads gets everything, however large.
        for _ in range(20):
            await other.send("more")
        for _ in range(20):
            assert len(await asyncio.wait_for(other.recv(), PATIENCE)) == 2**20


async def test_who_asks_faster_than_can_be_answered_is_told_and_dropped(
    served: tuple[psutil.Process, str],
) -> None:
    _, address = served
    async with websockets.unix_connect(address, "ws://localhost/", max_size=None) as raw:

        async def flood() -> None:
            for _ in range(5000):
                await raw.send("more")
            while True:
                await raw.recv()

        with pytest.raises(websockets.ConnectionClosed) as caught:
            await asyncio.wait_for(flood(), PATIENCE)
    assert caught.value.rcvd is None or caught.value.rcvd.code == 1008
