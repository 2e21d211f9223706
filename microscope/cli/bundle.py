"""``microscope bundle …``: a project's archive; the portal makes and reads them with these."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from microscope.cli.options import ManyCommand, job_options
from microscope.cli.running import run_command, shared_options
from microscope.params.bundles import PackParams, UnpackParams
from microscope.progress import Progress


@click.group()
def bundle() -> None:
    """Archives of whole projects: pack, unpack."""


def _show(options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    console.print(f"{result['files']:,} files, {result['bytes']:,} bytes")


@bundle.command(cls=ManyCommand)
@shared_options
@job_options(PackParams)
def pack(**values: Any) -> None:
    """Pack a project, as the portal lists it, into one archive."""

    def work(params: PackParams, progress: Progress) -> dict[str, Any]:
        from microscope.bundles import pack as run

        return run(params, progress)

    run_command(PackParams, values, work, _show)


@bundle.command(cls=ManyCommand)
@shared_options
@job_options(UnpackParams)
def unpack(**values: Any) -> None:
    """Unpack a project's archive and check every file: its SAEs and recordings can be used from the folder.

    microscope bundle unpack --path project.zip --out project/
    """

    def work(params: UnpackParams, progress: Progress) -> dict[str, Any]:
        from microscope.bundles import unpack as run

        return run(params, progress)

    run_command(UnpackParams, values, work, _show)
