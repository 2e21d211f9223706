"""Provenance on the demo's model: depth, predicted against measured, what random features would pass for, time, memory.

Targets are drawn at random among features of the topmost SAE where they fire at half of their maximum or more.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import inputs, report
from benchmarks.contest import ROOT, Settings
from microscope.graphs import Graph, GraphTarget, updated
from microscope.graphs.summary import spearman
from microscope.live.run import run_baseline
from microscope.models import BlockRunner, LoadedModel, load_model, runner_for
from microscope.params import Site
from microscope.provenance import Limits, attended, explain
from microscope.provenance.ablation import Ablation, Ablations
from microscope.provenance.freeze import MlpRule
from microscope.provenance.passes import PromptPass
from microscope.provenance.readings import readings_of, sites_of
from microscope.provenance.verification import STRENGTHS, verdict
from microscope.sae import SparseAutoencoder, load_sae

LAYERS = (5, 10, 15)
RULES: tuple[MlpRule, ...] = ("gradient", "gates")  # the first is that of every graph
TOKENS = 64
_TARGETS, _REFERENCES, _RANDOM = 50, 5, 6
# Targets that are explained by the other rule for MLPs, too.
_BOTH = 10
# A reference ablates every active feature, so its prompt is short.
_REFERENCE_TOKENS, _TOP = 16, 20
LENGTHS = (64, 256, 512)
_LIMIT_GB = 4.0
# A key is looked at if it has this much of a head's attention.
_SEEN = 0.05

Saes = dict[str, SparseAutoencoder]


@dataclass(frozen=True)
class Target:
    """A feature where it fires: tokens, its SAE's fingerprint, index and position."""

    tokens: tuple[int, ...]
    sae: str
    index: int
    position: int

    @property
    def asked(self) -> GraphTarget:
        return GraphTarget(kind="feature", sae=self.sae, index=self.index, position=self.position)


@dataclass
class Found:
    """What the graphs of all targets say; seconds are those of each graph."""

    depths: list[int] = field(default_factory=list)
    completeness: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    spearmans: list[float] = field(default_factory=list)
    signs: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)


def load(settings: Settings) -> tuple[LoadedModel, Saes]:
    """The demo's model, and an SAE for each of three blocks."""
    loaded = load_model(str(inputs.model_folder(settings)), dtype="float32", device="cpu")
    saes = (load_sae(folder) for folder in inputs.block_saes(settings, LAYERS))
    return loaded, {sae.content_fingerprint(): sae for sae in saes}


def draw(
    loaded: LoadedModel, saes: Saes, contexts: np.ndarray, count: int, tokens: int, seed: int = 0
) -> list[Target]:
    """Features of the topmost SAE at random, each where it fires at half of its maximum over all contexts or more.

    Args:
        contexts: tokens ``[contexts, positions]``.
        count: how many.
        tokens: of each prompt, at the end of which the feature fires or in front of it.
    """
    name, sae = max(saes.items(), key=lambda pair: Site.parse(pair[1].config.site).layer)
    site = Site.parse(sae.config.site)
    block = loaded.model.get_submodule(loaded.family.block_path(site.layer))
    kept: list[torch.Tensor] = []
    handle = block.register_forward_hook(
        lambda _m, _a, out: kept.append((out[0] if isinstance(out, tuple) else out).detach()[:, :tokens])
    )
    with torch.no_grad():
        for rows in np.array_split(contexts[:, :tokens], max(1, len(contexts) // 16)):
            loaded.model(torch.from_numpy(rows.astype(np.int64)), use_cache=False)
    handle.remove()
    stream = torch.cat(kept).flatten(0, 1)
    with torch.no_grad():
        codes = sae.encode(stream)
    usual = sae.config.token_filter.keep(torch.zeros(len(stream), dtype=torch.bool), stream.norm(dim=1))
    values = codes.values * usual[:, None]
    largest = torch.zeros(sae.config.n_latents).scatter_reduce(
        0, codes.indices.flatten(), values.flatten(), "amax"
    )
    strong = (values >= 0.5 * largest[codes.indices]) & (values > 0)
    rng = random.Random(seed)
    places: dict[int, list[int]] = {}
    for row, place in strong.nonzero().tolist():
        if row % tokens >= tokens // 4:  # the first tokens have little in front of them
            places.setdefault(int(codes.indices[row, place]), []).append(row)
    chosen = rng.sample(sorted(places), min(count, len(places)))
    found = []
    for index in chosen:
        context, position = divmod(rng.choice(places[index]), tokens)
        found.append(Target(tuple(int(t) for t in contexts[context, :tokens]), name, index, position))
    return found


def measure(
    loaded: LoadedModel,
    saes: Saes,
    targets: list[Target],
    runner: BlockRunner,
    limits: Limits,
    rule: MlpRule = RULES[0],
) -> Found:
    """A verified graph of each target, and random features in the place of its parents."""
    found = Found()
    for number, target in enumerate(targets):
        started = time.perf_counter()
        graph: Graph | None = None
        for piece in explain(
            loaded, target.tokens, target.asked, saes, limits=limits, runner=runner, mlp=rule
        ):
            graph = piece if isinstance(piece, Graph) else updated(graph, piece)  # type: ignore[arg-type]
            if isinstance(piece, Graph):
                found.first.append(time.perf_counter() - started)
        assert graph is not None
        found.whole.append(time.perf_counter() - started)
        summary = graph.summary
        found.depths.append(summary.depth)
        found.completeness.append(graph.completeness or 0.0)
        found.spearmans.append(summary.spearman or 0.0)
        found.signs.append(summary.sign_agreement or 0.0)
        found.verified.append(summary.verified / max(1, summary.measured))
        for edge in graph.edges:
            if edge.measured is not None:
                found.predicted.append(edge.attribution)
                found.measured.append(edge.measured)
        if rule == RULES[0]:
            found.accepted += random_features(loaded, saes, target, graph, runner, random.Random(number))
        print(f"{number + 1}/{len(targets)} depth {summary.depth}", file=sys.stderr, flush=True)
    return found


def random_features(
    loaded: LoadedModel, saes: Saes, target: Target, graph: Graph, runner: BlockRunner, rng: random.Random
) -> list[bool]:
    """Whether silent features, drawn anew and as large as a parent, would be accepted in its place."""
    edges = [e for e in graph.edges if e.control is not None and graph.node(e.parent).kind == "feature"]
    if not edges:
        return []
    tokens = torch.tensor(target.tokens)
    held = PromptPass(loaded, target.tokens)
    baseline = run_baseline(runner, tokens, torch.zeros(len(tokens), dtype=torch.bool))
    places = {Site.parse(node.site) for node in graph.nodes if node.site}
    ablations = Ablations(loaded, runner, baseline, target.position, sites_of(graph, saes) | places)
    readings = readings_of(graph, held, runner, saes, ablations.unchanged)
    accepted = []
    for edge in rng.sample(edges, min(_RANDOM, len(edges))):
        parent = graph.node(edge.parent)
        assert parent.position is not None
        assert parent.index is not None
        site, sae = Site.parse(parent.site), saes[parent.sae]
        row = ablations.unchanged.at(site, parent.position)
        with torch.inference_mode():
            codes = sae.encode(row)
            firing = set(codes.indices[0][codes.values[0] > 0].tolist())
            index = rng.choice([i for i in range(sae.config.n_latents) if i not in firing])
            size = (parent.activation or 0.0) * sae.W_dec[parent.index].norm() * sae.output_gain(row)[0, 0]
            taken = size * sae.W_dec[index] / sae.W_dec[index].norm()
            reading = readings[edge.child, edge.side]
            rows = [Ablation(strength * taken) for strength in STRENGTHS]
            seen = ablations.run(site, parent.position, rows, {reading.site})
            before = float(reading.of(ablations.unchanged)[0])
            effects = [before - value for value in reading.of(seen).tolist()]
        _, passed = verdict(
            edge.attribution, dict(zip(STRENGTHS, effects, strict=True)), reading.scale, edge.control or 0.0
        )
        accepted.append(passed)
    return accepted


def attention(
    loaded: LoadedModel, saes: Saes, contexts: np.ndarray, count: int, seed: int = 0
) -> tuple[list[float], list[bool]]:
    """Scores of random heads behind the topmost SAE, and what removing their strongest feature does to the weight.

    Returns:
        How far the contributors' sums are from the score, relative; whether the weight moved as was predicted.
    """
    name, sae = max(saes.items(), key=lambda pair: Site.parse(pair[1].config.site).layer)
    layer = Site.parse(sae.config.site).layer + 1
    rng = random.Random(seed)
    off: list[float] = []
    agrees: list[bool] = []
    for context in rng.choices(range(len(contexts)), k=20 * count):
        if len(agrees) == count:
            break
        tokens = [int(token) for token in contexts[context, :TOKENS]]
        held = PromptPass(loaded, tokens)
        stream = held.input_of(layer)
        block = held.again(layer, stream).attention
        assert block is not None
        head, query = rng.randrange(block.pattern.shape[1]), rng.randrange(TOKENS // 4, len(tokens))
        weights = block.pattern[0, head, query]
        seen = [key for key in range(1, query + 1) if float(weights[key]) >= _SEEN]
        if not seen:
            continue
        key = rng.choice(seen)
        found = attended(loaded, tokens, layer, head, query, key, {name: sae}, held=held)
        size = max(abs(found.score), 1.0)
        for listed in (found.query_contributors, found.key_contributors):
            off.append(abs(sum(c.attribution for c in listed) + found.position_term - found.score) / size)
        features = [c for c in found.key_contributors if c.kind == "feature"]
        if not features:  # the SAE leaves that token out
            continue
        top = max(features, key=lambda c: abs(c.attribution))
        with torch.no_grad():
            codes, gain = sae.encode(stream[key][None]), sae.output_gain(stream[key][None])[0, 0]
            value = codes.values[0][codes.indices[0] == top.index].sum()
            changed = stream.clone()
            changed[key] -= value * gain * sae.W_dec[top.index]
            after = held.again(layer, changed).attention
        assert after is not None
        moved = float(after.pattern[0, head, query, key] - weights[key])
        agrees.append(moved * top.attribution < 0)
    return off, agrees


def reference(
    loaded: LoadedModel, saes: Saes, targets: list[Target], runner: BlockRunner
) -> Mapping[str, tuple[list[float], list[float]]]:
    """Every active feature of one SAE ablated on the running model: rank correlation and recall of the strongest.

    Returns:
        By rule for MLPs, of each target.
    """
    below = sorted(saes, key=lambda name: Site.parse(saes[name].config.site).layer)[-2]
    found: dict[str, tuple[list[float], list[float]]] = {}
    for rule in RULES:
        found[rule] = ([], [])
        for target in targets:
            some = {name: saes[name] for name in (below, target.sae)}
            graph: Graph | None = None
            everything = Limits(hops=1, parents=1, shown=2000)
            for piece in explain(
                loaded,
                target.tokens,
                target.asked,
                some,
                limits=everything,
                runner=runner,
                mlp=rule,
            ):
                graph = piece if isinstance(piece, Graph) else updated(graph, piece)  # type: ignore[arg-type]
            assert graph is not None
            edges = [e for e in graph.edges if e.measured is not None and ":error" not in e.parent]
            rank = spearman([e.attribution for e in edges], [e.measured or 0.0 for e in edges])
            by_both = [
                {e.parent for e in sorted(edges, key=key, reverse=True)[:_TOP]}
                for key in (lambda e: abs(e.attribution), lambda e: abs(e.measured or 0.0))
            ]
            found[rule][0].append(rank or 0.0)
            found[rule][1].append(len(by_both[0] & by_both[1]) / max(1, len(by_both[1])))
    return found


def peak(settings: Settings, tokens: int) -> dict[str, float]:
    """Memory of a process of its own that makes one graph, and when its first picture was there."""
    command = [sys.executable, "-m", "benchmarks.provenance", "--tokens", str(tokens)]
    command += ["--data", str(settings.data), *(["--quick"] if settings.quick else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _peak_here(settings: Settings, tokens: int) -> dict[str, float]:
    """In this process: everything from the model on."""
    loaded, saes = load(settings)
    text = np.load(inputs.tokens_file(settings)).reshape(-1)[:tokens]
    rows = tuple(int(token) for token in text)
    started = time.perf_counter()
    pieces = explain(loaded, rows, GraphTarget(kind="token", token=rows[0]), saes, verify=False)
    next(pieces)
    first = time.perf_counter() - started
    for _ in pieces:
        pass
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"gb": peak_gb, "first": first}


def _text(settings: Settings) -> str:
    torch.set_num_threads(settings.threads)
    loaded, saes = load(settings)
    runner = runner_for(loaded)
    contexts = np.load(inputs.tokens_file(settings))
    contexts = contexts[: 16 if settings.quick else 256]
    count = 3 if settings.quick else _TARGETS
    targets = draw(loaded, saes, contexts, count, TOKENS)
    found = measure(loaded, saes, targets, runner, Limits())
    others = measure(loaded, saes, targets[:_BOTH], runner, Limits(), RULES[1])
    short = draw(loaded, saes, contexts, 1 if settings.quick else _REFERENCES, _REFERENCE_TOKENS, seed=1)
    exact = reference(loaded, saes, short, runner)
    why = attention(loaded, saes, contexts, 3 if settings.quick else _TARGETS)
    lengths = LENGTHS[:1] if settings.quick else LENGTHS
    peaks = {tokens: peak(settings, tokens) for tokens in lengths}
    return "\n".join([*_tables(found, others, exact, why, peaks), "", *goals(found, why, peaks)])


def _tables(
    found: Found,
    others: Found,
    exact: Mapping[str, tuple[list[float], list[float]]],
    why: tuple[list[float], list[bool]],
    peaks: Mapping[int, Mapping[str, float]],
) -> Iterator[str]:
    n = len(found.depths)
    yield (
        f"{n} features of block {LAYERS[-1]} drawn at random among those that fire at half of their maximum or more, "
        f"each on {TOKENS} tokens, explained by the SAEs of blocks {LAYERS[0]} and {LAYERS[1]}; every edge measured "
        "on the running model."
    )
    yield ""
    yield "| | |\n|---|---|"
    yield f"| depth by number of targets | {_counts(found.depths)} |"
    yield f"| hop 0: largest error of completeness | {max(abs(c - 1) for c in found.completeness):.1e} |"
    yield f"| Spearman over all {len(found.predicted)} edges; median of graphs | {spearman(found.predicted, found.measured) or 0:.2f}; {median(found.spearmans):.2f} |"
    yield f"| same sign, median of graphs | {median(found.signs):.0%} |"
    ranked, same = spearman(others.predicted, others.measured) or 0, _same_sign(others)
    yield (
        f"| the same with the gates of MLPs held, {len(others.depths)} targets: Spearman, same sign | {ranked:.2f}, "
        f"{same:.0%} |"
    )
    yield f"| edges verified, median of graphs | {median(found.verified):.0%} |"
    yield f"| random features accepted | {sum(found.accepted)} of {len(found.accepted)} |"
    yield f"| first picture, median and longest | {median(found.first):.1f} s, {max(found.first):.1f} s |"
    yield f"| all edges measured, median and longest | {median(found.whole):.1f} s, {max(found.whole):.1f} s |"
    yield ""
    yield (
        f"Exact patching of everything: every active feature of block {LAYERS[1]} ablated by itself, {_REFERENCE_TOKENS} "
        "tokens. Medians."
    )
    yield ""
    yield f"| MLPs | Spearman of predicted and exact | of the {_TOP} strongest, predicted |\n|---|---|---|"
    for rule, (ranks, recalls) in exact.items():
        yield f"| {rule} | {median(ranks):.2f} | {median(recalls):.0%} |"
    yield ""
    off, agrees = why
    yield (
        f"Why attended: {len(agrees)} random heads of block {LAYERS[-1] + 1}. Contributors sum to the score within "
        f"{max(off):.1e}; without the key's strongest feature the weight moved as predicted in {sum(agrees)}."
    )
    yield ""
    yield "| tokens of the prompt | peak memory, model included | first picture of a fresh process |\n|---|---|---|"
    for tokens, one in peaks.items():
        yield f"| {tokens} | {one['gb']:.2f} GB | {one['first']:.1f} s |"


def goals(
    found: Found, why: tuple[list[float], list[bool]], peaks: Mapping[int, Mapping[str, float]]
) -> Iterator[str]:
    """Whether the bounds hold."""
    deep = sum(depth >= 2 for depth in found.depths) / len(found.depths)
    yield report.goal("targets at least two layers deep", deep, least=0.8)
    yield report.goal("Spearman over all edges", spearman(found.predicted, found.measured) or 0.0, least=0.8)
    yield report.goal("same sign over all edges", _same_sign(found), least=0.9)
    yield report.goal(
        "random features accepted", sum(found.accepted) / max(1, len(found.accepted)), most=0.05
    )
    yield report.goal("first picture in s", max(found.first), most=5.0)
    yield report.goal("all edges measured in s", max(found.whole), most=60.0)
    off, agrees = why
    yield report.goal("why attended, error of sums", max(off), most=1e-4)
    yield report.goal("why attended, weight moved as predicted", sum(agrees) / len(agrees), least=0.8)
    longest = max(peaks)
    yield report.goal(f"GB at {longest} tokens", peaks[longest]["gb"], most=_LIMIT_GB)


def _same_sign(found: Found) -> float:
    pairs = zip(found.predicted, found.measured, strict=True)
    return sum((a > 0) == (b > 0) for a, b in pairs) / max(1, len(found.predicted))


def _counts(values: list[int]) -> str:
    return ", ".join(f"{value}: {values.count(value)}" for value in sorted(set(values)))


def sections(settings: Settings) -> Iterator[report.Section]:
    """One table."""
    title = "Provenance"

    def measured() -> str:
        return f"## {title}\n\n{_text(settings)}\n\n{report.footer(settings, 1)}"

    yield report.Section(title, measured)


def main() -> None:
    """``python -m benchmarks.provenance``: the memory of one graph, as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = Settings(options.data, 1, torch.get_num_threads(), options.quick, {})
    print(json.dumps(_peak_here(settings, options.tokens)))


if __name__ == "__main__":
    main()
