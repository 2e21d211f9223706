"""One step of Adam on an autoencoder, some latents at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microscope.sae import SparseAutoencoder
from microscope.sae.cpu.latents import adam
from microscope.sae.kernels import LatentGradients
from microscope.threads import in_pieces

# So many numbers of each matrix are updated at once: fewer do not pay for their calls, more leave the cache.
_PIECE = 2**17


def begin_moments(optimiser: torch.optim.Adam) -> None:
    """Give every parameter Adam's state before its first step, as that would."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


@torch.no_grad()
def step_in_pieces(sae: SparseAutoencoder, optimiser: torch.optim.Adam, sink: LatentGradients) -> None:
    """What ``before_step``, the optimiser's step and ``after_step`` do, with gradients summed piece by piece.

    The two matrices' gradients are those in ``sink`` plus any of their own; everything else has its own.
    The moments of latents that did not win decay as ever: this is Adam to the letter.
    """
    groups = {id(group["params"][0]): group for group in optimiser.param_groups}
    matrices = [
        (_Rows(optimiser, groups[id(sae.W_dec)], unit=True), sink.add_decoder),
        (_Rows(optimiser, groups[id(sae.W_enc)], unit=False), sink.add_encoder),
    ]

    def piece(first: int, last: int) -> None:
        for rows, add in matrices:
            grad = rows.own_gradient(first, last)
            add(first, last, grad)
            rows.step(first, last, grad)

    in_pieces(piece, len(sae.W_dec), max(1, _PIECE // sae.W_dec.shape[1]))
    for group in optimiser.param_groups:
        (parameter,) = group["params"]
        if parameter is not sae.W_enc and parameter is not sae.W_dec:
            _adam(optimiser, group, parameter)
        optimiser.state[parameter]["step"] += 1


class _Rows:
    """A matrix that is updated some rows at a time."""

    def __init__(self, optimiser: torch.optim.Adam, group: dict[str, Any], *, unit: bool) -> None:
        (parameter,) = group["params"]
        state = optimiser.state[parameter]
        self._grad = None if parameter.grad is None else parameter.grad.numpy()
        self._arrays = [t.detach().numpy() for t in (parameter, state["exp_avg"], state["exp_avg_sq"])]
        self._settings = {
            "rate": group["lr"],
            "betas": group["betas"],
            "eps": group["eps"],
            "step": int(state["step"]) + 1,
            "unit": unit,
        }

    def own_gradient(self, first: int, last: int) -> np.ndarray:
        """A copy of what is known beside the sums over winners."""
        parameter = self._arrays[0][first:last]
        return np.zeros_like(parameter) if self._grad is None else self._grad[first:last].copy()

    def step(self, first: int, last: int, grad: np.ndarray) -> None:
        parameter, mean, square = (array[first:last] for array in self._arrays)
        adam(parameter, mean, square, grad, **self._settings)


def _adam(optimiser: torch.optim.Adam, group: dict[str, Any], parameter: Tensor) -> None:
    """The optimiser's own kernel; its count of steps is one ahead of what is kept."""
    assert parameter.grad is not None
    state = optimiser.state[parameter]
    torch._fused_adam_(
        [parameter],
        [parameter.grad],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"] + 1],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
