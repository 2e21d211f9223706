"""From a patch to files: judge, hold exactly what can be held, fit the rest, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.models.paths import remember_path
from microscope.naming import public_name
from microscope.params import EditPlan, ModelTraits, PatchExportParams, plan_fingerprint, verdict
from microscope.patching.adapters import LowRank, LowRankAdapter, load_adapter, save_adapter
from microscope.patching.apply import Saes
from microscope.patching.export.bundle import write_bundle
from microscope.patching.export.gguf_files import write_control_vector, write_lora
from microscope.patching.export.manifest import (
    MANIFEST,
    ExportManifest,
    base_of,
    list_files,
    read_manifest,
    read_seen,
    versions,
    write_manifest,
    write_seen,
)
from microscope.patching.export.merged import write_merged
from microscope.patching.export.peft import write_change
from microscope.patching.fitting import FitOptions, FitReport, SeenText, fit, training_windows
from microscope.patching.plan_file import PatchFile, load_parts, read_patch
from microscope.patching.program import Adapters
from microscope.patching.realisation import traits_of
from microscope.patching.weights import WeightChange, exact_part
from microscope.progress import SILENT, Progress
from microscope.staging import PREFIX, staged

FITTED = "fitted"


def export_patch(params: PatchExportParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Write a patch for one target; returns the manifest as plain values.

    Raises:
        MicroscopeError: ``not_possible`` with the reason; ``no_text`` when a fit needs text and none was
            given; ``never_fires``; ``fit_failed``; or what reading and loading raise.
    """
    out = Path(params.out)
    before = _earlier_export(out)
    patch = read_patch(params.patch)
    reference = params.model or patch.model
    if not reference:
        raise MicroscopeError("no_model", "The patch does not say which model it is for.", "Add --model.")
    progress.log(f"Loading {reference}")
    loaded = load_model(reference, revision=params.revision, dtype="float32", device=params.device)
    saes, adapters = load_parts(patch, loaded, sae_paths=params.sae_path, adapter_paths=params.adapter_path)
    traits = traits_of(loaded)
    judged = verdict(patch.plan, traits, params.target)
    if judged.grade == "not_possible":
        raise MicroscopeError("not_possible", judged.reason, judged.hint)
    with staged(out, last=(MANIFEST,)) as folder:
        manifest = _export(params, patch, loaded, traits, saes, adapters, folder, progress)
    for path in before - {entry.path for entry in manifest.files}:
        (out / path).unlink(missing_ok=True)
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    return plain


def _earlier_export(folder: Path) -> set[str]:
    """The files of an export that is there already, which the new one replaces.

    Raises:
        MicroscopeError: ``output_not_empty`` when there is something else.
    """
    if not folder.is_dir() or all(path.name.startswith(PREFIX) for path in folder.iterdir()):
        return set()
    try:
        listed = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=ExportManifest).files
    except (OSError, msgspec.DecodeError) as error:
        raise MicroscopeError(
            "output_not_empty",
            f"'{folder}' holds files that are no export.",
            "Choose an empty or new folder for --out.",
        ) from error
    return {
        entry.path for entry in listed if (folder / entry.path).resolve().is_relative_to(folder.resolve())
    }


def _export(
    params: PatchExportParams,
    patch: PatchFile,
    loaded: LoadedModel,
    traits: ModelTraits,
    saes: Saes,
    adapters: Adapters,
    folder: Path,
    progress: Progress,
) -> ExportManifest:
    """Write all files of an export into a folder, the manifest last."""
    judged = verdict(patch.plan, traits, params.target)
    change, report = WeightChange(), None
    if params.target != "bundle":
        change, rest = exact_part(patch.plan, traits, params.target, saes, adapters)
        if rest.edits:
            fitted, report, seen = _fitted(
                loaded, traits, patch.plan, rest, change, saes, adapters, params, progress
            )
            change = change.plus(fitted)
            about = {"fit": msgspec.json.encode(report).decode()}
            save_adapter(LowRankAdapter(fitted, loaded.fingerprint, about), folder / FITTED)
            if seen is not None:
                write_seen(seen, folder)
    progress.log(f"Writing {judged.title}")
    name = params.base_name or public_name(loaded.reference)
    remember_path(loaded.fingerprint, loaded.reference)
    rank, untied = _write(folder, loaded, patch.plan, change, saes, adapters, params, name)
    manifest = ExportManifest(
        target=params.target,
        title=judged.title,
        grade=judged.grade,
        reason=judged.reason,
        hint=judged.hint,
        loaders=judged.loaders,
        plan=patch.plan,
        plan_fingerprint=plan_fingerprint(patch.plan),
        base=base_of(loaded, name),
        saes=tuple(sorted(patch.plan.saes())),
        adapters=tuple(sorted(patch.plan.adapters())),
        dtype=params.dtype if params.target == "merged" else "float32",
        rank=rank,
        untied=untied,
        fit=report,
        files=list_files(folder),
        versions=versions(),
        triggers=params.triggers,
    )
    write_manifest(manifest, folder)
    return manifest


def _fitted(
    loaded: LoadedModel,
    traits: ModelTraits,
    plan: EditPlan,
    rest: EditPlan,
    held: WeightChange,
    saes: Saes,
    adapters: Adapters,
    params: PatchExportParams,
    progress: Progress,
) -> tuple[dict[str, LowRank], FitReport, SeenText | None]:
    """The fit and what it read, or those of an earlier export when it was of the same patch, model and part of the plan."""
    avoid = traits.obstacles.renamed if params.target == "peft" else ()
    if params.compiled:
        before = read_manifest(params.compiled)
        _, rest_before = exact_part(plan, traits, before.target, saes, adapters)
        same = (
            before.plan_fingerprint == plan_fingerprint(plan)
            and before.base.fingerprint == loaded.fingerprint
            and before.fit is not None
            and before.fit.rank == params.rank
            and not before.fit.cut_short
            and rest_before == rest
            and not any(path.rpartition(".")[2] in avoid for path in before.fit.modules)
        )
        if same and before.fit is not None:
            progress.log("Using the fit of an earlier export of this patch.")
            factors = load_adapter(Path(params.compiled) / FITTED).factors
            return dict(factors), before.fit, read_seen(params.compiled)
    windows = training_windows(
        loaded, plan, saes, activations=params.activations, text=params.text, tokens=params.fit_tokens
    )
    options = FitOptions(
        rank=params.rank,
        steps=params.fit_steps,
        seconds=params.fit_seconds,
        blocks=params.fit_blocks,
        seed=params.seed,
        avoid=avoid,
    )
    fitted, report = fit(loaded, plan, rest, held, saes, adapters, windows, options, progress)
    return fitted, report, SeenText.of(windows)


def _write(
    folder: Path,
    loaded: LoadedModel,
    plan: EditPlan,
    change: WeightChange,
    saes: Saes,
    adapters: Adapters,
    params: PatchExportParams,
    name: str,
) -> tuple[int | None, bool]:
    """The target's files; returns the rank, where there is one, and whether embedding and head were untied."""
    match params.target:
        case "peft":
            return write_change(folder, loaded, change, name), False
        case "gguf_lora":
            return write_lora(folder, loaded, change.deltas), False
        case "merged":
            return None, write_merged(folder, loaded, change, params.dtype)
        case "control_vector":
            write_control_vector(folder, loaded, change.constants)
        case "bundle":
            write_bundle(folder, loaded, plan, saes, adapters)
    return None, False
