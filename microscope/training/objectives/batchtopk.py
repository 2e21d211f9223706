"""BatchTopK: the TopK loss with a budget of k·rows winners per batch (Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from microscope.sae.architectures.batchtopk import BatchTopKSae
from microscope.sae.backends import Winners, backend_for
from microscope.training.distributed import SINGLE_PROCESS, ProcessGroup
from microscope.training.objectives.base import LossContext
from microscope.training.objectives.topk import TopKObjective

# Weight of the past in the running threshold: about the last hundred batches count.
_MEMORY = 0.99


class BatchTopKObjective(TopKObjective):
    """The SAE's threshold follows the smallest winning pre-activation of each batch."""

    sae: BatchTopKSae
    in_pieces: ClassVar[bool] = False  # the whole batch's product is one
    dense: ClassVar[bool] = True

    @torch.no_grad()
    def select(self, centred: Tensor, context: LossContext) -> tuple[Winners, Tensor]:
        sae = self.sae
        winners, values, lowest = winners_of_batch(
            centred, sae.W_enc, sae.b_enc, sae.config.k, bfloat16=context.bfloat16, group=context.group
        )
        sae.threshold.mul_(_MEMORY).add_(lowest.float().clamp_min(0) * (1 - _MEMORY))
        sae.threshold_weight.mul_(_MEMORY).add_(1 - _MEMORY)
        return winners, values


def winners_of_batch(
    centred: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    *,
    bfloat16: bool,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Winners, Tensor, Tensor]:
    """The k·rows largest of ``centred·weightᵀ + bias`` over a batch that a process group shares.

    Args:
        centred: this process's part of the batch, ``[rows, d]``.
        weight: ``[latents, d]``.
        bias: ``[latents]``.
        k: winners per row on average.
        bfloat16: search in bfloat16, decide in float32.
        group: the processes with the other parts.

    Returns:
        This process's winners, their pre-activations ``[pairs]``, and the smallest winning one of all.
    """
    rows, latents = len(centred), len(weight)
    budget = min(k * rows * group.size, rows * latents)
    found = backend_for(centred).winners_of_batch(centred, weight, bias, budget, bfloat16=bfloat16)
    mine, lowest = _share_of_budget(found.value, budget, group)
    return Winners.of_pairs(found.row[mine], found.latent[mine], rows), found.value[mine], lowest


def _share_of_budget(value: Tensor, budget: int, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Which of this process's values are among the ``budget`` largest of all, and the smallest of those."""
    best = value.topk(budget, sorted=group.size > 1)
    if group.size == 1:
        return best.indices.sort().values, best.values.min()
    everyone = group.stack(best.values).reshape(-1).topk(budget)
    mine = int((everyone.indices // budget == group.rank).sum())
    return best.indices[:mine].sort().values, everyone.values[-1]
