"""Make an SAE from tensors in canonical orientation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture


def build(
    arch: str,
    *,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    site: str,
    k: int = 0,
    extra: dict[str, Tensor] | None = None,
    w_skip: Tensor | None = None,
    site_out: str | None = None,
    **config: Any,
) -> SparseAutoencoder:
    """An SAE from ``w_enc`` and ``w_dec`` with one row per latent; all tensors become float32.

    Args:
        arch: architecture name.
        w_enc: ``[latents, d_in]``.
        b_enc: ``[latents]``.
        w_dec: ``[latents, d_out]``.
        b_dec: ``[d_out]``.
        site: where it reads.
        k: winners per token, 0 where the architecture has none.
        extra: the architecture's further parameters.
        w_skip: skip matrix ``[d_out, d_in]``.
        site_out: where a transcoder writes.
        **config: other fields of :class:`SaeConfig`.

    Raises:
        MicroscopeError: ``bad_sae`` when shapes disagree or values are not finite.
    """
    tensors = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec, **(extra or {})}
    if w_skip is not None:
        tensors["W_skip"] = w_skip
    tensors = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MicroscopeError("bad_sae", f"{name} contains NaN or infinity.")
    n, d_in = w_enc.shape
    if site_out is not None:
        config |= {"site_out": site_out, "d_out": w_dec.shape[1], "apply_b_dec": False}
    config.setdefault("token_filter", TokenFilter())
    made = SaeConfig(
        architecture=arch, d_in=d_in, n_latents=n, k=k, site=site, skip=w_skip is not None, **config
    )
    sae = architecture(arch)(made)
    try:
        sae.load_state_dict(sae.state_dict() | tensors)
    except RuntimeError as error:
        raise MicroscopeError("bad_sae", f"The tensors do not fit together: {error}") from error
    return sae.requires_grad_(False).eval()


def take(tensors: dict[str, Tensor], *names: str) -> list[Tensor]:
    """Tensors by name.

    Raises:
        MicroscopeError: ``bad_sae`` naming what is missing.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise MicroscopeError(
            "bad_sae",
            f"The file has no tensor {', '.join(missing)}.",
            f"It has {', '.join(sorted(tensors)) or 'none'}.",
        )
    return [tensors[name] for name in names]
