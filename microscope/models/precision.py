"""Which device and which arithmetic to use."""

from __future__ import annotations

import torch

from microscope.errors import MicroscopeError
from microscope.hardware import has_fast_bfloat16

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` … into a device that exists; ``balanced`` is the first GPU.

    Raises:
        MicroscopeError: ``no_such_device``.
    """
    if name == "balanced":
        if not torch.cuda.is_available():
            raise MicroscopeError(
                "no_such_device",
                "There is no GPU here over which a model could be spread.",
                "Leave --device out, or use cpu.",
            )
        return torch.device("cuda", 0)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MicroscopeError(
            "no_such_device",
            f"There is no device '{name}' here.",
            "Use auto or cpu; `microscope doctor` lists devices.",
        ) from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto`` into bfloat16 where it is fast and float32 elsewhere; look the others up by name."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
