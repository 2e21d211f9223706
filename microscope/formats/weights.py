"""The tensors of a foreign file, none of them passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.settings import Assumptions


class Weights:
    """Named tensors; those a reader does not ask for stop the import as unknown settings do."""

    def __init__(self, file: str, tensors: Mapping[str, Any], assumptions: Assumptions) -> None:
        self.file = file
        self._all = dict(tensors)
        self._assumptions = assumptions
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def names(self) -> list[str]:
        """What is in the file, sorted."""
        return sorted(map(str, self._all))

    def renamed(self, name: Callable[[str], str]) -> Weights:
        """The same tensors under other names."""
        return Weights(self.file, {name(key): value for key, value in self._all.items()}, self._assumptions)

    def dimensions(self, name: str) -> int:
        """How many dimensions a tensor has; 0 where it is missing."""
        value = self._all.get(name)
        return value.dim() if isinstance(value, Tensor) else 0

    def take(self, *names: str, exactly: bool = False) -> list[Tensor]:
        """Tensors by name, in float32, or ``exactly`` as they are stored, in float64.

        Raises:
            MicroscopeError: ``bad_sae`` naming what is missing, or is no tensor of numbers.
        """
        missing = [name for name in names if name not in self._all]
        if missing:
            raise MicroscopeError(
                "bad_sae",
                f"{self.file} has no tensor {', '.join(missing)}.",
                f"It has {', '.join(self.names()) or 'none'}.",
            )
        dtype = torch.float64 if exactly else torch.float32
        return [self._tensor(name, dtype) for name in names]

    def matrices(self, *names: str) -> list[Tensor]:
        """As :meth:`take`, for tensors of two dimensions."""
        found = self.take(*names)
        for name, tensor in zip(names, found, strict=True):
            if tensor.dim() != 2:
                raise MicroscopeError(
                    "bad_sae", f"{name} in {self.file} has shape {list(tensor.shape)}: it is no matrix."
                )
        return found

    def get(self, name: str) -> Tensor | None:
        """A tensor that may be missing."""
        return self._tensor(name) if name in self._all else None

    def number(self, name: str) -> float | None:
        """A single number, stored as a tensor or plainly.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        if name not in self._all:
            return None
        self._read.add(name)
        value = self._all[name]
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise MicroscopeError("bad_sae", f"{name} in {self.file} is not one number.")

    def plain(self, name: str) -> Any:
        """Something beside the tensors of a pickled file, or None."""
        self._read.add(name)
        return self._all.get(name)

    def finish(self, *harmless: str) -> None:
        """Refuse tensors that nobody asked for.

        Raises:
            MicroscopeError: ``unknown_setting``.
        """
        for name in self._all:
            if name in self._read or name in harmless:
                continue
            if self._assumptions.harmless(str(name), "a tensor", self.file):
                continue
            raise MicroscopeError(
                "unknown_setting",
                f"{self.file} holds '{name}', which this reader does not know "
                "and which may change what the SAE computes.",
                f"If it does not, import again and assume {name} (--assume {name}); it will be noted in the SAE.",
            )

    def _tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        self._read.add(name)
        value = self._all[name]
        if not isinstance(value, Tensor):
            raise MicroscopeError("bad_sae", f"{name} in {self.file} is no tensor.")
        if not value.is_floating_point():
            raise MicroscopeError(
                "bad_sae",
                f"{name} in {self.file} holds {value.dtype}, not floating-point numbers.",
                "Take the SAE as it was trained, not a quantised or converted copy.",
            )
        return value.detach().to(dtype)
