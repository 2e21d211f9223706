"""``python -m worker.agent``: keeps the resident processes of this host equal to what the portal wants loaded."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.5


@contextlib.contextmanager
def only_agent(run_dir: Path) -> Iterator[bool]:
    """Whether this is the only agent of the data folder: two would each load every model."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main() -> None:
    """Set Django up and run until SIGTERM or SIGINT."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")
    import django

    django.setup()
    from django.conf import settings

    with only_agent(Path(settings.WORKBENCH_RUN_DIR)) as alone:
        if not alone:
            sys.exit("Another agent runs on this data folder.")
        asyncio.run(_serve())


async def _serve() -> None:
    from worker.residents import Residents

    residents = Residents(host=socket.gethostname())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await residents.mark_stopped()
    reaper = asyncio.create_task(_reap())
    try:
        while not stop.is_set():
            await residents.tick()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
    finally:
        reaper.cancel()
        await residents.stop_all()


async def _reap() -> None:
    """Requeue lost jobs here, too: the compute worker that would may be the very thing that died."""
    import structlog
    from asgiref.sync import sync_to_async
    from django.conf import settings

    from apps.jobs import leases

    while True:
        await asyncio.sleep(settings.WORKBENCH_REAP_SECONDS)
        try:
            await sync_to_async(leases.reap)()
        except Exception as error:  # a locked database must not end the agent
            structlog.get_logger(__name__).warning("reap_failed", error=str(error))


if __name__ == "__main__":
    main()
