"""What a recording starts from: its texts, and a fresh manifest or the one to be continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import torch
import transformers

from microscope.activations.corpus import Corpus, open_corpus
from microscope.activations.forward import SiteReader
from microscope.activations.manifest import (
    MANIFEST,
    CorpusRecord,
    Manifest,
    ModelRecord,
    SiteRecord,
    SourceRecord,
    SplitRecord,
    read_manifest,
    write_manifest,
)
from microscope.activations.writer import OWN_FILES
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, dtype_name
from microscope.outputs import check_output_folder, make_output_folder
from microscope.params import Site, TraceParams


def open_corpora(params: TraceParams) -> list[Corpus]:
    """One corpus of all files or the dataset, or with weights one of each, to be mixed.

    Raises:
        MicroscopeError: as :func:`open_corpus`.
    """

    def open_one(text: tuple[str, ...], dataset: str | None) -> Corpus:
        return open_corpus(
            text=text,
            dataset=dataset,
            dataset_config=params.dataset_config,
            dataset_split=params.dataset_split,
            text_field=params.text_field,
            held_out=params.held_out,
            seed=params.seed,
        )

    if not params.weights:
        return [open_one(params.text, params.dataset)]
    corpora = [open_one((text,), None) for text in params.text]
    return [*corpora, open_one((), params.dataset)] if params.dataset else corpora


# What of the parameters decides the rows of a recording. Model, sites and precision are compared as they
# turned out, texts by their content; the others only say where and how fast, up to rounding.
SHAPING = (
    *("tokens", "context_length", "tokens_per_document", "held_out", "seed", "outlier_factor"),
    *("text_field", "dataset", "dataset_config", "dataset_split", "weights"),
)


def existing_recording(folder: Path, params: TraceParams) -> Manifest | None:
    """The recording that is to be continued, after a look at what it was begun with; None to begin one.

    One that was interrupted before its first commit has nothing to continue, and is begun anew.

    Raises:
        MicroscopeError: ``bad_output``, ``recording_exists``, ``recording_mismatch`` or ``bad_recording``.
    """
    check_output_folder(folder)
    if not (folder / MANIFEST).exists():
        if taken := [file.name for file in _own_files(folder)]:
            raise MicroscopeError(
                "recording_exists",
                f"{folder} holds files that a recording would replace, {taken[0]} among them.",
                "Choose another --out.",
            )
        return None
    found = read_manifest(folder)
    if not found.complete and not found.documents_read:
        return None
    if not params.resume:
        raise MicroscopeError(
            "recording_exists",
            f"{folder} already holds a recording.",
            "Choose another --out, or continue it with --resume.",
        )
    now = _settings(params)
    before = found.settings or _settings_of_older(found)
    _require_same(folder, {name: (was, now[name]) for name, was in before.items() if name in now}, found)
    return found


def open_manifest(
    folder: Path,
    params: TraceParams,
    loaded: LoadedModel,
    sites: list[Site],
    corpora: list[Corpus],
    existing: Manifest | None,
) -> Manifest:
    """A fresh manifest, or that of the recording to be continued once its model is known to be this one.

    Raises:
        MicroscopeError: ``recording_exists``, ``recording_mismatch`` or ``bad_output``.
    """
    if existing is not None:
        others = {"sites": (", ".join(s.site for s in existing.sites), ", ".join(map(str, sites)))}
        if existing.model.fingerprint != loaded.fingerprint:
            others["model"] = (
                f"{existing.model.reference} (weights {existing.model.fingerprint[:12]})",
                f"{params.model} (weights {loaded.fingerprint[:12]})",
            )
        if told := _differences(others):
            raise MicroscopeError(
                "recording_exists",
                f"{folder} already holds a recording of another model or other layers: {told}.",
                "Choose another --out.",
            )
        pairs = {
            "dtype": (existing.model.dtype, dtype_name(loaded.dtype)),
            "quantisation": (existing.model.quantisation, loaded.quantisation),
            "tokenizer": (existing.model.tokenizer_hash, loaded.tokenizer_hash),
            "special tokens": (_plain(existing.wrapping), _plain(loaded.wrapping)),
        }
        _require_same(folder, pairs, existing)
        _remove_uncommitted(folder, existing)
        return existing
    make_output_folder(folder)
    manifest = _fresh(params, loaded, sites, corpora)
    # Whatever is written from here on belongs to a recording that names itself.
    write_manifest(folder, manifest)
    _remove_uncommitted(folder, manifest)
    return manifest


def remove_recording(folder: Path) -> None:
    """Delete a recording, and nothing else that lies in its folder.

    Raises:
        MicroscopeError: ``recording_exists`` for a folder with something else in it.
    """
    if not folder.is_dir():
        return
    if not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise MicroscopeError(
            "recording_exists",
            f"{folder} is no recording, and is not overwritten.",
            "Choose another folder, or delete it yourself.",
        )
    for file in _own_files(folder):
        file.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def require_same_text(folder: Path, manifest: Manifest, fingerprint: str, description: str) -> None:
    """Whether the documents that were recorded are those that come first now.

    Raises:
        MicroscopeError: ``recording_mismatch``.
    """
    if fingerprint != manifest.corpus.fingerprint:
        was = manifest.corpus.description
        raise MicroscopeError(
            "recording_mismatch",
            f"The recording in {folder} was begun with another text: its first {manifest.documents_read} "
            f"documents were of {was}, and those of {description} are {'others' if was == description else 'not they'}.",
            "Give the text it was begun with, or choose another --out.",
        )


def _settings(params: TraceParams) -> dict[str, Any]:
    return {name: _plain(getattr(params, name)) for name in SHAPING}


def _settings_of_older(manifest: Manifest) -> dict[str, Any]:
    """What a manifest without settings says about them."""
    weights = [source.weight for source in manifest.corpus.sources]
    return {
        "context_length": manifest.context_length,
        "held_out": manifest.held_out_share,
        "outlier_factor": manifest.outlier_factor,
        "weights": weights if len(weights) > 1 else [],
    }


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _require_same(folder: Path, pairs: dict[str, tuple[Any, Any]], manifest: Manifest) -> None:
    """Each setting as it was and as it is; a complete recording may be asked for more tokens, and says so."""
    others = {name: values for name, values in pairs.items() if not (name == "tokens" and manifest.complete)}
    if told := _differences(others):
        raise MicroscopeError(
            "recording_mismatch",
            f"The recording in {folder} was begun with other settings: {told}.",
            "Repeat the settings it was begun with, or choose another --out.",
        )


def _differences(pairs: dict[str, tuple[Any, Any]]) -> str:
    """Those of the pairs that differ, in words; nothing where none does."""
    return "; ".join(
        f"{name} was {_shown(was)} and is now {_shown(now)}"
        for name, (was, now) in pairs.items()
        if was != now
    )


def _shown(value: Any) -> str:
    return "not given" if value in (None, [], "") else str(value)[:80]


def _fresh(params: TraceParams, loaded: LoadedModel, sites: list[Site], corpora: list[Corpus]) -> Manifest:
    widths = _site_widths(loaded, sites)
    return Manifest(
        model=ModelRecord(
            reference=params.model,
            revision=params.revision,
            fingerprint=loaded.fingerprint,
            family=loaded.family.name,
            n_layers=loaded.n_layers,
            d_model=loaded.d_model,
            vocab_size=loaded.vocab_size,
            dtype=dtype_name(loaded.dtype),
            quantisation=loaded.quantisation,
            tokenizer_hash=loaded.tokenizer_hash,
        ),
        corpus=CorpusRecord(
            description=" + ".join(corpus.description for corpus in corpora),
            segmentation="paragraphs"
            if any(corpus.segmentation == "paragraphs" for corpus in corpora)
            else "documents",
            sources=[
                SourceRecord(description=corpus.description, weight=weight)
                for corpus, weight in zip(corpora, params.weights or (1.0,), strict=True)
            ],
        ),
        sites=[
            SiteRecord(site=str(s), column=str(s), norm_column=f"{s}.norm", width=widths[str(s)])
            for s in sites
        ],
        context_length=params.context_length,
        wrapping=loaded.wrapping,
        outlier_factor=params.outlier_factor,
        held_out_share=params.held_out,
        settings=_settings(params),
        train=SplitRecord(),
        held_out=SplitRecord(),
        # asking importlib.metadata takes a twentieth of a second
        versions={m.__name__: str(m.__version__) for m in (torch, transformers, pyarrow)},
    )


def _site_widths(loaded: LoadedModel, sites: list[Site]) -> dict[str, int]:
    token = torch.zeros(1, 1, dtype=torch.long)
    with SiteReader(loaded, sites) as reader:
        return {name: value.shape[-1] for name, value in reader.read(token, token == 0).items()}


def _own_files(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in found if OWN_FILES.fullmatch(file.name) and file.is_file())


def _remove_uncommitted(folder: Path, manifest: Manifest) -> None:
    """Delete what was written after the last commit of the manifest."""
    committed = {s.file for split in (manifest.train, manifest.held_out) for s in split.shards}
    committed.add(manifest.statistics)
    for file in _own_files(folder):
        if file.name not in committed:
            file.unlink()
    (folder / (MANIFEST + ".tmp")).unlink(missing_ok=True)
