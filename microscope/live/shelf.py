"""Attached autoencoders within a budget of memory: those that rested longest are put away and fetched again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import torch

from microscope.errors import MicroscopeError
from microscope.models.memory import bytes_free
from microscope.sae import SparseAutoencoder, load_sae


class SaeShelf(MutableMapping[str, SparseAutoencoder]):
    """Autoencoders by fingerprint.

    Args:
        budget: bytes that may be in memory; the one used last always may.
        device: where they go.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self._budget, self._device = budget, device
        self._loaded: OrderedDict[str, SparseAutoencoder] = OrderedDict()
        self._places: dict[str, Path] = {}

    def load(self, path: Path) -> SparseAutoencoder:
        """Read one from its folder, without keeping it.

        Raises:
            MicroscopeError: what :func:`load_sae` raises, or ``sae_too_big``.
        """
        need = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        free = bytes_free(self._device)
        if need > free:
            raise MicroscopeError(
                "sae_too_big",
                f"The SAE needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.",
                "Close other models or use a narrower SAE.",
            )
        return load_sae(path, device=self._device)

    def keep(self, fingerprint: str, sae: SparseAutoencoder, path: Path) -> None:
        """Keep one that can be read again from its folder."""
        self._places[fingerprint] = path
        self[fingerprint] = sae

    def __getitem__(self, fingerprint: str) -> SparseAutoencoder:
        sae = self._loaded.get(fingerprint)
        if sae is None:
            sae = self._again(fingerprint)
        self._loaded.move_to_end(fingerprint)
        return sae

    def _again(self, fingerprint: str) -> SparseAutoencoder:
        sae = self.load(self._places[fingerprint])
        if sae.content_fingerprint() != fingerprint:
            raise MicroscopeError(
                "wrong_sae", f"The files of SAE {fingerprint[:12]} have changed.", "Import it again."
            )
        self[fingerprint] = sae
        return sae

    def __setitem__(self, fingerprint: str, sae: SparseAutoencoder) -> None:
        self._loaded[fingerprint] = sae
        self._loaded.move_to_end(fingerprint)
        for name in list(self._loaded)[:-1]:
            if self.nbytes <= self._budget:
                return
            if name in self._places:
                del self._loaded[name]

    def __delitem__(self, fingerprint: str) -> None:
        del self._loaded[fingerprint]
        self._places.pop(fingerprint, None)

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._loaded or fingerprint in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded.keys() | self._places.keys())

    def __len__(self) -> int:
        return len(self._loaded.keys() | self._places.keys())

    @property
    def in_memory(self) -> tuple[SparseAutoencoder, ...]:
        """Those loaded now."""
        return tuple(self._loaded.values())

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(p.nbytes for sae in self._loaded.values() for p in sae.parameters())
