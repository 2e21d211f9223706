"""A model as llama.cpp's converter lays it out, without a tokenizer: tests speak in token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from torch import Tensor, nn

from microscope.models import LoadedModel
from microscope.params.targets import GGUF_ARCHITECTURES

F32 = gguf.GGMLQuantizationType.F32

# What llama.cpp takes for granted of Gemma: queries scaled by the head's size, a head tied to the embedding.
ASSUMED: dict[str, dict[str, Any]] = {
    kind: {"query_pre_attn_scalar": 16, "tie_word_embeddings": True} for kind in ("gemma2", "gemma3")
}


class TableGelu(nn.Module):
    """GELU as llama.cpp has it on the CPU whatever the model says: tanh, from a table in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def use_table_gelu(model: nn.Module) -> int:
    """Put it in the place of every GELU of a model, so that nothing else is left to differ; how many."""
    gelus = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if "gelu" in type(child).__name__.lower()
    ]
    for module, name in gelus:
        setattr(module, name, TableGelu())
    return len(gelus)


def write_base(loaded: LoadedModel, file: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Write a model to ``file``, its matrices in ``kind``."""
    config, name = loaded.config, GGUF_ARCHITECTURES[loaded.config.model_type]
    writer = gguf.GGUFWriter(file, name)
    _write_sizes(writer, config, name)
    arch = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for path, tensor in loaded.model.state_dict().items():
        if path == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(path, try_suffixes=(".weight", ".bias"))
        assert target, path
        values = _laid_out(tensor.float().numpy(), path, config, name)
        stored = kind if values.ndim == 2 else F32
        writer.add_tensor(target, quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _write_sizes(writer: gguf.GGUFWriter, config: Any, name: str) -> None:
    heads, width = config.num_attention_heads, _head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    if name in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(config.layer_norm_epsilon if name == "gpt2" else config.layer_norm_eps)
        if name == "gptneox":
            rotary = config.rope_parameters["partial_rotary_factor"]
            writer.add_rope_dimension_count(int(rotary * width))
            writer.add_parallel_residual(config.use_parallel_residual)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    if name == "gemma3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if name in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(1 + config.layer_types.index("full_attention"))
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _laid_out(values: np.ndarray, path: str, config: Any, name: str) -> np.ndarray:
    """One weight with rows and columns where llama.cpp has them."""
    heads, width = config.num_attention_heads, _head_width(config)
    if name in ("gemma2", "gemma3") and path.endswith("norm.weight"):
        return values + 1
    if name == "gpt2" and ".h." in path and values.ndim == 2:
        return values.T
    if name == "gptneox" and "query_key_value" in path:
        # Query, key and value of every head one after another there; all queries first here.
        return values.reshape(heads, 3, width, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    if name == "llama" and ("q_proj" in path or "k_proj" in path):
        # Interleaved rotary pairs in the llama family, halves elsewhere and in transformers.
        n = heads if "q_proj" in path else config.num_key_value_heads
        halves = values.reshape(n, 2, width // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values
