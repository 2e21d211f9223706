"""Processes that share every batch, as the losses see them."""

from __future__ import annotations

from torch import Tensor


class Team:
    """One process that has the batch to itself; the base of those that share it.

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


ALONE = Team()
