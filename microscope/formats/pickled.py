"""Single ``.pt`` files: OpenAI's GPT-2 autoencoders and Qwen Scope; reading only, with ``weights_only``.

OpenAI (``sparse_autoencoder/model.py``): TopK implies a per-row layer norm; ReLU does not.
Qwen Scope: ``W_enc [n, d]``, ``W_dec [d, n]``, TopK without pre-bias, k from the name (``…L0_50``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_pickled_weights
from microscope.formats.building import build, check_sizes
from microscope.formats.settings import Settings
from microscope.formats.weights import Weights
from microscope.sae import SparseAutoencoder

_OPENAI_LOCATIONS = {
    "resid_post_mlp": "resid_post",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "mlp_post_act": "mlp_act",
}


# Statistics of training that OpenAI keeps beside the weights.
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def read(path: Path, hints: Hints) -> SparseAutoencoder:
    """Read a ``.pt`` file by the names of its tensors.

    Raises:
        MicroscopeError: ``pickle_refused``, ``unsupported_sae``, ``unsupported_setting``,
            ``unknown_setting``, ``site_unknown``, ``k_unknown`` or ``bad_sae``.
    """
    weights = read_pickled_weights(path, hints)
    if "latent_bias" in weights:
        return _openai(path, weights, hints)
    if all(name in weights for name in ("W_enc", "W_dec", "b_enc", "b_dec")):
        return _qwen_scope(path, weights, hints)
    raise MicroscopeError(
        "unsupported_sae", f"{path.name} is of no known layout: it has {', '.join(weights.names())}."
    )


def _openai(path: Path, weights: Weights, hints: Hints) -> SparseAutoencoder:
    w_enc, w_dec = weights.matrices("encoder.weight", "decoder.weight")
    b_enc, b_dec = weights.take("latent_bias", "pre_bias")
    said = {"activation": weights.plain("activation"), "state": weights.plain("activation_state_dict")}
    settings = Settings(path.name, said, hints.assumptions)
    kind = settings.expect(
        "activation", "ReLU", "TopK", default="ReLU", why="this activation is not supported"
    )
    state = settings.nested("state")
    found = state.count("k") if kind == "TopK" else None
    after = state.get("postact_fn", "ReLU")
    if after not in ("ReLU", "relu"):
        raise state.unsupported("postact_fn", after, "winners that are not rectified are not supported")
    state.finish()
    weights.finish(*_STATISTICS)
    check_sizes(w_enc, w_dec.T)
    fields: dict[str, Any] = {}
    if kind == "TopK":
        fields = {"k": hints.need_k(found, path.name), "input_norm": "layer_norm"}
    return build(
        "topk" if kind == "TopK" else "standard",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        site=hints.need_site(_openai_site(path), path.name),
        **fields,
    )


def _openai_site(path: Path) -> str | None:
    match = re.search(
        r"(resid_post_mlp|resid_post_attn|resid_delta_mlp|resid_delta_attn|mlp_post_act).*?layer_?(\d+)",
        path.as_posix(),
    )
    return f"{_OPENAI_LOCATIONS[match[1]]}.{match[2]}" if match else None


def _qwen_scope(path: Path, weights: Weights, hints: Hints) -> SparseAutoencoder:
    w_enc, w_dec = weights.matrices("W_enc", "W_dec")
    b_enc, b_dec = weights.take("b_enc", "b_dec")
    weights.finish()
    check_sizes(w_enc, w_dec.T)
    layer, k = re.search(r"layer(\d+)", path.name), re.search(r"L0_(\d+)", path.as_posix())
    # the name of the folder is no setting: what a person says comes first
    winners = hints.k or hints.need_k(int(k[1]) if k else None, path.name)
    named = "SAE-Res-" in path.as_posix()
    return build(
        "topk",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        k=winners,
        site=hints.need_site(f"resid_post.{layer[1]}" if layer and named else None, path.name),
        apply_b_dec=False,
    )


FORMAT = Format("pt", "OpenAI or Qwen Scope .pt", lambda p: p.is_file() and p.suffix == ".pt", read)
