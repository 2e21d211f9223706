"""Data parallelism: several processes, started by torchrun, share every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.sae.team import ALONE, Team


class ProcessTeam(Team):
    """The processes of one torchrun."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def stack(self, tensor: Tensor) -> Tensor:
        everyone = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(everyone, tensor.detach().contiguous())
        return torch.stack(everyone)


def local_device(name: str) -> str:
    """The device of this process: with several per machine, ``auto`` and ``cuda`` mean one GPU each."""
    place = os.environ.get("LOCAL_RANK")
    if place is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{place}"


@contextlib.contextmanager
def joined_team(device: torch.device) -> Iterator[Team]:
    """The team torchrun started, or this process alone; a group that exists already is used and left.

    Raises:
        MicroscopeError: ``team_not_formed`` when the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield ProcessTeam()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if cuda else "gloo")
    except (RuntimeError, ValueError) as error:
        raise MicroscopeError(
            "team_not_formed",
            f"The processes of this run could not find each other: {str(error).splitlines()[0]}",
            "Start them with `torchrun --nproc-per-node N -m microscope train …`.",
        ) from error
    try:
        yield ProcessTeam()
    finally:
        dist.destroy_process_group()


def share_of_batch(rows: Tensor, team: Team) -> Tensor:
    """This process's rows of a batch that all processes read."""
    part = len(rows) // team.size
    return rows[team.rank * part : (team.rank + 1) * part]
