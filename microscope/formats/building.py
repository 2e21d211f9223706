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
        MicroscopeError: ``bad_sae`` when shapes disagree, values are not finite, or k is out of range.
    """
    tensors = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec, **(extra or {})}
    if w_skip is not None:
        tensors["W_skip"] = w_skip
    tensors = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise MicroscopeError(
                "bad_sae", f"{name} contains NaN or infinity, in float32 at least.", "The file is damaged."
            )
    n, d_in = w_enc.shape
    check_k(arch, k, n)
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
        faults = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        raise MicroscopeError(
            "bad_sae", f"The tensors do not fit together: {'; '.join(faults)}.", "The file is damaged."
        ) from error
    return sae.requires_grad_(False).eval()


def check_k(arch: str, k: int, n: int) -> None:
    """Refuse a number of winners that the latents cannot have.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    if arch in ("topk", "groupmax") and not 1 <= k <= n:
        raise MicroscopeError(
            "bad_sae",
            f"{k} latents are to be active per token, the SAE has {n}.",
            "Give the right one with --k.",
        )
    if arch == "groupmax" and n % k:
        raise MicroscopeError("bad_sae", f"{n} latents cannot be divided into {k} groups of equal size.")


def check_sizes(w_enc: Tensor, w_dec: Tensor, **said: tuple[int | None, int]) -> None:
    """Refuse matrices that do not belong together, or that disagree with what a configuration says.

    Args:
        w_enc: ``[latents, d_in]``.
        w_dec: ``[latents, d_out]``.
        **said: by name of the setting, what it says (or None) and what the tensors have.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    if len(w_enc) != len(w_dec):
        raise MicroscopeError(
            "bad_sae",
            f"The encoder has {len(w_enc)} latents, the decoder {len(w_dec)}.",
            "The file is damaged.",
        )
    for name, (value, found) in said.items():
        if value is not None and value != found:
            raise MicroscopeError(
                "bad_sae",
                f"The configuration says {name} = {value}, the tensors have {found}.",
                "Configuration and weights belong to different SAEs.",
            )
