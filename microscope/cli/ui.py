"""``microscope ui``: the whole portal on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from microscope.cli.reporting import BarProgress
from microscope.cli.running import report
from microscope.errors import MicroscopeError


@click.command()
@click.option("--model", help="Hub id, folder or GGUF file to add and load.")
@click.option(
    "--sae-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of SAEs of the model, in any known format, to import and attach.",
)
@click.option("--port", default=8000, show_default=True, help="Port on 127.0.0.1.")
@click.option(
    "--data-dir", type=click.Path(file_okay=False), help="Where the portal keeps its data; default ./var."
)
def ui(model: str | None, sae_dir: Path | None, port: int, data_dir: str | None) -> None:
    """Start the whole portal on this machine.

    The first start prints how to sign in. A model and SAEs that an earlier start brought along are there.

    \b
    microscope ui --model Qwen/Qwen3-0.6B --sae-dir sae_checkpoints/
    """
    if sae_dir is not None and model is None:
        raise click.UsageError("--sae-dir needs --model: which model the SAEs belong to.")
    try:
        _check(model, sae_dir)
    except MicroscopeError as error:
        sys.exit(report(error, BarProgress()))
    command = [sys.executable, "-m", "workbench.launch", "ui", "--port", str(port)]
    for flag, value in (("--model", model), ("--sae-dir", sae_dir), ("--data-dir", data_dir)):
        if value is not None:
            command += [flag, str(value)]
    os.execv(sys.executable, command)  # noqa: S606 (no shell is wanted)


def _check(model: str | None, sae_dir: Path | None) -> None:
    """What can be known to fail is refused before anything is started.

    Raises:
        MicroscopeError: ``portal_missing``, ``engine_missing``, ``no_such_model`` or ``no_sae``.
    """
    if importlib.util.find_spec("django") is None or importlib.util.find_spec("workbench") is None:
        raise MicroscopeError(
            "portal_missing",
            "The portal is not installed here.",
            "Run: pip install 'interpretability-workbench[engine,embedded]'",
        )
    if model is None:
        return
    if importlib.util.find_spec("torch") is None:
        raise MicroscopeError(
            "engine_missing",
            "Loading a model needs torch, which is not installed.",
            "Run: pip install 'interpretability-workbench[engine]'",
        )
    from microscope.remote.adding import source_of

    source_of(model)
    if sae_dir is not None:
        from microscope.formats.registry import find_saes

        find_saes(sae_dir)
