"""Which next tokens a feature promotes and suppresses, read off the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microscope.features.accumulator import Accumulator
from microscope.models import BlockRunner, runner_for
from microscope.params.features import TokenWeight
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


class LogitLens(Accumulator):
    """Nothing is found for encoders, and for sites that do not write to the residual stream."""

    def results(self) -> Iterator[dict[str, Any]]:
        sae, loaded, features = self.context.sae, self.context.loaded, self.context.features
        if not loaded.family.causal or sae.config.width_out != loaded.d_model:
            yield from ({"promoted": [], "suppressed": []} for _ in features)
            return
        count = self.context.params.top_tokens
        for effect in logit_effects(runner_for(loaded), sae, count, features=torch.from_numpy(features)):
            yield {
                "promoted": self._weights(effect.promoted, effect.promoted_weight),
                "suppressed": self._weights(effect.suppressed, effect.suppressed_weight),
            }

    def _weights(self, tokens: Tensor, weights: Tensor) -> list[TokenWeight]:
        return [
            TokenWeight(token=t, text=self.context.text(t), weight=round(w, 5))
            for t, w in zip(tokens.tolist(), weights.tolist(), strict=True)
        ]
