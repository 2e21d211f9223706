"""What a foreign format is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.sae import SparseAutoencoder


@dataclass(frozen=True)
class Hints:
    """What a person adds where files are silent: site (``resid_post.12``), winners per token, output site.

    ``allow_pickle`` permits ``.pt`` files, read with ``weights_only``; it is set on the command line only.
    """

    site: str | None = None
    k: int | None = None
    site_out: str | None = None
    allow_pickle: bool = False

    def need_site(self, found: str | None, source: str) -> str:
        """The site: what the person said, else what the files say.

        Raises:
            MicroscopeError: ``site_unknown``.
        """
        chosen = self.site or found
        if chosen is None:
            raise MicroscopeError(
                "site_unknown",
                f"{source} does not say where in the model the SAE reads.",
                "Give it with --site, for example resid_post.12.",
            )
        return chosen


@dataclass(frozen=True)
class Format:
    """One foreign format: how to recognise, read and write it."""

    name: str
    title: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Hints], SparseAutoencoder]
    write: Callable[[SparseAutoencoder, Path], None] | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MicroscopeError("bad_sae", f"{path.name} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise MicroscopeError("bad_sae", f"{path.name} is not a JSON object.")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MicroscopeError(
            "bad_sae", f"{path.name} cannot be read: {error}", "It may be truncated."
        ) from error


def read_pickled_tensors(path: Path, hints: Hints) -> dict[str, Any]:
    """Contents of a ``.pt`` file, read with ``weights_only`` so that no code in it can run.

    Raises:
        MicroscopeError: ``pickle_refused`` unless allowed, or ``bad_sae``.
    """
    if not hints.allow_pickle:
        raise MicroscopeError(
            "pickle_refused",
            f"{path.name} is a pickle file, which is read on the command line only.",
            "Convert it there: microscope import --allow-pickle.",
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MicroscopeError(
            "bad_sae", f"{path.name} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(data, dict):
        raise MicroscopeError("bad_sae", f"{path.name} holds no dictionary of tensors.")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n")
