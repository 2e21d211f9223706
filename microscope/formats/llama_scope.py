"""Llama Scope v1: ``hyperparams.json`` and ``checkpoints/final.safetensors``; reading only.

JumpReLU without pre-bias, with inputs scaled to √d over the data set's mean norm. The stored threshold
is in raw units (SAELens issues 482 and 483): θ = threshold·s in the scaled space.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_tensors
from microscope.formats.building import build, take
from microscope.formats.folding import log_thresholds
from microscope.params import Site
from microscope.sae import SparseAutoencoder
from microscope.sae.jumprelu import JumpReluSae


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read one SAE's folder."""
    config = read_json(folder / "hyperparams.json")
    tensors = read_tensors(folder / "checkpoints" / "final.safetensors")
    w_enc, b_enc, w_dec, b_dec = take(
        tensors, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
    )
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict) or "in" not in norms or "jump_relu_threshold" not in config:
        raise MicroscopeError(
            "scale_unknown",
            "hyperparams.json lacks dataset_average_activation_norm or jump_relu_threshold.",
            "Download the folder again.",
        )
    d_in = w_enc.shape[1]
    scale, scale_out = (d_in**0.5 / float(norms[side]) for side in ("in", "out" if "out" in norms else "in"))
    point_in, point_out = config.get("hook_point_in"), config.get("hook_point_out")
    site_out = hints.site_out or (_site(point_out) if point_out and point_out != point_in else None)
    threshold = torch.full((w_enc.shape[0],), float(config["jump_relu_threshold"]) * scale)
    pre_bias: dict[str, Any] = {} if site_out else {"apply_b_dec": False}
    sae = build(
        "jumprelu",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        extra={"log_threshold": log_thresholds(threshold)},
        site=hints.need_site(_site(point_in), folder.name),
        site_out=site_out,
        scale=scale,
        scale_out=scale_out,
        **pre_bias,
    )
    if config.get("sparsity_include_decoder_norm"):
        # gating compares pre·‖W_dec‖ with the threshold
        norms_of_rows = sae.W_dec.norm(dim=1).clamp_min(1e-12)
        assert isinstance(sae, JumpReluSae)
        with torch.no_grad():
            sae.log_threshold.sub_(norms_of_rows.log())
    return sae


def _site(point: object) -> str | None:
    text = str(point)
    if not re.fullmatch(r"blocks\.\d+\..+", text):
        return None
    try:
        return str(Site.parse(text))
    except MicroscopeError:
        return None


def _matches(folder: Path) -> bool:
    return (folder / "hyperparams.json").is_file() and (
        folder / "checkpoints" / "final.safetensors"
    ).is_file()


FORMAT = Format("llama_scope", "Llama Scope", _matches, read)
