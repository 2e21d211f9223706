"""Tiny models of several architectures as GGUF, with the changes that llama.cpp's converter makes to weights.

Names are those of the ``gguf`` library; what is done to the numbers is written here a second time, so that a
conversion back that leaves something out shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.constants import MODEL_ARCH_NAMES
from torch import Tensor, nn

from tests.families.tiny import randomise
from tests.tiny_gguf import SETTINGS, VOCAB

WIDTH, BLOCKS, HEADS, SHARED, INNER, CONTEXT = 32, 2, 4, 2, 64, 96
Tensors = Iterator[tuple[str, Tensor]]
_TOKENIZER = {name: value for name, value in SETTINGS.items() if name.startswith("tokenizer.")} | {
    "tokenizer.ggml.scores": [0.0] * VOCAB,
    "tokenizer.ggml.padding_token_id": 0,
}


def _plain(name: str, t: Tensor, _config: Any) -> Tensors:
    yield name, t


def _one_more(name: str, t: Tensor, _config: Any) -> Tensors:
    """Gains are stored as what is multiplied by, not as what is added to one."""
    yield name, t + 1 if name.endswith("norm.weight") else t


def _rows_of_pairs(name: str, t: Tensor, config: Any) -> Tensors:
    """Rows of queries and keys by pairs that are rotated together, not by halves of a head."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            t = t.reshape(count, 2, len(t) // count // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
    yield name, t


def _columns_first(name: str, t: Tensor, _config: Any) -> Tensors:
    matrices = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    yield name, t.T.contiguous() if name.endswith(matrices) else t


def _queries_first(name: str, t: Tensor, config: Any) -> Tensors:
    """All queries, then all keys, then all values, instead of three by three of each head."""
    if "attn_qkv" in name:
        t = t.reshape(config.n_head, 3, -1, *t.shape[1:]).swapaxes(0, 1).reshape(t.shape)
    yield name, t


def _states(name: str, t: Tensor, _config: Any) -> Tensors:
    if name.endswith("ssm_a"):
        t = -t.exp()
    yield name, t.squeeze(1) if "ssm_conv1d.weight" in name else t


def _gates_apart(name: str, t: Tensor, _config: Any) -> Tensors:
    if "ffn_gate_up_exps" in name:
        gate, up = t.chunk(2, 1)
        yield name.replace("gate_up", "gate"), gate
        yield name.replace("gate_up", "up"), up
    else:
        yield name, t


def _one_gate(name: str, t: Tensor, config: Any) -> Tensors:
    yield from _gates_apart(name, t.squeeze(0) if "ffn_gate_inp_shexp" in name else t, config)


def _common(**more: Any) -> dict[str, Any]:
    return {
        "block_count": BLOCKS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": SHARED,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        "vocab_size": VOCAB,
    } | more


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 768}
_OF_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768}


@dataclass(frozen=True)
class Kind:
    """One architecture: its class of configuration, settings there and in the file, and changes of its weights."""

    config: str
    sizes: dict[str, Any]
    settings: dict[str, Any]
    stored: Callable[[str, Tensor, Any], Tensors] = _plain
    names: dict[str, str] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "llama": Kind("LlamaConfig", _SIZES, _common(**{"rope.dimension_count": WIDTH // HEADS}), _rows_of_pairs),
    "qwen2": Kind("Qwen2Config", _SIZES, _common()),
    "qwen3": Kind(
        "Qwen3Config",
        _SIZES | {"head_dim": 128},
        _common(**{"attention.key_length": 128, "attention.value_length": 128}),
    ),
    "gemma2": Kind(
        "Gemma2Config",
        _SIZES | {"head_dim": 16, "sliding_window": 8, "tie_word_embeddings": True},
        _common(
            **{
                "attention.key_length": 16,
                "attention.value_length": 16,
                "attention.sliding_window": 8,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            }
        ),
        _one_more,
    ),
    "gemma3": Kind(
        "Gemma3TextConfig",
        _SIZES | {"head_dim": 16, "sliding_window": 8, "tie_word_embeddings": True, "num_hidden_layers": 6},
        _common(
            **{
                "block_count": 6,
                "attention.key_length": 16,
                "attention.value_length": 16,
                "attention.sliding_window": 8,
                "rope.freq_base": 1_000_000.0,
            }
        ),
        _one_more,
    ),
    "phi3": Kind("Phi3Config", _SIZES, _common(**{"rope.dimension_count": WIDTH // HEADS})),
    "stablelm": Kind(
        "StableLmConfig",
        _SIZES | {"layer_norm_eps": 1e-5},
        _without(_common(), "attention.layer_norm_rms_epsilon", "rope.freq_base")
        | {
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": WIDTH // HEADS // 4,
            "use_parallel_residual": False,
        },
    ),
    "starcoder2": Kind(
        "Starcoder2Config",
        _SIZES | {"norm_epsilon": 1e-5, "tie_word_embeddings": True},
        _without(_common(), "attention.layer_norm_rms_epsilon") | {"attention.layer_norm_epsilon": 1e-5},
    ),
    "nemotron": Kind(
        "NemotronConfig",
        _SIZES | {"norm_eps": 1e-5},
        _common(**{"rope.dimension_count": WIDTH // HEADS // 2}),
        _one_more,
    ),
    "bloom": Kind(
        "BloomConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "n_layer": BLOCKS,
            "n_head": HEADS,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        {
            "block_count": BLOCKS,
            "embedding_length": WIDTH,
            "feed_forward_length": 4 * WIDTH,
            "attention.head_count": HEADS,
            "attention.head_count_kv": HEADS,
            "attention.layer_norm_epsilon": 1e-5,
            "context_length": CONTEXT,
        },
        _queries_first,
    ),
    "gpt2": Kind(
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 1024},
        {
            "block_count": BLOCKS,
            "context_length": 1024,
            "embedding_length": WIDTH,
            "feed_forward_length": 4 * WIDTH,
            "attention.head_count": HEADS,
            "attention.layer_norm_epsilon": 1e-5,
        },
        _columns_first,
    ),
    "mamba": Kind(
        "MambaConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "state_size": 8,
            "time_step_rank": 4,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
        },
        {
            "context_length": 2**20,
            "embedding_length": WIDTH,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "block_count": BLOCKS,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * WIDTH,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 4,
            "ssm.dt_b_c_rms": False,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": VOCAB,
        },
        _states,
    ),
    "falcon": Kind(
        "FalconConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": CONTEXT,
        },
        _without(_common(), "attention.layer_norm_rms_epsilon", "rope.freq_base")
        | {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.head_count_kv": 1,
            "feed_forward_length": 4 * WIDTH,
        },
    ),
    "qwen2moe": Kind(
        "Qwen2MoeConfig",
        _SIZES
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        _common(
            expert_count=4,
            expert_used_count=2,
            expert_feed_forward_length=1408,
            expert_shared_feed_forward_length=5632,
        ),
        _one_gate,
        {"mlp.experts.gate_up_proj": "ffn_gate_up_exps", "mlp.experts.down_proj": "ffn_down_exps"},
    ),
    "qwen3moe": Kind(
        "Qwen3MoeConfig",
        _SIZES | _OF_EXPERTS | {"head_dim": 128, "norm_topk_prob": True},
        _common(**_EXPERTS | {"attention.key_length": 128, "attention.value_length": 128}),
        _gates_apart,
        {"mlp.experts.gate_up_proj": "ffn_gate_up_exps", "mlp.experts.down_proj": "ffn_down_exps"},
    ),
}


def made(kind: str, path: Path, *, more: dict[str, Any] | None = None, without: str = "") -> nn.Module:
    """Write a tiny model of an architecture and return the model that was written.

    Args:
        more: further settings, without the architecture before them; None leaves one out.
        without: a tensor to leave out.
    """
    about = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, about.config)(**about.sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model)
    if kind == "mamba":  # decay must stay positive, as its logarithm is what is kept
        with torch.no_grad():
            for block in model.backbone.layers:
                block.mixer.A_log.copy_(torch.rand_like(block.mixer.A_log))
    writer = gguf.GGUFWriter(path, kind)
    settings = {f"{kind}.{name}": value for name, value in (about.settings | (more or {})).items()}
    for name, value in (settings | _TOKENIZER).items():
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
    for name, t in _stored(kind, model):
        if name != without:
            writer.add_tensor(name, np.ascontiguousarray(t.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _stored(kind: str, model: Any) -> Tensors:
    about = KINDS[kind]
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == kind)
    blocks = len(list(_blocks(model)))
    names = gguf.get_tensor_name_map(architecture, blocks)
    weights = dict(model.named_parameters())  # tied ones once
    for name, t in weights.items():
        own = next((part for part in about.names if part in name), None)
        if own is not None:
            stored = f"blk.{name.split('.')[2]}.{about.names[own]}.weight"
        else:
            stem, _, end = name.rpartition(".")
            found = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
            stored = f"{found}.{end}" if found and end in ("weight", "bias") else names.get_name(name)
        assert stored, f"{kind} has no name for {name}"
        yield from about.stored(stored, t, model.config)


def _blocks(model: Any) -> Iterator[nn.Module]:
    return next(iter(module) for module in model.modules() if isinstance(module, nn.ModuleList))
