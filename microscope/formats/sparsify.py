"""EleutherAI sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

Semantics after ``sparsify/sparse_coder.py``: ``encoder.weight [n, d]``, ``W_dec [n, d]`` (one row per
latent), ReLU then top-k, b_dec subtracted from the input unless it is a transcoder.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save_file

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_tensors, write_json
from microscope.formats.building import build, take
from microscope.formats.filters import filter_entry, stated_filter
from microscope.formats.folding import without_scale
from microscope.params import Site
from microscope.sae import SparseAutoencoder

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"
_MODULES = {
    r"(?:layers|h)\.(\d+)": "resid_post",
    r"(?:layers|h)\.(\d+)\.mlp": "mlp_out",
    r"(?:layers|h)\.(\d+)\.(?:self_attn|attn|attention)": "attn_out",
}


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read one hookpoint's folder."""
    config, tensors = read_json(folder / _CONFIG), read_tensors(folder / _WEIGHTS)
    if config.get("activation", "topk") != "topk":
        raise MicroscopeError(
            "unsupported_sae", f"sparsify's activation '{config['activation']}' is not supported."
        )
    w_enc, b_enc, w_dec, b_dec = take(tensors, "encoder.weight", "encoder.bias", "W_dec", "b_dec")
    transcoder = bool(config.get("transcode"))
    found = _site(folder.name)
    return build(
        "topk",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        k=int(config["k"]),
        w_skip=tensors.get("W_skip"),
        site=hints.need_site(found, folder.name),
        site_out=(hints.site_out or found) if transcoder else None,
        token_filter=stated_filter(config),
    )


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write a TopK SAE or transcoder; scales are folded into the weights.

    Raises:
        MicroscopeError: ``cannot_export`` for other architectures, which sparsify does not have.
    """
    plain = without_scale(sae)
    c = plain.config
    if c.architecture != "topk" or c.input_norm != "none" or (not c.is_transcoder and not c.apply_b_dec):
        raise MicroscopeError(
            "cannot_export",
            f"sparsify reads TopK SAEs with a pre-bias only, not this {c.architecture} one.",
            "Choose another format.",
        )
    tensors = {
        "encoder.weight": plain.W_enc,
        "encoder.bias": plain.b_enc,
        "W_dec": plain.W_dec,
        "b_dec": plain.b_dec,
    }
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / _WEIGHTS)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, c.n_latents // c.d_in),
        "normalize_decoder": False,
        "num_latents": c.n_latents,
        "k": c.k,
        "multi_topk": False,
        "skip_connection": c.skip,
        "transcode": c.is_transcoder,
        "d_in": c.d_in,
        **filter_entry(c.token_filter),
    }
    write_json(folder / _CONFIG, config)


def _site(hookpoint: str) -> str | None:
    for pattern, kind in _MODULES.items():
        match = re.fullmatch(pattern, hookpoint)
        if match:
            return str(Site(kind, int(match[1])))  # type: ignore[arg-type]
    return None


def _matches(folder: Path) -> bool:
    return (
        (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file() and not (folder / "sae.json").is_file()
    )


FORMAT = Format("sparsify", "EleutherAI sparsify", _matches, read, write)
