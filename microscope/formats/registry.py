"""Every format, by name; detection by the files that are there."""

from __future__ import annotations

from pathlib import Path

from microscope.errors import MicroscopeError
from microscope.formats import dictionary_learning, gemma_scope, llama_scope, pickled, saelens, sparsify
from microscope.formats.base import Format, Hints
from microscope.models.paths import remember_path
from microscope.naming import named_model
from microscope.params import architectures
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from microscope.sae.files import CONFIG


def _is_native(path: Path) -> bool:
    folder = path.parent if path.name == "sae.safetensors" else path
    return (folder / "sae.json").is_file()


NATIVE = Format(
    "native", "This project", _is_native, lambda path, _: load_sae(path), lambda sae, path: _save(sae, path)
)


def _save(sae: SparseAutoencoder, folder: Path) -> None:
    model = sae.config.model
    remember_path(str(model.get("fingerprint") or ""), str(model.get("reference") or ""))
    config = save_sae(sae, folder) / CONFIG
    config.write_bytes(named_model(config.read_bytes()))


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        NATIVE,
        saelens.FORMAT,
        sparsify.FORMAT,
        dictionary_learning.FORMAT,
        gemma_scope.V1,
        gemma_scope.V2,
        llama_scope.FORMAT,
        pickled.FORMAT,
    )
}


def locate(path: Path, *, format: str = "auto", subfolder: str | None = None) -> Path:
    """Where inside a folder the SAE is: people send the folder around it as often as the folder itself.

    Args:
        subfolder: which one, relative to ``path``, when there are several.

    Raises:
        MicroscopeError: ``no_sae``, or ``several_saes`` with their names.
    """
    if subfolder is not None:
        chosen = (path / subfolder).resolve()
        if not chosen.is_relative_to(path.resolve()) or not chosen.exists():
            raise MicroscopeError("no_sae", f"There is no folder '{subfolder}' in it.")
        return chosen
    if not path.is_dir() or _matching(path, format):
        return path
    found = [folder for folder in sorted(path.rglob("*")) if folder.is_dir() and _matching(folder, format)]
    if len(found) > 1:
        names = ", ".join(folder.relative_to(path).as_posix() for folder in found[:8])
        raise MicroscopeError(
            "several_saes",
            f"There are {len(found)} SAEs in it: {names}{' …' if len(found) > 8 else ''}.",
            "Choose one with --subfolder.",
        )
    return found[0] if found else path


def find_saes(path: Path) -> dict[str, Path]:
    """Every SAE in a folder, by its path in it; a folder that is one is the only one, under its own name.

    Raises:
        MicroscopeError: ``no_sae``.
    """
    if _matching(path, "auto"):
        return {path.resolve().name: path}
    folders = sorted(folder for folder in path.rglob("*") if folder.is_dir() and _matching(folder, "auto"))
    # what an SAE keeps beside it, such as checkpoints, is part of it
    found = [folder for folder in folders if not any(parent in folders for parent in folder.parents)]
    if not found:
        known = ", ".join(f.title for f in FORMATS.values())
        raise MicroscopeError("no_sae", f"There is no SAE in '{path}' in a known format.", f"Known: {known}.")
    return {folder.relative_to(path).as_posix(): folder for folder in found}


def _matching(folder: Path, format: str) -> bool:
    formats = FORMATS.values() if format == "auto" else [_named(format)]
    return any(known.matches(folder) for known in formats)


def read_sae(path: str | Path, *, format: str = "auto", hints: Hints | None = None) -> SparseAutoencoder:
    """Read an SAE in any known format, in canonical form.

    Args:
        path: folder, or file for single-file formats.
        format: a name of :data:`FORMATS`, or ``auto``.
        hints: what the files leave open.

    Raises:
        MicroscopeError: ``no_sae``, ``unknown_format``, ``bad_sae``, ``unsupported_sae``, ``unsupported_setting``,
            ``unknown_setting``, ``bad_assumption``, ``site_unknown``, ``scale_unknown``, ``k_unknown``,
            ``k_conflict``, ``site_conflict`` or ``pickle_refused``.
    """
    source = Path(path)
    if not source.exists():
        raise MicroscopeError("no_sae", f"There is nothing at '{path}'.")
    if format == "auto":
        chosen = next((f for f in FORMATS.values() if f.matches(source)), None)
        if chosen is None:
            known = ", ".join(f.title for f in FORMATS.values())
            raise MicroscopeError("unknown_format", f"'{path}' is in no known format.", f"Known: {known}.")
    else:
        chosen = _named(format)
    hints = hints or Hints()
    sae = chosen.read(source, hints)
    hints.check_used(sae.config)
    sae.config.assumed = tuple(dict.fromkeys((*sae.config.assumed, *hints.assumptions.finish())))
    sae.config.fingerprint = sae.content_fingerprint()
    return sae


def write_sae(sae: SparseAutoencoder, path: str | Path, *, format: str) -> Path:
    """Write an SAE for another library.

    Raises:
        MicroscopeError: ``unknown_format``, or ``cannot_export`` with the reason.
    """
    chosen = _named(format)
    if chosen.write is None:
        raise MicroscopeError("cannot_export", f"{chosen.title} is read, not written.")
    package = architectures().find(sae.config.architecture).package
    if package and chosen is not NATIVE:
        raise MicroscopeError(
            "cannot_export",
            f"{chosen.title} does not know the architecture '{sae.config.architecture}' of {package}.",
            "Export it natively.",
        )
    chosen.write(sae, Path(path))
    return Path(path)


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise MicroscopeError(
            "unknown_format", f"There is no format '{name}'.", f"Known: {', '.join(FORMATS)}."
        )
    return FORMATS[name]
