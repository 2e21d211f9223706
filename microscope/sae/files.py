"""The native format: ``sae.safetensors`` and ``sae.json`` in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.params import Site
from microscope.sae.base import SparseAutoencoder
from microscope.sae.config import SaeConfig
from microscope.sae.registry import architecture
from microscope.staging import staged

WEIGHTS, CONFIG = "sae.safetensors", "sae.json"
# A smaller factor, or one larger than its inverse, is zero or infinity in float32.
_SMALLEST_SCALE = 1e-30


def save_sae(sae: SparseAutoencoder, folder: str | Path) -> Path:
    """Write an SAE; the configuration, written last, receives the content fingerprint."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    with staged(folder, last=(CONFIG,)) as work:
        save_file(tensors, work / WEIGHTS)
        sae.config.fingerprint = sae.content_fingerprint()
        (work / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(sae.config), indent=1))
    return folder


def read_config(path: str | Path) -> SaeConfig:
    """The configuration of an SAE in its folder, or at the path of its ``sae.safetensors``.

    Raises:
        MicroscopeError: ``no_sae`` or ``bad_sae``.
    """
    folder = _folder(path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MicroscopeError(
            "no_sae", f"There is no SAE at '{path}'.", f"Its folder must hold {WEIGHTS} and {CONFIG}."
        )
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=SaeConfig)
    except (msgspec.DecodeError, msgspec.ValidationError, OSError) as error:
        raise _unreadable(path, error) from error


def load_sae(path: str | Path, *, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Load an SAE from its folder, or from the path of its ``sae.safetensors``.

    Raises:
        MicroscopeError: ``no_sae`` or ``bad_sae``.
    """
    config, folder = read_config(path), _folder(path)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    kind = architecture(config.architecture)
    _check(config, tensors, path, kind)
    sae = kind(config)
    try:
        sae.load_state_dict(tensors)
    except RuntimeError as error:
        raise MicroscopeError(
            "bad_sae", f"The weights at '{path}' do not fit their configuration: {error}"
        ) from error
    if not all(bool(torch.isfinite(t).all()) for t in sae.state_dict().values()):
        raise MicroscopeError(
            "bad_sae", f"The weights at '{path}' contain NaN or infinity, in float32 at least."
        )
    return sae.requires_grad_(False).eval().to(device)


def _check(
    config: SaeConfig, tensors: dict[str, Tensor], path: str | Path, kind: type[SparseAutoencoder]
) -> None:
    """Refuse a configuration that describes no SAE, or another than the tensors are, before one is built.

    Raises:
        MicroscopeError: ``bad_sae``.
    """

    def refuse(what: str) -> MicroscopeError:
        return MicroscopeError(
            "bad_sae", f"{CONFIG} at '{path}' {what}.", "Take the file that belongs to the weights."
        )

    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise MicroscopeError(
                "bad_sae",
                f"{name} in the weights at '{path}' holds {tensor.dtype}, not floating-point numbers.",
                "The file is damaged.",
            )
    wanted = {
        "W_enc": (config.n_latents, config.d_in),
        "W_dec": (config.n_latents, config.width_out),
    }
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape or not all(shape):
            said = "is missing" if found is None else f"has the shape {list(found)}"
            raise refuse(f"asks for {name} of the shape {list(shape)}, which {said} in {WEIGHTS}")
    misfit = kind.misfit(config)
    if misfit is not None:
        raise refuse(misfit)
    for name, scale in (("scale", config.scale), ("scale_out", config.scale_out)):
        if scale is not None and not _SMALLEST_SCALE <= scale <= 1 / _SMALLEST_SCALE:
            raise refuse(f"sets {name} to {scale:g}, by which no row can be multiplied")
    for site in filter(None, (config.site, config.site_out)):
        try:
            Site.parse(site)
        except MicroscopeError as error:
            raise refuse(f"names a site that does not exist: {error.message.rstrip('.')}") from error


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    return folder.parent if folder.suffix == ".safetensors" else folder


def _unreadable(path: str | Path, error: Exception) -> MicroscopeError:
    return MicroscopeError(
        "bad_sae", f"The SAE at '{path}' cannot be read: {error}", "The files may be truncated."
    )


def summarise(sae: SparseAutoencoder) -> dict[str, Any]:
    """An SAE in a few plain values: what a job reports and a command prints."""
    config = sae.config
    return {
        "fingerprint": config.fingerprint,
        "architecture": config.architecture,
        "site": config.site,
        "d_in": config.d_in,
        "n_latents": config.n_latents,
        "k": config.k,
        "scale": config.scale,
        "token_filter": msgspec.to_builtins(config.token_filter),
        "recording": config.recording,
        "assumed": list(config.assumed),
        "training": config.training,
    }
