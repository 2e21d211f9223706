"""Which next tokens a feature promotes and suppresses, read off the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from microscope.models import BlockRunner
from microscope.sae import SparseAutoencoder


class LogitEffects(NamedTuple):
    """The tokens a feature promotes and suppresses most, with its effect on their logits; each ``[count]``."""

    promoted: Tensor
    promoted_weight: Tensor
    suppressed: Tensor
    suppressed_weight: Tensor


@torch.inference_mode()
def logit_effects(
    runner: BlockRunner, sae: SparseAutoencoder, count: int, *, features: Tensor, chunk: int = 256
) -> Iterator[LogitEffects]:
    """The logit lens of decoder directions: ``W_U·(gain ⊙ d)``, the final norm's gain folded in.

    What is shown is per unit of activation and up to the norm's common positive factor, centred over
    the vocabulary since softmax ignores a constant. One result per entry of ``features``.
    """
    head, gain = runner.unembedding.float(), runner.final_gain.float()
    count = min(count, len(head))
    for some in features.split(chunk):
        directions = sae.W_dec[some.to(sae.W_dec.device)].to(head.device) / sae.config.output_scale
        weights = (directions * gain) @ head.T
        weights -= weights.mean(1, keepdim=True)
        up, down = weights.topk(count, dim=1), weights.topk(count, dim=1, largest=False)
        for row in range(len(some)):
            yield LogitEffects(up.indices[row], up.values[row], down.indices[row], down.values[row])
