"""Models on one device, or spread over several GPUs by accelerate."""

from __future__ import annotations

from typing import Any

import torch


def loading_options(device: str, where: torch.device, *, needed: bool) -> dict[str, Any]:
    """The ``device_map`` for ``from_pretrained``; nothing where loading and then moving will do.

    ``balanced`` gives every GPU an equal share of the blocks. ``needed`` asks for a map on one device
    too, for weights that are rounded where they will be.
    """
    if device == "balanced":
        return {"device_map": "balanced"}
    return {"device_map": {"": where}} if needed else {}


def _map(model: Any) -> dict[str, torch.device]:
    found = getattr(model, "hf_device_map", None) or {}
    return {
        path: torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        for path, device in found.items()
        if device != "disk"
    }


def is_spread(model: Any) -> bool:
    """Whether a model's modules are on several devices."""
    return len(set(_map(model).values())) > 1


def device_of(model: Any, path: str, otherwise: torch.device) -> torch.device:
    """Where the module at a path computes: what the map says of it or of the nearest module around it."""
    devices = _map(model)
    parts = path.split(".")
    for length in range(len(parts), -1, -1):
        device = devices.get(".".join(parts[:length]))
        if device is not None:
            return device
    return otherwise
