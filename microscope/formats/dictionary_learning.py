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
from microscope.formats.base import (
    Format,
    Hints,
    read_pickled_weights,
    read_settings,
    write_json,
)
from microscope.formats.building import build, check_sizes
from microscope.formats.filters import filter_entry, stated_filter
from microscope.formats.folding import log_thresholds, thresholds, without_scale
from microscope.formats.settings import Settings, assumed_entry, names, stated_assumptions
from microscope.formats.weights import Weights
from microscope.naming import public_name
from microscope.params import Site
from microscope.sae import SparseAutoencoder
from microscope.sae.architectures.gated import GatedSae

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
# How it was trained; a norm factor is folded into the biases before anything is saved.
_DESCRIPTIVE = names(
    """
    trainer_class wandb_name lr steps seed device auxk_alpha warmup_steps decay_start threshold_beta
    threshold_start_step top_k_aux l1_penalty sparsity_penalty sparsity_function sparsity_warmup_steps
    sparsity_queue_length n_sparsity_updates anneal_start anneal_end p_start p_end resample_steps bandwidth
    target_l0 group_fractions group_weights group_sizes norm_factor wandb_entity wandb_project use_wandb
    """
)
_DESCRIPTIVE_BUFFER = names(
    """
    n_ctxs ctx_len refresh_batch_size out_batch_size device layer remove_bos max_activation_norm_multiple
    add_special_tokens
    """
)
_SITES = {
    "resid_post": "resid_post",
    "resid_out": "resid_post",
    "resid_mid": "resid_mid",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
    "mlp_out": "mlp_out",
    "attn_z": "attn_z",
    "mlp_act": "mlp_act",
}
_RANKED = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
# What is the input of a module; the others are outputs.
_INPUTS = ("attn_z", "mlp_act")
_TRAINERS = {
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
}


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read a trainer's folder.

    Raises:
        MicroscopeError: ``pickle_refused``, ``unsupported_sae``, ``unsupported_setting``,
            ``unknown_setting``, ``site_unknown``, ``k_unknown`` or ``bad_sae``.
    """
    settings = read_settings(folder / _CONFIG, hints)
    trainer, buffer = settings.nested("trainer"), settings.nested("buffer")
    weights = read_pickled_weights(folder / _WEIGHTS, hints)
    kind = trainer.text("dict_class", "") or ""
    if kind not in _RANKED:
        trainer.get("k")  # our own exports had it for every class; these do not rank
    arch, tensors, config = _tensors_of(kind, weights, trainer, hints)
    w_enc, w_dec = tensors["w_enc"], tensors["w_dec"]
    said = {"activation_dim": w_enc.shape[1], "dict_size": len(w_enc)}
    check_sizes(w_enc, w_dec, **{name: (trainer.count(name), found) for name, found in said.items()})
    check_sizes(w_enc, w_dec, d_submodule=(buffer.count("d_submodule"), w_enc.shape[1]))
    token_filter, assumed = stated_filter(settings), stated_assumptions(settings)
    site, model = _site(trainer, buffer, folder, hints), trainer.text("lm_name", "")
    settings.finish()
    trainer.finish(_DESCRIPTIVE)
    buffer.finish(_DESCRIPTIVE_BUFFER)
    weights.finish()
    return build(
        arch,
        site=site,
        model={"reference": model},
        token_filter=token_filter,
        assumed=assumed,
        **tensors,
        **config,
    )


def _tensors_of(
    kind: str, weights: Weights, trainer: Settings, hints: Hints
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, the four common tensors in canonical form, and what else the class has."""
    match kind:
        case "AutoEncoderTopK":
            tensors = _linear(weights, "b_dec")
            weights.number("threshold")  # for a mode of inference that has to be asked for
            return "topk", tensors, {"k": _k(weights, trainer, hints)}
        case "BatchTopKSAE":
            tensors = _linear(weights, "b_dec")
            return "batchtopk", tensors, {"k": _k(weights, trainer, hints), "extra": _threshold(weights)}
        case "MatryoshkaBatchTopKSAE":
            tensors = _plain(weights)
            sizes = weights.plain("group_sizes")
            groups = _ends(sizes, len(tensors["w_enc"])) if sizes is not None else ()
            k = _k(weights, trainer, hints)
            return "matryoshka", tensors, {"k": k, "groups": groups, "extra": _threshold(weights)}
        case "JumpReluAutoEncoder":
            tensors = _plain(weights)
            extra = {"log_threshold": log_thresholds(weights.take("threshold")[0])}
            return "jumprelu", tensors, {"extra": extra, "apply_b_dec": False}
        case "GatedAutoEncoder":
            encoder, decoder = weights.matrices("encoder.weight", "decoder.weight")
            gate, b_dec, b_mag, r_mag = weights.take("gate_bias", "decoder_bias", "mag_bias", "r_mag")
            tensors = {"w_enc": encoder, "b_enc": gate, "w_dec": decoder.T, "b_dec": b_dec}
            return "gated", tensors, {"extra": {"b_mag": b_mag, "r_mag": r_mag}}
        case "AutoEncoder":
            return "standard", _linear(weights, "bias"), {}
        case "AutoEncoderNew":
            return "standard", _linear(weights, "decoder.bias"), {"apply_b_dec": False}
    raise MicroscopeError("unsupported_sae", f"dictionary_learning's class '{kind}' is not supported.")


def _linear(weights: Weights, bias: str) -> dict[str, Any]:
    encoder, decoder = weights.matrices("encoder.weight", "decoder.weight")
    b_enc, b_dec = weights.take("encoder.bias", bias)
    return {"w_enc": encoder, "b_enc": b_enc, "w_dec": decoder.T, "b_dec": b_dec}


def _plain(weights: Weights) -> dict[str, Any]:
    w_enc, w_dec = weights.matrices("W_enc", "W_dec")
    b_enc, b_dec = weights.take("b_enc", "b_dec")
    return {"w_enc": w_enc.T, "b_enc": b_enc, "w_dec": w_dec, "b_dec": b_dec}


def _k(weights: Weights, trainer: Settings, hints: Hints) -> int:
    """Winners per token; the weights and the configuration both have it, and the library compares them."""
    stored, said = weights.number("k"), trainer.count("k")
    if stored is not None and (stored < 1 or stored != int(stored)):
        raise MicroscopeError("bad_sae", f"{_WEIGHTS} says k = {stored:g}, which is not a count of latents.")
    if said is not None and stored is not None and said != stored and not trainer.assumed("k"):
        raise MicroscopeError("bad_sae", f"{_CONFIG} says k = {said}, {_WEIGHTS} says {stored:g}.")
    found = said if said is not None else None if stored is None else int(stored)
    return hints.need_k(found, _CONFIG)


def _threshold(weights: Weights) -> dict[str, Tensor]:
    threshold = weights.number("threshold")
    if threshold is None or not 0 <= threshold < float("inf"):
        raise MicroscopeError(
            "bad_sae", "The BatchTopK SAE has no inference threshold yet.", "Train it further."
        )
    return {"threshold": torch.tensor(threshold), "threshold_weight": torch.ones(())}


def _ends(sizes: Any, n: int) -> tuple[int, ...]:
    """Prefix lengths of groups of the given sizes."""
    found = torch.as_tensor(sizes) if isinstance(sizes, Tensor | list | tuple) else torch.tensor([0])
    ends = [int(end) for end in found.reshape(-1).cumsum(0)]
    if not ends or int(found.min()) < 1 or ends[-1] != n:
        raise MicroscopeError("bad_sae", f"group_sizes in {_WEIGHTS} do not add up to {n} latents.")
    return tuple(ends)


def _site(trainer: Settings, buffer: Settings, folder: Path, hints: Hints) -> str:
    """The site, from the name it was given in training where that says one."""
    name, layer, side = trainer.text("submodule_name"), trainer.get("layer"), buffer.text("io", "out")
    match = re.fullmatch(rf"({'|'.join(_SITES)})_?layer_?(\d+)", name or "")
    source = f"'{folder.name}'"
    if side not in ("in", "out"):
        raise buffer.unsupported("io", side, "only SAEs that read and write one site are supported")
    if match is None:
        said = f"the {side}put of {name}" if name else ""
        return hints.need_site(None, source, said=said)
    kind = _SITES[match[1]]
    if isinstance(layer, int) and layer != int(match[2]) and hints.site is None:
        raise MicroscopeError(
            "bad_sae", f"{_CONFIG} names the site {name} and the layer {layer}.", "Say which: --site."
        )
    fits = (side == "in") == (kind in _INPUTS)
    return hints.need_site(f"{kind}.{match[2]}" if fits else None, source, said=f"the {side}put of {name}")


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write ``ae.pt`` and ``config.json``; scales are folded into the weights.

    Raises:
        MicroscopeError: ``cannot_export`` for what its classes cannot say.
    """
    plain = without_scale(sae)
    c = plain.config
    if c.is_transcoder or c.skip or c.input_norm != "none":
        raise MicroscopeError(
            "cannot_export", "dictionary_learning has no transcoders, skip connections and per-row norms."
        )
    kind, tensors = _tensors(plain)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({k: v.detach().clone() for k, v in tensors.items()}, folder / _WEIGHTS)
    site = Site.parse(c.site)
    trainer = {
        "dict_class": kind,
        "trainer_class": _TRAINERS[kind],
        "activation_dim": c.d_in,
        "dict_size": c.n_latents,
        "layer": site.layer,
        "lm_name": public_name(str(c.model.get("reference") or "")),
        "submodule_name": f"{site.kind}_layer_{site.layer}",
    }
    if "k" in tensors:
        trainer["k"] = c.k
    buffer = {
        "d_submodule": c.d_in,
        "io": "in" if site.kind in _INPUTS else "out",
        # SAELens's reader of these folders fails without the key
        "ctx_len": c.training.get("context_length"),
    }
    ours = filter_entry(c.token_filter) | assumed_entry(c.assumed)
    write_json(folder / _CONFIG, {"trainer": trainer, "buffer": buffer, **ours})


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
        "cannot_export",
        f"dictionary_learning has no class for a {c.architecture} SAE"
        f"{'' if c.apply_b_dec else ' without pre-bias'}.",
    )


def _matches(folder: Path) -> bool:
    return (folder / _WEIGHTS).is_file() and (folder / _CONFIG).is_file()


FORMAT = Format("dictionary_learning", "dictionary_learning", _matches, read, write)
