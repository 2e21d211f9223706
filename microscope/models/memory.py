"""How much memory a model needs, asked before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from transformers import PretrainedConfig

from microscope.errors import MicroscopeError
from microscope.models.quantised import is_quantisation, matrices

# Bytes of a weight. 4-bit weights come with a scale in 8 bits for every 64, and a float32 for every 64·256.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
PRECISIONS = ("float32", "bfloat16", "int8", "nf4")
# Activations, tokenizer, allocator slack: a fixed part and a share of the weights.
_OVERHEAD_BYTES, _OVERHEAD_SHARE = 300 * 2**20, 0.1


def skeleton(build: Any, config: PretrainedConfig) -> Any:
    """A model of a class of ``transformers`` whose weights have shapes but no storage."""
    with torch.device("meta"):
        return build(copy.deepcopy(config))


def count_parameters(build: Any, config: PretrainedConfig) -> int:
    """Number of weights of a model with this configuration, without allocating them."""
    return sum(p.numel() for p in skeleton(build, config).parameters())


def weight_bytes(model: Any, precision: str) -> int:
    """Bytes of the weights alone of a model (or its skeleton). What int8 and nf4 leave out counts as float32."""
    total = sum(p.numel() for p in model.parameters())
    if not is_quantisation(precision):
        return int(total * _BYTES[precision])
    shapes = matrices(model).values()
    rounded = sum(out * width for out, width in shapes)
    scales = sum(4 * out for out, _ in shapes) if precision == "int8" else 0
    return int(rounded * _BYTES[precision]) + scales + (total - rounded) * 4


def bytes_needed(model: Any, precision: str) -> int:
    """Bytes to hold and run a model (or its skeleton) in a precision."""
    return int(weight_bytes(model, precision) * (1 + _OVERHEAD_SHARE)) + _OVERHEAD_BYTES


def bytes_needed_by_precision(model: Any) -> dict[str, int]:
    """:func:`bytes_needed` for every precision offered."""
    return {precision: bytes_needed(model, precision) for precision in PRECISIONS}


def bytes_free(device: torch.device, *, everywhere: bool = False) -> int:
    """Memory that can still be used on a device, or on all GPUs together."""
    if device.type == "cuda":
        devices: Iterator[Any] = iter(range(torch.cuda.device_count()) if everywhere else (device,))
        return sum(torch.cuda.mem_get_info(one)[0] for one in devices)
    return psutil.virtual_memory().available


def check_fits(model: Any, precision: str, device: torch.device, *, everywhere: bool = False) -> None:
    """Refuse a model that cannot fit, with the numbers.

    Raises:
        MicroscopeError: ``model_too_big``.
    """
    need, free = bytes_needed(model, precision), bytes_free(device, everywhere=everywhere)
    if need <= free:
        return
    smaller = [
        name for name in PRECISIONS if bytes_needed(model, name) < need and bytes_needed(model, name) <= free
    ]
    parameters = sum(p.numel() for p in model.parameters())
    raise MicroscopeError(
        "model_too_big",
        f"The model ({parameters / 1e9:.2f} billion weights) needs {need / 1e9:.1f} GB in {precision}, "
        f"and {free / 1e9:.1f} GB are free on {'all GPUs' if everywhere else device}.",
        f"Load it in {smaller[0]}." if smaller else "Use a smaller model or a machine with more memory.",
    )
