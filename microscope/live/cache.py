"""Caches of autoencoders and adapters that share one budget of memory: the least recently used is evicted and read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from microscope.errors import MicroscopeError
from microscope.heap import trim_heap
from microscope.models.memory import bytes_free
from microscope.patching.adapters import LowRankAdapter, load_adapter
from microscope.sae import SparseAutoencoder, load_sae

T = TypeVar("T")


class MemoryBudget:
    """Memory that caches share.

    Args:
        limit: bytes that may be held; what was used last may always stay.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Least recently used first.
        self._held: OrderedDict[tuple[FileCache[Any], str], int] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(self._held.values())

    def make_room(self, need: int) -> None:
        """Evict what is needed to hold so many bytes more."""
        before = self.nbytes
        self._evict(list(self._held), need)
        if self.nbytes < before:
            trim_heap()

    def added(self, cache: FileCache[Any], name: str, nbytes: int) -> None:
        """Something new is held: others may have to go."""
        self._held[cache, name] = nbytes
        self.used(cache, name)
        self._evict(list(self._held)[:-1], 0)

    def used(self, cache: FileCache[Any], name: str) -> None:
        """Something that is held was used."""
        self._held.move_to_end((cache, name))

    def removed(self, cache: FileCache[Any], name: str) -> None:
        """Something is held no more."""
        self._held.pop((cache, name), None)

    def _evict(self, candidates: list[tuple[FileCache[Any], str]], need: int) -> None:
        for cache, name in candidates:
            if self.nbytes + need <= self._limit:
                return
            cache.evict(name)


def size_of(path: Path) -> int:
    """Bytes of the weights in a folder, about what they take in memory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


class FileCache(MutableMapping[str, T], ABC, Generic[T]):
    """Things by fingerprint. Those that were read from a folder can be evicted, and are read again when used.

    Args:
        budget: the memory they share with those of other caches.
        device: where they go.
    """

    # What a refusal calls it, and the letters of its error codes.
    kind: str
    code: str

    def __init__(self, budget: MemoryBudget, device: torch.device) -> None:
        self._budget, self._device = budget, device
        self._loaded: dict[str, T] = {}
        self._paths: dict[str, Path] = {}

    # The budget tells caches apart by identity, whatever they hold.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @abstractmethod
    def read(self, path: Path) -> T:
        """Read one from its folder."""

    @abstractmethod
    def fingerprint(self, item: T) -> str:
        """Its content fingerprint."""

    @abstractmethod
    def size(self, item: T) -> int:
        """Memory it holds."""

    def load(self, path: Path, *, expect: str = "") -> tuple[str, T]:
        """Read one, without keeping it; its fingerprint, too.

        Raises:
            MicroscopeError: what reading raises, ``…_too_big`` or ``wrong_…``, another one than expected.
        """
        need = size_of(path)
        free = bytes_free(self._device)
        if need > free:
            raise MicroscopeError(
                f"{self.code}_too_big",
                f"The {self.kind} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.",
                f"Close other models or use a smaller {self.kind}.",
            )
        item = self.read(path)
        found = self.fingerprint(item)
        if expect and found != expect:
            raise MicroscopeError(
                f"wrong_{self.code}",
                f"The files at this path are {self.kind} {found[:12]}, not {expect[:12]}.",
                "Import it again.",
            )
        return found, item

    def keep(self, fingerprint: str, item: T, path: Path) -> None:
        """Keep one that can be read again from its folder."""
        self._paths[fingerprint] = path
        self[fingerprint] = item

    def evict(self, fingerprint: str) -> None:
        """Let go of one, if it is held and can be read again."""
        if fingerprint in self._paths and self._loaded.pop(fingerprint, None) is not None:
            self._budget.removed(self, fingerprint)

    def __getitem__(self, fingerprint: str) -> T:
        if fingerprint in self._loaded:
            self._budget.used(self, fingerprint)
        else:
            self._budget.make_room(size_of(self._paths[fingerprint]))
            _, self[fingerprint] = self.load(self._paths[fingerprint], expect=fingerprint)
        return self._loaded[fingerprint]

    def __setitem__(self, fingerprint: str, item: T) -> None:
        self._loaded[fingerprint] = item
        self._budget.added(self, fingerprint, self.size(item))

    def __delitem__(self, fingerprint: str) -> None:
        del self._loaded[fingerprint]
        self._paths.pop(fingerprint, None)
        self._budget.removed(self, fingerprint)

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._loaded or fingerprint in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded.keys() | self._paths.keys())

    def __len__(self) -> int:
        return len(self._loaded.keys() | self._paths.keys())

    @property
    def in_memory(self) -> tuple[T, ...]:
        """Those loaded now."""
        return tuple(self._loaded.values())


class SaeCache(FileCache[SparseAutoencoder]):
    """Autoencoders.

    Args:
        budget: the memory they share with adapters.
        device: where they go.
        complete: completes each one that is held, read for the first time or again.
    """

    kind, code = "SAE", "sae"

    def __init__(
        self, budget: MemoryBudget, device: torch.device, complete: Callable[[SparseAutoencoder], object]
    ) -> None:
        super().__init__(budget, device)
        self._complete = complete

    def __setitem__(self, fingerprint: str, item: SparseAutoencoder) -> None:
        self._complete(item)
        super().__setitem__(fingerprint, item)

    def read(self, path: Path) -> SparseAutoencoder:
        return load_sae(path, device=self._device)

    def fingerprint(self, item: SparseAutoencoder) -> str:
        return item.content_fingerprint()

    def size(self, item: SparseAutoencoder) -> int:
        return sum(t.nbytes for t in item.state_dict().values())


class AdapterCache(FileCache[LowRankAdapter]):
    """Low-rank adapters."""

    kind, code = "adapter", "adapter"

    def read(self, path: Path) -> LowRankAdapter:
        return load_adapter(path).to(self._device)

    def fingerprint(self, item: LowRankAdapter) -> str:
        return item.fingerprint

    def size(self, item: LowRankAdapter) -> int:
        return item.nbytes
