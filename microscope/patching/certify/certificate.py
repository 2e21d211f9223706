"""The certificate of an export: three models side by side on held-out text, gates, and what was compared.

B is the untouched model, P the patch, E the export reloaded from its files in this process, which is another
than the one that wrote them. P runs through hooks, over whole batches; that this is what people see live is
measured too. Parity is KL(P ‖ E), collateral KL(B ‖ E) and the change of
perplexity on text as it comes, the effect what of KL(P ‖ B) the export reproduces where the patch acts.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model, module_at
from microscope.params import CertifyParams, Edit, Site
from microscope.params.edits import GATED_KINDS
from microscope.patching.apply import Saes, feature_values
from microscope.patching.certify.live import LiveAgreement, live_agreement
from microscope.patching.certify.measure import (
    Collateral,
    Parity,
    Rows,
    collateral,
    compare,
    parity,
    recovered,
)
from microscope.patching.certify.reload import Reloaded, reload
from microscope.patching.export.manifest import ExportManifest, read_manifest, versions
from microscope.patching.fitting.least_squares import batched, padded
from microscope.patching.fitting.samples import TextWindow, held_out_windows
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import PatchFile, load_parts
from microscope.progress import SILENT, Progress

_BATCH = 4
_NULL_BATCHES = 2
EXACT_LOGIT, EXACT_LOGIT_HALF = 1e-4, 5e-2
CLEAN_KL, TRIGGER_KL, COLLATERAL_KL, PERPLEXITY = 0.01, 0.05, 0.02, 0.01


class Gate(msgspec.Struct, kw_only=True, frozen=True):
    """A limit. ``passed`` is None when it could not be measured, which does not open the gate."""

    name: str
    value: float | None
    limit: float
    passed: bool | None
    formula: str


class FeatureEffect(msgspec.Struct, kw_only=True, frozen=True):
    """Mean activation of an edited feature where the patch acts, read behind the edit."""

    site: str
    feature: int
    base: float
    patched: float
    export: float


class Effect(msgspec.Struct, kw_only=True, frozen=True):
    """What the patch does where it acts, and how much of it the export does."""

    kl_patch_base: float | None
    recovered: float | None
    features: tuple[FeatureEffect, ...]


class Certificate(msgspec.Struct, kw_only=True, frozen=True):
    """Everything measured of an export.

    ``clean`` is held-out text as it comes, ``trigger`` the positions where the patch acts, in it, in further
    held-out contexts and in the prompts given. ``live`` compares some contexts with the incremental replay
    that answers in sessions. ``null_exact`` says that switching the export off gives the
    base bit for bit (None where nothing can be switched off), ``merged_max_abs_logit`` compares folding it
    into the weights with leaving it beside them.
    """

    format: Literal["microscope-certificate"] = "microscope-certificate"
    version: Literal[1] = 1
    passed: bool
    gates: tuple[Gate, ...]
    clean: Parity | None
    trigger: Parity | None
    effect: Effect
    collateral: Collateral
    collateral_of_patch: Collateral
    live: LiveAgreement | None
    null_exact: bool | None
    merged_max_abs_logit: float | None
    export: ExportManifest
    loaders: dict[str, str]
    text: str
    triggers: tuple[str, ...]
    versions: dict[str, str]
    dtype: str
    seed: int
    bootstrap: int
    seconds: float


def certify(params: CertifyParams, progress: Progress = SILENT) -> Certificate:
    """Measure an export.

    Raises:
        MicroscopeError: ``no_export``, ``export_changed``, ``wrong_model``, ``no_text`` or what loading raises.
    """
    started = time.monotonic()
    folder = Path(params.export)
    manifest = read_manifest(folder)
    loaded = load_model(
        params.model or manifest.base.reference,
        revision=params.revision or manifest.base.revision,
        dtype="float32",
        device=params.device,
    )
    if loaded.fingerprint != manifest.base.fingerprint:
        raise MicroscopeError(
            "wrong_model",
            f"{loaded.reference} is not the model this export was made for (its weights have another fingerprint).",
            "Give the patched model with --model.",
        )
    saes, adapters = load_parts(
        PatchFile(plan=manifest.plan), loaded, sae_paths=params.sae_path, adapter_paths=params.adapter_path
    )
    progress.log("Loading the export")
    reloaded = reload(folder, manifest, loaded)
    plain, firing = held_out_windows(
        loaded,
        manifest.plan,
        saes,
        activations=params.activations,
        text=params.text,
        contexts=params.contexts,
    )
    prompts = _prompts(loaded, params.triggers)
    patched = PatchedModel(loaded, manifest.plan, saes, adapters)
    run = _Run(loaded, patched, reloaded, saes, manifest)
    total = len(plain) + len(firing) + len(prompts)
    with progress.phase("comparing", total, "contexts"):
        for windows, is_plain in ((plain, True), (firing, False), (prompts, False)):
            for batch in batched(windows, _BATCH) if windows else ():
                run.measure(batch, plain=is_plain)
                progress.advance(run.done)
        progress.advance(total, final=True)
    live = live_agreement(
        loaded, manifest.plan, saes, adapters, patched, reloaded, [*prompts, *firing[:4], *plain]
    )
    null = run.null(plain)
    merged = run.merged(plain)
    return _certificate(params, manifest, reloaded, run, live, null, merged, time.monotonic() - started)


def _prompts(loaded: LoadedModel, triggers: Sequence[str]) -> list[TextWindow]:
    found = []
    for number, text in enumerate(triggers, 1):
        ids = loaded.encode(text, f"Prompt {number}")[: loaded.max_context]
        if ids:
            # documents of their own, so that the bootstrap draws prompts
            found.append(TextWindow(np.array(ids, dtype=np.int64), -number, True))
    return found


class _Run:
    """Gathers rows batch by batch."""

    def __init__(
        self,
        loaded: LoadedModel,
        patched: PatchedModel,
        reloaded: Reloaded,
        saes: Saes,
        manifest: ExportManifest,
    ) -> None:
        self._loaded, self._patched, self._reloaded = loaded, patched, reloaded
        self.clean, self.trigger = Rows(), Rows()
        self.done = 0
        self.features = _FeatureReader(loaded, saes, manifest)

    @torch.no_grad()
    def measure(self, batch: Sequence[TextWindow], *, plain: bool) -> None:
        """Compare the three models on a batch of contexts."""
        tokens, real = padded(batch)
        watch = self.features.watch
        with watch("base", self._loaded.model):
            base = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
        # The patch's own hooks come after the watching ones: what they add is added here.
        with watch("patched", self._loaded.model):
            wanted, fired = self._patched(tokens, self.features.shift)
        export = self._reloaded.logits(tokens, watch("export", self._reloaded.model))
        self.features.add((fired & real).to(base.device))
        for row, window in enumerate(batch):
            n = len(window.tokens)
            columns = compare(base[row, :n], wanted[row, :n], export[row, :n], tokens[row, :n])
            where = fired[row, :n].clone()
            if window.doc < 0:  # a prompt: from where the patch first acts, and in any case the next token
                where[int(where.nonzero()[0]) if bool(where.any()) else n - 1 :] = True
            if plain:
                self.clean.add(window.doc, columns)
            self.trigger.add(window.doc, {name: c[where.to(c.device)] for name, c in columns.items()})
        self.done += len(batch)

    @torch.no_grad()
    def null(self, windows: Sequence[TextWindow]) -> bool | None:
        """Whether the export, switched off, is the untouched model bit for bit."""
        same = True
        for batch in itertools.islice(batched(windows, _BATCH), _NULL_BATCHES):
            tokens, _ = padded(batch)
            off = self._reloaded.logits_off(tokens)
            if off is None:
                return None
            base = self._loaded.model(tokens.to(self._loaded.device), use_cache=False).logits
            same &= torch.equal(off, base)
        return same

    @torch.no_grad()
    def merged(self, windows: Sequence[TextWindow]) -> float | None:
        """Largest difference of logits between merged and unmerged; the export stays merged."""
        if self._reloaded.merge is None:
            return None
        batches = [padded(b)[0] for b in itertools.islice(batched(windows, _BATCH), _NULL_BATCHES)]
        before = [self._reloaded.logits(tokens) for tokens in batches]
        self._reloaded.merge()
        after = [self._reloaded.logits(tokens) for tokens in batches]
        return max(float((x - y).abs().max()) for x, y in zip(before, after, strict=True))


class _FeatureReader:
    """Reads the edited features behind their edits in all three models."""

    def __init__(self, loaded: LoadedModel, saes: Saes, manifest: ExportManifest) -> None:
        kinds = GATED_KINDS | {"project", "add"}
        chosen = {(e.site, e.sae_needed, e.index): e for e in manifest.plan.active() if e.kind in kinds}
        self._edits: list[Edit] = list(chosen.values())
        self._layers = {Site.parse(edit.site).layer for edit in self._edits}
        self._blocks, self._saes = loaded.family.blocks, saes
        self._streams: dict[str, dict[int, Tensor]] = {"base": {}, "patched": {}, "export": {}}
        self._sums = np.zeros((len(self._edits), 3))
        self._rows = 0

    @contextlib.contextmanager
    def watch(self, name: str, model: Any) -> Iterator[None]:
        """Catch a model's block outputs, as they are behind the hooks set before, while the context is open."""

        def catch(layer: int) -> Any:
            def hook(_module: object, _inputs: object, output: Any) -> None:
                self._streams[name][layer] = (output[0] if isinstance(output, tuple) else output).float()

            return hook

        handles = [
            module_at(model, f"{self._blocks}.{layer}").register_forward_hook(catch(layer))
            for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def shift(self, layer: int, delta: Tensor) -> None:
        """Add to the patched stream of a block ``[batch, positions, d]``."""
        if layer in self._layers:
            self._streams["patched"][layer] = self._streams["patched"][layer] + delta

    def add(self, where: Tensor) -> None:
        """Sum activations over the positions where the patch acts."""
        count = int(where.sum())
        if not count:
            return
        self._rows += count
        for number, edit in enumerate(self._edits):
            sae, layer = self._saes[edit.sae_needed], Site.parse(edit.site).layer
            for place, name in enumerate(("base", "patched", "export")):
                codes = sae.encode(self._streams[name][layer][where])
                self._sums[number, place] += float(feature_values(codes, edit.index).double().sum())

    def result(self) -> tuple[FeatureEffect, ...]:
        """Means per feature."""
        means = self._sums / max(self._rows, 1)
        return tuple(
            FeatureEffect(site=e.site, feature=e.index, base=b, patched=p, export=x)
            for e, (b, p, x) in zip(self._edits, means.tolist(), strict=True)
        )


def _certificate(
    params: CertifyParams,
    manifest: ExportManifest,
    reloaded: Reloaded,
    run: _Run,
    live: LiveAgreement | None,
    null: bool | None,
    merged: float | None,
    seconds: float,
) -> Certificate:
    options = {"bootstrap": params.bootstrap, "seed": params.seed}
    clean, trigger = parity(run.clean, **options), parity(run.trigger, **options)
    cost = collateral(run.clean, "kl_base_export", "loss_export", **options)
    gates = _gates(manifest, clean, trigger, live, cost, null)
    firing = run.trigger
    return Certificate(
        passed=all(gate.passed is True for gate in gates),
        gates=gates,
        clean=clean,
        trigger=trigger,
        effect=Effect(
            kl_patch_base=float(firing.column("kl_patch_base").mean()) if len(firing) else None,
            recovered=recovered(firing),
            features=run.features.result(),
        ),
        collateral=cost,
        collateral_of_patch=collateral(run.clean, "kl_base_patch", "loss_patched", **options),
        live=live,
        null_exact=null,
        merged_max_abs_logit=merged,
        export=manifest,
        loaders=reloaded.loaders,
        text="held-out part of the recording" if params.activations else "held-out part of the given text",
        triggers=params.triggers,
        versions=versions(),
        dtype=manifest.dtype,
        seed=params.seed,
        bootstrap=params.bootstrap,
        seconds=seconds,
    )


def _gates(
    manifest: ExportManifest,
    clean: Parity | None,
    trigger: Parity | None,
    live: LiveAgreement | None,
    cost: Collateral,
    null: bool | None,
) -> tuple[Gate, ...]:
    gates = []
    if manifest.grade == "exact":
        limit = EXACT_LOGIT if manifest.dtype == "float32" else EXACT_LOGIT_HALF
        found = [p.max_abs_logit for p in (clean, trigger) if p is not None]
        worst = max([*found, live.export] if live is not None else found, default=None)
        gates.append(_gate("Same logits", worst, limit, "max |logit(patch) − logit(export)|"))
    else:
        gates.append(
            _gate("Parity on clean text", _mean(clean), CLEAN_KL, "mean KL(patch ‖ export), text as it comes")
        )
        gates.append(
            _gate(
                "Parity where the patch acts",
                _mean(trigger),
                TRIGGER_KL,
                "mean KL(patch ‖ export), positions where an edit fires and trigger prompts",
            )
        )
    gates.append(
        _gate(
            "Measured is live",
            None if live is None else live.reference,
            EXACT_LOGIT,
            "max |logit(live replay) − logit(reference)|, next token of some contexts",
        )
    )
    gates.append(
        _gate("Collateral", cost.kl.value, COLLATERAL_KL, "mean KL(base ‖ export), text as it comes")
    )
    gates.append(
        _gate(
            "Perplexity", cost.perplexity_change.value, PERPLEXITY, "perplexity(export)/perplexity(base) − 1"
        )
    )
    if null is not None:
        gates.append(
            _gate("Off is the base", 0.0 if null else 1.0, 0.0, "bit-exact with the export switched off")
        )
    return tuple(gates)


def _mean(found: Parity | None) -> float | None:
    return None if found is None else found.kl.value


def _gate(name: str, value: float | None, limit: float, formula: str) -> Gate:
    passed = None if value is None or not np.isfinite(value) else value <= limit
    return Gate(name=name, value=value, limit=limit, passed=passed, formula=formula)
