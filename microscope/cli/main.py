"""All commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from microscope.cli.bundle import bundle
from microscope.cli.files import corpus, recording
from microscope.cli.options import ManyCommand, job_options
from microscope.cli.patch import patch
from microscope.cli.provenance import provenance
from microscope.cli.remote_files import remote
from microscope.cli.running import run_job, shared_options
from microscope.cli.ui import ui
from microscope.params import (
    AnalyseParams,
    CompareParams,
    EvaluateParams,
    ExportParams,
    ImportParams,
    InspectParams,
    TraceParams,
    TrainParams,
)
from microscope.progress import Progress


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="interpretability-workbench", prog_name="microscope")
def main() -> None:
    """Open a language model, find the features it computes with, and change what it does.

    A run through the four steps: trace, train, eval, features. Every command prints progress on
    standard error and its result on standard output (--json for machines).

    Exit status: 0 done, 1 a defect, 2 wrong options, 3 refused with a reason, 4 cancelled.
    """


main.add_command(patch)
main.add_command(provenance)
main.add_command(corpus)
main.add_command(recording)
main.add_command(bundle)
main.add_command(remote)
main.add_command(ui)

_LAUNCH = ("config", "events", "cancel_file", "as_json")


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    launch = {name: values.pop(name) for name in _LAUNCH}
    return values, launch


@main.command(cls=ManyCommand)
@shared_options
@job_options(InspectParams)
def inspect(**values: Any) -> None:
    """Say what a model is and what it needs, without loading it; or what rounding its weights changes.

    microscope inspect --model Qwen/Qwen3-0.6B --load-in-4bit

    With --load also by which path it is run, and which sites its blocks have.
    """

    def work(params: InspectParams, progress: Progress) -> dict[str, Any]:
        from microscope.models.effect import inspect as run

        return run(params, progress)

    options, launch = _split(values)
    run_job(InspectParams, options, work, _show_model, **launch)


@main.command(cls=ManyCommand)
@shared_options
@job_options(TraceParams)
def trace(**values: Any) -> None:
    """Record a model's activations on text.

    microscope trace --model Qwen/Qwen3-0.6B --layers 6 10 14 --text corpus/ --tokens 2M --out activations.parquet
    """

    def work(params: TraceParams, progress: Progress) -> dict[str, Any]:
        from microscope.activations import record, summarise

        return summarise(record(params, progress))

    options, launch = _split(values)
    run_job(TraceParams, options, work, _show_facts, **launch)


@main.command(cls=ManyCommand)
@shared_options
@job_options(TrainParams)
def train(**values: Any) -> None:
    """Train sparse autoencoders on a recording.

    microscope train --activations activations.parquet --layer 10 --width 16k --k 32 --out sae_checkpoints/

    With several widths, k or seeds, every combination is trained on one stream of activations and saved
    in a folder of its own. Started by torchrun, the processes share every batch.
    """

    def work(params: TrainParams, progress: Progress) -> dict[str, Any]:
        from microscope.sae import summarise
        from microscope.training import train_all

        saes = {str(key): summarise(sae) for key, sae in train_all(params, progress).items()}
        return next(iter(saes.values())) if len(saes) == 1 else {"saes": saes}

    options, launch = _split(values)
    run_job(TrainParams, options, work, _show_training, **launch)


@main.command(name="eval", cls=ManyCommand)
@shared_options
@job_options(EvaluateParams)
def evaluate(**values: Any) -> None:
    """Measure an SAE on held-out text.

    microscope eval --sae-path sae_checkpoints --activations activations.parquet --report report.html
    """

    def work(params: EvaluateParams, progress: Progress) -> dict[str, Any]:
        from microscope.evaluation import evaluate as run
        from microscope.evaluation import html_report, summarise, write_reports
        from microscope.staging import staged

        evaluation = run(params, progress)
        if params.out:
            write_reports(evaluation, Path(params.out))
        if params.report:
            report = Path(params.report)
            with staged(report.parent, last=()) as work:
                (work / report.name).write_text(html_report(evaluation), encoding="utf-8")
        return summarise(evaluation)

    options, launch = _split(values)
    run_job(EvaluateParams, options, work, _show_evaluation, **launch)


@main.command(cls=ManyCommand)
@shared_options
@job_options(CompareParams)
def compare(**values: Any) -> None:
    """Measure several SAEs on the same held-out text, with intervals of their differences.

    microscope compare --sae-path ours/ theirs/ --activations activations.parquet --out comparison/
    """

    def work(params: CompareParams, progress: Progress) -> dict[str, Any]:
        from microscope.evaluation import compare as run
        from microscope.evaluation import difference_table, summarise_comparison

        comparison = run(params, progress)
        return {**summarise_comparison(comparison), "difference_table": difference_table(comparison)}

    options, launch = _split(values)
    run_job(CompareParams, options, work, _show_comparison, **launch)


@main.command(cls=ManyCommand)
@shared_options
@job_options(AnalyseParams)
def features(**values: Any) -> None:
    """Describe the features of an SAE: all of them into --out, or one with --feature.

    microscope features --sae-path sae_checkpoints --activations activations.parquet --feature 42
    """

    def work(params: AnalyseParams, progress: Progress) -> dict[str, Any]:
        import msgspec

        from microscope.errors import MicroscopeError
        from microscope.features import analyse

        if params.out is None and params.feature is None:
            raise MicroscopeError(
                "nothing_to_do", "Neither a folder nor a feature was given.", "Add --out or --feature."
            )
        analysis, details = analyse(params, progress)
        result: dict[str, Any] = {"analysis": msgspec.to_builtins(analysis)}
        if params.feature is not None:
            result["feature"] = msgspec.to_builtins(details[0])
        return result

    options, launch = _split(values)
    run_job(AnalyseParams, options, work, _show_features, **launch)


@main.command(name="import", cls=ManyCommand)
@shared_options
@job_options(ImportParams)
def import_(**values: Any) -> None:
    """Bring an SAE in from SAELens, sparsify, dictionary_learning, Gemma Scope and others.

    microscope import --path their_sae/ --model gpt2 --out sae/
    """

    def work(params: ImportParams, progress: Progress) -> dict[str, Any]:
        from microscope.formats import import_sae

        return import_sae(params, progress)

    options, launch = _split(values)
    run_job(ImportParams, options, work, _show_import, **launch)


@main.command(cls=ManyCommand)
@shared_options
@job_options(ExportParams)
def export(**values: Any) -> None:
    """Write an SAE for another library, or its feature dashboards for Neuronpedia.

    microscope export --sae-path sae/ --format saelens --out for_saelens/
    """

    def work(params: ExportParams, progress: Progress) -> dict[str, Any]:
        from microscope.formats import export_sae

        return export_sae(params, progress)

    options, launch = _split(values)
    run_job(ExportParams, options, work, _show_facts, **launch)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what is missing or wrong on this machine, each with its remedy."""
    from microscope.cli.doctor import report

    sys.exit(report(as_json=as_json))


def _show_facts(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        if not isinstance(value, dict | list):
            shown = (
                f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}"
                if isinstance(value, int)
                else str(value)
            )
            table.add_row(f"[bold]{name.replace('_', ' ')}", shown)
    console.print(table)


_PATHS = {
    "fast": "the fast path: its weights, composed anew",
    "general": "its own blocks, called one by one",
    "none": "nothing: no live sessions",
}


def _show_running(running: dict[str, Any], console: Console) -> None:
    """How a model that was loaded is run, and its sites."""
    _show_facts({}, {"run_by": _PATHS[running["path"]]}, console)
    if running["reason"]:
        console.print(running["reason"], highlight=False)
    if running["from_start"]:
        console.print("Its blocks keep a recurrent state: every answer is computed from the first token.")
    table = Table("Site", "Blocks", "Why not at all of them")
    for site in running["sites"]:
        table.add_row(site["kind"], ", ".join(map(str, site["blocks"])) or "none", site["reason"])
    console.print(table)


def _show_model(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    _show_facts({}, result, console)
    if "running" in result:
        _show_running(result["running"], console)
    rounding = result.get("rounding")
    sizes = (rounding or {}).get("bytes", {})
    table = Table("Precision", "Memory needed", *(["Weights"] if sizes else []))
    for name, needed in result["bytes_needed"].items():
        weights = [f"{sizes[name] / 1e6:,.0f} MB"] if sizes else []
        table.add_row(name, f"{needed / 1e6:,.0f} MB", *weights)
    console.print(table)
    if rounding and rounding["reference"]:
        title = f"{rounding['dtype']} against {rounding['reference']}, {rounding['tokens']} tokens"
        effect = Table(title, "")
        effect.add_row("mean KL (whole ‖ rounded)", f"{rounding['kl']:.4g} nats")
        effect.add_row("largest KL", f"{rounding['kl_max']:.4g} nats")
        effect.add_row("max |Δlogit|", f"{rounding['max_abs_logit']:.4g}")
        effect.add_row("same likeliest token", f"{rounding['top1_agreement']:.1%}")
        console.print(effect)


def _show_training(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    for name, facts in result.get("saes", {"": result}).items():
        if name:
            console.print(f"[bold blue]{name}")
        _show_facts({}, facts, console)
        _show_facts({}, {"held-out FVU": facts["training"]["held_out_fvu"]}, console)


def _show_evaluation(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    goals = Table("Goal", "Value", "Limit", "Verdict", "Formula")
    for goal in result["goals"]:
        sign = "≤" if goal["better"] == "lower" else "≥"
        value = "–" if goal["value"] is None else f"{goal['value']:.4f}"
        verdict = {True: "[blue]pass", False: "[bold]fail", None: "not measured"}[goal["passed"]]
        goals.add_row(goal["name"], value, f"{sign} {goal['limit']:g}", verdict, goal["formula"])
    console.print(goals)
    console.print(result["honesty"], style="yellow", highlight=False)
    _show_facts({}, result["metrics"], console)


def _show_comparison(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    for rows in (result["table"], result["difference_table"]):
        if len(rows) > 1:
            table = Table(*rows[0])
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)


def _show_import(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    _show_facts({}, result, console)
    for sentence in result["assumed"]:
        console.print(f"[bold]assumed[/] {_plain(sentence)}", highlight=False)
    if result["smoke_test"]:
        _show_facts({}, result["smoke_test"], console)


def _show_features(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    _show_facts({}, result["analysis"], console)
    feature = result.get("feature")
    if feature is None:
        return
    console.print(
        f"\n[bold]Feature {feature['index']}[/]  density {feature['density']:.3g}  max {feature['max_activation']:.3g}"
    )
    for title, name, number in (
        ("fires on", "top_tokens", "mean"),
        ("promotes", "promoted", "weight"),
        ("suppresses", "suppressed", "weight"),
    ):
        words = "  ".join(f"{t['text']!r} {t[number]:.2f}" for t in feature[name])
        console.print(f"[bold]{title:<11}[/]{words}", highlight=False)
    for analysis in result["analysis"]["analyses"]:
        found = analysis["error"] or feature["more"][analysis["name"]]
        rows = found if isinstance(found, list) else [[found]]
        console.print(
            f"[bold]{_plain(analysis['title'])}[/]  {_plain(analysis['description'])}", highlight=False
        )
        table = Table(*analysis["columns"], show_header=bool(analysis["columns"]))
        for row in rows:
            table.add_row(*("–" if value is None else _plain(str(value)) for value in row))
        console.print(table)
    for example in feature["examples"]:
        parts = [
            f"[reverse]{_plain(t)}[/]" if v > 0 else _plain(t)
            for t, v in zip(example["texts"], example["values"], strict=True)
        ]
        console.print(f"{example['max']:7.2f}  {''.join(parts)}", highlight=False)


def _plain(text: str) -> str:
    return text.replace("\n", "⏎").replace("[", "\\[")
