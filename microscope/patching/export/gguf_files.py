"""Files for llama.cpp: control vectors and LoRA adapters.

Layout after llama.cpp's readers (``llama-adapter.cpp``, ``common_control_vector_load``) and its converter:
a control vector has ``direction.{il}`` of length n_embd in float32 for il ≥ 1, added to the output of block
il, and ``controlvector.model_hint`` and ``.layer_count``; an adapter has ``general.type`` adapter,
``adapter.type`` lora, ``adapter.lora.alpha``, and ``blk.{i}.….weight.lora_a`` ``[r, in]`` / ``.lora_b``
``[out, r]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.params.targets import GGUF_ARCHITECTURES, gguf_module
from microscope.patching.adapters import LowRank, same_rank

CONTROL_VECTOR, LORA = "control_vector.gguf", "lora.gguf"


def write_control_vector(folder: Path, loaded: LoadedModel, constants: Mapping[int, Tensor]) -> None:
    """Write ``control_vector.gguf`` with what is added to the outputs of blocks, ``[d]`` each."""
    writer = gguf.GGUFWriter(folder / CONTROL_VECTOR, "controlvector")
    writer.add_string("controlvector.model_hint", GGUF_ARCHITECTURES[loaded.config.model_type])
    writer.add_uint32("controlvector.layer_count", len(constants))
    for layer in sorted(constants):
        writer.add_tensor(f"direction.{layer}", _array(constants[layer]))
    _finish(writer)


def write_lora(folder: Path, loaded: LoadedModel, deltas: Mapping[str, LowRank]) -> int:
    """Write ``lora.gguf``; returns the rank.

    Raises:
        MicroscopeError: ``not_possible`` for a module llama.cpp stores differently.
    """
    even = same_rank(deltas)
    rank = len(next(iter(even.values())).a)
    writer = gguf.GGUFWriter(folder / LORA, GGUF_ARCHITECTURES[loaded.config.model_type])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for path, delta in even.items():
        name = gguf_module(path)
        if not name:
            raise MicroscopeError(
                "not_possible",
                f"llama.cpp stores {path} permuted, or under no name of its own.",
                "Merge first, then convert the merged checkpoint.",
            )
        writer.add_tensor(f"{name}.lora_a", _array(delta.a))
        writer.add_tensor(f"{name}.lora_b", _array(delta.b))
    _finish(writer)
    return rank


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
