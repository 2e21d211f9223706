"""``microscope remote …``: the portal from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from microscope.cli.options import ManyCommand, given
from microscope.cli.portal import Portal, command, on_portal, portal_options
from microscope.cli.reporting import BarProgress
from microscope.errors import MicroscopeError
from microscope.params import AnalyseParams, EvaluateParams, TraceParams, TrainParams
from microscope.params.precisions import Dtype
from microscope.remote.adding import add_model, add_saes
from microscope.remote.client import NAMED, Workbench
from microscope.remote.login import Login, login_file, store_login


@click.group()
def remote() -> None:
    """Work on a portal: submit jobs, follow them, bring files in and out.

    Sign in once with `microscope remote login`, or set MICROSCOPE_URL and MICROSCOPE_TOKEN. Objects are
    named by their name or their id. A command that starts a job follows it; interrupting the command
    leaves the job running.
    """


# --- sign-in ------------------------------------------------------------------------------------------


@remote.command()
@click.argument("url")
@click.option("--token", help="API token; asked for when it is not given, so that no history keeps it.")
@click.option("--project", default="", help="The project meant when none is named.")
@command
def login(*, url: str, token: str | None, project: str, progress: BarProgress) -> dict[str, Any]:
    """Remember a portal and an API token (made on the portal's profile page)."""
    secret = token or click.prompt("API token", hide_input=True)
    with Workbench(url, secret) as lab:
        who = lab.me()
        chosen = lab.find("projects", project) if project else ""
    store_login(Login(url.rstrip("/"), secret, chosen))
    return {"signed in as": who.get("username"), "kept in": str(login_file())}


@remote.command()
@command
def logout(*, progress: BarProgress) -> dict[str, Any]:
    """Forget the portal and the token. The token itself stays valid: revoke it on the profile page."""
    login_file().unlink(missing_ok=True)
    return {"forgotten": str(login_file())}


# --- looking ------------------------------------------------------------------------------------------


@remote.command(name="list")
@click.argument("kind", type=click.Choice(("projects", *NAMED)))
@on_portal(project=True)
def list_items(at: Portal, *, kind: str) -> list[dict[str, Any]]:
    """List projects, or the models, corpora, recordings, SAEs, patches or adapters of one."""
    found = at.lab.projects() if kind == "projects" else at.lab.items(kind, at.project)
    return [{"name": item.name, "state": item.state, "id": item.id} for item in found]


@remote.command()
@click.option("--active", is_flag=True, help="Only unfinished ones.")
@on_portal(project=True)
def jobs(at: Portal, *, active: bool) -> list[dict[str, Any]]:
    """List jobs, newest first."""
    return [
        {
            "state": job.state,
            "kind": job.kind,
            "title": job.title,
            "done": f"{job.done / job.total:.0%}" if job.total else "",
            "id": job.id,
        }
        for job in at.lab.jobs(at.named_project, active=True if active else None)
    ]


@remote.command()
@click.argument("job")
@on_portal()
def follow(at: Portal, *, job: str) -> dict[str, Any]:
    """Wait for a job and show its progress."""
    return at.followed(at.lab.job(job))


@remote.command()
@click.argument("job")
@on_portal()
def cancel(at: Portal, *, job: str) -> dict[str, Any]:
    """Ask a job to stop."""
    return {"job": job, "state": at.lab.cancel(job).state}


@remote.command()
@click.argument("job")
@on_portal(detach=True)
def retry(at: Portal, *, job: str) -> dict[str, Any]:
    """Queue a failed or cancelled job again; work with checkpoints continues where it was."""
    return at.followed(at.lab.retry(job))


@remote.command(name="add-model")
@click.argument("reference")
@click.option("--name", help="Of the model on the portal; by default the last part of its reference.")
@click.option("--revision", default="", help="Branch, tag or commit of a model of the Hub.")
@click.option(
    "--dtype",
    type=click.Choice(get_args(Dtype)),
    default="auto",
    show_default=True,
    help="Precision of the weights.",
)
@click.option(
    "--sae-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of SAEs of the model, in any known format, to import and attach.",
)
@on_portal(project=True)
def add_model_and_saes(
    at: Portal, *, reference: str, sae_dir: Path | None, **options: str | None
) -> dict[str, Any]:
    """Add a model (Hub id, or folder or GGUF file on the portal's machine), load it, and bring SAEs along.

    What is there already is left as it is.
    """
    saes: dict[str, Path] = {}
    if sae_dir is not None:
        from microscope.formats.registry import find_saes

        saes = find_saes(sae_dir)
    model = add_model(at.lab, project=at.project, reference=reference, progress=at.progress, **options)
    told = add_saes(at.lab, model=model, saes=saes, progress=at.progress)
    lines = [f"{one['name']}: {one['state']}" + (f", {one['why']}" if "why" in one else "") for one in told]
    return {"model": model["name"], "id": model["id"], "saes": {"SAE": lines}}


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
@portal_options(TraceParams)
@on_portal(project=True, detach=True)
def trace(
    at: Portal,
    *,
    model: str,
    corpus: tuple[str, ...],
    weights: tuple[float, ...],
    name: str,
    **options: Any,
) -> dict[str, Any]:
    """Record a model's activations on a corpus of the portal, or on several mixed by weight."""
    if weights and len(weights) != len(corpus):
        raise MicroscopeError(
            "bad_weights",
            f"There are {len(weights)} weights for {len(corpus)} corpora.",
            "Give one number per --corpus.",
        )
    found = [at.find("corpora", one) for one in corpus]
    mixed = len(found) > 1 or weights
    job = at.lab.record(
        model=at.find("models", model),
        corpus=list(zip(found, weights or [1.0] * len(found), strict=True)) if mixed else found[0],
        name=name,
        params=given(options),
    )
    return at.followed(job)


@remote.command(cls=ManyCommand)
@click.option("--recording", required=True, help="Recording of the portal.")
@click.option("--name", required=True, help="Of the SAE.")
@portal_options(TrainParams)
@on_portal(project=True, detach=True)
def train(at: Portal, *, recording: str, name: str, **options: Any) -> dict[str, Any]:
    """Train an SAE on a recording of the portal."""
    found = at.find("recordings", recording)
    return at.followed(at.lab.train(recording=found, name=name, params=given(options)))


def _about_sae(start: str, params: Any, text: str) -> None:
    """A command that starts a job about an SAE of the portal."""

    @click.option(
        "--recording", help="For an imported SAE that has none yet: what to measure it on, from now on."
    )
    @portal_options(params)
    @on_portal(project=True, detach=True)
    def about(at: Portal, *, sae: str, recording: str | None, **options: Any) -> dict[str, Any]:
        on = at.find_if("recordings", recording)
        return at.followed(getattr(at.lab, start)(at.find("saes", sae), given(options), recording=on))

    made = click.argument("sae")(about)
    name = "eval" if start == "evaluate" else start
    remote.command(name=name, cls=ManyCommand, help=text)(made)


_about_sae("evaluate", EvaluateParams, "Measure an SAE of the portal on held-out text.")
_about_sae("analyse", AnalyseParams, "Find out what the features of an SAE of the portal do.")
