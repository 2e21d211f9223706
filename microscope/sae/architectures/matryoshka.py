"""Matryoshka BatchTopK: every prefix of the latents must reconstruct by itself (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

from microscope.sae.architectures.batchtopk import BatchTopKSae
from microscope.sae.config import SaeConfig

# Prefixes as shares of the width, when none are given (the sizes of the paper's and SAELens's examples).
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


class MatryoshkaSae(BatchTopKSae):
    """A BatchTopK SAE whose latents come in nested groups; inference uses all of them with the running threshold."""

    def __init__(self, config: SaeConfig) -> None:
        if not config.groups:
            config.groups = tuple(sorted({max(1, round(s * config.n_latents)) for s in _SHARES}))
        super().__init__(config)
