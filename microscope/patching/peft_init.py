"""Adapters that changed their base model when they were made.

PiSSA and OLoRA move a part of every weight into the first factors, ``W = R + s·B₀A₀``, and train from
there on: what the adapter adds to the *untouched* weight is ``s·BA − s·B₀A₀``. PEFT finds B₀ and A₀ again
from the weight when it loads such an adapter, and so does this (Meng et al., arXiv:2404.02948, the
principal singular vectors; Büyükakyüz, arXiv:2406.01775, the first columns of a QR decomposition).
Others took theirs from data or rounding that the files don't hold, and are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError
from microscope.models import module_at
from microscope.patching.adapters import LowRank

# Ways to begin that leave the base model as it is.
_HARMLESS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}


def check_initialisation(config: Mapping[str, Any]) -> None:
    """Whether what the adapter was begun with is known and can be found again.

    Raises:
        MicroscopeError: ``unsupported_adapter``.
    """
    name = _name(config)
    if name not in _HARMLESS and name not in _MOVED:
        raise MicroscopeError(
            "unsupported_adapter",
            f"The adapter was initialised by '{name[:40]}' (init_lora_weights), which changes the base model in "
            "a way that its files do not hold.",
            "Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it, or merge it.",
        )


def moves_weights(config: Mapping[str, Any]) -> bool:
    """Whether part of the base model's weights was moved into the adapter."""
    return _name(config) in _MOVED


@torch.no_grad()
def as_plain(
    factors: Mapping[str, LowRank], scales: Mapping[str, float], config: Mapping[str, Any], model: Any
) -> dict[str, LowRank]:
    """The same adapter for untouched weights: each delta with the part taken out that was moved into it.

    Args:
        factors: deltas with their scale, as the files hold them.
        scales: the scale of each.
        config: the adapter's configuration.
        model: the base model, with whole weights.

    Raises:
        MicroscopeError: ``unsupported_adapter`` for rounded or transposed weights it can't be found from.
    """
    method = _name(config)
    out = {}
    for path, (a, b) in factors.items():
        module: Any = module_at(model, path)
        usable = (nn.Linear, Conv1D) if method == "pissa" else (nn.Linear,)
        if type(module) not in usable or not module.weight.is_floating_point():
            raise MicroscopeError(
                "unsupported_adapter",
                f"The adapter took a part of '{path}' into itself ({method}), and that part can't be found from a "
                f"{type(module).__name__}.",
                "Load the model whole, in float32 or bfloat16, or merge the adapter into a checkpoint.",
            )
        weight = module.weight.detach().float()
        weight = weight.T if isinstance(module, Conv1D) else weight
        begun = _MOVED[method](weight, len(a), scales[path])
        first_a, first_b = (t.to(a.device) for t in begun)
        out[path] = LowRank(torch.cat([a, first_a]), torch.cat([b, -first_b], dim=1))
    return out


def _pissa(weight: Tensor, rank: int, _scale: float) -> tuple[Tensor, Tensor]:
    """Factors ``[r, in]`` and ``[out, r]`` of s·B₀A₀ for a weight ``[out, in]``: its principal part for any s."""
    left, size, right = torch.linalg.svd(weight, full_matrices=False)
    root = size[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _olora(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Factors ``[r, in]`` and ``[out, r]`` of s·B₀A₀ for a weight ``[out, in]``."""
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), scale * q[:, :rank]


_Parts = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
_MOVED: Mapping[str, _Parts] = {"pissa": _pissa, "olora": _olora}


def _name(config: Mapping[str, Any]) -> str:
    return str(config.get("init_lora_weights", True)).lower()
