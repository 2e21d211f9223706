"""Learning rates."""

from __future__ import annotations

import math


def default_learning_rate(latents: int, batch_size: int) -> float:
    """Peak learning rate when none is given.

    The width rule (∝ 1/√latents) is the common one for Adam-trained SAEs (sparsify,
    dictionary_learning); the constant and the batch rule (∝ √batch) were measured on short runs of
    about a million tokens, where the usual 2e-4 leaves the autoencoder far from converged.
    """
    return 1.5e-3 * math.sqrt(4096 / latents) * math.sqrt(batch_size / 1024)


def rate_factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Factor on the peak rate at a step (0-based): linear warm-up, constant, linear decay to zero."""
    rise = (step + 1) / max(1, round(warmup * steps))
    fall = (steps - step) / max(1, round(decay * steps)) if decay else 1.0
    return min(1.0, rise, fall)
