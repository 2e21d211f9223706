"""EleutherAI sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

Semantics after ``sparsify/sparse_coder.py``: ``encoder.weight [n, d]``, ``W_dec [n, d]`` (one row per
latent), ReLU then the k largest of all, or of k groups (groupmax); b_dec subtracted from the input unless it
is a transcoder, which reads the hookpoint's input and writes its output.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from microscope.errors import MicroscopeError
from microscope.formats.base import Format, Hints, read_json, read_settings, read_weights, write_json
from microscope.formats.building import build, check_sizes
from microscope.formats.filters import filter_entry, stated_filter
from microscope.formats.folding import without_scale
from microscope.formats.settings import Settings, assumed_entry, stated_assumptions
from microscope.formats.sites import End, site_of_module
from microscope.sae import SparseAutoencoder

_CONFIG, _WEIGHTS, _RUN = "cfg.json", "sae.safetensors", "config.json"
# How the width was asked for and the decoder kept in training; the tensors have both.
_DESCRIPTIVE = frozenset({"expansion_factor", "normalize_decoder"})


def read(folder: Path, hints: Hints) -> SparseAutoencoder:
    """Read one hookpoint's folder.

    Raises:
        MicroscopeError: ``unsupported_setting``, ``unknown_setting``, ``site_unknown``, ``k_unknown`` or
            ``bad_sae``.
    """
    settings, weights = read_settings(folder / _CONFIG, hints), read_weights(folder / _WEIGHTS, hints)
    activation = settings.expect(
        "activation", "topk", "groupmax", default="topk", why="this activation is not supported"
    )
    settings.expect(
        "signed", False, default=False, why="it keeps negative winners, which features here never are"
    )
    _check_multi(settings)
    k = hints.need_k(settings.count("k"), _CONFIG)
    transcoder, skip = settings.flag("transcode"), settings.flag("skip_connection")
    token_filter, assumed = stated_filter(settings), stated_assumptions(settings)
    w_enc, w_dec = weights.matrices("encoder.weight", "W_dec")
    b_enc, b_dec = weights.take("encoder.bias", "b_dec")
    check_sizes(w_enc, w_dec, d_in=(settings.count("d_in"), w_enc.shape[1]))
    if settings.get("num_latents", 0) != 0:
        check_sizes(w_enc, w_dec, num_latents=(settings.count("num_latents"), len(w_enc)))
    settings.finish(_DESCRIPTIVE)
    hookpoint, model = _hookpoint(folder), _model(folder)
    known = {"model": model or hints.model, "family": hints.family}
    end: End = "input" if transcoder else "output"
    source, read_at = f"The folder '{folder.name}'", f"the {end} of {hookpoint}"
    sae = build(
        activation,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        k=k,
        w_skip=weights.take("W_skip")[0] if skip else None,
        site=hints.need_site(site_of_module(hookpoint, end, **known), source, said=read_at),
        site_out=hints.need_site_out(
            site_of_module(hookpoint, "output", **known), source, said=f"the output of {hookpoint}"
        )
        if transcoder
        else None,
        model={"reference": model} if model else {},
        token_filter=token_filter,
        assumed=assumed,
    )
    weights.finish()
    return sae


def _check_multi(settings: Settings) -> None:
    """With ``multi_topk`` the library's encode keeps k latents and its forward pass 4·k: no one function."""
    if settings.flag("multi_topk"):
        raise MicroscopeError(
            "unsupported_setting",
            f"{_CONFIG} sets multi_topk to true: encoding then keeps k latents, the forward pass 4·k.",
            "Choose: --assume multi_topk=false reads the k of encoding, and with --assume k=… beside it as many "
            "as you say. It will be noted in the SAE.",
        )


def _hookpoint(folder: Path) -> str:
    """The module's path; training from several seeds puts each into a folder of its own inside."""
    return folder.parent.name if re.fullmatch(r"seed_?\d+", folder.name) else folder.name


def _model(folder: Path) -> str:
    """The model's name from the run's configuration, which lies one or two folders up."""
    for parent in (folder.parent, folder.parent.parent):
        if (parent / _RUN).is_file():
            try:
                name = read_json(parent / _RUN).get("model")
            except MicroscopeError:
                continue
            if isinstance(name, str):
                return name
    return ""


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write a TopK or groupmax SAE or transcoder; scales are folded into the weights.

    Raises:
        MicroscopeError: ``cannot_export`` for other architectures, which sparsify does not have.
    """
    plain = without_scale(sae)
    c = plain.config
    ranked = c.architecture in ("topk", "groupmax")
    if not ranked or c.input_norm != "none" or (not c.is_transcoder and not c.apply_b_dec):
        raise MicroscopeError(
            "cannot_export",
            f"sparsify reads TopK and groupmax SAEs with a pre-bias and without norms, not this {c.architecture} one.",
            "Choose another format.",
        )
    if c.width_out != c.d_in:
        raise MicroscopeError(
            "cannot_export",
            f"sparsify's transcoders write rows as wide as they read: this one reads {c.d_in}, writes {c.width_out}.",
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
    config: dict[str, Any] = {
        "activation": c.architecture,
        "expansion_factor": max(1, c.n_latents // c.d_in),
        "normalize_decoder": False,
        "num_latents": c.n_latents,
        "k": c.k,
        "multi_topk": False,
        "skip_connection": c.skip,
        "transcode": c.is_transcoder,
        "d_in": c.d_in,
        **filter_entry(c.token_filter),
        **assumed_entry(c.assumed),
    }
    write_json(folder / _CONFIG, config)


def _matches(folder: Path) -> bool:
    return (
        (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file() and not (folder / "sae.json").is_file()
    )


FORMAT = Format("sparsify", "EleutherAI sparsify", _matches, read, write)
