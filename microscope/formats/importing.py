"""Bring an SAE in from another library, and take one out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from microscope.activations import Recording
from microscope.errors import MicroscopeError
from microscope.formats.base import Hints
from microscope.formats.registry import locate, read_sae, write_sae
from microscope.formats.settings import Assumptions
from microscope.formats.smoke import SmokeTest, smoke_test_on_model, smoke_test_on_recording
from microscope.models import load_model
from microscope.params import ExportParams, ImportParams
from microscope.progress import SILENT, Progress
from microscope.quarantine import check_folder
from microscope.sae import TokenFilter, load_sae, save_sae, summarise
from microscope.staging import staged

# What readers of the formats look for: an export without it is none.
_READ_FIRST = ("cfg.json", "config.json")


def import_sae(params: ImportParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Read a foreign SAE, test it on real activations, and save it natively.

    The test needs a recording or a model; without either the SAE is imported untested, and the result
    says so. A failed test does not stop the import: what was found travels with the SAE. Files that state
    no token filter get the one of the recording or model, marked as derived.

    Raises:
        MicroscopeError: those of :func:`locate` and :func:`read_sae`, ``sae_exists``, those of the recording or
            model given, and for untrusted files those of :func:`~microscope.quarantine.check_folder`.
    """
    out = Path(params.out)
    if (out / "sae.json").exists():
        raise MicroscopeError("sae_exists", f"{out} already holds an SAE.", "Choose another --out.")
    hints = Hints(
        site=params.site,
        k=params.k,
        site_out=params.site_out,
        allow_pickle=params.allow_pickle,
        **_its_model(params),
        assumptions=Assumptions(params.assume),
    )
    if params.untrusted:
        check_folder(Path(params.path), progress)
    found = locate(Path(params.path), format=params.format, subfolder=params.subfolder)
    sae = read_sae(found, format=params.format, hints=hints)
    progress.log(
        f"Read a {sae.config.architecture} SAE with {sae.config.n_latents} latents at {sae.config.site}."
    )
    stated = sae.config.token_filter.known
    for sentence in sae.config.assumed:
        progress.log(f"Assumed: {sentence}.", "warning")
    test: SmokeTest | None = None
    if params.activations:
        recording = Recording(params.activations)
        test = smoke_test_on_recording(sae, recording)
        sae.config.model = msgspec.to_builtins(recording.manifest.model)
    elif params.model:
        progress.log(f"Loading {params.model}")
        loaded = load_model(
            params.model,
            revision=params.revision,
            dtype=params.dtype,
            arithmetic="float32",
            device=params.device,
        )
        test = smoke_test_on_model(sae, loaded)
        sae.config.model = {"reference": params.model, "fingerprint": loaded.fingerprint}
    sae.config.training = {"imported": {"format": params.format, "from": found.name}}
    if test is not None:
        sae.config.training["smoke_test"] = msgspec.to_builtins(test)
        progress.log(test.message, "info" if test.passed else "warning")
    else:
        progress.log("Not tested: give --activations or --model.", "warning")
    if not stated:
        progress.log(_about_filter(sae.config.token_filter), "warning")
    save_sae(sae, out)
    return {**summarise(sae), "smoke_test": sae.config.training.get("smoke_test")}


def _about_filter(token_filter: TokenFilter) -> str:
    if token_filter.known:
        return f"The files state no token filter. From now on the SAE leaves out {token_filter.words}."
    return (
        "The files state no token filter. Wherever the SAE is used it will leave out special tokens, and sinks "
        "by the norms of what it is measured on."
    )


def _its_model(params: ImportParams) -> dict[str, str]:
    """What is known beforehand about the model that the SAE is tested on: files often name none."""
    if params.activations:
        model = Recording(params.activations).manifest.model
        return {"model": model.reference, "family": model.family}
    return {"model": params.model or ""}


def export_sae(params: ExportParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Write an SAE, or its feature dashboards, for another library.

    Raises:
        MicroscopeError: ``no_sae``, ``bad_sae``, ``unknown_format``, ``cannot_export``, or
            ``no_analysis`` when dashboards are asked for without one.
    """
    sae = load_sae(params.sae_path)
    if params.format == "neuronpedia":
        from microscope.formats.neuronpedia import write_dashboards

        if not params.analysis:
            raise MicroscopeError(
                "no_analysis",
                "Dashboards are made from an analysis.",
                "Run `microscope features --out` and give it with --analysis.",
            )
        with staged(Path(params.out), last=()) as work:
            count = write_dashboards(sae, Path(params.analysis), work, progress)
        return {"format": params.format, "out": params.out, "features": count}
    with staged(Path(params.out), last=_READ_FIRST) as work:
        write_sae(sae, work, format=params.format)
        files = sorted(p.name for p in work.iterdir())
    return {"format": params.format, "out": params.out, "files": files}
