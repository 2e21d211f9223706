"""One step of Adam on an autoencoder, some latents at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae import SparseAutoencoder
from microscope.sae.base import drop_parallel, make_unit
from microscope.sae.kernels import LatentGradients

# So many numbers of each matrix are updated at once: fewer do not pay for their calls, more leave the cache.
_PIECE = 2**20


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
    for group in optimiser.param_groups:
        (parameter,) = group["params"]
        if parameter is not sae.W_enc and parameter is not sae.W_dec:
            _adam(optimiser, parameter, parameter.grad, slice(None))
    latents, width = sae.W_dec.shape
    size = max(1, _PIECE // width)
    for first in range(0, latents, size):
        last = min(first + size, latents)
        rows = slice(first, last)
        grad = _sum(sink.decoder(first, last), sae.W_dec.grad, rows)
        unit = sae.W_dec[rows]
        drop_parallel(grad, unit)
        _adam(optimiser, sae.W_dec, grad, rows)
        make_unit(unit)
        _adam(optimiser, sae.W_enc, _sum(sink.encoder(first, last), sae.W_enc.grad, rows), rows)
    for group in optimiser.param_groups:
        optimiser.state[group["params"][0]]["step"] += 1


def _sum(sparse: Tensor | None, dense: Tensor | None, rows: slice) -> Tensor:
    if sparse is None:
        assert dense is not None
        return dense[rows]
    return sparse if dense is None else sparse.add_(dense[rows])


def _adam(optimiser: torch.optim.Adam, parameter: Tensor, grad: Tensor | None, rows: slice) -> None:
    """The optimiser's own kernel on some rows; their count of steps is one ahead of what is kept."""
    assert grad is not None
    (group,) = (g for g in optimiser.param_groups if g["params"][0] is parameter)
    state = optimiser.state[parameter]
    torch._fused_adam_(
        [parameter[rows]],
        [grad],
        [state["exp_avg"][rows]],
        [state["exp_avg_sq"][rows]],
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
