"""Data parallelism: several processes, started by torchrun, share every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from microscope.errors import MicroscopeError


class ProcessGroup:
    """One process that has every batch to itself; the base of those that share it.

    With several, each computes its share of the loss on an equal part of the rows, so that shares and
    gradients add up to those of the whole batch.
    """

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same on each; without gradient."""
        return tensor.detach()

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, equally shaped, ``[size, …]`` in the order of ranks."""
        return tensor.detach()[None]


SINGLE_PROCESS = ProcessGroup()


class TorchrunGroup(ProcessGroup):
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
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{rank}"


@contextlib.contextmanager
def joined_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The process group torchrun started, or this process alone; one that exists already is used and left.

    Raises:
        MicroscopeError: ``team_not_formed`` when the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    if dist.is_initialized():
        yield TorchrunGroup()
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
        yield TorchrunGroup()
    finally:
        dist.destroy_process_group()


def share_of_batch(rows: Tensor, group: ProcessGroup) -> Tensor:
    """This process's rows of a batch that all processes read."""
    part = len(rows) // group.size
    return rows[group.rank * part : (group.rank + 1) * part]
