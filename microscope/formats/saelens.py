"""SAELens v6: ``cfg.json`` and ``sae_weights.safetensors``.

Semantics after ``sae_lens/saes/*.py``: ``W_enc [d, n]``, ``W_dec [n, d]``; JumpReLU is
``relu(pre)·[pre > θ]``; a TopK trained with ``rescale_acts_by_decoder_norm`` ranks by ``pre·‖W_dec‖``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_tensors, write_json
from microscope.formats.building import build, take
from microscope.formats.filters import filter_entry, stated_filter
from microscope.formats.folding import log_thresholds, rescale_rows, thresholds, without_scale
from microscope.params import Site
from microscope.sae import SparseAutoencoder
from microscope.sae.batchtopk import BatchTopKSae
from microscope.sae.gated import GatedSae
from microscope.sae.standard import StandardSae
from microscope.sae.topk import TopKSae

_CONFIG, _WEIGHTS, _SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_TRANSCODERS = {"transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"}


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read an inference SAE or transcoder, or a checkpoint with its scaling factor beside it."""
    config, tensors = _modern(read_json(folder / _CONFIG)), read_tensors(folder / _WEIGHTS)
    kind = str(config.get("architecture", "standard"))
    w_enc, w_dec, b_dec = take(tensors, "W_enc", "W_dec", "b_dec")
    transcoder = kind in _TRANSCODERS
    common: dict[str, Any] = {
        "w_enc": w_enc.T,
        "w_dec": w_dec,
        "b_dec": b_dec,
        "site": hints.need_site(_site(config, "hook_name"), folder.name),
        "site_out": hints.site_out or _site(config, "hook_name_out") or "mlp_out.0" if transcoder else None,
        "w_skip": tensors.get("W_skip"),
        "model": {"reference": _meta(config).get("model_name", "")},
        "token_filter": stated_filter(_meta(config)),
    }
    if not transcoder:
        common |= _normalisation(config, folder)
        common["apply_b_dec"] = bool(config.get("apply_b_dec_to_input", True))
    if kind == "gated":
        b_gate, b_mag, r_mag = take(tensors, "b_gate", "b_mag", "r_mag")
        return build("gated", b_enc=b_gate, extra={"b_mag": b_mag, "r_mag": r_mag}, **common)
    (b_enc,) = take(tensors, "b_enc")
    if kind.startswith("jumprelu"):
        threshold = tensors.get("threshold")
        if threshold is None and "log_threshold" in tensors:
            threshold = tensors["log_threshold"].float().exp()
        if threshold is None:
            raise MicroscopeError("bad_sae", "A JumpReLU SAE needs a tensor 'threshold'.")
        return build("jumprelu", b_enc=b_enc, extra={"log_threshold": log_thresholds(threshold)}, **common)
    if kind == "topk":
        sae = build("topk", b_enc=b_enc, k=int(config["k"]), **common)
        if config.get("rescale_acts_by_decoder_norm"):
            with torch.no_grad():
                rescale_rows(sae, sae.W_dec.norm(dim=1).clamp_min(1e-8))
        return sae
    if kind in ("standard", "transcoder", "skip_transcoder"):
        return build("standard", b_enc=b_enc, **common)
    raise MicroscopeError("unsupported_sae", f"SAELens's architecture '{kind}' is not supported.")


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write an inference SAE that ``SAE.load_from_disk`` loads; scales are folded into the weights."""
    plain = without_scale(sae)
    c = plain.config
    tensors: dict[str, Tensor] = {
        "W_enc": plain.W_enc.T,
        "W_dec": plain.W_dec,
        "b_dec": plain.b_dec,
        "b_enc": plain.b_enc,
    }
    config: dict[str, Any] = {
        "d_in": c.d_in,
        "d_sae": c.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": c.apply_b_dec,
        "normalize_activations": {v: k for k, v in _NORMS.items()}[c.input_norm],
        "reshape_activations": "none",
        "metadata": _metadata(plain),
    }
    match plain:
        case TopKSae() if not isinstance(plain, BatchTopKSae):
            config |= {"architecture": "topk", "k": c.k, "rescale_acts_by_decoder_norm": False}
        case GatedSae():
            config["architecture"] = "gated"
            tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": plain.b_mag, "r_mag": plain.r_mag}
        case StandardSae():
            config["architecture"] = "standard"
        case _:
            config["architecture"] = "jumprelu"
            tensors["threshold"] = thresholds(plain)
    if c.is_transcoder:
        config["d_out"] = c.width_out
        config["architecture"] = _transcoder_name(config["architecture"], skip=c.skip)
        if plain.W_skip is not None:
            tensors["W_skip"] = plain.W_skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / _WEIGHTS)
    write_json(folder / _CONFIG, config)


def _transcoder_name(kind: str, *, skip: bool) -> str:
    if kind not in ("standard", "jumprelu"):
        raise MicroscopeError(
            "cannot_export",
            f"SAELens has no {kind} transcoder.",
            "Export it natively, or train a JumpReLU or BatchTopK one.",
        )
    return ("jumprelu_" if kind == "jumprelu" else "") + ("skip_transcoder" if skip else "transcoder")


def _normalisation(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    kind = config.get("normalize_activations", "none")
    if kind == "expected_average_only_in":
        # Checkpoints keep the factor beside the weights; without it the SAE cannot be used.
        path = folder / _SCALER
        factor = read_json(path).get("scaling_factor") if path.is_file() else None
        if not factor:
            raise MicroscopeError(
                "scale_unknown",
                "The SAE expects inputs scaled by a factor that is not in its files.",
                f"Export it for inference in SAELens, or put the factor into {_SCALER} as scaling_factor.",
            )
        return {"scale": float(factor)}
    if kind not in _NORMS:
        raise MicroscopeError(
            "unsupported_sae", f"Input normalisation '{kind}' is not supported.", "Fold it before exporting."
        )
    return {"input_norm": _NORMS[kind]}


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """Bring configurations from before version 6 to today's names."""
    if "metadata" in config or ("hook_point" not in config and "activation_fn" not in config):
        config.setdefault("architecture", "standard")
        return config
    out = dict(config)
    out.setdefault("hook_name", out.get("hook_point"))
    activation = out.get("activation_fn") or out.get("activation_fn_str")
    if activation == "topk":
        out |= {"architecture": "topk", "k": (out.get("activation_fn_kwargs") or {}).get("k", 100)}
    if isinstance(out.get("normalize_activations"), bool):
        out["normalize_activations"] = "expected_average_only_in" if out["normalize_activations"] else "none"
    out.setdefault("architecture", "standard")
    return out


def _meta(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("metadata") or config


def _site(config: dict[str, Any], key: str) -> str | None:
    name = _meta(config).get(key)
    try:
        return str(Site.parse(name)) if name else None
    except MicroscopeError:
        return None


def _metadata(sae: SparseAutoencoder) -> dict[str, Any]:
    c = sae.config
    out = {
        "model_name": c.model.get("reference", ""),
        "hook_name": Site.parse(c.site).transformer_lens_name,
        "sae_lens_version": "6.0.0",
        "exclude_special_tokens": c.token_filter.exclude_special,
        **filter_entry(c.token_filter),
    }
    if c.site_out:
        out["hook_name_out"] = Site.parse(c.site_out).transformer_lens_name
    return out


def _matches(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


FORMAT = Format("saelens", "SAELens v6", _matches, read, write)
