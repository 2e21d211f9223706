"""What every command of ``microscope remote`` does: open the portal, find things by name, follow the job, print."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from microscope.cli.options import job_options
from microscope.cli.reporting import BarProgress
from microscope.cli.running import report
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import ExitCode, JobParams
from microscope.remote.client import Workbench
from microscope.remote.login import Login, stored_login
from microscope.remote.records import Job

Command = Callable[..., Any]


class Portal:
    """An opened portal, in the project a command is about.

    Args:
        lab: the client.
        login: whose project is meant when none is named.
        progress: where transfers and jobs show how far they are.
        wanted: name or id of the project.
        detach: start jobs without waiting for them.
    """

    def __init__(
        self, lab: Workbench, login: Login, progress: BarProgress, wanted: str | None, *, detach: bool
    ) -> None:
        self.lab, self.progress = lab, progress
        self._named = wanted or login.project
        self._detach = detach

    @cached_property
    def project(self) -> str:
        """Id of the project that was named, chosen at sign-in, or the only one.

        Raises:
            MicroscopeError: ``which_project``.
        """
        if self._named:
            return self.lab.find("projects", self._named)
        projects = self.lab.projects()
        if len(projects) == 1:
            return projects[0].id
        raise MicroscopeError(
            "which_project", f"You are in {len(projects)} projects.", "Name one with --project."
        )

    @property
    def named_project(self) -> str | None:
        """The project, if one was named or chosen; None means all of them."""
        return self.project if self._named else None

    def find(self, kind: str, name: str) -> str:
        """The id of something of the project."""
        return self.lab.find(kind, name, project=self.project)

    def find_if(self, kind: str, name: str | None) -> str | None:
        """:meth:`find`, of something that need not be named."""
        return None if name is None else self.find(kind, name)

    def followed(self, job: Job) -> dict[str, Any]:
        """What a command prints about a job: what it found once it has ended, unless nobody waits."""
        if self._detach:
            return {"job": job.id, "subject": job.subject_id, "state": job.state}
        self.progress.log(f"Job {job.id}: {job.title}")
        ended = self.lab.follow(job.id, self.progress)
        return {
            "job": ended.id,
            "subject": ended.subject_id,
            "state": ended.state,
            "artifact": ended.artifact,
            "result": self.lab.result(ended.id),
        }

    def fetched(self, job: Job, out: Path) -> dict[str, Any]:
        """Wait for a job that makes files, and download them."""
        ended = self.lab.follow(job.id, self.progress)
        assert ended.artifact is not None
        return {"job": ended.id, **self.files(self.lab.download(ended.artifact, out, self.progress))}

    @staticmethod
    def files(places: list[Path]) -> dict[str, str]:
        """Downloaded files, for people."""
        return {"files": ", ".join(map(str, places))}


def command(function: Command) -> Command:
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


def on_portal(*, project: bool = False, detach: bool = False) -> Callable[[Command], Command]:
    """A command that is given the opened portal first.

    Args:
        project: it is about a project, which ``--project`` names.
        detach: it starts a job and may leave it with ``--detach``.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def opened(*, progress: BarProgress, **values: Any) -> Any:
            wanted = values.pop("project") if project else None
            leave = values.pop("detach") if detach else False
            login = stored_login()
            with Workbench(login.url, login.token) as lab:
                return function(Portal(lab, login, progress, wanted, detach=leave), **values)

        made: Command = opened
        if detach:
            made = click.option("--detach", is_flag=True, help="Start the job and do not wait for it.")(made)
        if project:
            help_text = "Name or id; by default the one chosen at sign-in."
            made = click.option("--project", help=help_text)(made)
        return command(made)

    return decorate


def portal_options(
    params: type[JobParams], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Options for what a person chooses; the portal itself decides where things are and what continues."""
    return job_options(params, places=False, leave_out=("resume", *leave_out))


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
        if isinstance(value, Mapping):
            for inner, shown in value.items():
                lines = shown if isinstance(shown, list) else [shown]
                for line in lines:  # a list may be the warnings of an import
                    if isinstance(line, str) or not isinstance(shown, dict | list):
                        console.print(f"{inner:>16}  {line}", highlight=False)
        elif value is not None:
            console.print(f"{name:>16}  {value}", highlight=False)
