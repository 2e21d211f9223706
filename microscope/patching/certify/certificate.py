"""The certificate of an export: three models side by side on held-out text, gates, and what was compared.

B is the untouched model, P the patch, E the export reloaded from its files in this process, which is another
than the one that wrote them. P runs through hooks, over whole batches; that this is what people see live is
measured too. The headline is the share of the effect kept, 1 − KL(P ‖ E) / KL(P ‖ B) where the patch acts:
an absolute limit on KL(P ‖ E) would let a weak patch pass by doing nothing. Where a patch is so strong that
half of it says the same, that share would let the half pass, so the export is held against it, too.
Parity is KL(P ‖ E), collateral KL(B ‖ E) and the change of perplexity on text as it comes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.models.paths import path_of
from microscope.params import CertifyParams
from microscope.patching.certify.comparing import BATCH, Comparison, Effect
from microscope.patching.certify.gates import Gate, advice, judge
from microscope.patching.certify.live import LiveAgreement, live_agreement
from microscope.patching.certify.measure import (
    Collateral,
    Parity,
    affected,
    collateral,
    parity,
)
from microscope.patching.certify.reload import Reloaded, reload
from microscope.patching.export.manifest import ExportManifest, read_manifest, read_seen, versions
from microscope.patching.fitting.least_squares import batched
from microscope.patching.fitting.samples import TextWindow, held_out_windows, with_prompts
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import PatchFile, load_parts
from microscope.progress import SILENT, Progress


class Certificate(msgspec.Struct, kw_only=True, frozen=True):
    """Everything measured of an export.

    ``clean`` is held-out text as it comes, ``trigger`` the positions where the patch acts, in it, in further
    held-out contexts and in the prompts given: those where an edit fires, and later ones that the patch affects.
    ``spread`` is the standard deviation of the base's logits over the vocabulary, which differences of logits
    are measured in; ``documents`` how many the held-out contexts are of; ``notes`` what a reader has to know
    before the numbers. ``live`` compares some contexts with the incremental replay
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
    spread: float | None = None
    documents: int | None = None
    notes: tuple[str, ...] = ()


def certify(params: CertifyParams, progress: Progress = SILENT) -> Certificate:
    """Measure an export.

    Raises:
        MicroscopeError: ``no_export``, ``export_changed``, ``wrong_model``, ``no_text``, ``text_was_fitted`` or
            what loading raises.
    """
    started = time.monotonic()
    folder = Path(params.export)
    manifest = read_manifest(folder)
    loaded = load_model(
        params.model or path_of(manifest.base.fingerprint) or manifest.base.reference,
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
        seed=params.seed,
        seen=read_seen(folder),
    )
    prompts = with_prompts(manifest.plan, _prompts(loaded, params.triggers or manifest.triggers))
    patched = PatchedModel(loaded, manifest.plan, saes, adapters)
    half = PatchedModel(loaded, manifest.plan, saes, adapters, share=0.5)
    run = Comparison(loaded, patched, half, reloaded, saes, manifest)
    total = len(plain) + len(firing) + len(prompts)
    with progress.phase("comparing", total, "contexts"):
        for windows, is_plain in ((plain, True), (firing, False), (prompts, False)):
            for batch in batched(windows, BATCH) if windows else ():
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


def _certificate(
    params: CertifyParams,
    manifest: ExportManifest,
    reloaded: Reloaded,
    run: Comparison,
    live: LiveAgreement | None,
    null: bool | None,
    merged: float | None,
    seconds: float,
) -> Certificate:
    options = {"bootstrap": params.bootstrap, "seed": params.seed}
    acting = affected(run.behind)
    clean, trigger = parity(run.clean, **options), parity(acting, **options)
    cost = collateral(run.clean, "kl_base_export", "loss_export", **options)
    effect = run.effect(acting, **options)
    spread = float(np.sqrt(run.clean.column("spread").mean()))
    triggers = params.triggers or manifest.triggers
    gates = judge(manifest, effect, clean, trigger, live, cost, null, spread)
    cost_of_patch = collateral(run.clean, "kl_base_patch", "loss_patched", **options)
    return Certificate(
        passed=all(gate.passed is True for gate in gates),
        gates=gates,
        clean=clean,
        trigger=trigger,
        effect=effect,
        collateral=cost,
        collateral_of_patch=cost_of_patch,
        live=live,
        null_exact=null,
        merged_max_abs_logit=merged,
        export=manifest,
        loaders=reloaded.loaders,
        text="held-out part of the recording" if params.activations else "held-out part of the given text",
        triggers=triggers,
        versions=versions(),
        dtype=manifest.dtype,
        seed=params.seed,
        bootstrap=params.bootstrap,
        seconds=seconds,
        spread=spread,
        documents=len(run.documents),
        notes=(*_notes(manifest, effect, triggers), *advice(gates, manifest, cost_of_patch)),
    )


def _notes(manifest: ExportManifest, effect: Effect, triggers: Sequence[str]) -> tuple[str, ...]:
    found = []
    if not effect.positions:
        found.append(
            "The patch acts nowhere in the text it was measured on, so nothing shows that the export does what "
            "it does. Give prompts on which it acts."
        )
    elif effect.share is None:
        found.append("The patch acts, but changes no prediction, so there is no effect to keep.")
    if triggers and effect.prompts < len(triggers):
        found.append(f"The patch acts in {effect.prompts} of the {len(triggers)} prompts given.")
    if any(edit.positions.mode == "generated" for edit in manifest.plan.active()):
        found.append("The patch acts while generating: the second half of every context counts as generated.")
    if manifest.fit is not None and manifest.fit.cut_short:
        found.append(f"The fit was cut short: {manifest.fit.cut_short}")
    return tuple(found)
