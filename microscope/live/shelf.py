"""Attached autoencoders and adapters within one budget of memory: what rested longest is put away and read again."""

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


class Room:
    """Memory that shelves share.

    Args:
        budget: bytes that may be taken; what was used last always may stay.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used: OrderedDict[tuple[Shelf[Any], str], int] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(self._used.values())

    def make(self, need: int) -> None:
        """Something is about to be read: whatever rested longest makes room for it."""
        before = self.nbytes
        for resting, other in list(self._used):
            if self.nbytes + need <= self._budget:
                break
            if resting.put_away(other):
                del self._used[resting, other]
        if self.nbytes < before:
            trim_heap()

    def took(self, shelf: Shelf[Any], name: str, nbytes: int) -> None:
        """Something new is held; whatever rested longest makes room for it."""
        self._used[shelf, name] = nbytes
        self.used(shelf, name)
        for resting, other in list(self._used)[:-1]:
            if self.nbytes <= self._budget:
                return
            if resting.put_away(other):
                del self._used[resting, other]

    def used(self, shelf: Shelf[Any], name: str) -> None:
        """Something that is held was used."""
        self._used.move_to_end((shelf, name))

    def gave(self, shelf: Shelf[Any], name: str) -> None:
        """Something is gone."""
        self._used.pop((shelf, name), None)


def size_of(path: Path) -> int:
    """Bytes of the weights in a folder, about what they take in memory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


class Shelf(MutableMapping[str, T], ABC, Generic[T]):
    """Things by fingerprint.

    Args:
        room: the memory they share with those of other shelves.
        device: where they go.
    """

    # What a refusal calls it, and the letters of its error codes.
    kind: str
    code: str

    def __init__(self, room: Room, device: torch.device) -> None:
        self._room, self._device = room, device
        self._loaded: dict[str, T] = {}
        self._places: dict[str, Path] = {}

    # Each is a key of the room, whatever it holds.
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
        self._places[fingerprint] = path
        self[fingerprint] = item

    def put_away(self, fingerprint: str) -> bool:
        """Let go of one if it can be read again; whether it could."""
        if fingerprint not in self._places:
            return False
        del self._loaded[fingerprint]
        return True

    def __getitem__(self, fingerprint: str) -> T:
        if fingerprint in self._loaded:
            self._room.used(self, fingerprint)
        else:
            self._room.make(size_of(self._places[fingerprint]))
            _, self[fingerprint] = self.load(self._places[fingerprint], expect=fingerprint)
        return self._loaded[fingerprint]

    def __setitem__(self, fingerprint: str, item: T) -> None:
        self._loaded[fingerprint] = item
        self._room.took(self, fingerprint, self.size(item))

    def __delitem__(self, fingerprint: str) -> None:
        del self._loaded[fingerprint]
        self._places.pop(fingerprint, None)
        self._room.gave(self, fingerprint)

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._loaded or fingerprint in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded.keys() | self._places.keys())

    def __len__(self) -> int:
        return len(self._loaded.keys() | self._places.keys())

    @property
    def in_memory(self) -> tuple[T, ...]:
        """Those loaded now."""
        return tuple(self._loaded.values())


class SaeShelf(Shelf[SparseAutoencoder]):
    """Autoencoders.

    Args:
        room: the memory they share with adapters.
        device: where they go.
        settle: completes each one that is held, read for the first time or again.
    """

    kind, code = "SAE", "sae"

    def __init__(
        self, room: Room, device: torch.device, settle: Callable[[SparseAutoencoder], object]
    ) -> None:
        super().__init__(room, device)
        self._settle = settle

    def __setitem__(self, fingerprint: str, item: SparseAutoencoder) -> None:
        self._settle(item)
        super().__setitem__(fingerprint, item)

    def read(self, path: Path) -> SparseAutoencoder:
        return load_sae(path, device=self._device)

    def fingerprint(self, item: SparseAutoencoder) -> str:
        return item.content_fingerprint()

    def size(self, item: SparseAutoencoder) -> int:
        return sum(t.nbytes for t in item.state_dict().values())


class AdapterShelf(Shelf[LowRankAdapter]):
    """Low-rank adapters."""

    kind, code = "adapter", "adapter"

    def read(self, path: Path) -> LowRankAdapter:
        return load_adapter(path).to(self._device)

    def fingerprint(self, item: LowRankAdapter) -> str:
        return item.fingerprint

    def size(self, item: LowRankAdapter) -> int:
        return item.nbytes
