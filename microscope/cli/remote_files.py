"""``microscope remote import-… export-… download``: files into a portal and out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from microscope.cli.options import ManyCommand, given
from microscope.cli.portal import Portal, on_portal, portal_options
from microscope.cli.remote import remote
from microscope.params import EXPORT_TARGETS, ExportParams, ImportParams, PatchExportParams
from microscope.params.bundles import PackParams
from microscope.params.files import ImportCorpusParams

__all__ = ["remote"]

_OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")


def _sent(*, folder: bool = True) -> Callable[[Any], Any]:
    """The file or folder that is uploaded."""
    return click.argument("path", type=click.Path(exists=True, dir_okay=folder, path_type=Path))


# --- in -----------------------------------------------------------------------------------------------


@remote.command(name="import-corpus", cls=ManyCommand)
@_sent(folder=False)
@click.option("--name", required=True, help="Of the corpus.")
@portal_options(ImportCorpusParams)
@on_portal(project=True, detach=True)
def import_corpus(at: Portal, *, path: Path, name: str, **options: Any) -> dict[str, Any]:
    """Upload text (plain, JSON, CSV, Parquet, Arrow); an interrupted upload continues when the command is repeated."""
    job = at.lab.import_corpus(
        path, project=at.project, name=name, params=given(options), progress=at.progress
    )
    return at.followed(job)


@remote.command(name="import-recording")
@_sent()
@click.option("--model", required=True, help="Model of the portal it was recorded of.")
@click.option("--name", required=True, help="Of the recording.")
@on_portal(project=True, detach=True)
def import_recording(at: Portal, *, path: Path, model: str, name: str) -> dict[str, Any]:
    """Upload a recording: the folder of `microscope trace`, or the archive of an export."""
    found = at.find("models", model)
    return at.followed(at.lab.import_recording(path, model=found, name=name, progress=at.progress))


@remote.command(name="import-sae", cls=ManyCommand)
@_sent()
@click.option("--model", required=True, help="Model of the portal it belongs to.")
@click.option("--recording", help="Recording of the portal to test it on.")
@click.option("--name", required=True, help="Of the SAE.")
@portal_options(ImportParams)
@on_portal(project=True, detach=True)
def import_sae(
    at: Portal, *, path: Path, model: str, recording: str | None, name: str, **options: Any
) -> dict[str, Any]:
    """Upload an SAE of any known format; an interrupted upload continues when the command is repeated."""
    job = at.lab.import_sae(
        path,
        model=at.find("models", model),
        recording=at.find_if("recordings", recording),
        name=name,
        params=given(options),
        progress=at.progress,
    )
    return at.followed(job)


@remote.command(name="import-adapter")
@_sent()
@click.option("--model", required=True, help="Model of the portal it belongs to.")
@click.option("--name", required=True, help="Of the adapter and its patch.")
@on_portal(project=True, detach=True)
def import_adapter(at: Portal, *, path: Path, model: str, name: str) -> dict[str, Any]:
    """Upload a LoRA adapter in PEFT's layout; a job checks it and makes a patch of it."""
    found = at.find("models", model)
    return at.followed(at.lab.import_adapter(path, model=found, name=name, progress=at.progress))


@remote.command(name="import-project")
@_sent(folder=False)
@click.option("--name", required=True, help="Of the new project.")
@on_portal(detach=True)
def import_project(at: Portal, *, path: Path, name: str) -> dict[str, Any]:
    """Upload a project's archive and make a project of it, which you own."""
    job = at.lab.import_project(path, name=name, progress=at.progress)
    return {"project": job.project, **at.followed(job)}


# --- out ----------------------------------------------------------------------------------------------


@remote.command(name="export-recording")
@click.argument("recording")
@_OUT
@on_portal(project=True)
def export_recording(at: Portal, *, recording: str, out: Path) -> dict[str, Any]:
    """Download a recording as one archive, which any instance can import."""
    return at.fetched(at.lab.export_recording(at.find("recordings", recording)), out)


@remote.command(name="export-sae", cls=ManyCommand)
@click.argument("sae")
@_OUT
@portal_options(ExportParams)
@on_portal(project=True)
def export_sae(at: Portal, *, sae: str, out: Path, **options: Any) -> dict[str, Any]:
    """Write an SAE of the portal for another library and download it."""
    return at.fetched(at.lab.export_sae(at.find("saes", sae), given(options)), out)


@remote.command(name="export-patch", cls=ManyCommand)
@click.argument("patch")
@_OUT
@click.option("--recording", help="Recording whose held-out text approximate targets are fitted on.")
@click.option("--target", required=True, type=click.Choice(EXPORT_TARGETS), help="What to write.")
@portal_options(PatchExportParams, leave_out=("target",))
@on_portal(project=True)
def export_patch(
    at: Portal, *, patch: str, out: Path, recording: str | None, target: str, **options: Any
) -> dict[str, Any]:
    """Turn a patch of the portal into files, wait for its certificate, and download what it lets out."""
    export, job = at.lab.export_patch(
        at.find("patches", patch),
        target=target,
        recording=at.find_if("recordings", recording),
        params=given(options),
    )
    at.lab.follow(job.id, at.progress)
    at.lab.follow_export(export, at.progress)
    return {"export": export, **at.files(at.lab.download_export(export, out, at.progress))}


@remote.command(name="export-project", cls=ManyCommand)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for project.zip.")
@portal_options(PackParams)
@on_portal(project=True)
def export_project(at: Portal, *, out: Path, **options: Any) -> dict[str, Any]:
    """Download a whole project as one archive, which any instance can import."""
    return at.fetched(at.lab.export_project(at.project, given(options)), out)


@remote.command()
@click.argument("artifact")
@_OUT
@on_portal()
def download(at: Portal, *, artifact: str, out: Path) -> dict[str, Any]:
    """Fetch the files of an artifact; a cut download continues when the command is repeated."""
    return at.files(at.lab.download(artifact, out, at.progress))
