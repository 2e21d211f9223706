"""What processors are good at, and when their memory is exhausted."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware, so that they are faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory was exhausted; on a CPU torch says so in a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
