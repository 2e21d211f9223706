"""A certificate as files: JSON for machines, one HTML page for people."""

from __future__ import annotations

from html import escape
from pathlib import Path

import msgspec

from microscope.patching.certify.certificate import Certificate
from microscope.patching.certify.measure import Collateral, Mean, Parity
from microscope.staging import staged

JSON, HTML = "certificate.json", "certificate.html"
Table = list[list[str]]


def write_certificate(certificate: Certificate, folder: str | Path) -> None:
    """Write ``certificate.json`` and ``certificate.html`` into a folder."""
    with staged(Path(folder), last=(JSON,)) as work:
        (work / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(certificate), indent=1))
        (work / HTML).write_text(html_certificate(certificate), encoding="utf-8")


def html_certificate(certificate: Certificate) -> str:
    """The certificate as one HTML file without scripts or outside resources."""
    export = certificate.export
    verdict = "passed" if certificate.passed else "did not pass"
    body = [
        f"<h1>{escape(export.title)}: {verdict}</h1>",
        f"<p><strong>{escape(headline(certificate))}</strong></p>",
        *(f"<p>{escape(note)}</p>" for note in certificate.notes),
        f"<p><strong>{escape(export.grade)}</strong>. {escape(export.reason)} {escape(export.hint)}</p>",
        f"<p>Measured on the {escape(certificate.text)}, on the files reloaded in a process of their own. Intervals "
        f"are 95 % bootstrap intervals over documents, that of the share of effect over contexts "
        f"({certificate.bootstrap} resamples).</p>",
    ]
    for title, table in _sections(certificate):
        body += [f"<h2>{escape(title)}</h2>", _html(table)]
    return _PAGE.format(title=escape(f"Certificate: {export.title}"), body="\n".join(body))


def headline(certificate: Certificate) -> str:
    """The share of the patch's effect that the export keeps, in a sentence."""
    effect = certificate.effect
    if effect.share is None:
        return "What the export keeps of the patch's effect could not be measured."
    where = f"at {effect.positions:,} positions in {effect.contexts} contexts where the patch acts"
    return f"The export keeps {_mean(effect.share, '.1%')} of the patch's effect, {where}."


def _sections(certificate: Certificate) -> list[tuple[str, Table]]:
    found = [
        ("Gates", _gates(certificate)),
        ("The export against the patch", _parity(certificate)),
        ("Effect where the patch acts", _effect(certificate)),
        ("Collateral on text as it comes, against the untouched model", _collateral(certificate)),
        ("Edits", _edits(certificate)),
        ("What was compared", _identity(certificate)),
        ("Files", _files(certificate)),
    ]
    return [(title, table) for title, table in found if len(table) > 1]


def _gates(certificate: Certificate) -> Table:
    table = [["Gate", "Value", "Limit", "Verdict", "Formula"]]
    for gate in certificate.gates:
        value = "–" if gate.value is None else _mean(Mean(value=gate.value, interval=gate.interval))
        verdict = "not measured" if gate.passed is None else "pass" if gate.passed else "fail"
        limit = f"{'≥' if gate.at_least else '≤'} {gate.limit:g}"
        table.append([gate.name, value, limit, verdict, gate.formula])
    return table


def _parity(certificate: Certificate) -> Table:
    table = [["", "Positions", "Mean KL", "95th percentile", "Max", "Same top token", "Max |Δ logit|"]]
    for title, parity in (
        ("Text as it comes", certificate.clean),
        ("Where the patch acts", certificate.trigger),
    ):
        if parity is not None:
            table.append([title, *_parity_row(parity)])
    return table


def _parity_row(parity: Parity) -> list[str]:
    return [
        f"{parity.positions} in {parity.contexts} contexts",
        _mean(parity.kl),
        f"{parity.kl_p95:.3g}",
        f"{parity.kl_max:.3g}",
        f"{parity.top1_agreement:.2%}",
        f"{parity.max_abs_logit:.3g}",
    ]


def _effect(certificate: Certificate) -> Table:
    effect = certificate.effect
    table = [["Quantity", "Base", "Patch", "Export"]]
    if effect.kl_patch_base is not None:
        share = "–" if effect.share is None else f"{_mean(effect.share, '.1%')} kept"
        table.append(["Mean KL(patch ‖ ·)", f"{effect.kl_patch_base:.3g}", "0", share])
    for feature in effect.features:
        values = (f"{v:.3g}" for v in (feature.base, feature.patched, feature.export))
        table.append([f"Mean activation of feature {feature.feature} at {feature.site}", *values])
    return table


def _collateral(certificate: Certificate) -> Table:
    def row(title: str, cost: Collateral) -> list[str]:
        return [title, _mean(cost.kl), _mean(cost.perplexity_change, ".3%")]

    return [
        ["", "Mean KL(base ‖ ·)", "Change of perplexity"],
        row("Patch", certificate.collateral_of_patch),
        row("Export", certificate.collateral),
    ]


def _edits(certificate: Certificate) -> Table:
    table = [["Kind", "Where", "What", "Strength", "Positions"]]
    for edit in certificate.export.plan.active():
        what = f"feature {edit.index}" if edit.feature is not None else edit.adapter[:12] or "SAE"
        where = edit.positions.mode + (", sinks included" if edit.positions.include_sinks else "")
        table.append([edit.kind, edit.site or "its modules", what, f"{edit.strength:g}", where])
    return table


def _identity(certificate: Certificate) -> Table:
    export, base = certificate.export, certificate.export.base
    null = {None: "cannot be switched off", True: "bit-exactly the base", False: "not the base"}
    rows = [
        ["Base model", f"{base.reference} ({base.model_type}), weights {base.fingerprint}"],
        ["Tokenizer", base.tokenizer],
        ["Patch", export.plan_fingerprint],
        ["SAEs", ", ".join(export.saes) or "–"],
        ["Adapters", ", ".join(export.adapters) or "–"],
        ["Number format", certificate.dtype],
        ["Loaders tried", ", ".join(f"{name}: {result}" for name, result in certificate.loaders.items())],
        ["Switched off", null[certificate.null_exact]],
        ["Libraries", ", ".join(f"{name} {version}" for name, version in certificate.versions.items())],
        ["Seed", str(certificate.seed)],
    ]
    if certificate.documents is not None:
        rows.append(["Held-out documents", str(certificate.documents)])
    if certificate.spread is not None:
        rows.append(["Spread of the logits", f"{certificate.spread:.3g}"])
    if certificate.triggers:
        prompts = f"{len(certificate.triggers)}, the patch acts in {certificate.effect.prompts}"
        rows.append(["Prompts given", prompts])
    if certificate.live is not None:
        live = certificate.live
        rows.append(
            [
                "Live path",
                f"next token of {live.contexts} contexts: max |Δ logit| {live.reference:.3g} to the reference, "
                f"{live.export:.3g} to the export",
            ]
        )
    if certificate.merged_max_abs_logit is not None:
        rows.append(["Merged against unmerged", f"max |Δ logit| {certificate.merged_max_abs_logit:.3g}"])
    if export.fit is not None:
        fit = export.fit
        rows.append(
            [
                "Fit",
                f"rank {fit.rank} in {len(fit.modules)} modules, {_of(fit.tokens, fit.planned_tokens)} tokens, "
                f"{_of(fit.steps, fit.planned_steps)} steps",
            ]
        )
    if export.untied:
        rows.append(["Embedding", "untied from the head"])
    return [["Item", "Value"], *rows]


def _files(certificate: Certificate) -> Table:
    rows = [[f.path, f"{f.bytes}", f.sha256] for f in certificate.export.files]
    return [["File", "Bytes", "SHA-256"], *rows]


def _of(done: int, planned: int | None) -> str:
    return f"{done:,}" if planned in (None, done) else f"{done:,} of {planned:,}"


def _mean(mean: Mean, how: str = ".3g") -> str:
    text = f"{mean.value:{how}}"
    return f"{text} [{mean.interval[0]:{how}}, {mean.interval[1]:{how}}]" if mean.interval else text


def _html(table: Table) -> str:
    head = "".join(f"<th scope='col'>{escape(c)}</th>" for c in table[0])
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in table[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #8886; padding: .3rem .6rem; text-align: left; overflow-wrap: break-word; }}
</style></head><body>
{body}
</body></html>
"""
