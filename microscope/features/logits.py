"""Which next tokens a feature promotes and suppresses, read off the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.features.accumulator import Accumulator
from microscope.models import BlockRunner, runner_for
from microscope.params.features import TokenWeight
from microscope.sae import SparseAutoencoder

# Random streams that a formula is tried on, and how far off it may be, in float32 and in half precision.
_TRIED, _EXACT, _HALF = 8, 1e-3, 3e-2
# Refusals for which an analysis goes on without this part.
_LEFT_OUT = ("no_logit_lens", "unsupported_family")


Lens = Callable[[Tensor], Tensor]


class LogitEffects(NamedTuple):
    """The tokens a feature promotes and suppresses most, with its effect on their logits; each ``[count]``."""

    promoted: Tensor
    promoted_weight: Tensor
    suppressed: Tensor
    suppressed_weight: Tensor


@torch.inference_mode()
def logit_effects(
    effects_of: Lens, sae: SparseAutoencoder, count: int, *, features: Tensor, chunk: int = 256
) -> Iterator[LogitEffects]:
    """The logit lens of decoder directions, one result per entry of ``features``.

    What is shown is per unit of activation and up to the final norm's common positive factor, centred over
    the vocabulary since softmax ignores a constant; where logits are soft-capped it is the effect in front of
    the cap.
    """
    for some in features.split(chunk):
        weights = effects_of(sae.W_dec[some.to(sae.W_dec.device)] / sae.config.output_scale)
        weights -= weights.mean(1, keepdim=True)
        shown = min(count, weights.shape[1])
        up, down = weights.topk(shown, dim=1), weights.topk(shown, dim=1, largest=False)
        for row in range(len(some)):
            yield LogitEffects(up.indices[row], up.values[row], down.indices[row], down.values[row])


@torch.inference_mode()
def direction_effects(runner: BlockRunner) -> Lens:
    """What directions of the last block's output ``[n, d]`` do to the logits, ``[n, vocabulary]`` in float32.

    That is ``W_U·(gain ⊙ d)``, the final norm's gain folded in. Which formula holds is tried on random streams: a final norm with an elementwise gain in front of the
    unembedding, whose logits may be multiplied, shifted and soft-capped; or no norm, where all is linear.

    Raises:
        MicroscopeError: ``no_logit_lens`` when neither holds.
    """
    head = runner.unembedding.float()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIED, runner.d_model, generator=generator).to(runner.unembedding)
    tolerance = _EXACT if x.dtype == torch.float32 else _HALF
    if head.shape[1] == runner.d_model and _scales_elementwise(runner, x, tolerance):
        gain, raw = runner.final_gain.float(), runner.normalise(x).float() @ head.T
        factor = _factor(raw, runner.head(x).float(), tolerance)
        if factor is not None:
            return lambda directions: factor * ((directions.to(head) * gain) @ head.T)
    nothing, parts = runner.head(torch.zeros_like(x)).float(), runner.head(x).float()
    together = runner.head(x + x.flip(0)).float()
    if _near(together - nothing, parts + parts.flip(0) - 2 * nothing, tolerance):
        return lambda directions: runner.head(directions.to(x)).float() - nothing[:1]
    raise MicroscopeError(
        "no_logit_lens",
        "What stands between this model's last block and its logits is no norm with a gain, and not linear.",
        "See in the patch lab what a feature does to the next token.",
    )


def _scales_elementwise(runner: BlockRunner, x: Tensor, tolerance: float) -> bool:
    """Whether the final norm multiplies a vector's entries by its gain, centred or not, and all by one number."""
    up, down = runner.normalise(x).float(), runner.normalise(-x).float()
    out, gain = (up - down) / 2, runner.final_gain.float()
    plain = x.float()
    return any(
        _near(F.normalize(out, dim=1), F.normalize(gain * one, dim=1), tolerance)
        for one in (plain, plain - plain.mean(1, keepdim=True))
    )


def _factor(raw: Tensor, logits: Tensor, tolerance: float) -> float | None:
    """What logits are of products with the unembedding, both ``[rows, vocabulary]``: a multiple, 1 where it is hidden
    by a soft cap, or None where they are neither. A bias of the head cancels between rows.
    """
    a, b = raw - raw.flip(0), logits - logits.flip(0)
    factor = float((a * b).sum() / a.square().sum())
    if factor > 0 and _near(factor * a, b, tolerance):
        return 1.0 if abs(factor - 1) <= tolerance else factor
    order = raw.flatten().argsort()
    falls = -logits.flatten()[order].diff().clamp_max(0)
    capped = float(falls.max()) <= tolerance * float(logits.abs().max())
    return 1.0 if capped and float(b.abs().max()) > 0 else None


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


class LogitLens(Accumulator):
    """Nothing is found for encoders, for sites that do not write to the residual stream, and without a lens."""

    def results(self) -> Iterator[dict[str, Any]]:
        sae, loaded, features = self.context.sae, self.context.loaded, self.context.features
        nothing: Iterator[dict[str, Any]] = ({"promoted": [], "suppressed": []} for _ in features)
        if not loaded.family.causal or sae.config.width_out != loaded.d_model:
            yield from nothing
            return
        try:
            lens = direction_effects(runner_for(loaded))
        except MicroscopeError as error:
            if error.code not in _LEFT_OUT:
                raise
            self.context.left_out.append(f"Tokens that features promote are left out. {error.message}")
            yield from nothing
            return
        count = self.context.params.top_tokens
        for effect in logit_effects(lens, sae, count, features=torch.from_numpy(features)):
            yield {
                "promoted": self._weights(effect.promoted, effect.promoted_weight),
                "suppressed": self._weights(effect.suppressed, effect.suppressed_weight),
            }

    def _weights(self, tokens: Tensor, weights: Tensor) -> list[TokenWeight]:
        return [
            TokenWeight(token=t, text=self.context.text(t), weight=round(w, 5))
            for t, w in zip(tokens.tolist(), weights.tolist(), strict=True)
        ]
