"""What all training objectives share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microscope.sae.kernels import LatentGradients, SparseAutoencode, Winners, energy
from microscope.sae.selection import winners_of_rows
from microscope.sae.team import ALONE, Team


@dataclass(frozen=True)
class LossContext:
    """Settings and state of a run that a loss depends on.

    ``progress`` runs from 0 to 1; ``dead`` are indices of latents that have long been silent;
    ``bfloat16`` lets the search for winners begin in that precision (float32 decides). ``team`` are the
    processes that share the batch, and ``total`` is its Σ‖t−t̄‖² where that is known already. A ``sink``
    takes the sparse gradients of the two matrices.
    """

    progress: float = 0.0
    dead: Tensor | None = None
    aux_coefficient: float = 0.0
    bfloat16: bool = False
    team: Team = ALONE
    total: Tensor | None = None
    sink: LatentGradients | None = None

    @property
    def wants_auxiliary(self) -> bool:
        """Whether there are dead latents to be revived."""
        return self.dead is not None and len(self.dead) > 0 and self.aux_coefficient != 0

    def rows(self, u: Tensor) -> int:
        """Rows of the whole batch, of which ``u`` is this process's part."""
        return len(u) * self.team.size

    def variance(self, target: Tensor) -> Tensor:
        """Σ‖t−t̄‖² of the whole batch, of which ``target`` is this process's part."""
        return variance(target, self.team) if self.total is None else self.total


@dataclass
class StepLoss:
    """This process's shares of the losses of one batch: summed over the team they are the batch's.

    ``loss`` is to be minimised; the rest is detached and on the device: ``fvu`` is
    Σ‖t−t̂‖²/Σ‖t−t̄‖² over the batch, ``l0`` the mean number of active latents per row and ``fired``
    ``[latents]`` how often each was active.
    """

    loss: Tensor
    fvu: Tensor
    l0: Tensor
    fired: Tensor


@torch.no_grad()
def variance(target: Tensor, team: Team = ALONE) -> Tensor:
    """Σ‖t−t̄‖² over a batch of which each process has a part ``[rows, d]``, without gradient."""
    mean = team.sum(target.sum(0)) / (len(target) * team.size)
    return team.sum(energy(target - mean))


def auxiliary_loss(
    u: Tensor,
    residual: Tensor,
    dead: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_pre: Tensor | None,
    team: Team = ALONE,
    sink: LatentGradients | None = None,
) -> Tensor:
    """AuxK: the share of the residual that the best d/2 dead latents fail to explain.

    The residual ``[rows, d_out]`` is detached; the term shrinks while fewer than d/2 latents are dead
    (Gao et al. 2024, arXiv 2406.04093, §A.2).
    """
    wanted = residual.shape[1] // 2
    k = min(wanted, len(dead))
    with torch.no_grad():
        some_enc, some_bias = w_enc[dead], b_enc[dead]
        bias = some_bias if b_pre is None else some_bias - some_enc @ b_pre
        values, places = winners_of_rows(u, some_enc, bias, k, bfloat16=False)
        winners = Winners.of_indices(dead[places])
    out, _ = SparseAutoencode.apply(u, w_enc, b_enc, w_dec, b_pre, winners, values.reshape(-1), sink)
    residual = residual.detach()
    return (out - residual).square().sum() / team.sum(energy(residual)) * min(1.0, len(dead) / wanted)
