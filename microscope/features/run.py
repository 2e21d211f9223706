"""Describe every feature of an SAE: when it fires, on what, and what it promotes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch

from microscope.activations import Recording, load_recorded_model
from microscope.errors import MicroscopeError
from microscope.features.coactivation import Coactivation
from microscope.features.codes import CodeReader, Firings
from microscope.features.details import (
    ANALYSIS,
    HISTOGRAM_BINS,
    Analysis,
    Example,
    FeatureDetails,
    Neighbour,
    Partner,
    TokenMean,
    TokenWeight,
)
from microscope.features.examples import ExampleChoice, Examples, Found
from microscope.features.logits import LogitEffects, logit_effects
from microscope.features.neighbours import nearest_rows
from microscope.features.statistics import ActivationStatistics, LinearHistograms, TokenStatistics
from microscope.features.writing import write_details
from microscope.heap import trim_heap
from microscope.models import BlockRunner, LoadedModel, resolve_device, runner_for
from microscope.params import AnalyseParams, Site
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
        n_features=len(run.features),
        dead=0,
        tokens=run.tokens,
        counted=run.counted,
        filter_rule=sae.config.token_filter.words,
        context_length=recording.manifest.context_length,
        window=params.window,
        quantiles=params.quantiles,
    )
    kept: list[FeatureDetails] = []
    if params.out is None:
        kept = list(details)
        analysis.dead = sum(d.dead for d in kept)
        _time(analysis, started)
    else:
        with staged(Path(params.out), last=(ANALYSIS,)) as work:
            analysis.dead = write_details(work, details, len(run.features), progress)
            _time(analysis, started)
            (work / ANALYSIS).write_bytes(msgspec.json.format(msgspec.json.encode(analysis), indent=1))
    return analysis, kept


def _time(analysis: Analysis, started: float) -> None:
    analysis.seconds = time.monotonic() - started
    analysis.features_per_second = analysis.n_features / analysis.seconds


class FeatureRun:
    """Two passes over the sparse codes: what is strongest where, then the text around it."""

    def __init__(
        self, sae: SparseAutoencoder, recording: Recording, loaded: LoadedModel, params: AnalyseParams
    ) -> None:
        self.sae, self.recording, self.loaded, self.params = sae, recording, loaded, params
        site = recording.site(str(Site.parse(sae.config.site)))
        one = None if params.feature is None else np.array([params.feature])
        self.features = np.arange(sae.config.n_latents) if one is None else one
        self.codes = CodeReader(
            sae,
            recording,
            site,
            max_tokens=params.max_tokens,
            memory_bytes=params.memory_mb * 2**20 // 2,
            features=one,
        )
        self.tokens = self.counted = 0
        self._text = loaded.texts

    def run(self, progress: Progress) -> Iterator[FeatureDetails]:
        latents = self.sae.config.n_latents
        memory = self.params.memory_mb * 2**20 // 8
        self.activation = ActivationStatistics(latents)
        tokens = TokenStatistics(self.loaded.vocab_size, memory_bytes=memory)
        self.together = Coactivation(latents, self.sae.config.k, memory_bytes=memory)
        choice = ExampleChoice(
            latents,
            strongest=self.params.examples,
            quantiles=self.params.quantiles,
            each=self.params.quantile_examples,
            memory_bytes=memory,
        )
        with progress.phase("finding examples", self.codes.tokens, "tokens"):
            for firings in self._chunks():
                for accumulator in (self.activation, tokens, choice, self.together):
                    accumulator.add(firings)
                self.tokens += len(firings.chunk.doc)
                self.counted += firings.counted
                progress.advance(min(self.tokens, self.codes.tokens))
            progress.advance(self.codes.tokens, final=True)
        if not self.counted:
            raise MicroscopeError(
                "nothing_to_measure",
                f"Of {self.tokens} tokens the SAE's filter keeps none: it leaves out "
                f"{self.sae.config.token_filter.words}.",
                "Record more text, or check that the SAE belongs to this model and site.",
            )
        self.histograms = LinearHistograms(self.activation.maximum, HISTOGRAM_BINS)
        examples = Examples(*choice.result(), window=self.params.window)
        done = 0
        with progress.phase("collecting text", self.codes.tokens, "tokens"):
            for firings in self._chunks():
                self.histograms.add(firings)
                examples.add(firings)
                done += len(firings.chunk.doc)
                progress.advance(min(done, self.codes.tokens))
            progress.advance(self.codes.tokens, final=True)
        return self._describe(self._runner(), tokens.top(self.params.top_tokens), examples)

    def _chunks(self) -> Iterator[Firings]:
        for number, firings in enumerate(self.codes, 1):
            yield firings
            if number % _TRIMMED_CHUNKS == 0:
                trim_heap()
        trim_heap()

    def _describe(
        self,
        runner: BlockRunner | None,
        top_tokens: dict[int, list[tuple[int, float, int]]],
        examples: Examples,
    ) -> Iterator[FeatureDetails]:
        sae, activation = self.sae, self.activation
        p999 = activation.percentile(0.999)
        norm = (sae.W_dec.norm(dim=1) / sae.config.output_scale).cpu().numpy()
        cosine = self._cosine()
        effects: Iterable[LogitEffects | None] = itertools.repeat(None, len(self.features))
        if runner is not None:
            effects = logit_effects(
                runner, sae, self.params.top_tokens, features=torch.from_numpy(self.features)
            )
        density = activation.firings / self.counted
        partners = self.together.partners(density, self.params.neighbours)
        near = zip(self._nearest(sae.W_dec), self._nearest(sae.W_enc), strict=True)
        for i, effect, (decoder, encoder) in zip(self.features.tolist(), effects, near, strict=True):
            firings = int(activation.firings[i])
            found = [self._example(e) for e in examples.of(i)]
            yield FeatureDetails(
                index=i,
                density=float(density[i]),
                firings=firings,
                max_activation=float(activation.maximum[i]),
                mean_activation=float(activation.total[i] / max(firings, 1)),
                p999=float(p999[i]),
                dead=firings == 0,
                histogram=self.histograms.counts[i].tolist(),
                top_tokens=[
                    TokenMean(token=t, text=self._text(t), mean=round(mean, 4), count=count)
                    for t, mean, count in top_tokens.get(i, [])
                ],
                promoted=self._weights(effect.promoted, effect.promoted_weight) if effect else [],
                suppressed=self._weights(effect.suppressed, effect.suppressed_weight) if effect else [],
                examples=[e for e in found if e.group == 0],
                quantile_examples=[e for e in found if e.group],
                decoder_norm=float(norm[i]),
                encoder_decoder_cosine=float(cosine[i]),
                decoder_neighbours=decoder,
                encoder_neighbours=encoder,
                partners=[
                    Partner(index=j, share=round(share, 4), lift=round(lift, 2))
                    for j, share, lift in partners.get(i, [])
                ],
            )

    def _runner(self) -> BlockRunner | None:
        """What the logit lens looks through; None for encoders and for sites that do not write to the stream."""
        if not self.loaded.family.causal or self.sae.config.width_out != self.loaded.d_model:
            return None
        return runner_for(self.loaded)

    def _nearest(self, matrix: torch.Tensor) -> Iterator[list[Neighbour]]:
        rows = nearest_rows(matrix, self.params.neighbours, features=torch.from_numpy(self.features))
        for indices, cosines in rows:
            yield [
                Neighbour(index=j, cosine=round(c, 4))
                for j, c in zip(indices.tolist(), cosines.tolist(), strict=True)
            ]

    def _cosine(self) -> np.ndarray:
        """Between each latent's encoder and decoder row; 0 for transcoders, whose rows live in two spaces."""
        sae = self.sae
        if sae.config.is_transcoder:
            return np.zeros(sae.config.n_latents)
        return torch.cosine_similarity(sae.W_enc, sae.W_dec, dim=1).cpu().numpy()

    def _weights(self, tokens: torch.Tensor, weights: torch.Tensor) -> list[TokenWeight]:
        return [
            TokenWeight(token=t, text=self._text(t), weight=round(w, 5))
            for t, w in zip(tokens.tolist(), weights.tolist(), strict=True)
        ]

    def _example(self, found: Found) -> Example:
        return Example(
            doc=found.doc,
            pos=found.pos,
            peak=found.peak,
            max=float(found.values[found.peak]),
            texts=self._text.each(
                found.tokens.tolist(), before=found.before.tolist(), after=found.after.tolist()
            ),
            values=[round(v, 4) for v in found.values.tolist()],
            group=found.group,
        )
