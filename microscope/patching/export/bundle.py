"""Runtime bundle: the few rows the edits need, a description of them, and a short loader. Exact for any plan.

An SAE whose latents have thresholds contributes only the edited rows; one that picks the k largest needs its
whole encoder, because a latent fires by comparison with the others.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.params import Edit, EditPlan, edit_kinds
from microscope.patching.apply import Saes, edits_by_layer
from microscope.patching.hooks import deltas_of
from microscope.patching.mechanisms import StreamKind
from microscope.patching.program import Adapters, span_of
from microscope.sae import SparseAutoencoder

_LOADER = Path(__file__).with_name("load_patch.py")
# Architectures in which latents compete that the loader computes. A subclass may choose its winners otherwise.
_RANKED = ("topk", "groupmax")


def write_bundle(folder: Path, loaded: LoadedModel, plan: EditPlan, saes: Saes, adapters: Adapters) -> None:
    """Write ``patch.json``, ``rows.safetensors`` and ``load_patch.py``."""
    tensors: dict[str, Tensor] = {}
    sites: dict[str, list[dict[str, Any]]] = {}
    foreign: set[str] = set()
    for layer, site in edits_by_layer(plan).items():
        sites[str(layer)] = [
            _describe(edit, kind, saes[edit.sae_needed], f"{layer}.{number}", tensors)
            for number, (edit, kind) in enumerate(zip(site.edits, site.kinds, strict=True))
        ]
        foreign |= {kind.name for kind in site.kinds if kind.package}
    deltas = deltas_of(plan, adapters)
    for number, delta in enumerate(deltas.values()):
        tensors[f"delta.{number}.A"], tensors[f"delta.{number}.B"] = delta.a, delta.b
    span = span_of(plan, saes)
    if span is not None:
        tensors["span"] = span
    spec: dict[str, Any] = {
        "format": "microscope-bundle",
        "version": 1,
        "base": {
            "model_type": loaded.config.model_type,
            "d_model": loaded.d_model,
            "hidden_size": getattr(loaded.config, "hidden_size", loaded.d_model),
            "n_layers": loaded.n_layers,
            "fingerprint": loaded.fingerprint,
        },
        "special_tokens": sorted(loaded.tokenizer.all_special_ids),
        "blocks": loaded.family.blocks,
        "writers": loaded.family.writers(loaded.n_layers) if span is not None else [],
        "sites": sites,
        "deltas": list(deltas),
    }
    if loaded.part_of is not None:
        part = loaded.part_of
        spec["whole"] = {
            "model_type": part.whole,
            "blocks": part.in_whole(loaded.family.blocks),
            "writers": [part.in_whole(path) for path in spec["writers"]],
            "deltas": [part.in_whole(path) for path in deltas],
        }
    plain = {name: t.detach().float().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(plain, folder / "rows.safetensors")
    (folder / "patch.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    (folder / _LOADER.name).write_text(loader(foreign), encoding="utf-8")


def loader(foreign: Collection[str] = ()) -> str:
    """``load_patch.py``: behind the loader the arithmetic of this program's kinds of edits and of some others.

    Raises:
        MicroscopeError: what :meth:`StreamKind.source` raises.
    """
    parts = [_LOADER.read_text(encoding="utf-8").rstrip("\n")]
    for name, kind in edit_kinds().items():
        if isinstance(kind, StreamKind) and (name in foreign or not kind.package):
            parts.append(f'{kind.source()}\n\n\nCHANGES["{name}"] = change_{name}')
    return "\n\n\n".join(parts) + "\n"


def _describe(
    edit: Edit, kind: StreamKind, sae: SparseAutoencoder, name: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "kind": edit.kind,
        "amount": kind.amount(edit),
        "positions": msgspec.to_builtins(edit.positions),
        "max_norm": sae.config.token_filter.max_norm,
    }
    if kind.reads == "direction":
        tensors[out.setdefault("row", f"{name}.d")] = sae.W_dec[edit.index]
        return out
    whole = kind.reads == "reconstruction" or _needs_all(sae)
    rows = slice(None) if whole else slice(edit.index, edit.index + 1)
    # Edits of one autoencoder share its matrices.
    prefix = f"sae.{edit.sae_needed}" if whole else name
    described: dict[str, Any] = {
        "scale": sae.config.scale,
        "output_scale": sae.config.output_scale,
        "input_norm": sae.config.input_norm,
        "W": f"{prefix}.W",
        "b": f"{prefix}.b",
    }
    tensors[described["W"]] = sae.W_enc[rows]
    tensors[described["b"]] = sae.encoder_bias()[rows]
    if _needs_all(sae):
        described |= {"gate": sae.config.architecture, "k": sae.config.k}
    else:
        described |= {"gate": "threshold", "gate_rows": f"{prefix}.gate"}
        tensors[described["gate_rows"]] = threshold_form(sae)[:, rows]
    out["sae"] = described
    if kind.reads == "reconstruction":
        described |= {"W_dec": f"{prefix}.W_dec", "b_dec": f"{prefix}.b_dec"}
        tensors[described["W_dec"]], tensors[described["b_dec"]] = sae.W_dec, sae.b_dec
        return out
    out["column"] = edit.index if whole else 0
    tensors[out.setdefault("row", f"{name}.d")] = sae.W_dec[edit.index]
    return out


def _needs_all(sae: SparseAutoencoder) -> bool:
    return sae.config.architecture in _RANKED


def threshold_form(sae: SparseAutoencoder) -> Tensor:
    """Rows m, c, θ ``[3, latents]`` of ``f = relu(m·pre + c)`` where ``pre > θ``, else 0.

    Raises:
        MicroscopeError: ``cannot_export`` for an SAE that has no such form.
    """
    form = sae.threshold_form()
    if form is None:
        raise MicroscopeError(
            "cannot_export",
            f"A bundle cannot compute features of the architecture '{sae.config.architecture}'.",
            "Its class needs a threshold_form; edits that only need decoder directions can be exported.",
        )
    return torch.stack([row.detach().cpu().expand(sae.config.n_latents) for row in form])
