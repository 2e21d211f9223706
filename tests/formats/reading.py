"""Foreign files read with everything a person can say, and what is read held against the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from microscope.errors import MicroscopeError
from microscope.formats import Assumptions, Hints, read_sae
from microscope.sae import SparseAutoencoder
from tests import refusals
from tests.formats.foreign import (
    K,
    tensors,
)


def read(path: Path, *assume: str, **hints: Any) -> SparseAutoencoder:
    return read_sae(path, hints=Hints(allow_pickle=True, assumptions=Assumptions(assume), **hints))


def refusal(path: Path, *assume: str, **hints: Any) -> MicroscopeError:
    return refusals.refusal(read, path, *assume, **hints)


def expected(kind: str, x: torch.Tensor, *, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and output by the definition, written out."""
    t = tensors()
    pre = (x - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    f = pre.relu()
    if kind == "topk":
        f = f * torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    return f, f @ t["W_dec"] + t["b_dec"]


def assert_computes(sae: SparseAutoencoder, f: torch.Tensor, out: torch.Tensor, x: torch.Tensor) -> None:
    codes = sae.encode(x)
    torch.testing.assert_close(
        torch.zeros_like(f).scatter_add_(1, codes.indices, codes.values), f, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(sae(x), out, rtol=1e-5, atol=1e-5)
