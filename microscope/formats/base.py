"""What a foreign format is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.formats.settings import Assumptions, Settings
from microscope.formats.weights import Weights
from microscope.params import Site
from microscope.quarantine.content import is_pointer
from microscope.sae import SaeConfig, SparseAutoencoder


@dataclass(frozen=True)
class Hints:
    """What a person adds where files are silent: site (``resid_post.12``), winners per token, output site.

    ``allow_pickle`` permits ``.pt`` files, read with ``weights_only``; it is set on the command line only.
    ``model`` and ``family`` are of the model it is brought to, for files that name none. ``assumptions`` collects what is said, and used, about settings a reader cannot honour by itself.
    """

    site: str | None = None
    k: int | None = None
    site_out: str | None = None
    allow_pickle: bool = False
    model: str = ""
    family: str = ""
    assumptions: Assumptions = field(default_factory=Assumptions)

    def check_used(self, config: SaeConfig) -> None:
        """Refuse what a person said that the SAE which was read does not have.

        Raises:
            MicroscopeError: ``k_conflict`` or ``site_conflict``.
        """
        if self.k is not None and config.k != self.k:
            has = f"has k = {config.k}" if config.k else "has no number of winners"
            raise MicroscopeError(
                "k_conflict",
                f"--k says {self.k}, and this {config.architecture} SAE {has}.",
                "Leave --k out.",
            )
        for option, said, found in (
            ("--site", self.site, config.site),
            ("--site-out", self.site_out, config.site_out),
        ):
            if said is not None and (found is None or Site.parse(said) != Site.parse(found)):
                has = f"is of {found}" if found else "writes where it reads: it is no transcoder"
                raise MicroscopeError(
                    "site_conflict", f"{option} says {said}, and this SAE {has}.", f"Leave {option} out."
                )

    def need_site(self, found: str | None, source: str, *, said: str = "") -> str:
        """The site: what the person said, else what the files say.

        Args:
            found: the site in the files, if they name one.
            source: the file or folder, for the message.
            said: what the files name instead, where that is none of the sites.

        Raises:
            MicroscopeError: ``site_unknown``, or ``bad_site`` for what the person said.
        """
        return self._site(self.site, found, source, said, "reads", "--site, for example resid_post.12")

    def need_site_out(self, found: str | None, source: str, *, said: str = "") -> str:
        """Where a transcoder writes: what the person said, else what the files say.

        Raises:
            MicroscopeError: ``site_unknown``, or ``bad_site`` for what the person said.
        """
        return self._site(self.site_out, found, source, said, "writes", "--site-out, for example mlp_out.12")

    def _site(
        self, chosen: str | None, found: str | None, source: str, said: str, verb: str, option: str
    ) -> str:
        if chosen is not None:
            return str(Site.parse(chosen))
        if found is None:
            raise MicroscopeError(
                "site_unknown",
                f"{source} says that the SAE {verb} {said}, which is none of the known sites."
                if said
                else f"{source} does not say where in the model the SAE {verb}.",
                f"Give the site with {option}.",
            )
        return found

    def need_k(self, found: int | None, source: str) -> int:
        """Winners per token: what the files say, else what the person said.

        Raises:
            MicroscopeError: ``k_unknown``, or ``k_conflict`` where both say something else.
        """
        if found is not None and self.k is not None and found != self.k:
            raise MicroscopeError(
                "k_conflict",
                f"{source} says that {found} latents are active per token, --k says {self.k}.",
                f"Leave --k out, or import with --assume k={self.k}; it will be noted in the SAE.",
            )
        k = found if found is not None else self.k
        if k is None:
            raise MicroscopeError(
                "k_unknown", f"{source} does not say how many latents are active.", "Give it with --k."
            )
        return k


@dataclass(frozen=True)
class Format:
    """One foreign format: how to recognise, read and write it."""

    name: str
    title: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Hints], SparseAutoencoder]
    write: Callable[[SparseAutoencoder, Path], None] | None = None


def check_fetched(path: Path) -> None:
    """Refuse what Git LFS leaves where the real file was not fetched.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    if path.is_file() and is_pointer(path):
        raise MicroscopeError(
            "bad_sae",
            f"{path.name} is a Git LFS pointer, not the file itself.",
            "Run `git lfs pull` in the folder, or download the file again.",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    check_fetched(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise MicroscopeError(
            "bad_sae", f"{path.name} cannot be read: {error}", "Download it again; it must be JSON in UTF-8."
        ) from error
    if not isinstance(data, dict):
        raise MicroscopeError("bad_sae", f"{path.name} is not a JSON object.", "Download it again.")
    return data


def read_settings(path: Path, hints: Hints) -> Settings:
    """The settings of a JSON file.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    return Settings(path.name, read_json(path), hints.assumptions)


def read_weights(path: Path, hints: Hints) -> Weights:
    """The tensors of a safetensors file.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    return Weights(path.name, read_tensors(path), hints.assumptions)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        MicroscopeError: ``bad_sae``.
    """
    check_fetched(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise MicroscopeError(
            "bad_sae", f"{path.name} cannot be read: {error}", "It may be truncated."
        ) from error


def read_pickled_weights(path: Path, hints: Hints) -> Weights:
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
    check_fetched(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MicroscopeError(
            "bad_sae", f"{path.name} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    if not isinstance(data, dict):
        raise MicroscopeError("bad_sae", f"{path.name} holds no dictionary of tensors.")
    return Weights(path.name, data, hints.assumptions)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n")
