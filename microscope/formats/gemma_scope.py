"""Gemma Scope 1 (``params.npz``) and 2 (``params.safetensors`` + ``config.json``); reading only.

JumpReLU without pre-bias. Version 1 names its site in the folders (``layer_20/…``) and in the
repository (``…-res``, ``-mlp``, ``-att``); version 2 in its configuration, as module paths.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_tensors
from microscope.formats.building import build, take
from microscope.formats.folding import log_thresholds
from microscope.sae import SparseAutoencoder

_KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
# module path of Gemma → site; the MLP's and attention's output norms come before the residual sum
_POINTS = (
    (r"model\.layers\.(\d+)\.output", "resid_post"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.input", "attn_z"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.output", "attn_out"),
    (r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output", "mlp_out"),
    (r"model\.layers\.(\d+)\.pre_feedforward_layernorm\.output", "mlp_in"),
)


def read_v1(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read ``params.npz``; object arrays, which would be pickles, are refused by numpy."""
    try:
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MicroscopeError("bad_sae", f"params.npz cannot be read: {error}") from error
    tensors = {_canonical(name): value for name, value in tensors.items()}
    site = hints.need_site(_site_of_path(folder), "params.npz")
    return _jumprelu(tensors, site=site, site_out=hints.site_out)


def read_v2(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read ``params.safetensors``; transcoders have their own output site and perhaps a skip matrix."""
    tensors = {_canonical(name): value for name, value in read_tensors(folder / "params.safetensors").items()}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if tensors.get("W_dec", torch.empty(0, 0)).dim() == 3:
        raise MicroscopeError(
            "unsupported_sae", "A cross-layer transcoder writes to many layers; it is not supported."
        )
    point_in, point_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    site = hints.need_site(_site_of_point(point_in), "params.safetensors")
    different = point_out and point_out != point_in
    site_out = hints.site_out or (_site_of_point(point_out) if different else None)
    return _jumprelu(tensors, site=site, site_out=site_out, reference=str(config.get("model_name", "")))


def _jumprelu(
    tensors: dict[str, Tensor], *, site: str, site_out: str | None, reference: str = ""
) -> SparseAutoencoder:
    w_enc, b_enc, w_dec, b_dec, threshold = take(tensors, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    skip = tensors.get("affine_skip_connection")
    pre_bias: dict[str, Any] = {} if site_out else {"apply_b_dec": False}
    return build(
        "jumprelu",
        w_enc=w_enc.T,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        extra={"log_threshold": log_thresholds(threshold)},
        w_skip=None if skip is None else skip.T,
        site=site,
        site_out=site_out,
        model={"reference": reference},
        **pre_bias,
    )


def _canonical(name: str) -> str:
    return {"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name)


def _site_of_path(folder: Path) -> str | None:
    text = folder.as_posix()
    layer = re.search(r"layer_(\d+)", text)
    kind = re.search(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att)", text)
    return f"{_KINDS[kind[1]] if kind else 'resid_post'}.{layer[1]}" if layer else None


def _site_of_point(point: object) -> str | None:
    for pattern, kind in _POINTS:
        match = re.fullmatch(pattern, str(point))
        if match:
            return f"{kind}.{match[1]}" if kind != "mlp_in" else None
    return None


V1 = Format("gemma_scope", "Gemma Scope", lambda f: (f / "params.npz").is_file(), read_v1)
V2 = Format("gemma_scope_2", "Gemma Scope 2", lambda f: (f / "params.safetensors").is_file(), read_v2)
