"""``microscope remote …``: the portal from the command line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from microscope.cli.options import ManyCommand, given, job_options
from microscope.cli.reporting import BarProgress
from microscope.cli.running import report
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import (
    EXPORT_TARGETS,
    AnalyseParams,
    EvaluateParams,
    ExitCode,
    ExportParams,
    ImportParams,
    JobParams,
    PatchExportParams,
    TraceParams,
    TrainParams,
)
from microscope.params.bundles import PackParams
from microscope.remote.client import NAMED, Workbench
from microscope.remote.login import Login, login_file, store_login, stored_login
from microscope.remote.records import Job

Command = Callable[..., Any]


@click.group()
def remote() -> None:
    """Work on a portal: submit jobs, follow them, bring files in and out.

    Sign in once with `microscope remote login`, or set MICROSCOPE_URL and MICROSCOPE_TOKEN. Objects are
    named by their name or their id. A command that starts a job follows it; interrupting the command
    leaves the job running.
    """


def _command(function: Command) -> Command:
    """Errors in words, the exit status of every other command, and ``--json``."""

    @functools.wraps(function)
    def wrapped(as_json: bool, **values: Any) -> None:
        progress = BarProgress()
        try:
            result = function(progress=progress, **values)
        except Cancelled:
            progress.log("The job was cancelled.", "warning")
            sys.exit(ExitCode.CANCELLED)
        except KeyboardInterrupt:
            progress.log("Left; a job that was started goes on.", "warning")
            sys.exit(ExitCode.CANCELLED)
        except Exception as error:
            sys.exit(report(error, progress))
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
        else:
            _show(result)

    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(wrapped)


def _job_command(function: Command) -> Command:
    """A command that starts a job and may follow it."""
    function = click.option("--detach", is_flag=True, help="Start the job and do not wait for it.")(function)
    return _command(_in_project(function))


def _portal_options(
    params: type[JobParams], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Options for what a person chooses; the portal itself decides where things are and what continues."""
    return job_options(params, places=False, leave_out=("resume", *leave_out))


def _in_project(function: Command) -> Command:
    return click.option("--project", help="Name or id; by default the one chosen at sign-in.")(function)


def _opened() -> tuple[Workbench, Login]:
    login = stored_login()
    return Workbench(login.url, login.token), login


def _project(lab: Workbench, login: Login, wanted: str | None) -> str:
    name = wanted or login.project
    if name:
        return lab.find("projects", name)
    projects = lab.projects()
    if len(projects) == 1:
        return projects[0].id
    raise MicroscopeError(
        "which_project", f"You are in {len(projects)} projects.", "Name one with --project."
    )


def _followed(lab: Workbench, job: Job, progress: BarProgress, detach: bool) -> dict[str, Any]:
    """What a job command prints: the job, and what it found once it has ended."""
    if detach:
        return {"job": job.id, "subject": job.subject_id, "state": job.state}
    progress.log(f"Job {job.id}: {job.title}")
    ended = lab.follow(job.id, progress)
    return {
        "job": ended.id,
        "subject": ended.subject_id,
        "state": ended.state,
        "artifact": ended.artifact,
        "result": lab.result(ended.id),
    }


def _show(result: Any) -> None:
    console = Console()
    rows = result if isinstance(result, list) else [result]
    if not rows:
        console.print("Nothing.")
        return
    if isinstance(result, list):
        table = Table(box=None)
        for name in rows[0]:
            table.add_column(name, no_wrap=name == "id")  # ids are there to be copied
        for row in rows:
            table.add_row(*("" if v is None else str(v) for v in row.values()))
        console.print(table)
        return
    for name, value in result.items():
        if isinstance(value, dict):
            for inner, shown in value.items():
                lines = shown if isinstance(shown, list) else [shown]
                for line in lines:  # a list may be the warnings of an import
                    if isinstance(line, str) or not isinstance(shown, dict | list):
                        console.print(f"{inner:>16}  {line}", highlight=False)
        elif value is not None:
            console.print(f"{name:>16}  {value}", highlight=False)


# --- sign-in ------------------------------------------------------------------------------------------


@remote.command()
@click.argument("url")
@click.option("--token", help="API token; asked for when it is not given, so that no history keeps it.")
@click.option("--project", default="", help="The project meant when none is named.")
@_command
def login(*, url: str, token: str | None, project: str, progress: BarProgress) -> dict[str, Any]:
    """Remember a portal and an API token (made on the portal's profile page)."""
    secret = token or click.prompt("API token", hide_input=True)
    with Workbench(url, secret) as lab:
        who = lab.me()
        chosen = lab.find("projects", project) if project else ""
    store_login(Login(url.rstrip("/"), secret, chosen))
    return {"signed in as": who.get("username"), "kept in": str(login_file())}


@remote.command()
@_command
def logout(*, progress: BarProgress) -> dict[str, Any]:
    """Forget the portal and the token. The token itself stays valid: revoke it on the profile page."""
    login_file().unlink(missing_ok=True)
    return {"forgotten": str(login_file())}


# --- looking ------------------------------------------------------------------------------------------


@remote.command(name="list")
@click.argument("kind", type=click.Choice(("projects", *NAMED)))
@_in_project
@_command
def list_items(*, kind: str, project: str | None, progress: BarProgress) -> list[dict[str, Any]]:
    """List projects, or the models, corpora, recordings, SAEs, patches or adapters of one."""
    lab, login = _opened()
    with lab:
        found = lab.projects() if kind == "projects" else lab.items(kind, _project(lab, login, project))
        return [{"name": item.name, "state": item.state, "id": item.id} for item in found]


@remote.command()
@click.option("--active", is_flag=True, help="Only unfinished ones.")
@_in_project
@_command
def jobs(*, active: bool, project: str | None, progress: BarProgress) -> list[dict[str, Any]]:
    """List jobs, newest first."""
    lab, login = _opened()
    with lab:
        chosen = _project(lab, login, project) if project or login.project else None
        return [
            {
                "state": job.state,
                "kind": job.kind,
                "title": job.title,
                "done": f"{job.done / job.total:.0%}" if job.total else "",
                "id": job.id,
            }
            for job in lab.jobs(chosen, active=True if active else None)
        ]


@remote.command()
@click.argument("job")
@_command
def follow(*, job: str, progress: BarProgress) -> dict[str, Any]:
    """Wait for a job and show its progress."""
    lab, _ = _opened()
    with lab:
        return _followed(lab, lab.job(job), progress, detach=False)


@remote.command()
@click.argument("job")
@_command
def cancel(*, job: str, progress: BarProgress) -> dict[str, Any]:
    """Ask a job to stop."""
    lab, _ = _opened()
    with lab:
        return {"job": job, "state": lab.cancel(job).state}


@remote.command()
@click.argument("job")
@click.option("--detach", is_flag=True, help="Do not wait for it.")
@_command
def retry(*, job: str, detach: bool, progress: BarProgress) -> dict[str, Any]:
    """Queue a failed or cancelled job again; work with checkpoints continues where it was."""
    lab, _ = _opened()
    with lab:
        return _followed(lab, lab.retry(job), progress, detach)


# --- work ---------------------------------------------------------------------------------------------


@remote.command(cls=ManyCommand)
@click.option("--model", required=True, help="Model of the portal.")
@click.option("--corpus", required=True, multiple=True, help="Corpus of the portal; several are mixed.")
@click.option(
    "--weights",
    type=float,
    multiple=True,
    help="Mix the corpora by these shares of tokens: one number per --corpus; equal ones by default.",
)
@click.option("--name", required=True, help="Of the recording.")
@_portal_options(TraceParams)
@_job_command
def trace(
    *,
    model: str,
    corpus: tuple[str, ...],
    weights: tuple[float, ...],
    name: str,
    project: str | None,
    detach: bool,
    progress: BarProgress,
    **options: Any,
) -> dict[str, Any]:
    """Record a model's activations on a corpus of the portal, or on several mixed by weight."""
    if weights and len(weights) != len(corpus):
        raise MicroscopeError(
            "bad_weights",
            f"There are {len(weights)} weights for {len(corpus)} corpora.",
            "Give one number per --corpus.",
        )
    lab, login = _opened()
    with lab:
        inside = _project(lab, login, project)
        found = [lab.find("corpora", one, project=inside) for one in corpus]
        mixed = len(found) > 1 or weights
        job = lab.record(
            model=lab.find("models", model, project=inside),
            corpus=list(zip(found, weights or [1.0] * len(found), strict=True)) if mixed else found[0],
            name=name,
            params=given(options),
        )
        return _followed(lab, job, progress, detach)


@remote.command(cls=ManyCommand)
@click.option("--recording", required=True, help="Recording of the portal.")
@click.option("--name", required=True, help="Of the SAE.")
@_portal_options(TrainParams)
@_job_command
def train(
    *, recording: str, name: str, project: str | None, detach: bool, progress: BarProgress, **options: Any
) -> dict[str, Any]:
    """Train an SAE on a recording of the portal."""
    lab, login = _opened()
    with lab:
        inside = _project(lab, login, project)
        found = lab.find("recordings", recording, project=inside)
        return _followed(lab, lab.train(recording=found, name=name, params=given(options)), progress, detach)


def _about_sae(start: str, params: Any, text: str) -> None:
    """A command that starts a job about an SAE of the portal."""

    @click.option(
        "--recording", help="For an imported SAE that has none yet: what to measure it on, from now on."
    )
    @_portal_options(params)
    @_job_command
    def about(
        *,
        sae: str,
        recording: str | None,
        project: str | None,
        detach: bool,
        progress: BarProgress,
        **options: Any,
    ) -> dict[str, Any]:
        lab, login = _opened()
        with lab:
            inside = _project(lab, login, project)
            found = lab.find("saes", sae, project=inside)
            on = lab.find("recordings", recording, project=inside) if recording else None
            return _followed(lab, getattr(lab, start)(found, given(options), recording=on), progress, detach)

    command = click.argument("sae")(about)
    name = "eval" if start == "evaluate" else start
    remote.command(name=name, cls=ManyCommand, help=text)(command)


_about_sae("evaluate", EvaluateParams, "Measure an SAE of the portal on held-out text.")
_about_sae("analyse", AnalyseParams, "Find out what the features of an SAE of the portal do.")


# --- files --------------------------------------------------------------------------------------------


@remote.command(name="import-sae", cls=ManyCommand)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="Model of the portal it belongs to.")
@click.option("--recording", help="Recording of the portal to test it on.")
@click.option("--name", required=True, help="Of the SAE.")
@_portal_options(ImportParams)
@_job_command
def import_sae(
    *,
    path: Path,
    model: str,
    recording: str | None,
    name: str,
    project: str | None,
    detach: bool,
    progress: BarProgress,
    **options: Any,
) -> dict[str, Any]:
    """Upload an SAE of any known format; an interrupted upload continues when the command is repeated."""
    lab, login = _opened()
    with lab:
        inside = _project(lab, login, project)
        job = lab.import_sae(
            path,
            model=lab.find("models", model, project=inside),
            recording=lab.find("recordings", recording, project=inside) if recording else None,
            name=name,
            params=given(options),
            progress=progress,
        )
        return _followed(lab, job, progress, detach)


@remote.command(name="import-adapter")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--model", required=True, help="Model of the portal it belongs to.")
@click.option("--name", required=True, help="Of the adapter and its patch.")
@_job_command
def import_adapter(
    *, path: Path, model: str, name: str, project: str | None, detach: bool, progress: BarProgress
) -> dict[str, Any]:
    """Upload a LoRA adapter in PEFT's layout; a job checks it and makes a patch of it."""
    lab, login = _opened()
    with lab:
        inside = _project(lab, login, project)
        found = lab.find("models", model, project=inside)
        job = lab.import_adapter(path, model=found, name=name, progress=progress)
        return _followed(lab, job, progress, detach)


@remote.command(name="export-sae", cls=ManyCommand)
@click.argument("sae")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@_portal_options(ExportParams)
@_in_project
@_command
def export_sae(
    *, sae: str, out: Path, project: str | None, progress: BarProgress, **options: Any
) -> dict[str, Any]:
    """Write an SAE of the portal for another library and download it."""
    lab, login = _opened()
    with lab:
        found = lab.find("saes", sae, project=_project(lab, login, project))
        ended = lab.follow(lab.export_sae(found, given(options)).id, progress)
        assert ended.artifact is not None
        files = lab.download(ended.artifact, out, progress)
        return {"job": ended.id, "files": ", ".join(map(str, files))}


@remote.command(name="export-patch", cls=ManyCommand)
@click.argument("patch")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--recording", help="Recording whose held-out text approximate targets are fitted on.")
@click.option("--target", required=True, type=click.Choice(EXPORT_TARGETS), help="What to write.")
@_portal_options(PatchExportParams, leave_out=("target",))
@_in_project
@_command
def export_patch(
    *,
    patch: str,
    out: Path,
    recording: str | None,
    target: str,
    project: str | None,
    progress: BarProgress,
    **options: Any,
) -> dict[str, Any]:
    """Turn a patch of the portal into files, wait for its certificate, and download what it lets out."""
    lab, login = _opened()
    with lab:
        inside = _project(lab, login, project)
        export, job = lab.export_patch(
            lab.find("patches", patch, project=inside),
            target=target,
            recording=lab.find("recordings", recording, project=inside) if recording else None,
            params=given(options),
        )
        lab.follow(job.id, progress)
        lab.follow_export(export, progress)
        files = lab.download_export(export, out, progress)
        return {"export": export, "files": ", ".join(map(str, files))}


@remote.command(name="export-project", cls=ManyCommand)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for project.zip.")
@_portal_options(PackParams)
@_in_project
@_command
def export_project(
    *, out: Path, project: str | None, progress: BarProgress, **options: Any
) -> dict[str, Any]:
    """Download a whole project as one archive, which any instance can import."""
    lab, login = _opened()
    with lab:
        job = lab.export_project(_project(lab, login, project), given(options))
        ended = lab.follow(job.id, progress)
        assert ended.artifact is not None
        files = lab.download(ended.artifact, out, progress)
        return {"job": ended.id, "files": ", ".join(map(str, files))}


@remote.command(name="import-project")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the new project.")
@click.option("--detach", is_flag=True, help="Start the job and do not wait for it.")
@_command
def import_project(*, path: Path, name: str, detach: bool, progress: BarProgress) -> dict[str, Any]:
    """Upload a project's archive and make a project of it, which you own."""
    lab, _ = _opened()
    with lab:
        job = lab.import_project(path, name=name, progress=progress)
        return {"project": job.project, **_followed(lab, job, progress, detach)}


@remote.command()
@click.argument("artifact")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@_command
def download(*, artifact: str, out: Path, progress: BarProgress) -> dict[str, Any]:
    """Fetch the files of an artifact; a cut download continues when the command is repeated."""
    lab, _ = _opened()
    with lab:
        return {"files": ", ".join(map(str, lab.download(artifact, out, progress)))}
