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
from microscope.formats.base import Format, Hints, read_settings, read_weights
from microscope.formats.building import build, check_sizes
from microscope.formats.folding import log_thresholds
from microscope.formats.settings import Settings, names
from microscope.params import Site
from microscope.sae import SparseAutoencoder
from microscope.sae.architectures.jumprelu import JumpReluSae

# How it was trained; ``top_k`` was the budget before the winners were replaced by a threshold.
_DESCRIPTIVE = names(
    """
    sae_type dtype device seed top_k k_warmup_steps expansion_factor lp l1_coefficient
    l1_coefficient_warmup_steps use_ghost_grads use_batch_norm_mse bias_init_method init_decoder_norm
    init_encoder_norm init_encoder_with_decoder_transpose init_search decoder_exactly_fixed_norm
    decoder_exactly_unit_norm decoder_bias_init_method remove_gradient_parallel_to_decoder_directions
    noise_factor sae_pretrained_name_or_path strict_loading use_ddp exp_name exp_result_dir exp_result_path
    exp_series model_name tp_size ddp_size jumprelu_threshold_window
    """
)


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read one SAE's folder.

    Raises:
        MicroscopeError: ``scale_unknown``, ``unsupported_setting``, ``unknown_setting``, ``site_unknown`` or
            ``bad_sae``.
    """
    settings = read_settings(folder / "hyperparams.json", hints)
    weights = read_weights(folder / "checkpoints" / "final.safetensors", hints)
    w_enc, w_dec = weights.matrices("encoder.weight", "decoder.weight")
    (b_enc,) = weights.take("encoder.bias")
    biased = settings.flag("use_decoder_bias", True)
    b_dec = weights.take("decoder.bias")[0] if biased else torch.zeros(len(w_dec))
    n, d_in = w_enc.shape
    check_sizes(w_enc, w_dec.T, d_model=(settings.count("d_model"), d_in), d_sae=(settings.count("d_sae"), n))
    scale, scale_out = _scales(settings, d_in)
    threshold = torch.full((n,), _threshold(settings) * scale)
    settings.expect("act_fn", "jumprelu", default="jumprelu", why="this activation is not supported")
    settings.expect("use_glu_encoder", False, default=False, why="a gated linear encoder is not supported")
    point_in, point_out = settings.text("hook_point_in") or "", settings.text("hook_point_out") or ""
    site = hints.need_site(_site(point_in), folder.name, said=point_in)
    transcoder = hints.site_out is not None or bool(point_out and point_out != point_in)
    site_out = hints.need_site_out(_site(point_out), folder.name, said=point_out) if transcoder else None
    by_norm = settings.flag("sparsity_include_decoder_norm")
    pre_bias = _pre_bias(settings, transcoder=transcoder, equal=scale == scale_out, biased=biased)
    settings.finish(_DESCRIPTIVE)
    weights.finish()
    sae = build(
        "jumprelu",
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec.T,
        b_dec=b_dec,
        extra={"log_threshold": log_thresholds(threshold)},
        site=site,
        site_out=site_out,
        scale=scale,
        scale_out=scale_out,
        **pre_bias,
    )
    if by_norm:
        # gating compares pre·‖W_dec‖ with the threshold
        norms_of_rows = sae.W_dec.norm(dim=1).clamp_min(1e-12)
        assert isinstance(sae, JumpReluSae)
        with torch.no_grad():
            sae.log_threshold.sub_(norms_of_rows.log())
    return sae


def _scales(settings: Settings, d_in: int) -> tuple[float, float]:
    """s and s_out: rows are scaled to a mean length of √d over the data set."""
    settings.expect(
        "norm_activation", "dataset-wise", default="dataset-wise", why="this normalisation is not supported"
    )
    norms = settings.nested("dataset_average_activation_norm")
    norm_in = norms.number("in")
    norm_out = norms.number("out", norm_in)
    norms.finish()
    if norm_in is None or norm_out is None or norm_in <= 0 or norm_out <= 0:
        raise MicroscopeError(
            "scale_unknown",
            "hyperparams.json lacks dataset_average_activation_norm.",
            "Download the folder again.",
        )
    return d_in**0.5 / norm_in, d_in**0.5 / norm_out


def _threshold(settings: Settings) -> float:
    threshold = settings.number("jump_relu_threshold")
    if threshold is None:
        raise MicroscopeError(
            "scale_unknown", "hyperparams.json lacks jump_relu_threshold.", "Download the folder again."
        )
    return threshold


def _pre_bias(settings: Settings, *, transcoder: bool, equal: bool, biased: bool) -> dict[str, Any]:
    key = "apply_decoder_bias_to_pre_encoder"
    applied = settings.flag(key)
    if not applied or not biased:
        return {} if transcoder else {"apply_b_dec": False}
    if transcoder or not equal:
        raise settings.unsupported(
            key, True, "a pre-bias with different scales on both sides is not supported"
        )
    return {"apply_b_dec": True}


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
