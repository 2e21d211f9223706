"""Equivalent rewritings of an SAE: what has to be absorbed into weights that another format cannot say.

Each leaves the function unchanged (checked to float64 rounding in the tests).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.sae import SparseAutoencoder
from microscope.sae.batchtopk import BatchTopKSae
from microscope.sae.gated import GatedSae
from microscope.sae.jumprelu import JumpReluSae

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
def with_unit_decoder(sae: SparseAutoencoder) -> SparseAutoencoder:
    """A copy with decoder rows of unit length; activations grow by the old lengths.

    Refused for plain TopK, where it would change which latents win.
    """
    if sae.config.architecture == "topk":
        raise MicroscopeError(
            "cannot_fold", "Decoder norms of a TopK SAE cannot be folded: other latents would win."
        )
    out = copy.deepcopy(sae)
    norms = out.W_dec.norm(dim=1).clamp_min(1e-12)
    rescale_rows(out, norms)
    return out


@torch.no_grad()
def rescale_rows(sae: SparseAutoencoder, norms: Tensor) -> None:
    """Divide decoder rows by ``norms`` and multiply activations by them, in place."""
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms[:, None])
    sae.b_enc.mul_(norms)
    if isinstance(sae, JumpReluSae):
        sae.log_threshold.add_(norms.log())
    elif isinstance(sae, GatedSae):
        sae.b_mag.mul_(norms)
    elif isinstance(sae, BatchTopKSae):
        raise MicroscopeError(
            "cannot_fold", "One shared threshold cannot follow decoder norms; use per-latent ones."
        )


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
