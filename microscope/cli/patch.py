"""``microscope patch …``: make a patch, try it, take it out, prove it, bring an adapter in."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from microscope.cli.options import ManyCommand, job_options
from microscope.cli.running import run_job, shared_options
from microscope.params import (
    CertifyParams,
    ImportAdapterParams,
    PatchApplyParams,
    PatchCreateParams,
    PatchExportParams,
)
from microscope.progress import Progress

_LAUNCH = ("config", "events", "cancel_file", "as_json")


@click.group()
def patch() -> None:
    """Edits of features as files: create, apply, export, certify."""


@patch.command(cls=ManyCommand)
@shared_options
@job_options(PatchCreateParams)
def create(**values: Any) -> None:
    """Write an edit of a feature into a patch file, or add one to it.

    microscope patch create --sae-path sae/ --feature 42 --kind ablate --out patch.json
    """

    def work(params: PatchCreateParams, progress: Progress) -> dict[str, Any]:
        import msgspec

        from microscope.params import plan_fingerprint
        from microscope.patching.plan_file import create_patch

        made = create_patch(params)
        return {**msgspec.to_builtins(made), "fingerprint": plan_fingerprint(made.plan)}

    _run(PatchCreateParams, values, work, _show_patch)


@patch.command(cls=ManyCommand)
@shared_options
@job_options(PatchApplyParams)
def apply(**values: Any) -> None:
    """Show what a patch does to the next token of a prompt.

    microscope patch apply --patch patch.json --prompt "The capital of France is"
    """

    def work(params: PatchApplyParams, progress: Progress) -> dict[str, Any]:
        from microscope.patching.probe import apply_patch

        return apply_patch(params, progress)

    _run(PatchApplyParams, values, work, _show_shifts)


@patch.command(cls=ManyCommand)
@shared_options
@job_options(PatchExportParams)
def export(**values: Any) -> None:
    """Turn a patch into files another program loads, and say whether that is exact.

    microscope patch export --patch patch.json --target peft --activations activations.parquet --out adapter/
    """

    def work(params: PatchExportParams, progress: Progress) -> dict[str, Any]:
        from microscope.patching.export import export_patch

        return export_patch(params, progress)

    _run(PatchExportParams, values, work, _show_export)


@patch.command(cls=ManyCommand)
@shared_options
@job_options(CertifyParams)
def certify(**values: Any) -> None:
    """Reload an export and measure it against the patch and the untouched model.

    microscope patch certify --export adapter/ --sae-path sae/ --activations activations.parquet --out certificate/
    """

    def work(params: CertifyParams, progress: Progress) -> dict[str, Any]:
        import msgspec

        from microscope.patching.certify import certify as run
        from microscope.patching.certify import write_certificate

        certificate = run(params, progress)
        write_certificate(certificate, params.out)
        result: dict[str, Any] = msgspec.to_builtins(certificate)
        return result

    _run(CertifyParams, values, work, _show_certificate)


@patch.command(name="import", cls=ManyCommand)
@shared_options
@job_options(ImportAdapterParams)
def import_(**values: Any) -> None:
    """Bring a LoRA adapter in (PEFT layout) and make a patch of it.

    microscope patch import --path their_adapter/ --model gpt2 --out adapter/
    """

    def work(params: ImportAdapterParams, progress: Progress) -> dict[str, Any]:
        from microscope.patching.importing import import_adapter

        return import_adapter(params, progress)

    _run(ImportAdapterParams, values, work, _show_facts)


def _run(params: Any, values: dict[str, Any], work: Any, show: Any) -> None:
    launch = {name: values.pop(name) for name in _LAUNCH}
    run_job(params, values, work, show, **launch)


def _show_facts(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        if not isinstance(value, dict | list | tuple) and value is not None:
            table.add_row(f"[bold]{name.replace('_', ' ')}", str(value))
    console.print(table)


def _show_patch(options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    edits = result["plan"]["edits"]
    console.print(f"{options.get('out')}: {len(edits)} edit{'s' if len(edits) != 1 else ''}", highlight=False)
    for edit in edits:
        if edit["feature"]:
            what = f"feature {edit['feature']['index']} at {edit['site']}"
        else:
            what = f"adapter {edit['adapter'][:12]}" if edit["adapter"] else f"the SAE at {edit['site']}"
        console.print(f"  {edit['kind']} {what}", highlight=False)


def _show_shifts(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    table = Table("Next token", "Base", "Patched", "Difference")
    for shift in result["shifts"]:
        difference = 100 * (shift["patched"] - shift["base"])
        numbers = f"{shift['base']:.2%}", f"{shift['patched']:.2%}", f"{difference:+.2f} points"
        table.add_row(repr(shift["text"]), *numbers)
    console.print(table)
    console.print(f"KL(base ‖ patched) {result['kl']:.4g} nats", highlight=False)
    for receipt in result["receipts"]:
        console.print(f"{receipt['kind']}: fired at {len(receipt['positions'])} positions", highlight=False)


def _show_export(options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    console.print(f"[bold]{result['title']}[/]: {result['grade']}. {result['reason']}", highlight=False)
    fit = result["fit"]
    if fit is not None:
        clean, trigger = fit["kl_clean"][1], fit["kl_trigger"][1]
        share = f": {fit['share']:.1%} of its effect kept" if fit["share"] is not None else ""
        console.print(
            f"Fit: KL {clean:.3g} over all text, {trigger:.3g} where the patch acts{share}, on text held aside",
            highlight=False,
        )
        if fit["cut_short"]:
            console.print(f"The fit was cut short: {fit['cut_short']}", style="bold", highlight=False)
    for file in result["files"]:
        console.print(f"  {file['path']}  {file['bytes']:,} bytes", highlight=False)
    console.print("Not certified yet: run `microscope patch certify`.", style="dim")


def _show_certificate(options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    import msgspec

    from microscope.patching.certify import Certificate, headline

    table = Table("Gate", "Value", "Limit", "Verdict", "Formula")
    for gate in result["gates"]:
        value = "–" if gate["value"] is None else f"{gate['value']:.3g}"
        if gate["interval"]:
            value += " [{:.3g}, {:.3g}]".format(*gate["interval"])
        verdict = {True: "[blue]pass", False: "[bold]fail", None: "not measured"}[gate["passed"]]
        limit = f"{'≥' if gate['at_least'] else '≤'} {gate['limit']:g}"
        # Values in brackets are no markup.
        table.add_row(gate["name"], Text(value), limit, verdict, Text(gate["formula"]))
    console.print(table)
    # Brackets of intervals are no markup.
    console.print(Text(headline(msgspec.convert(result, Certificate))))
    for note in result["notes"]:
        console.print(Text(note))
    console.print("Passed." if result["passed"] else "Did not pass.", style="bold")
