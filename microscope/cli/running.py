"""Run one job the way a person or a supervisor asked for it, and end with a meaningful exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from microscope.cli.known import in_words
from microscope.cli.options import given
from microscope.cli.outputs import check_outputs
from microscope.cli.reporting import BarProgress, EventProgress
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import ExitCode, JobEvent, JobParams, decode_params
from microscope.processes.child import die_with_parent, event_stream, lower_priority
from microscope.progress import Progress

_LAUNCH = ("config", "events", "cancel_file", "as_json")

Work = Callable[[Any, Progress], dict[str, Any]]
Show = Callable[[Any, dict[str, Any], Console], None]


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options every job command has."""
    function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)
    function = click.option("--cancel-file", type=click.Path(path_type=Path), hidden=True)(function)
    function = click.option(
        "--events", hidden=True, help="Write JSON events to this file, or - for standard output."
    )(function)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="Read parameters from a JSON file; options override it.",
    )(function)


def run_command(params: type[JobParams], values: dict[str, Any], work: Work, show: Show) -> None:
    """:func:`run_job` with all values of a command, those of :func:`shared_options` among them."""
    launch = {name: values.pop(name) for name in _LAUNCH}
    run_job(params, values, work, show, **launch)


def run_job(
    params: type[JobParams],
    options: dict[str, Any],
    work: Work,
    show: Show,
    *,
    config: Path | None,
    events: str | None,
    cancel_file: Path | None,
    as_json: bool,
) -> None:
    """Decode parameters, do the work, report, and exit.

    Exit status: see :class:`~microscope.params.ExitCode`.
    """
    progress: Progress
    speaks = os.environ.get("RANK", "0") == "0"  # one of several processes of torchrun tells for all
    if events and speaks:
        die_with_parent()
        lower_priority()
        progress = EventProgress(event_stream(events), cancel_file)
    else:
        progress = BarProgress() if speaks else Progress()
    try:
        decoded = decode_params(params, _merge(config, given(options)))
        check_outputs(decoded)
        result = work(decoded, progress)
    except (Cancelled, KeyboardInterrupt):
        progress.log("Cancelled.", "warning")
        sys.exit(ExitCode.CANCELLED)
    except Exception as error:
        sys.exit(report(error, progress))
    if not speaks:
        pass
    elif isinstance(progress, EventProgress):
        progress.send(JobEvent(type="result", result=result))
    elif as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
    else:
        show(options, result, Console())
    sys.exit(ExitCode.OK)


def _merge(config: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    if config is None:
        return options
    try:
        return {**msgspec.json.decode(config.read_bytes()), **options}
    except (OSError, msgspec.DecodeError, TypeError) as error:
        raise MicroscopeError(
            "bad_config", f"{config} cannot be read as JSON parameters: {error}."
        ) from error


def report(error: Exception, progress: Progress) -> ExitCode:
    """Tell the user what went wrong, and choose the exit status."""
    known = in_words(error)
    if known is None:
        traceback.print_exc()
        known = MicroscopeError(
            "crashed", f"{type(error).__name__}: {error}", "This is a defect; please report it with the log."
        )
        status = ExitCode.CRASHED
    else:
        status = ExitCode.REFUSED
    if isinstance(progress, EventProgress):
        progress.send(
            JobEvent(type="error", code=known.code, message=known.message, hint=known.hint, level="error")
        )
    else:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]Error[/] [dim]({known.code})[/] ", end="")
        console.print(known.message, markup=False)
        if known.hint:
            console.print(known.hint, style="yellow", markup=False)
    return status
