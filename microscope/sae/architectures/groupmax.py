"""GroupMax: the latents are divided into k groups of neighbours, and the largest of each group is active.

Imported only (EleutherAI's sparsify trains them).
"""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.architectures.topk import TopKSae
from microscope.sae.base import Codes, SparseAutoencoder
from microscope.sae.config import SaeConfig


class GroupMaxSae(TopKSae):
    """``f_i = relu(pre_i)`` where ``pre_i`` is the largest of its group of latents/k, else 0."""

    @classmethod
    def misfit(cls, config: SaeConfig) -> str | None:
        if (misfit := super().misfit(config)) is None and config.n_latents % config.k:
            misfit = f"divides {config.n_latents} latents into {config.k} groups of equal size"
        return misfit

    def encode(self, x: Tensor) -> Codes:
        return SparseAutoencoder.encode(self, x)  # not the k largest of all

    def activate(self, pre: Tensor) -> Codes:
        values, indices = self._winners(pre)
        return Codes(values.relu(), indices)

    def feature(self, x: Tensor, index: int) -> Tensor:
        """The latent's value where none of its group is larger; the first of equals wins."""
        centred = self.centred(self.scaled(x))
        value = self.pre_activation(centred, index)
        first = index - index % self._size
        group = slice(first, first + self._size)
        pre = torch.addmm(self.b_enc[group], centred, self.W_enc[group].T)
        pre[:, index - first] = value
        return torch.where(pre.argmax(1) == index - first, value.relu(), 0.0)

    @property
    def _size(self) -> int:
        """Latents of a group."""
        return self.config.n_latents // self.config.k

    def _winners(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Largest pre-activation of each group and which latent has it, ``[rows, k]`` both."""
        values, inside = pre.unflatten(1, (self.config.k, self._size)).max(2)
        return values, inside + torch.arange(self.config.k, device=pre.device) * self._size
