"""``python -m worker.resident --model … --listen unix:/path``: load a model and serve it until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from typing import IO, Any, get_args

from microscope.errors import MicroscopeError
from microscope.params import ExitCode
from microscope.params.precisions import Dtype
from microscope.processes.child import die_with_parent, event_stream


def main() -> None:
    """Say one JSON line on standard output, ``ready`` or ``error``, then serve."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s resident %(levelname)s %(message)s")
    out = event_stream("-")
    die_with_parent()
    try:
        asyncio.run(_serve(arguments, out))
    except MicroscopeError as error:
        _say(out, event="error", code=error.code, message=error.message, hint=error.hint)
        sys.exit(ExitCode.REFUSED)


async def _serve(arguments: argparse.Namespace, out: IO[str]) -> None:
    import msgspec
    import torch

    from microscope.live import ResidentModel
    from microscope.models import load_model, resolve_device
    from worker.resident.server import ResidentServer

    dtype, arithmetic = arguments.dtype, "auto"
    if resolve_device(arguments.device).type == "cpu":
        # Base and patched runs have different shapes; in bfloat16 that alone moves logits by percents.
        dtype, arithmetic = "float32" if dtype == "auto" else dtype, "float32"
        # One core stays free for the web process and a running job; oversubscribed threads wait on each other.
        torch.set_num_threads(arguments.threads or max(1, (os.cpu_count() or 2) - 1))
    loaded = load_model(
        arguments.model,
        revision=arguments.revision,
        dtype=dtype,
        arithmetic=arithmetic,
        device=arguments.device,
    )
    resident = ResidentModel(
        loaded, cache_bytes=arguments.cache_mb * 2**20, attached_bytes=arguments.sae_mb * 2**20
    )
    server = ResidentServer(resident, token=os.environ.get("WORKBENCH_RESIDENT_TOKEN", ""))
    listening, address = await server.listen(arguments.listen)
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    _say(out, event="ready", address=address, model=msgspec.to_builtins(server.model_info))
    async with listening:
        await stop.wait()
    # Connections may still be open; the peers notice the end of the stream.
    os._exit(ExitCode.OK)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.resident", description=__doc__)
    parser.add_argument("--model", required=True, help="Hub id, folder or GGUF file")
    parser.add_argument("--revision", default=None, help="Hub revision")
    parser.add_argument("--dtype", default="auto", choices=get_args(Dtype))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    parser.add_argument("--listen", required=True, help="unix:/path or tcp:host:port")
    parser.add_argument("--threads", type=int, default=0, help="compute threads on a CPU; default cores − 1")
    parser.add_argument("--cache-mb", type=int, default=2048, help="memory of all sessions, MiB")
    parser.add_argument("--sae-mb", type=int, default=4096, help="memory of attached SAEs and adapters, MiB")
    arguments = parser.parse_args()
    if arguments.listen.startswith("tcp:") and not os.environ.get("WORKBENCH_RESIDENT_TOKEN"):
        parser.error("a TCP listener needs a secret in WORKBENCH_RESIDENT_TOKEN")
    return arguments


def _say(out: IO[str], **event: Any) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
