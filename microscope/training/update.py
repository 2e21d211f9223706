"""One step of Adam on an autoencoder, some latents at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microscope.sae import SparseAutoencoder
from microscope.threads import in_pieces
from microscope.training.adam import adam
from microscope.training.objectives.sparse import LatentGradients

# Numbers of each matrix in one piece: smaller pieces cost more calls, larger ones leave the cache.
PIECE = 2**17


@dataclass
class Moments:
    """Running means of one parameter's gradient and of its square, and how many steps went into them.

    ``factor`` is what its learning rate is multiplied by.
    """

    parameter: Tensor
    factor: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor

    @classmethod
    def before_the_first_step(cls, parameter: Tensor, factor: float) -> Moments:
        step = torch.zeros((), device=parameter.device)
        return cls(parameter, factor, torch.zeros_like(parameter), torch.zeros_like(parameter), step)


class Adam:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980) by torch's fused kernel.

    Not ``torch.optim``: its first use imports torch's compiler, which takes longer than many a run's first steps.

    Args:
        parameters: by name.
        factors: on the learning rate, by name; 1 for all others.
        betas: what the running means keep at every step.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], factors: dict[str, float], betas: tuple[float, float]
    ) -> None:
        self.moments = {
            name: Moments.before_the_first_step(parameter, factors.get(name, 1.0))
            for name, parameter in parameters
        }
        self.betas, self.eps, self.rate = betas, 1e-8, 0.0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for moments in self.moments.values():
            moments.parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient."""
        for moments in self.moments.values():
            self.update(moments)

    def update(self, moments: Moments) -> None:
        """Update one parameter by its gradient."""
        assert moments.parameter.grad is not None
        moments.step += 1
        torch._fused_adam_(
            [moments.parameter],
            [moments.parameter.grad],
            [moments.exp_avg],
            [moments.exp_avg_sq],
            [],
            [moments.step],
            lr=self.rate * moments.factor,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


@torch.no_grad()
def step_in_pieces(sae: SparseAutoencoder, optimiser: Adam, sink: LatentGradients) -> None:
    """What ``before_step``, the optimiser's step and ``after_step`` do, with gradients summed piece by piece.

    The two matrices' gradients are those in ``sink`` plus any of their own; everything else has its own.
    The moments of latents that did not win decay as ever: this is Adam to the letter.
    """
    matrices = [
        (_Rows(optimiser, optimiser.moments["W_dec"], unit=True), sink.add_decoder),
        (_Rows(optimiser, optimiser.moments["W_enc"], unit=False), sink.add_encoder),
    ]

    def piece(first: int, last: int) -> None:
        for rows, add in matrices:
            grad = rows.own_gradient(first, last)
            add(first, last, torch.from_numpy(grad))
            rows.step(first, last, grad)

    in_pieces(piece, len(sae.W_dec), max(1, PIECE // sae.W_dec.shape[1]))
    for name, moments in optimiser.moments.items():
        if name in ("W_dec", "W_enc"):
            moments.step += 1
        else:
            optimiser.update(moments)


class _Rows:
    """A matrix that is updated some rows at a time."""

    def __init__(self, optimiser: Adam, moments: Moments, *, unit: bool) -> None:
        parameter = moments.parameter
        self._grad = None if parameter.grad is None else parameter.grad.numpy()
        self._arrays = [t.detach().numpy() for t in (parameter, moments.exp_avg, moments.exp_avg_sq)]
        self._settings: dict[str, Any] = {
            "rate": optimiser.rate * moments.factor,
            "betas": optimiser.betas,
            "eps": optimiser.eps,
            "step": int(moments.step) + 1,
            "unit": unit,
        }

    def own_gradient(self, first: int, last: int) -> np.ndarray:
        """A copy of what is known beside the sums over winners."""
        parameter = self._arrays[0][first:last]
        return np.zeros_like(parameter) if self._grad is None else self._grad[first:last].copy()

    def step(self, first: int, last: int, grad: np.ndarray) -> None:
        parameter, mean, square = (array[first:last] for array in self._arrays)
        adam(parameter, mean, square, grad, **self._settings)
