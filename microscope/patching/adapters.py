"""Low-rank weight deltas as data: what a ``lora`` edit refers to by content fingerprint.

Canonical file: one ``adapter.safetensors`` with ``<module>.lora_A`` ``[r, in]`` and ``<module>.lora_B``
``[out, r]`` per adapted module, float32, every scale (α/r, rank-stabilised or not) folded into B, module
paths as in the Hugging Face model. Orientation is that of a Linear, also for GPT-2's transposed weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError
from microscope.staging import staged

ADAPTER_FILE = "adapter.safetensors"
MAX_RANK = 1024
_A, _B = ".lora_A", ".lora_B"
_FORMAT = "microscope-adapter"
_AGAIN = "The file is damaged, or training diverged: save the adapter again."


class LowRank(NamedTuple):
    """The delta of one module, ``ΔW = B·A``: ``a`` is ``[r, in]``, ``b`` ``[out, r]``."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class LowRankAdapter:
    """Deltas by module path. ``model`` is the fingerprint of the weights it was made for, if known."""

    factors: Mapping[str, LowRank]
    model: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over what the adapter computes: module paths, shapes, values."""
        digest = hashlib.sha256()
        for path in sorted(self.factors):
            for tensor in self.factors[path]:
                digest.update(f"{path} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(t.nbytes for pair in self.factors.values() for t in pair)

    def check(self, model: Any) -> None:
        """Whether every delta fits its module.

        Raises:
            MicroscopeError: ``no_such_module`` or ``wrong_adapter_shape``.
        """
        modules = dict(model.named_modules())
        for path, pair in self.factors.items():
            if path not in modules:
                raise MicroscopeError(
                    "no_such_module",
                    f"The adapter changes '{path}', which this model does not have.",
                    "It was made for another kind of model.",
                )
            shape = matrix_shape(modules[path])
            if shape is None:
                raise MicroscopeError(
                    "no_such_module",
                    f"The adapter changes '{path}', which is a {type(modules[path]).__name__} and no linear module.",
                    "Merge it into a checkpoint; or leave that module out.",
                )
            out, d_in = shape
            if pair.a.shape[1] != d_in or pair.b.shape[0] != out:
                raise MicroscopeError(
                    "wrong_adapter_shape",
                    f"The adapter's change of '{path}' is {pair.b.shape[0]} × {pair.a.shape[1]}, the module is {out} × {d_in}.",
                    "It was made for a model of another size.",
                )

    def to(self, device: torch.device) -> LowRankAdapter:
        """The same adapter with its tensors on a device, in float32."""
        moved = {p: LowRank(*(t.to(device, torch.float32) for t in pair)) for p, pair in self.factors.items()}
        return LowRankAdapter(moved, self.model, self.about)


def matrix_shape(module: Any) -> tuple[int, int] | None:
    """``(out, in)`` of a linear module, however its weight is stored; None for any other, as routers and experts."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        d_in, out = module.weight.shape
        return out, d_in
    return None


def same_rank(deltas: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same deltas, padded with zeros to one rank: what every loader understands."""
    rank = max(len(delta.a) for delta in deltas.values())
    pad = torch.nn.functional.pad
    return {
        path: LowRank(pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - len(a))))
        for path, (a, b) in deltas.items()
    }


def check_factors(factors: Mapping[str, LowRank]) -> None:
    """What any adapter must satisfy, whatever the model.

    Raises:
        MicroscopeError: ``bad_adapter``: no module, a rank that differs between A and B, is 0 or above
            :data:`MAX_RANK`, or values that are not finite.
    """
    if not factors:
        raise MicroscopeError("bad_adapter", "The adapter changes no module.", _AGAIN)
    for path, (a, b) in factors.items():
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= MAX_RANK:
            raise MicroscopeError(
                "bad_adapter",
                f"The factors of '{path}' have shapes {tuple(a.shape)} and {tuple(b.shape)}; A must be [r, in] and B [out, r].",
                _AGAIN,
            )
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise MicroscopeError("bad_adapter", f"The factors of '{path}' contain NaN or infinity.", _AGAIN)


def save_adapter(adapter: LowRankAdapter, folder: str | Path) -> Path:
    """Write the canonical file into a folder; returns the folder."""
    folder = Path(folder)
    tensors = {}
    for path, (a, b) in adapter.factors.items():
        tensors[path + _A] = a.detach().float().cpu().contiguous()
        tensors[path + _B] = b.detach().float().cpu().contiguous()
    metadata = {"format": _FORMAT, "version": "1", "model": adapter.model}
    metadata |= {f"about.{name}": text for name, text in adapter.about.items()}
    with staged(folder, last=(ADAPTER_FILE,)) as work:
        save_file(tensors, work / ADAPTER_FILE, metadata=metadata)
    return folder


def load_adapter(folder: str | Path) -> LowRankAdapter:
    """Read an adapter from its folder.

    Raises:
        MicroscopeError: ``no_adapter`` or ``bad_adapter``.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        raise MicroscopeError(
            "no_adapter", f"There is no adapter at '{folder}'.", f"It needs {ADAPTER_FILE}."
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MicroscopeError("bad_adapter", f"The adapter at '{folder}' cannot be read: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise MicroscopeError("bad_adapter", f"The file at '{folder}' is no adapter of this program.")
    factors = {}
    for name in tensors:
        if name.endswith(_A):
            path = name.removesuffix(_A)
            if path + _B not in tensors:
                raise MicroscopeError("bad_adapter", f"The adapter has an A but no B for '{path}'.")
            factors[path] = LowRank(tensors[name], tensors[path + _B])
    if 2 * len(factors) != len(tensors):
        raise MicroscopeError("bad_adapter", "The adapter has tensors that are neither A nor B of a pair.")
    check_factors(factors)
    about = {k.removeprefix("about."): v for k, v in metadata.items() if k.startswith("about.")}
    return LowRankAdapter(factors, metadata.get("model", ""), about)
