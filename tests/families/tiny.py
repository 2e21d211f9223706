"""A tiny random model of every causal family the installed transformers know, made from its own configuration.

Nothing here lists the families: the sizes of a default configuration are shrunk by their names, and of its
layers a few are kept that show every kind. :data:`EXCEPTIONS` holds what names do not tell.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.tiny_models import VOCABULARY, make_tokenizer

LAYERS = 4
WINDOW = 8
POSITIONS = 160
WIDTH = 32
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<extra0>{{ m['role'] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<extra0>assistant {% endif %}"
)

# The first pattern that matches a whole name says how small that size gets; none grows.
_SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab(_size|_size_.*)?", VOCABULARY),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts", 2),
    (r"n_group|num_expert_group|topk_group|n_groups|o_groups|mamba_n_groups", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 2 * WIDTH // 8),
    (r"qk_head_dim|mamba_headdim", 16),
    (r"index_n_heads", 16),
    (r".*num_(.*_)?experts|n_routed_experts|zero_expert_num", 4),
    (r"n(um)?_(hidden_|encoder_|decoder_)?(layers?|blocks)|(en|de)coder_layers|depth", LAYERS),
    (r"(.*_)?(num|n)_(.*_)?heads?|(.*_)?attention_heads", 4),
    (r".*max_position_embeddings|max_.*_positions|n_positions|n_ctx|max_seq_len|.*context_length", POSITIONS),
    (r"model_max_length", POSITIONS),
    (r".*(sliding_window|window_len|window_size|local_attention)(_size)?|attention_chunk_size", WINDOW),
    (r"(.*_)?chunk_size|.*chunk_length|(index_)?block_size|rel_extent|block_multiple_of", WINDOW),
    (r".*topk|index_topk_blocks", 6),
    (r"query_pre_attn_scalar", 12),
    (r"(.*_)?(intermediate|ffn|inner|ff|feed_forward|mlp)(_hidden)?_?(size|dim)?(_mlp)?", 2 * WIDTH),
    (r"d_ff|dff|d_inner|dim_ff|n_inner|mamba_d_ssm", 2 * WIDTH),
    (r"(.*_)?(head_?dim|head_size|d_head|dim_head|d_kv|kv_channels|rotary_dim)", 8),
    (r"(.*_)?(rank|d_rel|lowrank|d_state|state_size)", 8),
    (
        r"(.*_)?(hidden|embed|embedding|emb|input|output_embedding|width|d_model|n_embd|model)(_size|_dim)(_.*)?",
        WIDTH,
    ),
    (r"d_model|n_embd|lru_width|dim_model_base|word_embed_proj_dim|.*_embed_dim|prompt_mid_dim", WIDTH),
    (r"hidden_size.*", WIDTH),
    (r"max_window_layers", 2),
    (r"n_(input|output|recurrent)_layers|num_layers_per_stack", 2),
    (r"num_kv_shared_layers|first_k_dense_replace|num_dense_layers", 1),
)

# Rotations of three axes, whose parts the models know for heads of 128 only.
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
# What a type's configuration needs beyond small sizes, also within another's.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": LAYERS},
    "blt": {"use_cache": False},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    # Of tokens that are equally worth attending to it keeps those that a text's length happens to favour.
    "doge": {"keep_window_size": POSITIONS},
    "dory": {
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "dots3_note_audio_encoder": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
    "dots3_note_vision_encoder": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
    "emu3_vqgan": {"base_channels": 32, "num_res_blocks": 1},
    "emu3": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "glm4v_moe_text": {"rope_parameters": _AXES | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "glm4v_text": {"rope_parameters": _AXES},
    "glm_ocr_text": {"rope_parameters": _AXES},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus_vqgan": {"base_channels": 32, "num_res_blocks": 1, "num_embeddings": 256, "projection_dim": WIDTH},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl_text": {"rope_parameters": _AXES | {"mrope_section": [4, 2, 2]}},
    "qwen2_5_omni_text": {"rope_parameters": _AXES},
    "qwen2_5_vl_text": {"rope_parameters": _AXES},
    "qwen2_vl_text": {"rope_parameters": _AXES},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "is_decoder": True,
        "hash_seed": 0,
        "axial_pos_shape": [8, 20],
        "axial_pos_embds_dim": [16, 16],
    },
    "xlstm": {"hidden_size": 4 * WIDTH, "embedding_dim": 4 * WIDTH},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "hybrid_layer_ids": [1, 3],
        "attention_head_dim": 16,
        "mamba_headdim": 8,
    },
}

_COUNTS = re.compile(r"n(um)?_(hidden_|encoder_|decoder_)?(layers?|blocks)|(en|de)coder_layers|depth")
_GROUPED = {
    "num_key_value_heads": "num_attention_heads",
    "num_kv_heads": "num_attention_heads",
    "num_query_groups": "num_attention_heads",
    "swa_num_key_value_heads": "swa_num_attention_heads",
    "linear_num_key_heads": "linear_num_value_heads",
}
_TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "forced_bos": None, "forced_eos": None}


def types() -> tuple[str, ...]:
    """Every model type that the installed transformers have a causal language model for."""
    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def multimodal_types() -> tuple[str, ...]:
    """Every other one that reads images or sound beside text."""
    return tuple(t for t in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if t not in types())


def tiny_config(model_type: str) -> PretrainedConfig:
    """The default configuration of a model type, shrunk."""
    return _shrunk(CONFIG_MAPPING[model_type]())


def make_any(model_type: str, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a tiny model of a type and its tokenizer into a folder, as a user would have them.

    Args:
        settings: further settings of the configuration.

    Raises:
        Exception: whatever ``transformers`` raises where it cannot build the type from its configuration.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    if settings:
        config = type(config)(**config.to_dict() | settings)
    model = auto_class(model_type).from_config(config, dtype=torch.float32)
    randomise(model)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def buildable() -> dict[str, str | None]:
    """Every model type, with what keeps it from being built here, None where nothing does."""
    found: dict[str, str | None] = {}
    for model_type in types():
        try:
            auto_class(model_type).from_config(tiny_config(model_type), dtype=torch.float32)
        except Exception as error:
            found[model_type] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            found[model_type] = None
    return found


def auto_class(model_type: str) -> type[_BaseAutoModelClass]:
    """What writes the checkpoints people have: of a multimodal type, all of it, not its text part alone."""
    multimodal = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if multimodal else AutoModelForCausalLM


def randomise(model: nn.Module) -> None:
    """Random weights of a usable size; gains and biases are moved off their trivial defaults."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.1)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)


def _shrunk(config: PretrainedConfig) -> PretrainedConfig:
    values = _values(config)
    count = next((value for name, value in values.items() if _COUNTS.fullmatch(name) and value), 0)
    chosen = _layers_kept(values, count)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if _nested(value):
            small[name] = _shrunk(value)
        elif _COUNTS.fullmatch(name) and value:
            small[name] = len(chosen) if value == count else min(value, LAYERS)
        elif name.endswith(("token_id", "token_index", "token_ids")) and value is not None:
            small[name] = _TOKENS.get(name.removesuffix("_token_id"), VOCABULARY - 1)
        elif name == "head_dim" and value:
            small[name] = (
                8
                if value == values.get("qk_rope_head_dim")
                or value * values.get("num_attention_heads", 0) == values.get("hidden_size")
                else 16
            )
        elif name in _GROUPED and value:
            small[name] = {1: 1, values.get(_GROUPED[name]): 4}.get(value, 2)
        elif name == "per_layer_config":
            small[name] = {
                place: {key: _smaller(key, size) for key, size in value[f"{layer:02}"].items()}
                for place, layer in enumerate(chosen)
                if f"{layer:02}" in value
            }
        elif isinstance(value, int) and not isinstance(value, bool):
            small[name] = _smaller(name, value)
        elif _numbers_layers(value):
            small[name] = [place for place, layer in enumerate(chosen) if layer in value]
        elif isinstance(value, list) and len(value) == count:
            small[name] = [_smaller(name.removesuffix("_per_layer"), value[layer]) for layer in chosen]
    for name, value in EXCEPTIONS.get(config.model_type, {}).items():
        if _nested(small.get(name)):
            small[name] = type(small[name])(**small[name].to_dict() | value)
        else:
            small[name] = value
    return type(config)(
        **{name: value for name, value in small.items() if _nested(value) or value != values.get(name)}
    )


def _values(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration's settings; configurations within it stay what they are."""
    parts = {name: part for name, part in vars(config).items() if _nested(part)}
    return config.to_dict() | parts


def _nested(value: Any) -> bool:
    """Whether a value is a configuration itself."""
    return isinstance(value, PretrainedConfig)


def _layers_kept(values: dict[str, Any], count: int) -> list[int]:
    """Of the layers of a default configuration, in their order, so many that every kind appears."""
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == count]
    kinds: dict[str, int] = {}
    each = values.get("per_layer_config") or {}
    for layer in range(count):
        kind = [value[layer] for value in lists if not _numbers_layers(value)] + [each.get(f"{layer:02}")]
        kinds.setdefault(str(kind), layer)
    kept = list(kinds.values())
    kept += [layer for layer in range(count) if layer not in kept][: max(0, LAYERS - len(kept))]
    return sorted(kept)


def _numbers_layers(value: Any) -> bool:
    """Whether a list holds numbers of layers."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) for item in value)
        and sorted(set(value)) == value
    )


def _smaller(name: str, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value
