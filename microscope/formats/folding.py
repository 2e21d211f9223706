"""Equivalent rewritings of an SAE: what has to be absorbed into weights that another format cannot say.

Each leaves the function unchanged (checked to float64 rounding in the tests).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.sae import SparseAutoencoder
from microscope.sae.architectures.batchtopk import BatchTopKSae
from microscope.sae.architectures.gated import GatedSae
from microscope.sae.architectures.jumprelu import JumpReluSae

# Smallest threshold a logarithm can hold; below it JumpReLU is ReLU.
_TINY = 1e-30


@torch.no_grad()
def without_scale(sae: SparseAutoencoder) -> SparseAutoencoder:
    """A copy that reads and writes raw units: W_enc·s, W_dec/s_out, b_dec/s_out (b_enc and thresholds stay).

    With a pre-bias both scales must be equal, as they are in every plain SAE.
    """
    out = copy.deepcopy(sae)
    c = out.config
    if c.apply_b_dec and c.output_scale != c.scale:
        raise MicroscopeError(
            "cannot_fold", "A pre-bias with different scales on both sides cannot be folded."
        )
    out.W_enc.mul_(c.scale)
    out.W_dec.div_(c.output_scale)
    out.b_dec.div_(c.output_scale)
    if out.W_skip is not None:
        out.W_skip.mul_(c.scale / c.output_scale)
    c.scale, c.scale_out = 1.0, (1.0 if c.scale_out is not None else None)
    return out


@torch.no_grad()
def rescale_rows(sae: SparseAutoencoder, norms: Tensor) -> None:
    """Divide decoder rows by ``norms`` and multiply activations by them, in place; winners stay the same.

    Raises:
        MicroscopeError: ``cannot_fold`` where one threshold is shared by all latents.
    """
    if isinstance(sae, BatchTopKSae):
        raise MicroscopeError(
            "cannot_fold", "One shared threshold cannot follow decoder norms; use per-latent ones."
        )
    gate_by_rescaled(sae, norms)
    if isinstance(sae, JumpReluSae):
        sae.log_threshold.add_(norms.log())


@torch.no_grad()
def gate_by_rescaled(sae: SparseAutoencoder, norms: Tensor) -> None:
    """As :func:`rescale_rows`, but what wins is decided on the multiplied activations: thresholds stay.

    That is how an SAE is read whose winners are ranked, or compared with a threshold, by pre·‖W_dec‖.
    """
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms[:, None])
    sae.b_enc.mul_(norms)
    if isinstance(sae, GatedSae):
        sae.b_mag.mul_(norms)


@torch.no_grad()
def shift_input(sae: SparseAutoencoder, shift: Tensor) -> None:
    """Subtract ``shift`` ``[latents]`` from what the encoder computes of each row, in place."""
    sae.b_enc.sub_(shift)
    if isinstance(sae, GatedSae):
        # the magnitude path multiplies the same product by exp(r_mag)
        sae.b_mag.sub_(shift * sae.r_mag.exp())


@torch.no_grad()
def fold_centring(sae: SparseAutoencoder) -> None:
    """Make an SAE that was trained on rows less their own mean read rows as they are, in place.

    With P = I − 11ᵀ/d: ``W_enc·(P·u − a·b_dec) = (W_enc·P)·(u − a·b_dec) − a·mean(b_dec)·W_enc·1``. What it
    writes is unchanged: a row less its mean, as it was trained to.
    """
    if sae.config.apply_b_dec:
        shift_input(sae, sae.W_enc.sum(1) * sae.b_dec.mean())
    sae.W_enc.sub_(sae.W_enc.mean(1, keepdim=True))


@torch.no_grad()
def fold_whitening(sae: SparseAutoencoder, mean: Tensor, matrix: Tensor, inverse: Tensor) -> None:
    """Make an SAE that was trained on ``(x − mean)·matrix`` read and write x itself, in place (float64).

    Args:
        mean: ``[d]``.
        matrix: ``[d, d]``, applied from the right.
        inverse: its inverse.
    """
    w_enc = sae.W_enc.double() @ matrix.T
    sae.W_enc.copy_(w_enc)
    if not sae.config.apply_b_dec:
        shift_input(sae, (w_enc @ mean).to(sae.b_enc.dtype))
    sae.W_dec.copy_(sae.W_dec.double() @ inverse)
    sae.b_dec.copy_(sae.b_dec.double() @ inverse + mean)


def thresholds(sae: SparseAutoencoder) -> Tensor:
    """Per-latent thresholds of a threshold-form SAE, ``[latents]`` float32.

    Raises:
        MicroscopeError: ``no_threshold`` for other architectures.
    """
    if isinstance(sae, JumpReluSae):
        return sae.threshold.detach().float()
    if isinstance(sae, BatchTopKSae):
        return sae.cut.detach().float().expand(sae.config.n_latents).clone()
    raise MicroscopeError("no_threshold", f"A {sae.config.architecture} SAE has no thresholds.")


def log_thresholds(values: Tensor) -> Tensor:
    """Thresholds as the logarithms JumpReLU keeps; zero and below become "no threshold"."""
    return values.float().clamp_min(_TINY).log()
