"""Whether a run fits in memory, before it is started."""

from __future__ import annotations

import os

import msgspec
import torch

from microscope.errors import MicroscopeError
from microscope.params import TrainParams
from microscope.training.objectives import objective_class

# Weights, gradients and two moments of Adam.
_COPIES = 4
# Numbers per row beside the pre-activations: the row itself, centred, its target, output, error, gradient.
_ROW_COPIES = 6
# Numbers per winner: value, latent, row and what their gradients need.
_PER_WINNER = 16
# A product on a CPU is looked at in pieces of this many numbers.
_PIECE = 2**22


def needed_bytes(params: TrainParams, d_in: int, d_out: int, device: torch.device) -> int:
    """About what a run needs for all its SAEs; what is shuffled lies in the system's file cache."""
    need = 0
    largest = 0
    dense = objective_class(params.arch).dense
    for width, k, _ in params.runs:
        need += _COPIES * 4 * width * (d_in + d_out)
        whole = params.batch_size * width * 4 * (3 if dense else 1)
        piece = whole if dense or device.type != "cpu" else min(whole, _PIECE * 8)
        winners = params.batch_size * k * _PER_WINNER * 4
        largest = max(largest, piece + winners)
    return need + largest + params.batch_size * (d_in + d_out) * 4 * _ROW_COPIES


def refuse_what_does_not_fit(params: TrainParams, d_in: int, d_out: int, device: torch.device) -> None:
    """Raises :class:`MicroscopeError` ``out_of_memory`` with a batch size that fits, if there is one."""
    free = free_bytes(device)
    if free is None:
        return
    if needed_bytes(params, d_in, d_out, device) > free:
        raise too_large(params, d_in, d_out, device, free)


def too_large(
    params: TrainParams, d_in: int, d_out: int, device: torch.device, room: int | None = None
) -> MicroscopeError:
    """The error to raise when memory is, or would be, exhausted; ``room`` is what there is for the run."""
    smaller = params.batch_size // 2
    if room is not None:
        while (
            smaller
            and needed_bytes(msgspec.structs.replace(params, batch_size=smaller), d_in, d_out, device) > room
        ):
            smaller //= 2
    several = len(params.runs) > 1
    what = f"{len(params.runs)} SAEs of up to" if several else "An SAE of"
    remedy = "Train fewer SAEs at once, or narrower ones." if several else "Train a narrower SAE."
    if smaller >= 1 and (several or smaller >= 64):
        remedy = f"A batch fits with --batch-size {smaller}."
    need = needed_bytes(params, d_in, d_out, device)
    return MicroscopeError(
        "out_of_memory",
        f"{what} {max(params.width)} latents with batches of {params.batch_size} tokens needs about "
        f"{need / 2**30:.1f} GB, which does not fit on {device}.",
        remedy,
    )


def free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            table = dict(line.split(":", 1) for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
