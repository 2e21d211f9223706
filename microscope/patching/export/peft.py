"""A LoRA directory as PEFT writes it, kept to what every loader of such directories understands.

Uniform rank, ``lora_alpha`` equal to it (so the scale is one whatever the loader makes of it), no biases, no
patterns, no variants. Several edits on one module are more columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.patching.adapters import LowRank
from microscope.patching.fitting.fit import same_rank
from microscope.patching.weights import WeightChange, as_low_rank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_peft(folder: Path, loaded: LoadedModel, change: WeightChange, base_name: str) -> int:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; returns the rank."""
    deltas = same_rank(as_low_rank(change, loaded))
    rank = len(next(iter(deltas.values())).a)
    tensors: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = delta.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = delta.b
    modules = sorted(deltas)
    if change.span is not None:
        path, delta = _embedding(loaded, change.span, rank)
        # Of an embedding PEFT stores A as [r, vocabulary], B as [d, r], without ".weight".
        tensors[f"base_model.model.{path}.lora_embedding_A"] = delta.a
        tensors[f"base_model.model.{path}.lora_embedding_B"] = delta.b
        modules.append(path)
    plain = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    config = _config(rank, modules, base_name)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return rank


def _embedding(loaded: LoadedModel, span: Tensor, rank: int) -> tuple[str, LowRank]:
    embedding: Any = loaded.model.get_input_embeddings()
    path = next(name for name, module in loaded.model.named_modules() if module is embedding)
    delta = LowRank((embedding.weight.float() @ span).T, -span)
    if rank < span.shape[1]:
        raise MicroscopeError("bad_rank", "The embedding needs a higher rank than the other modules have.")
    padded = same_rank({path: delta, "": LowRank(delta.a.new_zeros(rank, 1), delta.a.new_zeros(1, rank))})
    return path, padded[path]


def _config(rank: int, modules: list[str], base_name: str) -> Mapping[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "inference_mode": True,
        # full paths, so that no module of the same name elsewhere is adapted
        "target_modules": modules,
    }
