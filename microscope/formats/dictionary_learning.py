"""saprmarks/dictionary_learning: ``ae.pt`` (a pickled state dict) and ``config.json``.

Semantics after ``dictionary_learning/dictionary.py`` and ``trainers/*.py``. Written ``ae.pt`` files are
what its loaders take; published ones already have their input scale folded in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_pickled_tensors, write_json
from microscope.formats.building import build, take
from microscope.formats.filters import filter_entry, stated_filter
from microscope.formats.folding import log_thresholds, thresholds, without_scale
from microscope.params import Site
from microscope.sae import SparseAutoencoder
from microscope.sae.gated import GatedSae

_WEIGHTS, _CONFIG = "ae.pt", "config.json"


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read a trainer's folder."""
    config = read_json(folder / _CONFIG)
    trainer = config.get("trainer", {})
    tensors = read_pickled_tensors(folder / _WEIGHTS, hints)
    site = hints.need_site(_site(trainer), folder.name)
    model = {"reference": trainer.get("lm_name", "")}
    kind = trainer.get("dict_class", "")
    common: dict[str, Any] = {"site": site, "model": model, "token_filter": stated_filter(config)}
    match kind:
        case "AutoEncoderTopK":
            k = hints.k or int(tensors.get("k", trainer.get("k", 0)))
            w_enc, b_enc, w_dec, b_dec = take(
                tensors, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
            )
            return build("topk", w_enc=w_enc, b_enc=b_enc, w_dec=w_dec.T, b_dec=b_dec, k=k, **common)
        case "BatchTopKSAE":
            w_enc, b_enc, w_dec, b_dec = take(
                tensors, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
            )
            return _batch(
                tensors,
                trainer,
                w_enc=w_enc,
                b_enc=b_enc,
                w_dec=w_dec.T,
                b_dec=b_dec,
                arch="batchtopk",
                **common,
            )
        case "MatryoshkaBatchTopKSAE":
            w_enc, b_enc, w_dec, b_dec = take(tensors, "W_enc", "b_enc", "W_dec", "b_dec")
            ends = (
                torch.as_tensor(tensors["group_sizes"]).cumsum(0).tolist() if "group_sizes" in tensors else []
            )
            common["groups"] = tuple(int(e) for e in ends)
            return _batch(
                tensors,
                trainer,
                w_enc=w_enc.T,
                b_enc=b_enc,
                w_dec=w_dec,
                b_dec=b_dec,
                arch="matryoshka",
                **common,
            )
        case "JumpReluAutoEncoder":
            w_enc, b_enc, w_dec, b_dec, threshold = take(
                tensors, "W_enc", "b_enc", "W_dec", "b_dec", "threshold"
            )
            extra = {"log_threshold": log_thresholds(threshold)}
            return build(
                "jumprelu",
                w_enc=w_enc.T,
                b_enc=b_enc,
                w_dec=w_dec,
                b_dec=b_dec,
                extra=extra,
                apply_b_dec=False,
                **common,
            )
        case "GatedAutoEncoder":
            names = ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias", "mag_bias", "r_mag")
            w_enc, b_enc, w_dec, b_dec, b_mag, r_mag = take(tensors, *names)
            extra = {"b_mag": b_mag, "r_mag": r_mag}
            return build("gated", w_enc=w_enc, b_enc=b_enc, w_dec=w_dec.T, b_dec=b_dec, extra=extra, **common)
        case "AutoEncoder":
            w_enc, b_enc, w_dec, b_dec = take(
                tensors, "encoder.weight", "encoder.bias", "decoder.weight", "bias"
            )
            return build("standard", w_enc=w_enc, b_enc=b_enc, w_dec=w_dec.T, b_dec=b_dec, **common)
        case "AutoEncoderNew":
            w_enc, b_enc, w_dec, b_dec = take(
                tensors, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
            )
            return build(
                "standard", w_enc=w_enc, b_enc=b_enc, w_dec=w_dec.T, b_dec=b_dec, apply_b_dec=False, **common
            )
    raise MicroscopeError("unsupported_sae", f"dictionary_learning's class '{kind}' is not supported.")


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write ``ae.pt`` and ``config.json``; scales are folded into the weights.

    Raises:
        MicroscopeError: ``cannot_export`` for what its classes cannot say.
    """
    plain = without_scale(sae)
    c = plain.config
    if c.is_transcoder or c.input_norm != "none":
        raise MicroscopeError("cannot_export", "dictionary_learning has no transcoders and no per-row norms.")
    kind, tensors = _tensors(plain)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({k: v.detach().clone() for k, v in tensors.items()}, folder / _WEIGHTS)
    layer = Site.parse(c.site).layer
    trainer = {
        "dict_class": kind,
        "trainer_class": "",
        "activation_dim": c.d_in,
        "dict_size": c.n_latents,
        "k": c.k,
        "layer": layer,
        "lm_name": c.model.get("reference", ""),
        "submodule_name": f"resid_post_layer_{layer}",
    }
    buffer = {"d_submodule": c.d_in, "io": "out"}
    write_json(folder / _CONFIG, {"trainer": trainer, "buffer": buffer, **filter_entry(c.token_filter)})


def _tensors(sae: SparseAutoencoder) -> tuple[str, dict[str, Tensor]]:
    c = sae.config
    linear = {
        "encoder.weight": sae.W_enc,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T.contiguous(),
    }
    match c.architecture, c.apply_b_dec:
        case "topk", True:
            k, unset = torch.tensor(c.k), torch.tensor(-1.0)
            return "AutoEncoderTopK", {**linear, "b_dec": sae.b_dec, "k": k, "threshold": unset}
        case (("batchtopk" | "matryoshka"), True):
            cut = thresholds(sae)[0]
            return "BatchTopKSAE", {**linear, "b_dec": sae.b_dec, "k": torch.tensor(c.k), "threshold": cut}
        case "jumprelu", _:
            # its class has no pre-bias: b_enc takes it over
            tensors = {"W_enc": sae.W_enc.T.contiguous(), "b_enc": sae.encoder_bias(), "W_dec": sae.W_dec}
            return "JumpReluAutoEncoder", {**tensors, "b_dec": sae.b_dec, "threshold": thresholds(sae)}
        case "gated", True:
            assert isinstance(sae, GatedSae)
            tensors = {
                "encoder.weight": sae.W_enc,
                "gate_bias": sae.b_enc,
                "decoder.weight": linear["decoder.weight"],
            }
            return "GatedAutoEncoder", {
                **tensors,
                "decoder_bias": sae.b_dec,
                "mag_bias": sae.b_mag,
                "r_mag": sae.r_mag,
            }
        case "standard", _:
            tensors = {**linear, "encoder.bias": sae.encoder_bias(), "decoder.bias": sae.b_dec}
            return "AutoEncoderNew", tensors
    raise MicroscopeError(
        "cannot_export", f"dictionary_learning cannot say a {c.architecture} SAE without pre-bias."
    )


def _batch(tensors: dict[str, Tensor], trainer: dict[str, Any], **fields: Any) -> SparseAutoencoder:
    threshold = torch.as_tensor(tensors.get("threshold", -1.0)).float()
    if float(threshold) < 0:
        raise MicroscopeError(
            "bad_sae", "The BatchTopK SAE has no inference threshold yet.", "Train it further."
        )
    extra = {"threshold": threshold, "threshold_weight": torch.ones(())}
    return build(fields.pop("arch"), extra=extra, k=int(tensors.get("k", trainer.get("k", 0))), **fields)


def _site(trainer: dict[str, Any]) -> str | None:
    match = re.fullmatch(r"(resid_post|mlp_out|attn_out)_layer_(\d+)", str(trainer.get("submodule_name", "")))
    if match:
        return f"{match[1]}.{match[2]}"
    layer = trainer.get("layer")
    return f"resid_post.{layer}" if isinstance(layer, int) else None


def _matches(folder: Path) -> bool:
    return (folder / _WEIGHTS).is_file() and (folder / _CONFIG).is_file()


FORMAT = Format("dictionary_learning", "dictionary_learning", _matches, read, write)
