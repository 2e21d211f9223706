"""What processors are good at."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware, so that they are faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
