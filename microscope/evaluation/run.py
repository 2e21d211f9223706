"""The evaluation of an SAE on the held-out part of a recording."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from microscope.activations import BOS, SPECIAL, Chunk, Recording, SiteRecord, load_recorded_model
from microscope.activations.token_filters import filter_on_recording, kept_rows, settle_on_recording
from microscope.errors import MicroscopeError
from microscope.evaluation.probing import Probing, probe, text_properties
from microscope.evaluation.reconstruction import (
    Accumulator,
    PositionCounter,
    PositionError,
    Reconstruction,
    Usage,
    UsageCounter,
    encode_rows,
)
from microscope.evaluation.splice import LossRecovered, Window, loss_recovered, splicer_for
from microscope.models import LoadedModel, resolve_device
from microscope.params import EvaluateParams, Site
from microscope.progress import SILENT, Progress
from microscope.sae import SparseAutoencoder, TokenFilter, load_sae


class Goal(msgspec.Struct, kw_only=True, frozen=True):
    """One number an SAE should reach. ``passed`` is None when it was not measured."""

    name: str
    value: float | None
    limit: float
    better: Literal["lower", "higher"]
    passed: bool | None
    formula: str


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """The typed result. ``ordinary`` excludes special tokens and attention sinks, ``every`` excludes none.

    ``token_filter`` is the SAE's, derived from the recording if it had none. It decides what is ordinary, and
    what keeps its own activation in the splice of ``loss``; ``loss_every`` replaces every token. Of an SAE
    that was trained on every token both splices are the same, and what is ordinary follows the recording's
    rule. ``filter_rule`` says in words what ``ordinary`` leaves out. For a transcoder ``site_out``
    is what its output is compared with. ``honesty`` says in words what counting the sinks would do.
    ``dead_in_training`` is the share of latents that did not fire during the last tokens of training.
    """

    sae: str
    name: str
    recording: str
    site: str
    site_out: str | None = None
    ordinary: Reconstruction
    every: Reconstruction
    usage: Usage
    positions: PositionError
    dead_in_training: float | None
    loss: LossRecovered | None
    loss_every: LossRecovered | None = None
    probing: Probing | None = None
    goals: list[Goal]
    filter_rule: str
    token_filter: TokenFilter = TokenFilter()
    honesty: str
    seconds: float


class Measured(NamedTuple):
    """An evaluation, and its error and spread per document for comparisons by the same documents."""

    evaluation: Evaluation
    per_document: dict[int, list[float]]


FORMULAS = {
    "fvu": "Σ‖x−x̂‖² / Σ‖x−μ‖², μ the per-dimension mean of the held-out tokens; special tokens and attention sinks excluded",
    "ce_recovered": "(CE_zero − CE_sae) / (CE_zero − CE_model); sinks and special tokens keep their own activation in both",
    "dead": "share of latents that did not fire in the last tenth of training",
}


def evaluate(params: EvaluateParams, progress: Progress = SILENT) -> Evaluation:
    """Measure an SAE on held-out documents.

    Raises:
        MicroscopeError: ``no_sae``, ``bad_sae``, ``no_recording``, ``bad_recording``,
            ``site_not_recorded``, ``wrong_width``, ``wrong_model``, ``no_held_out_rows``, ``nothing_to_measure``
            or errors of :func:`load_model`.
    """
    return measure(params, progress).evaluation


def measure(
    params: EvaluateParams,
    progress: Progress = SILENT,
    *,
    loaded: LoadedModel | None = None,
    counted: TokenFilter | None = None,
) -> Measured:
    """:func:`evaluate`, with what a comparison also needs.

    Args:
        params: what to measure.
        progress: told how far it is.
        loaded: the recorded model, if at hand.
        counted: which tokens are ordinary, where the SAE's own filter is not to decide.
    """
    started = time.monotonic()
    device = resolve_device(params.device)
    sae = load_sae(params.sae_path, device=device)
    recording = Recording(params.activations)
    site = recording.site(_site_name(sae, params.layer))
    target = recording.site(str(Site.parse(sae.config.site_out))) if sae.config.site_out else site
    own = settle_on_recording(sae, recording)
    if own.derived is not None:
        progress.log(f"The SAE came without a token filter; it leaves out {own.words}.", "warning")
    counted = counted or counted_filter(own, recording, site.site)
    pass_ = _Pass(sae, recording, site, target, counted, params, progress, device)
    ordinary, every, usage = pass_.run()
    if loaded is None and (params.loss_contexts or params.probe_tokens):
        loaded = _recorded_model(recording, params, progress)
    loss = _measure_loss(sae, recording, site, params, progress, loaded)
    dead_in_training = sae.config.training.get("dead_share")
    evaluation = Evaluation(
        sae=sae.config.fingerprint,
        name=_name(params.sae_path),
        recording=recording.manifest.fingerprint,
        site=site.site,
        site_out=target.site if sae.config.site_out else None,
        ordinary=ordinary,
        every=every,
        usage=usage,
        positions=pass_.positions.result(),
        dead_in_training=dead_in_training,
        loss=loss[0] if loss else None,
        loss_every=loss[1] if loss else None,
        probing=_probe(pass_.probed, sae, loaded, progress),
        goals=_goals(ordinary, dead_in_training, loss[0] if loss else None),
        filter_rule=_filter_rule(counted, own, recording, site),
        token_filter=own,
        honesty=_honesty(ordinary, every),
        seconds=time.monotonic() - started,
    )
    return Measured(evaluation, pass_.ordinary.per_document)


def counted_filter(own: TokenFilter, recording: Recording, site: str) -> TokenFilter:
    """Which tokens are ordinary: the SAE's filter, or the recording's for an SAE trained on every token."""
    if own.leaves_out:
        return own
    return msgspec.structs.replace(filter_on_recording(recording, site), derived=None)


def _filter_rule(counted: TokenFilter, own: TokenFilter, recording: Recording, site: SiteRecord) -> str:
    """What ordinary tokens are not, in words."""
    words = counted.words
    if counted.derived is None and counted.max_norm == site.outlier_norm:
        words += f" ({recording.manifest.outlier_factor:g}× the median {site.median_norm:.4g})"
    if counted == own:
        return words
    return f"{words}; the SAE itself leaves out {own.words}"


def _name(path: str) -> str:
    """What people call an SAE: its folder."""
    folder = Path(path)
    return (folder.parent if folder.suffix == ".safetensors" else folder).resolve().name


def _honesty(ordinary: Reconstruction, every: Reconstruction) -> str:
    """What the unfiltered number would have claimed."""
    left_out = every.n - ordinary.n
    if not left_out:
        return "No token was filtered: both FVUs are the same number."
    words = (
        f"Counting the {left_out} filtered tokens ({left_out / every.n:.2%}), FVU would read {every.fvu:.4f} "
        f"instead of {ordinary.fvu:.4f}."
    )
    if every.fvu < ordinary.fvu / 2:
        return f"{words} A few huge norms would hide most of the error: only the second number is the KPI."
    return f"{words} The second number is the KPI."


class _Probed:
    """The first held-out tokens, kept whole for probing."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.rows = wanted, 0
        self.parts: list[tuple[Tensor, Tensor, Tensor, np.ndarray]] = []
        self.windows: list[np.ndarray] = []
        self.docs: list[np.ndarray] = []

    def add(self, chunk: Chunk, values: Tensor, indices: Tensor, x: Tensor, mask: np.ndarray) -> None:
        if self.rows >= self.wanted:
            return
        self.parts.append((values.cpu(), indices.cpu(), x.cpu(), mask))
        self.windows += [window.token for window in chunk.windows()]
        self.docs.append(chunk.doc)
        self.rows += len(chunk.doc)


class _Pass:
    """One pass over the held-out rows, encoding each once."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        recording: Recording,
        site: SiteRecord,
        target: SiteRecord,
        counted: TokenFilter,
        params: EvaluateParams,
        progress: Progress,
        device: torch.device,
    ) -> None:
        self.sae, self.recording, self.site, self.target = sae, recording, site, target
        self.counted = counted
        self.params, self.progress, self.device = params, progress, device
        means = [mean.to(device) for mean in self._means()]
        self.ordinary, self.every = Accumulator(means[0]), Accumulator(means[1])
        self.positions = PositionCounter(means[0], recording.manifest.context_length)
        self.usage = UsageCounter(sae.config.n_latents)
        self.probed = _Probed(params.probe_tokens)

    def run(self) -> tuple[Reconstruction, Reconstruction, Usage]:
        params = self.params
        rows = self.recording.rows("held_out")
        if not rows:
            raise MicroscopeError(
                "no_held_out_rows",
                "The recording has no held-out documents to measure on.",
                "Record more documents, or a larger --held-out share.",
            )
        total, done = min(rows, params.max_tokens or rows), 0
        with self.progress.phase("reconstructing", total, "tokens"):
            for chunk, wanted in self._chunks():
                self._add(chunk, wanted)
                done += len(chunk.doc)
                self.progress.advance(min(done, total))
            self.progress.advance(total, final=True)
        ordinary, every = (
            self._result(sums, what)
            for sums, what in ((self.ordinary, "ordinary held-out tokens"), (self.every, "held-out tokens"))
        )
        return ordinary, every, self.usage.result()

    def _result(self, sums: Accumulator, what: str) -> Reconstruction:
        if not sums.n:
            raise MicroscopeError(
                "no_held_out_rows",
                f"No held-out token passes the token filter: it leaves out {self.counted.words}.",
                "Record more text.",
            )
        found = sums.result(bootstrap=self.params.bootstrap, seed=self.params.seed)
        if found is None:
            raise MicroscopeError(
                "nothing_to_measure",
                f"The {sums.n} {what} are all alike at {self.target.site}: no variance is left to explain.",
                "Record more text, or check what was recorded.",
            )
        return found

    def _add(self, chunk: Chunk, wanted: np.ndarray) -> None:
        x = torch.from_numpy(chunk.values).to(self.device).float()
        y = x if wanted is chunk.values else torch.from_numpy(wanted).to(self.device).float()
        self.sae.check_width(x)
        values, indices, out = encode_rows(self.sae, x)
        mask = kept_rows(self.counted, chunk.flags, chunk.norm)
        keep = torch.from_numpy(mask).to(self.device)
        self.every.add(y, out, chunk.doc)
        self.ordinary.add(y[keep], out[keep], chunk.doc[mask])
        lengths = np.diff(np.append(chunk.starts, len(chunk.doc)))
        position = np.arange(len(chunk.doc)) - np.repeat(chunk.starts, lengths)
        self.positions.add(y[keep], out[keep], position[mask])
        self.usage.add(values[keep], indices[keep])
        self.probed.add(chunk, values, indices, x, mask)

    def _chunks(self) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Rows at the site that is read, each with what it should become."""
        limit = self.params.max_tokens
        for chunk in self._of(self.site, limit) if self.target is self.site else ():
            yield chunk, chunk.values
        if self.target is not self.site:
            for chunk, other in zip(self._of(self.site, limit), self._of(self.target, limit), strict=True):
                yield chunk, other.values

    def _of(self, site: SiteRecord, limit: int | None) -> Iterator[Chunk]:
        return self.recording.chunks("held_out", site, max_rows=limit)

    def _means(self) -> tuple[Tensor, Tensor]:
        """μ of what is reconstructed, over ordinary tokens and over all held-out tokens, float64."""
        sums, counts = torch.zeros(2, self.target.width, dtype=torch.float64), np.zeros(2)
        for chunk, wanted in self._chunks():
            values = torch.from_numpy(wanted).double()
            mask = kept_rows(self.counted, chunk.flags, chunk.norm)
            sums[0] += values[torch.from_numpy(mask)].sum(0)
            sums[1] += values.sum(0)
            counts += mask.sum(), len(mask)
        return sums[0] / max(counts[0], 1), sums[1] / max(counts[1], 1)


def _recorded_model(recording: Recording, params: EvaluateParams, progress: Progress) -> LoadedModel | None:
    wanted = recording.manifest.model
    if not (params.model or wanted.reference):
        progress.log(
            "The recording names no model, so loss metrics and probing are left out; give --model.", "warning"
        )
        return None
    progress.log(f"Loading {params.model or wanted.reference}")
    return load_recorded_model(
        recording, params.model, params.device, dtype=params.dtype, force=params.force, progress=progress
    )


def _measure_loss(
    sae: SparseAutoencoder,
    recording: Recording,
    site: SiteRecord,
    params: EvaluateParams,
    progress: Progress,
    loaded: LoadedModel | None,
) -> tuple[LossRecovered, LossRecovered] | None:
    if not params.loss_contexts or loaded is None:
        return None
    if not loaded.family.causal:
        progress.log("An encoder predicts no next token, so loss metrics are left out.", "warning")
        return None
    windows = []
    for chunk in recording.chunks("held_out", site):
        for window in chunk.windows():
            special = (window.flags & (SPECIAL | BOS)) != 0
            windows.append(Window(tokens=window.token, special=special, doc=int(window.doc[0])))
    if not windows:
        return None
    # spread over all held-out documents
    picks = np.unique(np.linspace(0, len(windows) - 1, params.loss_contexts).round().astype(int))
    found = loss_recovered(
        splicer_for(loaded, sae),
        [windows[i] for i in picks],
        progress=progress,
        bootstrap=params.bootstrap,
        seed=params.seed,
    )
    if found is None:
        progress.log(
            "No held-out window has a second token to predict, so loss metrics are left out.", "warning"
        )
    elif found[0].ce_recovered is None:
        progress.log(
            f"Zero ablation does not raise the loss ({found[0].ce_zero:.3f} against {found[0].ce_model:.3f} nats a "
            "token), so there is none to recover.",
            "warning",
        )
    return found


def _probe(
    probed: _Probed, sae: SparseAutoencoder, loaded: LoadedModel | None, progress: Progress
) -> Probing | None:
    if not probed.parts or loaded is None:
        return None
    labels = text_properties(probed.windows, loaded.texts.each)
    mask = np.concatenate([part[3] for part in probed.parts])
    keep = torch.from_numpy(mask)
    width = max(part[0].shape[1] for part in probed.parts)
    values, indices = (
        torch.cat([torch.nn.functional.pad(c, (0, width - c.shape[1])) for c in columns])
        for columns in ([part[0] for part in probed.parts], [part[1] for part in probed.parts])
    )
    x = torch.cat([part[2] for part in probed.parts])
    progress.log(f"Probing {int(mask.sum())} tokens")
    return probe(
        values[keep],
        indices[keep],
        x[keep],
        {name: column[mask] for name, column in labels.items()},
        np.concatenate(probed.docs)[mask],
        sae.config.n_latents,
    )


def _goals(
    ordinary: Reconstruction, dead_in_training: float | None, loss: LossRecovered | None
) -> list[Goal]:
    return [
        _goal("FVU", ordinary.fvu, 0.15, "lower", FORMULAS["fvu"]),
        _goal("CE recovered", loss.ce_recovered if loss else None, 0.99, "higher", FORMULAS["ce_recovered"]),
        _goal("Dead latents", dead_in_training, 0.005, "lower", FORMULAS["dead"]),
    ]


def _goal(
    name: str, value: float | None, limit: float, better: Literal["lower", "higher"], formula: str
) -> Goal:
    passed = None if value is None else value <= limit if better == "lower" else value >= limit
    return Goal(name=name, value=value, limit=limit, better=better, passed=passed, formula=formula)


def _site_name(sae: SparseAutoencoder, layer: int | None) -> str:
    site = Site.parse(sae.config.site)
    if layer is not None and layer != site.layer:
        raise MicroscopeError(
            "wrong_site",
            f"The SAE was trained at {site}, not at layer {layer}.",
            f"Leave --layer out or use {site.layer}.",
        )
    return str(site)


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation in plain values: flat metrics and the goals."""
    ordinary, loss = evaluation.ordinary, evaluation.loss
    low, high = ordinary.fvu_interval or (None, None)
    metrics: dict[str, Any] = {
        "fvu": ordinary.fvu,
        "fvu_low": low,
        "fvu_high": high,
        "fvu_all_tokens": evaluation.every.fvu,
        "nmse0": ordinary.nmse0,
        "per_token_fvu": ordinary.per_token_fvu,
        "mse": ordinary.mse,
        "cosine": ordinary.cosine,
        "norm_ratio": ordinary.norm_ratio,
        "relative_bias": ordinary.relative_bias,
        "l0": evaluation.usage.l0,
        "dead_held_out": evaluation.usage.dead_share,
        "dead_in_training": evaluation.dead_in_training,
        "tokens": ordinary.n,
        "all_tokens": evaluation.every.n,
        "documents": ordinary.documents,
    }
    names = ("ce_model", "ce_sae", "ce_zero", "ce_recovered", "kl_sae", "kl_zero", "kl_recovered")
    if loss is not None:
        metrics |= {name: getattr(loss, name) for name in names}
        metrics["ce_recovered_low"], metrics["ce_recovered_high"] = loss.ce_recovered_interval or (None, None)
    if evaluation.loss_every is not None:
        metrics["ce_sae_all_tokens"] = evaluation.loss_every.ce_sae
        metrics["ce_recovered_all_tokens"] = evaluation.loss_every.ce_recovered
    if evaluation.probing is not None:
        metrics |= {f"probe_auroc_{k}": value for k, value in evaluation.probing.auroc.items()}
        metrics["probe_auroc_dense"] = evaluation.probing.auroc_dense
    return {
        "sae": evaluation.sae,
        "recording": evaluation.recording,
        "site": evaluation.site,
        "site_out": evaluation.site_out,
        "filter_rule": evaluation.filter_rule,
        "token_filter": msgspec.to_builtins(evaluation.token_filter),
        "honesty": evaluation.honesty,
        "metrics": metrics,
        "goals": msgspec.to_builtins(evaluation.goals),
        "density_edges": evaluation.usage.density_edges,
        "density_counts": evaluation.usage.density_counts,
        "seconds": round(evaluation.seconds, 1),
    }
