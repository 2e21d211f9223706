"""What a GGUF file says of its model, against what its conversion keeps of that.

``transformers`` converts the settings and tensors it knows and passes over the others. A setting that is
lost is a model of another function, so each must be one that is converted, one that the converted model has
with the same value, or one that changes nothing; and every tensor must be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from microscope.errors import MicroscopeError
from microscope.quarantine.gguf import GgufHeader

# Settings that change nothing that is computed here: names, layouts of older writers, ends of training texts.
_IDLE = re.compile(
    r"context_length|block_count|vocab_size|tensor_data_layout|rope\.scaling\.(type|finetuned)|pooling_type"
    r"|expert_(count|used_count)"
)
# Depths of Gemma models whose attention is scaled by another number than the width of a head, which no setting says.
_OTHER_SCALE = {"gemma2": 46, "gemma3": 62}


def _rotated(config: Any) -> Any:
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor")
    share = share or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(_head(config) * share)


def _head(config: Any) -> Any:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _theta(config: Any) -> Any:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_theta") or (rope.get("full_attention") or {}).get("rope_theta")


def _epsilon(config: Any) -> Any:
    names = ("norm_eps", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)


# Settings that ``transformers`` passes over, and what the converted model must have instead.
_SAME: dict[str, Callable[[Any], Any]] = {
    "rope.dimension_count": _rotated,
    "rope.freq_base": _theta,
    "attention.key_length": _head,
    "attention.value_length": _head,
    "attention.sliding_window": lambda config: getattr(config, "sliding_window", None),
    "attention.causal": lambda config: True,
    "attention.layer_norm_epsilon": _epsilon,
    "attention.layer_norm_rms_epsilon": _epsilon,
    "attn_logit_softcapping": lambda config: getattr(config, "attn_logit_softcapping", None),
    "final_logit_softcapping": lambda config: getattr(config, "final_logit_softcapping", None),
    "feed_forward_length": lambda config: (
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    ),
    "expert_feed_forward_length": lambda config: config.moe_intermediate_size,
    "expert_shared_feed_forward_length": lambda config: config.shared_expert_intermediate_size,
    "use_parallel_residual": lambda config: config.use_parallel_residual,
    "ssm.dt_b_c_rms": lambda config: False,
    "attention.head_count_kv": lambda config: getattr(
        config, "num_key_value_heads", config.num_attention_heads
    ),
}
# Settings that every file has, and that are nought where a model has no such part.
_OF_OTHERS = ("feed_forward_length", "attention.head_count")
# Experts that are there only where their number is converted.
_COUNTS = ("expert_count", "expert_used_count")


def check_kind(header: GgufHeader, name: str) -> str:
    """The architecture of a file that holds a whole language model of a kind that can be converted.

    Raises:
        MicroscopeError: ``bad_model_file`` or ``unsupported_family`` with what it holds instead.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    kind = metadata.get("general.type", "model")
    if kind == "mmproj" or architecture == "clip":
        raise refused(
            name,
            "it holds the part of a multimodal model that reads images or sound (mmproj)",
            "Give the file of the language model that belongs to it.",
        )
    if kind != "model":
        raise refused(name, f"it holds something else ({str(kind)[:40]})")
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise refused(
            name,
            f"it is one of {parts} parts of a split model, and its name does not say which",
            "Name the parts as they were written (NAME-00001-of-00003.gguf), or join them with "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf.",
        )
    if not isinstance(architecture, str):
        raise refused(name, "it does not say of which architecture it is (general.architecture)")
    if architecture in ("t5", "t5encoder", "umt5"):
        raise MicroscopeError(
            "unsupported_family",
            f"{name} ({architecture}) is an encoder–decoder model; it cannot be loaded.",
            "Causal language models load.",
        )
    if _converted(architecture) not in GGUF_SUPPORTED_ARCHITECTURES:
        raise MicroscopeError(
            "unsupported_family",
            f"{name} is of the architecture '{architecture[:60]}', which cannot be converted from GGUF.",
            f"Take the safetensors files of the model. From GGUF: {', '.join(GGUF_SUPPORTED_ARCHITECTURES)}.",
        )
    return architecture


def check_settings(header: GgufHeader, config: Any, name: str) -> None:
    """Whether the converted configuration has every setting of the file.

    Raises:
        MicroscopeError: ``bad_model_file`` naming the setting that conversion would lose.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = header.metadata["general.architecture"]
    kept: dict[str, str | None] = dict(GGUF_CONFIG_MAPPING).get(_converted(architecture), {})  # type: ignore[assignment]
    depth = header.metadata.get(f"{architecture}.block_count")
    if depth == _OTHER_SCALE.get(architecture):
        raise refused(
            name, f"attention of {architecture} models with {depth} blocks is scaled otherwise than is said"
        )
    scaling = sorted(key for key in header.metadata if key.startswith(f"{architecture}.rope.scaling."))
    if scaling and header.metadata.get(f"{architecture}.rope.scaling.type") != "none":
        raise refused(name, f"its rotary positions are scaled ({scaling[0]}), which conversion would lose")
    factors = [tensor for tensor in header.tensors if tensor.startswith("rope_")]
    if factors:
        raise refused(name, f"its rotary positions have factors ({factors[0]}), which conversion would lose")
    for key, value in header.metadata.items():
        setting = key.removeprefix(f"{architecture}.")
        if setting == key or kept.get(setting) is not None:
            continue
        if setting in _COUNTS and value:
            raise refused(name, f"it has experts ({key}), which conversion would lose")
        if _IDLE.fullmatch(setting) or (setting in _OF_OTHERS and value == 0):
            continue
        if setting not in _SAME or not _equal(_SAME[setting], config, value):
            raise refused(name, f"its setting {key} ({str(value)[:40]}) would be lost in conversion")
    for key in header.lengths:
        setting = key.removeprefix(f"{architecture}.")
        if setting != key and kept.get(setting) is None:
            raise refused(name, f"its setting {key} (a list) would be lost in conversion")


def check_tensors(header: GgufHeader, model: Any, name: str) -> None:
    """Whether every tensor of the file became a weight of the model, and every weight came from the file.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(header.metadata["general.architecture"], TensorProcessor)
    read = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    there = {_stem(tensor) for tensor in header.tensors}
    known = {_stem(tensor) for tensor in read}
    unread = sorted(there - known - {"output.weight"})
    if unread:
        raise refused(
            name, f"it has tensors that the model has no place for ({unread[0]}, {len(unread)} in all)"
        )
    lacking = sorted(known - there - ({"output.weight"} if tied else set()))
    if lacking:
        raise refused(
            name, f"it has no tensor {lacking[0]} ({len(lacking)} in all), of which weights are made"
        )


def _stem(tensor: str) -> str:
    """A tensor's name; experts of a block are one tensor, which the model's names do not call a weight."""
    return tensor.removesuffix(".weight") if "_exps" in tensor else tensor


def _equal(of: Callable[[Any], Any], config: Any, value: Any) -> bool:
    try:
        found = of(config)
    except AttributeError:  # the converted model knows no such setting
        return False
    if isinstance(found, (int, float)) and isinstance(value, (int, float)):
        return abs(found - value) <= 1e-6 * abs(value)
    return bool(found == value)


def _converted(architecture: str) -> str:
    """What ``transformers`` calls an architecture."""
    return {
        "qwen2moe": "qwen2_moe",
        "qwen3moe": "qwen3_moe",
        "gpt-oss": "gpt_oss",
        "minimax-m2": "minimax_m2",
    }.get(architecture, architecture)


def refused(
    name: str, reason: str, hint: str = "Take the safetensors files of the model."
) -> MicroscopeError:
    """A file that is no model that could be converted without loss."""
    return MicroscopeError("bad_model_file", f"{name} cannot be read as a model: {reason}.", hint)
