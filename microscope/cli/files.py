"""``microscope corpus …`` and ``microscope recording …``: taking over what others made, packing what is ours."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from microscope.cli.options import ManyCommand, job_options
from microscope.cli.running import run_command, shared_options
from microscope.params.files import ImportCorpusParams, ImportRecordingParams, PackRecordingParams
from microscope.progress import Progress


@click.group()
def corpus() -> None:
    """Text to record activations on: import."""


@click.group()
def recording() -> None:
    """Recordings as files: pack, import."""


def _show(options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    for name, value in result.items():
        if not isinstance(value, dict | list):
            shown = f"{value:,}" if isinstance(value, int) else value
            console.print(f"{name.replace('_', ' '):>18}  {shown}", highlight=False)


@corpus.command(name="import", cls=ManyCommand)
@shared_options
@job_options(ImportCorpusParams)
def import_corpus(**values: Any) -> None:
    """Check a file of text by its content, all of it, and take it over.

    microscope corpus import --path speeches.jsonl --out corpora/speeches
    """

    def work(params: ImportCorpusParams, progress: Progress) -> dict[str, Any]:
        from microscope.quarantine.corpora import import_corpus as run

        return run(params, progress)

    run_command(ImportCorpusParams, values, work, _show)


@recording.command(cls=ManyCommand)
@shared_options
@job_options(PackRecordingParams)
def pack(**values: Any) -> None:
    """Pack a recording into one archive with the digests of its files.

    microscope recording pack --activations activations.parquet --out packed/
    """

    def work(params: PackRecordingParams, progress: Progress) -> dict[str, Any]:
        from microscope.activations.importing import pack_recording as run

        return run(params, progress)

    run_command(PackRecordingParams, values, work, _show)


@recording.command(name="import", cls=ManyCommand)
@shared_options
@job_options(ImportRecordingParams)
def import_recording(**values: Any) -> None:
    """Check a recording of others value by value, compare it with its model, and take it over.

    microscope recording import --path packed/recording.zip --model Qwen/Qwen3-0.6B --out activations.parquet
    """

    def work(params: ImportRecordingParams, progress: Progress) -> dict[str, Any]:
        from microscope.activations.importing import import_recording as run

        return run(params, progress)

    run_command(ImportRecordingParams, values, work, _show)
