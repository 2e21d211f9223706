"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, as written for inference and by training.

Semantics after ``sae_lens/saes/*.py``: ``W_enc [d, n]``, ``W_dec [n, d]``; JumpReLU is
``relu(pre)·[pre > θ]``; an SAE with ``rescale_acts_by_decoder_norm`` ranks and reports ``pre·‖W_dec‖``.
What is beside the weights of a checkpoint (scale, whitening) is folded as SAELens does it at the end of
training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_settings, read_weights, write_json
from microscope.formats.building import build, check_sizes
from microscope.formats.filters import filter_entry
from microscope.formats.folding import (
    fold_centring,
    fold_whitening,
    gate_by_rescaled,
    log_thresholds,
    thresholds,
    without_scale,
)
from microscope.formats.saelens_config import (
    BATCHED,
    NORMS,
    SCALED,
    WHITENED,
    SaeLensConfig,
    understand,
)
from microscope.formats.settings import assumed_entry
from microscope.formats.weights import Weights
from microscope.models import FAMILIES
from microscope.naming import public_name
from microscope.params import Site
from microscope.sae import SaeConfig, SparseAutoencoder
from microscope.sae.architectures.batchtopk import BatchTopKSae
from microscope.sae.architectures.gated import GatedSae
from microscope.sae.architectures.groupmax import GroupMaxSae
from microscope.sae.architectures.standard import StandardSae
from microscope.sae.architectures.topk import TopKSae

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER, _WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
# Training keeps the firing rates beside the weights of some old files.
_HARMLESS_TENSORS = ("sparsity", "log_feature_sparsity")


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read an SAE or transcoder, for inference or a checkpoint of training.

    Raises:
        MicroscopeError: those of :func:`understand`, ``scale_unknown``, ``unknown_setting`` for a tensor
            nobody asks for, or ``bad_sae``.
    """
    config = understand(read_settings(folder / _CONFIG, hints), hints)
    weights = read_weights(folder / _WEIGHTS, hints)
    w_enc, w_dec = weights.matrices("W_enc", "W_dec")
    (b_dec,) = weights.take("b_dec")
    d_in, d_out = len(w_enc), w_dec.shape[1]
    check_sizes(w_enc.T, w_dec, d_in=(config.d_in, d_in), d_sae=(config.d_sae, len(w_dec)))
    check_sizes(w_enc.T, w_dec, d_out=(config.d_out, d_out))
    arch, own = _own_tensors(config, weights)
    skip = config.kind in ("skip_transcoder", "jumprelu_skip_transcoder")
    shared: dict[str, Any] = {} if config.site_out else {"apply_b_dec": config.apply_b_dec}
    sae = build(
        arch,
        w_enc=w_enc.T,
        w_dec=_finetuned(config, weights, w_dec),
        b_dec=b_dec,
        k=config.k,
        w_skip=weights.take("W_skip")[0] if skip else None,
        site=config.site,
        site_out=config.site_out,
        input_norm=NORMS.get(config.norm, "none"),
        groups=config.groups,
        model=config.model,
        assumed=config.assumed,
        token_filter=config.token_filter,
        **shared,
        **own,
    )
    weights.finish(*_HARMLESS_TENSORS)
    _fold(sae, config, folder, hints)
    return sae


def _own_tensors(config: SaeLensConfig, weights: Weights) -> tuple[str, dict[str, Any]]:
    """Our name of the architecture, its encoder bias and what only it has."""
    if config.kind == "gated":
        b_gate, b_mag, r_mag = weights.take("b_gate", "b_mag", "r_mag")
        return "gated", {"b_enc": b_gate, "extra": {"b_mag": b_mag, "r_mag": r_mag}}
    (b_enc,) = weights.take("b_enc")
    if config.kind.startswith("jumprelu"):
        logarithm = weights.get("log_threshold")
        own = logarithm.exp() if logarithm is not None else weights.take("threshold")[0]
        return "jumprelu", {"b_enc": b_enc, "extra": {"log_threshold": log_thresholds(own)}}
    if config.kind in BATCHED:
        threshold = weights.number("topk_threshold")
        if threshold is None or not 0 < threshold < float("inf"):
            raise MicroscopeError(
                "bad_sae",
                f"The {config.kind} checkpoint has no threshold yet, so what fires depends on the batch.",
                "Take a later checkpoint.",
            )
        extra = {"threshold": torch.tensor(threshold), "threshold_weight": torch.ones(())}
        name = "matryoshka" if config.kind.startswith("matryoshka") else "batchtopk"
        return name, {"b_enc": b_enc, "extra": extra}
    return ("topk" if config.kind == "topk" else "standard"), {"b_enc": b_enc}


def _finetuned(config: SaeLensConfig, weights: Weights, w_dec: Tensor) -> Tensor:
    """Decoder rows times the factors of a finetuning, which old versions multiply activations with."""
    names = [name for name in ("finetuning_scaling_factor", "scaling_factor") if name in weights]
    factors = [weights.take(name)[0] for name in names]
    neutral = all(bool((factor == 1).all()) for factor in factors)
    if config.finetuned and len(factors) != 1:
        raise MicroscopeError(
            "bad_sae",
            f"{_CONFIG} sets finetuning_scaling_factor, and {_WEIGHTS} has {len(factors)} tensors of that kind.",
        )
    if not config.finetuned:
        if not neutral:
            raise MicroscopeError(
                "unsupported_setting",
                f"{_WEIGHTS} holds {names[0]}, and {_CONFIG} does not say that it is to be applied.",
                "Say it: --assume finetuning_scaling_factor=true. It will be noted in the SAE.",
            )
        return w_dec
    if factors[0].shape != (len(w_dec),):
        raise MicroscopeError(
            "bad_sae", f"{names[0]} has shape {list(factors[0].shape)}, not [{len(w_dec)}]."
        )
    return w_dec * factors[0][:, None]


@torch.no_grad()
def _fold(sae: SparseAutoencoder, config: SaeLensConfig, folder: Path, hints: Hints) -> None:
    """Absorb decoder norms, the checkpoint's scale or whitening, and the model's centring, in place."""
    scale = _scale(folder, hints) if config.norm == SCALED else 1.0
    if config.by_norm:
        # SAELens divides W_dec by the scale before it takes its norms
        gate_by_rescaled(sae, sae.W_dec.norm(dim=1).clamp_min(1e-8) / scale)
    if config.by_norm and isinstance(sae, BatchTopKSae):
        sae.threshold.div_(scale)
    sae.config.scale = scale
    if config.norm == WHITENED:
        whitening = _whitening(folder, hints, sae.config.d_in)
        if config.site_out:
            raise MicroscopeError("unsupported_sae", "A transcoder of whitened inputs is not supported.")
        fold_whitening(sae, *whitening)
    if config.centred:
        if config.norm not in ("none", SCALED):
            raise MicroscopeError(
                "unsupported_setting",
                f"{_CONFIG} asks for centred rows and normalises them ({config.norm}): both are not supported.",
            )
        fold_centring(sae)


def _scale(folder: Path, hints: Hints) -> float:
    """The factor of the inputs; checkpoints keep it beside the weights, and without it nothing can be read."""
    path = folder / _SCALER
    settings = read_settings(path, hints) if path.is_file() else None
    factor = settings.number("scaling_factor") if settings else None
    if factor is None or factor <= 0:
        raise MicroscopeError(
            "scale_unknown",
            "The SAE expects inputs scaled by a factor that is not in its files.",
            f"Export it for inference in SAELens, or put the factor into {_SCALER} as scaling_factor.",
        )
    return factor


def _whitening(folder: Path, hints: Hints, d: int) -> list[Tensor]:
    path = folder / _WHITENING
    if not path.is_file():
        raise MicroscopeError(
            "scale_unknown",
            f"The SAE expects whitened inputs, and {_WHITENING} is not beside it.",
            "Copy that file from the checkpoint, or export the SAE for inference in SAELens.",
        )
    weights = read_weights(path, hints)
    found = weights.take("mean", "matrix", "inverse_matrix", exactly=True)
    if [tuple(t.shape) for t in found] != [(d,), (d, d), (d, d)]:
        raise MicroscopeError("bad_sae", f"{_WHITENING} is not for rows of width {d}.")
    return found


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write an inference SAE that ``SAE.load_from_disk`` loads; scales are folded into the weights.

    Raises:
        MicroscopeError: ``cannot_export`` for what SAELens has no architecture for.
    """
    plain = without_scale(sae)
    c = plain.config
    site = Site.parse(c.site)
    if isinstance(plain, GroupMaxSae) or (c.skip and not c.is_transcoder):
        what = "groupmax SAEs" if isinstance(plain, GroupMaxSae) else "SAEs with a skip connection"
        raise MicroscopeError("cannot_export", f"SAELens has no {what}.", "Export it for sparsify.")
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
        "normalize_activations": {v: k for k, v in NORMS.items()}[c.input_norm],
        # its hook has the heads apart
        "reshape_activations": "hook_z" if site.kind == "attn_z" and not c.is_transcoder else "none",
        "metadata": _metadata(plain),
    }
    match plain:
        case TopKSae():
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


def _metadata(sae: SparseAutoencoder) -> dict[str, Any]:
    """What is known about the model and the text; its users' programs ask for these keys."""
    c = sae.config
    out = {
        "model_name": public_name(str(c.model.get("reference") or "")),
        "hook_name": Site.parse(c.site).transformer_lens_name,
        "hf_hook_name": _module(c, c.site),
        "sae_lens_version": "6.0.0",
        "context_size": c.training.get("context_length"),
        "prepend_bos": c.training.get("prepends_bos"),
        "exclude_special_tokens": c.token_filter.exclude_special,
        **filter_entry(c.token_filter),
        **assumed_entry(c.assumed),
    }
    if c.site_out:
        out["hook_name_out"] = Site.parse(c.site_out).transformer_lens_name
        out["hf_hook_name_out"] = _module(c, c.site_out)
    return {key: value for key, value in out.items() if value is not None}


def _module(config: SaeConfig, site: str) -> str | None:
    """The site as a module path of ``transformers``, where the model's family is known."""
    family = next((f for f in FAMILIES if f.name == config.model.get("family")), None)
    try:
        tap = family.tap(Site.parse(site)) if family else None
    except MicroscopeError:
        return None
    return None if tap is None else tap.path if tap.side == "output" else f"{tap.path}.input"


def _matches(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


FORMAT = Format("saelens", "SAELens v6", _matches, read, write)
