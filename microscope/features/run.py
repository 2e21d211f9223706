"""Describe every feature of an SAE: when it fires, on what, and what it promotes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microscope.activations import Recording, load_recorded_model
from microscope.errors import MicroscopeError
from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.added import AddedAccumulator
from microscope.features.codes import CodeReader, Firings
from microscope.features.writing import write_details
from microscope.heap import trim_heap
from microscope.models import LoadedModel, resolve_device
from microscope.params import AnalyseParams, Site
from microscope.params.analyses import feature_analyses
from microscope.params.extensions import implementation
from microscope.params.features import ANALYSIS, AddedAnalysis, Analysis, FeatureDetails
from microscope.progress import SILENT, Progress
from microscope.sae import SparseAutoencoder, load_sae
from microscope.staging import staged

# Chunks of text, of a few thousand tokens each, after which freed memory is given back.
_TRIMMED_CHUNKS = 4


def analyse(params: AnalyseParams, progress: Progress = SILENT) -> tuple[Analysis, list[FeatureDetails]]:
    """Analyse all features of an SAE, or one, over a recording.

    With ``params.out`` the results are written there as ``details.jsonl`` (one line per feature),
    Parquet tables of numbers, examples, tokens and neighbours, and ``analysis.json``; without, they
    are returned. What grows with the text is bounded by ``params.memory_mb``; beside it there are
    about two kilobytes a feature and the examples themselves.

    Raises:
        MicroscopeError: ``no_sae``, ``bad_sae``, ``no_recording``, ``bad_recording``,
            ``site_not_recorded``, ``wrong_width``, ``no_such_feature``, ``wrong_model``, ``nothing_to_measure``
            or errors of :func:`load_model`.
    """
    started = time.monotonic()
    sae = load_sae(params.sae_path, device=resolve_device(params.device))
    if params.feature is not None:
        sae.check_feature(params.feature)
    recording = Recording(params.activations)
    progress.log(f"Loading {params.model or recording.manifest.model.reference}")
    loaded = load_recorded_model(
        recording, params.model, params.device, force=params.force, progress=progress
    )
    run = FeatureRun(sae, recording, loaded, params)
    details = run.run(progress)
    analysis = Analysis(
        sae=sae.config.fingerprint,
        recording=recording.manifest.fingerprint,
        site=sae.config.site,
        n_features=len(run.context.features),
        dead=0,
        tokens=run.context.tokens,
        counted=run.context.counted,
        filter_rule=sae.config.token_filter.words,
        context_length=recording.manifest.context_length,
        window=params.window,
        quantiles=params.quantiles,
    )
    kept: list[FeatureDetails] = []
    if params.out is None:
        kept = list(details)
        analysis.analyses = run.added
        analysis.dead = sum(d.dead for d in kept)
        _time(analysis, started)
    else:
        with staged(Path(params.out), last=(ANALYSIS,)) as work:
            analysis.dead = write_details(work, details, len(run.context.features), progress)
            _time(analysis, started)
            analysis.analyses = run.added
            (work / ANALYSIS).write_bytes(msgspec.json.format(msgspec.json.encode(analysis), indent=1))
    return analysis, kept


def _time(analysis: Analysis, started: float) -> None:
    analysis.seconds = time.monotonic() - started
    analysis.features_per_second = analysis.n_features / analysis.seconds


class FeatureRun:
    """Two passes over the sparse codes, seen by every analysis: what is strongest where, then the text around it."""

    def __init__(
        self, sae: SparseAutoencoder, recording: Recording, loaded: LoadedModel, params: AnalyseParams
    ) -> None:
        site = recording.site(str(Site.parse(sae.config.site)))
        one = None if params.feature is None else np.array([params.feature])
        features = np.arange(sae.config.n_latents) if one is None else one
        self.context = AnalysisContext(sae, recording, loaded, params, features)
        self.codes = CodeReader(
            sae,
            recording,
            site,
            max_tokens=params.max_tokens,
            memory_bytes=params.memory_mb * 2**20 // 2,
            features=one,
        )
        self._built_in: list[Accumulator] = []
        self._added: list[AddedAccumulator] = []
        for declared in feature_analyses().values():
            if declared.package:
                self._added.append(AddedAccumulator(declared, self.context))
            else:
                self._built_in.append(implementation(declared, declared.compute, Accumulator)(self.context))

    @property
    def added(self) -> list[AddedAnalysis]:
        """The analyses of other packages, and what became of them."""
        return [one.shown for one in self._added]

    def run(self, progress: Progress) -> Iterator[FeatureDetails]:
        context, analyses = self.context, [*self._built_in, *self._added]
        with progress.phase("finding examples", self.codes.tokens, "tokens"):
            for firings in self._chunks():
                context.add(firings)
                for analysis in analyses:
                    analysis.first_pass(firings)
                progress.advance(min(context.tokens, self.codes.tokens))
            progress.advance(self.codes.tokens, final=True)
        if not context.counted:
            raise MicroscopeError(
                "nothing_to_measure",
                f"Of {context.tokens} tokens the SAE's filter keeps none: it leaves out "
                f"{context.sae.config.token_filter.words}.",
                "Record more text, or check that the SAE belongs to this model and site.",
            )
        for analysis in analyses:
            analysis.between_passes()
        done = 0
        with progress.phase("collecting text", self.codes.tokens, "tokens"):
            for firings in self._chunks():
                for analysis in analyses:
                    analysis.second_pass(firings)
                done += len(firings.chunk.doc)
                progress.advance(min(done, self.codes.tokens))
            progress.advance(self.codes.tokens, final=True)
        return self._describe(progress)

    def _chunks(self) -> Iterator[Firings]:
        for number, firings in enumerate(self.codes, 1):
            yield firings
            if number % _TRIMMED_CHUNKS == 0:
                trim_heap()
        trim_heap()

    def _describe(self, progress: Progress) -> Iterator[FeatureDetails]:
        built_in = zip(*(analysis.results() for analysis in self._built_in), strict=True)
        added = [(one.declared.name, one.results()) for one in self._added]
        for i, parts in zip(self.context.features.tolist(), built_in, strict=True):
            fields: dict[str, Any] = {key: value for part in parts for key, value in part.items()}
            yield FeatureDetails(index=i, more={name: next(found) for name, found in added}, **fields)
        for why in self.context.left_out:
            progress.log(why, "warning")
        for one in self._added:
            if one.shown.error:
                progress.log(one.shown.error, "warning")
