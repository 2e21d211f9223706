"""Record a model's activations on text."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microscope.activations.broken import broken_weight, refuse_mostly_not_finite
from microscope.activations.contexts import TokenisedDocument, Tokeniser, mixed, on_both_sides
from microscope.activations.corpus import Corpus
from microscope.activations.forward import SiteRows, SitesRows, batches_of
from microscope.activations.manifest import Manifest
from microscope.activations.opening import (
    existing_recording,
    open_corpora,
    open_manifest,
    remove_recording,
    require_same_text,
)
from microscope.activations.parallel import Forward
from microscope.activations.writer import (
    SHARD_ROWS,
    RecordingWriter,
    Rows,
    bytes_per_row,
)
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, check_site, dtype_name, load_model
from microscope.outputs import told_when_full
from microscope.params import Site, TraceParams
from microscope.params.precisions import Dtype
from microscope.progress import SILENT, Progress
from microscope.threads import alone

# Documents are collected until this many batches are full, then run in batches of similar length.
_BATCHES_AHEAD = 8
# Rows after which a share of broken ones is believed before the end.
_ENOUGH_TO_JUDGE = 4096


def record(
    params: TraceParams, progress: Progress = SILENT, *, loaded: LoadedModel | None = None
) -> Manifest:
    """Record every kind of activation in ``params.site`` of all ``params.layers`` on a corpus into ``params.out``.

    Rows are in documents' order, train and held-out documents in separate shards. An interrupted
    recording is continued with ``params.resume`` at the last whole shard, without duplicates.

    Args:
        params: what to record.
        progress: told the tokens done and the rate.
        loaded: a model already in memory; otherwise ``params.model`` is loaded.

    Raises:
        MicroscopeError: from :func:`load_model` and :func:`open_corpus`, and ``layer_out_of_range``,
            ``context_too_long``, ``bad_output``, ``recording_exists``, ``recording_mismatch``,
            ``corpus_too_small``, ``not_finite``, ``disk_full``, ``out_of_memory``, ``processes_need_cpu``
            or ``process_died``.
    """
    folder = Path(params.out)
    existing = existing_recording(folder, params)
    corpora = open_corpora(params)
    if loaded is None:
        progress.log(f"Loading {params.model}")
        dtype = params.dtype
        if existing is not None and dtype == "auto":  # another processor may prefer another
            dtype = msgspec.convert(existing.model.quantisation or existing.model.dtype, type=Dtype)
        loaded = load_model(params.model, revision=params.revision, dtype=dtype, device=params.device)
    kinds = dict.fromkeys(params.site)
    sites = [Site(kind, layer) for layer in sorted(set(params.layers)) for kind in kinds]
    for site in sites:
        check_site(site, loaded.n_layers)
    if params.context_length > loaded.max_context:
        raise MicroscopeError(
            "context_too_long",
            f"Contexts of {params.context_length} tokens do not fit: the model takes at most {loaded.max_context}.",
            f"Use --context-length {loaded.max_context} or less.",
        )
    kept = "What was recorded is kept: free some space and continue with --resume."
    with told_when_full(folder, kept):
        manifest = open_manifest(folder, params, loaded, sites, corpora, existing)
        recording = _Recording(params, loaded, sites, corpora, RecordingWriter(folder, manifest), progress)
        if manifest.complete:
            if manifest.settings is not None:  # older versions cut few documents elsewhere
                recording.check_text()
            _say_complete(manifest, params, progress)
        else:
            recording.run()
    return manifest


def _say_complete(manifest: Manifest, params: TraceParams, progress: Progress) -> None:
    tokens = manifest.train.rows + manifest.held_out.rows
    progress.log(f"The recording in {params.out} is complete: {tokens} tokens. There was nothing left to do.")
    if tokens < params.tokens:
        progress.log(
            f"It ended before the {params.tokens} tokens asked for now; record more into another --out.",
            "warning",
        )


@dataclass
class _Group:
    """A few batches' worth of documents on their way through the model."""

    numbers: list[int] = field(default_factory=list)
    documents: list[TokenisedDocument] = field(default_factory=list)
    tokens: int = 0
    results: list[dict[str, SiteRows]] = field(default_factory=list)  # one per window
    batches_left: int = 0

    def add(self, number: int, document: TokenisedDocument) -> None:
        self.numbers.append(number)
        self.documents.append(document)
        self.tokens += document.tokens


class _Recording:
    """One run: documents in, rows out."""

    def __init__(
        self,
        params: TraceParams,
        loaded: LoadedModel,
        sites: list[Site],
        corpora: list[Corpus],
        writer: RecordingWriter,
        progress: Progress,
    ) -> None:
        self.params, self.loaded, self.sites, self.corpora = params, loaded, sites, corpora
        self.writer, self.manifest, self.progress = writer, writer.manifest, progress
        self.tokeniser = Tokeniser(
            loaded.tokenizer,
            length=params.context_length,
            wrapping=loaded.wrapping,
            per_document=params.tokens_per_document,
            vocabulary=loaded.vocab_size,
        )
        self._told: set[str] = set()
        # Half the memory is for rows waiting to be written, the rest for what is on its way there.
        rows = params.memory_mb * 2**20 // bytes_per_row(s.width for s in self.manifest.sites)
        self.shard_rows = max(1, min(SHARD_ROWS, rows // 2))
        self.group_tokens = max(1, min(_BATCHES_AHEAD * params.batch_tokens, rows // 8))

    def run(self) -> None:
        params, manifest = self.params, self.manifest
        started, before = time.monotonic(), manifest.seconds
        written = resumed_at = manifest.train.rows + manifest.held_out.rows
        computed = written
        with (
            self.progress.phase("tracing", params.tokens, "tokens", done=written),
            Forward(self.loaded, self.sites, processes=params.processes) as forward,
        ):
            for (group, picks), results in forward.run(self._batches(written)):
                self._collect(group, picks, results)
                computed += sum(len(group.results[i][str(self.sites[0])].norm) for i in picks)
                self.progress.advance(computed)
                if group.batches_left:
                    continue
                alone(partial(self._store, group))
                self._look_at_broken_rows(written + group.tokens)
                written += group.tokens
                manifest.seconds = before + time.monotonic() - started
                if self.writer.pending_rows() >= self.shard_rows:
                    self.writer.flush(group.numbers[-1] + 1)
                    self.progress.checkpoint(written)
            self.progress.advance(written, final=True)
        if manifest.train.rows == 0 or manifest.held_out.rows == 0:
            raise MicroscopeError(
                "corpus_too_small",
                f"After {written} tokens there is no {'training' if manifest.train.rows == 0 else 'held-out'} document.",
                "Record more tokens, give more documents, or raise --held-out.",
            )
        self._refuse_broken()
        manifest.seconds = before + time.monotonic() - started
        manifest.complete = True
        self.writer.flush(manifest.documents_read)
        for site in manifest.sites:
            if site.nonfinite:
                self.progress.log(
                    f"{site.nonfinite} of {written} rows of {site.site} are infinite or no numbers and left out.",
                    "warning",
                )
        if written < params.tokens:
            self.progress.log(f"The corpus ended after {written} of {params.tokens} tokens.", "warning")
        rate = (written - resumed_at) / max(time.monotonic() - started, 1e-9)
        self.progress.log(f"Recorded {written} tokens at {rate:.0f} tokens/s.")

    def check_text(self) -> None:
        """Whether the documents that were recorded are those that come first in the text now.

        Raises:
            MicroscopeError: ``recording_mismatch``.
        """
        for _ in self._to_come():
            break

    def _documents(self) -> Iterator[TokenisedDocument]:
        """All documents in the order they are recorded in, from the first."""
        sources = [iter(self.tokeniser(corpus)) for corpus in self.corpora]
        documents = mixed(sources, self.params.weights) if len(sources) > 1 else sources[0]
        with_tokens = (document for document in documents if document.windows)
        return on_both_sides(with_tokens, self.params.tokens, self._description)

    @property
    def _description(self) -> str:
        return " + ".join(corpus.description for corpus in self.corpora)

    def _to_come(self) -> Iterator[tuple[int, TokenisedDocument]]:
        """The documents not yet recorded, numbered, once those that are were seen again."""
        documents, skip = enumerate(self._documents()), self.manifest.documents_read
        if skip:
            fingerprint = ""
            for _, document in itertools.islice(documents, skip):
                fingerprint = _chained(fingerprint, document)
            require_same_text(self.writer.folder, self.manifest, fingerprint, self._description)
        yield from documents

    def _groups(self, done: int) -> Iterator[_Group]:
        """Documents in order, a few batches' worth at a time, until the token budget is used up."""
        group = _Group()
        for number, document in self._to_come():
            group.add(number, _truncate(document, self.params.tokens - done - group.tokens))
            full = done + group.tokens >= self.params.tokens
            if full or group.tokens >= self.group_tokens:
                yield group
                done, group = done + group.tokens, _Group()
            if full:
                return
        if group.documents:
            yield group

    def _batches(self, done: int) -> Iterator[tuple[tuple[_Group, list[int]], list[np.ndarray]]]:
        """Padded batches of the groups, labelled with their group and the numbers of their windows in it."""
        for group in self._groups(done):
            windows = [window for document in group.documents for window in document.windows]
            group.results = [{} for _ in windows]
            batches = batches_of(windows, self.params.batch_tokens)
            group.batches_left = len(batches)
            for picks in batches:
                yield (group, picks), [windows[i] for i in picks]

    def _collect(self, group: _Group, picks: list[int], results: SitesRows) -> None:
        for name, rows in results.items():
            for i, row in zip(picks, rows, strict=True):
                group.results[i][name] = row
        group.batches_left -= 1

    def _store(self, group: _Group) -> None:
        """Hand a finished group to the writer and account for its text."""
        remaining = iter(group.results)
        rows = [
            self._rows(number, document, [next(remaining) for _ in document.windows])
            for number, document in zip(group.numbers, group.documents, strict=True)
        ]
        if not self.writer.has_thresholds:
            self.writer.set_thresholds(rows)
        corpus = self.manifest.corpus
        for document, part in zip(group.documents, rows, strict=True):
            self.writer.add(document.split, part)
            corpus.fingerprint = _chained(corpus.fingerprint, document)
            corpus.documents += 1
            source = corpus.sources[document.source]
            source.documents, source.tokens = source.documents + 1, source.tokens + document.tokens
        self.manifest.documents_read = group.numbers[-1] + 1

    def _look_at_broken_rows(self, rows: int) -> None:
        """Say where the first infinite rows, or rows of no numbers, are from; stop early where they are many."""
        for site, origin in self.writer.not_finite.items():
            if site not in self._told:
                if not self._told and (weight := broken_weight(self.loaded)):
                    self.progress.log(
                        f"The model's own weights are infinite or no numbers: {weight}.", "warning"
                    )
                self._told.add(site)
                token = self.loaded.tokenizer.convert_ids_to_tokens(origin.token)
                self.progress.log(
                    f"{site} has rows that are infinite or no numbers, first in document {origin.doc}, at position "
                    f"{origin.pos} ({token!r}); attention can bring them there from anywhere in the same context. "
                    "They are left out: stored as zeros, flagged and counted.",
                    "warning",
                )
        if rows >= _ENOUGH_TO_JUDGE:
            self._refuse_broken()

    def _refuse_broken(self) -> None:
        precision = dtype_name(self.loaded.dtype)
        remedy = "Record with --dtype float32."
        if weight := broken_weight(self.loaded):
            remedy = f"The model's own weights are damaged: {weight}. Fetch it again."
        elif precision == "float32":
            remedy = "The arithmetic is float32 already: look at what the model computes."
        what = f"{self.params.model} in {precision}"
        refuse_mostly_not_finite(self.manifest, what, remedy)

    def _rows(self, number: int, document: TokenisedDocument, activations: list[dict[str, SiteRows]]) -> Rows:
        before = len(self.manifest.wrapping[0])
        pos = [
            np.arange(len(w), dtype=np.int32) + (s - before)
            for w, s in zip(document.windows, document.starts, strict=True)
        ]
        token = np.concatenate(document.windows)
        return Rows(
            doc=np.full(len(token), number, dtype=np.int32),
            pos=np.concatenate(pos),
            token=token,
            flags=np.concatenate([self.tokeniser.flags(w) for w in document.windows]),
            sites={str(s): SiteRows.joined([a[str(s)] for a in activations]) for s in self.sites},
        )


def _chained(fingerprint: str, document: TokenisedDocument) -> str:
    """The fingerprint of a text with one document more."""
    return hashlib.sha256(fingerprint.encode() + document.digest).hexdigest()[:32]


def _truncate(document: TokenisedDocument, budget: int) -> TokenisedDocument:
    """The document's first windows, so that the token budget is met exactly."""
    windows: list[np.ndarray] = []
    for window in document.windows:
        if budget <= 0:
            break
        windows.append(window[:budget])
        budget -= len(window)
    return document._replace(windows=windows, starts=document.starts[: len(windows)])


def summarise(manifest: Manifest) -> dict[str, Any]:
    """A recording in a few plain values: what a job reports and a command prints."""
    tokens = manifest.train.rows + manifest.held_out.rows
    return {
        "fingerprint": manifest.fingerprint,
        "tokens": tokens,
        "train_tokens": manifest.train.rows,
        "held_out_tokens": manifest.held_out.rows,
        "documents": manifest.train.documents + manifest.held_out.documents,
        "held_out_documents": manifest.held_out.documents,
        "seconds": round(manifest.seconds, 1),
        "tokens_per_second": round(tokens / manifest.seconds, 1) if manifest.seconds else 0.0,
        "context_length": manifest.context_length,
        "model": msgspec.to_builtins(manifest.model),
        "corpus": msgspec.to_builtins(manifest.corpus),
        "sites": msgspec.to_builtins(manifest.sites),
    }


class ActivationRecorder:
    """Record one layer of a model; the object-shaped form of :func:`record`.

    Args:
        model_name: Hub id, folder or GGUF file.
        layer_idx: block whose output is recorded, counted from 0.
        output_path: folder for the recording.
        max_samples: number of tokens to record.
        **options: any other field of :class:`~microscope.params.TraceParams`.
    """

    def __init__(
        self, model_name: str, layer_idx: int, output_path: str, max_samples: int = 1_000_000, **options: Any
    ) -> None:
        self._options: dict[str, Any] = {
            "model": model_name,
            "layers": (layer_idx,),
            "out": str(output_path),
            "tokens": max_samples,
            **options,
        }

    def record(
        self,
        dataset_name: str | None = None,
        *,
        text: str | tuple[str, ...] = (),
        progress: Progress = SILENT,
        overwrite: bool = False,
    ) -> Manifest:
        """Record a Hub dataset or text files and return the manifest.

        Raises:
            MicroscopeError: as :func:`record`; with ``overwrite`` also ``recording_exists`` for a folder
                that is no recording.
        """
        files = (text,) if isinstance(text, str) else tuple(text)
        params = msgspec.convert({**self._options, "dataset": dataset_name, "text": files}, type=TraceParams)
        if overwrite:
            remove_recording(Path(params.out))
        return record(params, progress)
