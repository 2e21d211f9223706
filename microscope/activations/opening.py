"""What a recording starts from: its texts, and a fresh manifest or the one to be continued."""

from __future__ import annotations

from pathlib import Path

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
)
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, dtype_name
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


def open_manifest(
    folder: Path, params: TraceParams, loaded: LoadedModel, sites: list[Site], corpora: list[Corpus]
) -> Manifest:
    """A fresh manifest, or the one of the recording to be continued.

    Raises:
        MicroscopeError: ``recording_exists`` or ``bad_recording``.
    """
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        same = found.model.fingerprint == loaded.fingerprint and [s.site for s in found.sites] == [
            str(s) for s in sites
        ]
        if not params.resume or not same:
            raise MicroscopeError(
                "recording_exists",
                f"{folder} already holds a recording"
                + ("" if same else " of another model or other layers")
                + ".",
                "Choose another --out, or continue it with --resume." if same else "Choose another --out.",
            )
        _remove_uncommitted(folder, found)
        return found
    folder.mkdir(parents=True, exist_ok=True)
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
        train=SplitRecord(),
        held_out=SplitRecord(),
        # asking importlib.metadata takes a twentieth of a second
        versions={m.__name__: str(m.__version__) for m in (torch, transformers, pyarrow)},
    )


def _site_widths(loaded: LoadedModel, sites: list[Site]) -> dict[str, int]:
    token = torch.zeros(1, 1, dtype=torch.long)
    with SiteReader(loaded, sites) as reader:
        return {name: value.shape[-1] for name, value in reader.read(token, token == 0).items()}


def _remove_uncommitted(folder: Path, manifest: Manifest) -> None:
    """Delete shards written after the last commit of the manifest."""
    committed = {s.file for split in (manifest.train, manifest.held_out) for s in split.shards}
    for file in folder.glob("*.parquet*"):
        if file.name not in committed:
            file.unlink()
