"""TopK: the k largest pre-activations of a token, rectified (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.hardware import has_fast_bfloat16
from microscope.sae.backends import MANY, backend_for
from microscope.sae.base import Codes, SparseAutoencoder
from microscope.sae.config import SaeConfig

# Latents that :meth:`TopKSae.feature` computes first; twice as many each time after that.
FIRST_LOOK = 512


class TopKSae(SparseAutoencoder):
    @classmethod
    def misfit(cls, config: SaeConfig) -> str | None:
        if not 1 <= config.k <= config.n_latents:
            return f"says that {config.k} of {config.n_latents} latents are active per token"
        return None

    def encode(self, x: Tensor) -> Codes:
        """Sparse activations of raw rows ``[rows, d_in]``; many without all their pre-activations at once."""
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or self.W_enc.requires_grad)
        if len(x) < MANY or wants_gradient:
            return super().encode(x)
        fast = self.W_enc.dtype == torch.float32 and has_fast_bfloat16(x.device)
        centred = self.centred(self.scaled(x)).contiguous()
        values, indices = backend_for(x).winners_of_rows(
            centred, self.W_enc, self.b_enc, self.config.k, bfloat16=fast
        )
        return Codes(values.relu(), indices)

    def activate(self, pre: Tensor) -> Codes:
        values, indices = backend_for(pre).top_k(pre, self.config.k)
        return Codes(values.relu(), indices)

    def feature(self, x: Tensor, index: int) -> Tensor:
        """Also in rows where it loses: it is beaten as soon as k others are seen to be larger."""
        centred = self.centred(self.scaled(x))
        value = self.pre_activation(centred, index).relu()
        larger = torch.zeros_like(value, dtype=torch.long)
        start, size = 0, FIRST_LOOK
        while start < self.config.n_latents:
            rows = ((value > 0) & (larger < self.config.k)).nonzero()[:, 0]
            if not len(rows):
                break
            end = min(start + size, self.config.n_latents)
            pre = torch.addmm(self.b_enc[start:end], centred[rows], self.W_enc[start:end].T)
            if start <= index < end:
                pre[:, index - start] = -torch.inf  # itself
            larger[rows] += (pre > value[rows, None]).sum(1)
            start, size = end, 2 * size
        return torch.where(larger < self.config.k, value, 0.0)
