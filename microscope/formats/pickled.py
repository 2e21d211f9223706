"""Single ``.pt`` files: OpenAI's GPT-2 autoencoders and Qwen Scope; reading only, with ``weights_only``.

OpenAI (``sparse_autoencoder/model.py``): TopK implies a per-row layer norm; ReLU does not.
Qwen Scope: ``W_enc [n, d]``, ``W_dec [d, n]``, TopK without pre-bias, k from the name (``…L0_50``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_pickled_tensors
from microscope.formats.building import build, take
from microscope.sae import SparseAutoencoder

_OPENAI_LOCATIONS = {
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp_act",
}


def read(path: Path, hints: Hints) -> SparseAutoencoder:
    """Read a ``.pt`` file by the names of its tensors."""
    data = read_pickled_tensors(path, hints)
    if "latent_bias" in data:
        return _openai(path, data, hints)
    if {"W_enc", "W_dec", "b_enc", "b_dec"} <= set(data):
        return _qwen_scope(path, data, hints)
    raise MicroscopeError(
        "unsupported_sae", f"{path.name} is of no known layout: it has {', '.join(sorted(map(str, data)))}."
    )


def _openai(path: Path, data: dict[str, Any], hints: Hints) -> SparseAutoencoder:
    tensors: dict[str, Tensor] = data
    w_enc, b_enc, w_dec, b_dec = take(tensors, "encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    activation = str(data.get("activation", "ReLU"))
    state = data.get("activation_state_dict") or {}
    topk = activation == "TopK"
    return build(
        "topk" if topk else "standard",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        k=hints.k or int(state.get("k", 0)) if topk else 0,
        site=hints.need_site(_openai_site(path), path.name),
        input_norm="layer_norm" if topk else "none",
    )


def _openai_site(path: Path) -> str | None:
    match = re.search(
        r"(resid_post_mlp|resid_post_attn|resid_delta_mlp|resid_delta_attn|mlp_post_act).*?layer_?(\d+)",
        path.as_posix(),
    )
    return f"{_OPENAI_LOCATIONS[match[1]]}.{match[2]}" if match else None


def _qwen_scope(path: Path, data: dict[str, Any], hints: Hints) -> SparseAutoencoder:
    w_enc, b_enc, w_dec, b_dec = take(data, "W_enc", "b_enc", "W_dec", "b_dec")
    layer, k = re.search(r"layer(\d+)", path.name), re.search(r"L0_(\d+)", path.as_posix())
    winners = hints.k or (int(k[1]) if k else None)
    if winners is None:
        raise MicroscopeError(
            "k_unknown", f"{path.name} does not say how many latents are active.", "Give it with --k."
        )
    return build(
        "topk",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        k=winners,
        site=hints.need_site(f"resid_post.{layer[1]}" if layer else None, path.name),
        apply_b_dec=False,
    )


FORMAT = Format("pt", "OpenAI or Qwen Scope .pt", lambda p: p.is_file() and p.suffix == ".pt", read)
