"""Gemma Scope 1 (``params.npz``) and 2 (``params.safetensors`` + ``config.json``); reading only.

JumpReLU without pre-bias. Version 1 names its site in the folders (``layer_20/…``) and in the
repository (``…-res``, ``-mlp``, ``-att``; ``-transcoders`` read the MLP's normalised input, which is no site);
version 2 in its configuration, as module paths.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, check_fetched, read_settings, read_weights
from microscope.formats.building import build, check_sizes
from microscope.formats.folding import log_thresholds
from microscope.formats.settings import Settings
from microscope.formats.sites import site_of_module
from microscope.formats.weights import Weights
from microscope.sae import SparseAutoencoder

_KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
_DESCRIPTIVE = frozenset({"model_name", "width", "d_model", "d_sae", "l0", "dtype", "type", "layer", "site"})
_SKIP = "affine_skip_connection"


def read_v1(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read ``params.npz``; object arrays, which would be pickles, are refused by numpy.

    Raises:
        MicroscopeError: ``bad_sae``, ``site_unknown`` or ``unknown_setting``.
    """
    check_fetched(folder / "params.npz")
    try:
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            tensors = {_canonical(name): torch.from_numpy(np.array(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise MicroscopeError(
            "bad_sae", f"params.npz cannot be read: {error}", "Download it again, whole."
        ) from error
    weights = Weights("params.npz", tensors, hints.assumptions)
    found, said = _site_of_path(folder)
    site = hints.need_site(found, "params.npz", said=said)
    transcoder = hints.site_out is not None or "transcoder" in said
    site_out = hints.need_site_out(None, "params.npz") if transcoder else None
    return _jumprelu(weights, site=site, site_out=site_out, skip=_SKIP in weights)


def read_v2(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read ``params.safetensors``; transcoders have their own output site and perhaps a skip matrix.

    Raises:
        MicroscopeError: ``bad_sae``, ``unsupported_sae``, ``unsupported_setting``, ``site_unknown`` or
            ``unknown_setting``.
    """
    path = folder / "config.json"
    settings = read_settings(path, hints) if path.is_file() else Settings(path.name, {}, hints.assumptions)
    settings.expect(
        "architecture", "jump_relu", default="jump_relu", why="this architecture is not supported"
    )
    weights = read_weights(folder / "params.safetensors", hints).renamed(_canonical)
    model = settings.text("model_name", "") or ""
    point_in = settings.text("hf_hook_point_in") or ""
    point_out = settings.text("hf_hook_point_out") or ""
    site = hints.need_site(_site_of_point(point_in), "config.json", said=point_in)
    transcoder = hints.site_out is not None or bool(point_out and point_out != point_in)
    site_out = (
        hints.need_site_out(_site_of_point(point_out), "config.json", said=point_out) if transcoder else None
    )
    skip = settings.flag("affine_connection", _SKIP in weights)
    settings.finish(_DESCRIPTIVE)
    return _jumprelu(weights, site=site, site_out=site_out, skip=skip, reference=model)


def _jumprelu(
    weights: Weights, *, site: str, site_out: str | None, skip: bool, reference: str = ""
) -> SparseAutoencoder:
    if weights.dimensions("W_dec") == 3:
        raise MicroscopeError(
            "unsupported_sae", "A cross-layer transcoder writes to many layers; it is not supported."
        )
    w_enc, w_dec = weights.matrices("W_enc", "W_dec")
    b_enc, b_dec, threshold = weights.take("b_enc", "b_dec", "threshold")
    w_skip = weights.matrices(_SKIP)[0] if skip else None
    factor = weights.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise MicroscopeError(
            "unsupported_setting",
            f"{weights.file} holds a scaling_factor other than 1, which nothing explains.",
        )
    weights.finish()
    check_sizes(w_enc.T, w_dec)
    pre_bias: dict[str, Any] = {} if site_out else {"apply_b_dec": False}
    return build(
        "jumprelu",
        w_enc=w_enc.T,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        extra={"log_threshold": log_thresholds(threshold)},
        w_skip=None if w_skip is None else w_skip.T,
        site=site,
        site_out=site_out,
        model={"reference": reference},
        **pre_bias,
    )


def _canonical(name: str) -> str:
    return {"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name)


def _site_of_path(folder: Path) -> tuple[str | None, str]:
    """The site that the folders name, or else what they name instead."""
    text = folder.resolve().as_posix()
    layer = re.search(r"layer_(\d+)", text)
    kind = re.search(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)(?:/|$)", text)
    if layer is None or kind is None:
        return None, ""
    if kind[1] == "transcoders":
        return None, f"the normalised input of the MLP of block {layer[1]} (a transcoder)"
    return f"{_KINDS[kind[1]]}.{layer[1]}", ""


def _site_of_point(point: str) -> str | None:
    """The site of a module path of Gemma 3 with the end that is read."""
    path, dot, end = point.rpartition(".")
    if not dot or end not in ("input", "output"):
        return None
    return site_of_module(path, "input" if end == "input" else "output", model="gemma-3")


V1 = Format("gemma_scope", "Gemma Scope", lambda f: (f / "params.npz").is_file(), read_v1)
V2 = Format("gemma_scope_2", "Gemma Scope 2", lambda f: (f / "params.safetensors").is_file(), read_v2)
