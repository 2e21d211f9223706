"""Effects on the running model: equal to the live path's edits and to hooks on the plain model, and judged as said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microscope.graphs import Edge, Graph, GraphTarget, GraphUpdate, Node, check, updated
from microscope.live import ResidentModel
from microscope.live.run import run_baseline
from microscope.models import LoadedModel, load_model, runner_for
from microscope.params import EditPlan, Positions, Site
from microscope.provenance import Limits, explain
from microscope.provenance.passes import PromptPass
from microscope.provenance.verification import STRENGTHS, percentile, verdict
from microscope.sae import SaeConfig, SparseAutoencoder, architecture
from tests.families.oracle import removed
from tests.families.tiny import make_any
from tests.live_rig import PROMPT, attach, make_edit, random_sae, stream_in

FEW = Limits(hops=2, parents=3, shown=8)


def finished(pieces: Any) -> Graph:
    """A whole graph, checked; the last piece says it is done."""
    graph = next(pieces)
    update: GraphUpdate | None = None
    for update in pieces:
        graph = updated(graph, update)
    assert update is not None
    assert update.phase == "done"
    check(graph)
    return graph


def opened(folder: Path, dtype: str = "float32") -> LoadedModel:
    return load_model(str(folder), dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    root = tmp_path_factory.mktemp("others")
    return lambda name: opened(make_any(name, root / name))


def of_kind(kind: str, site: str, seed: int = 1, **rest: Any) -> SparseAutoencoder:
    config = SaeConfig(architecture=kind, d_in=32, n_latents=64, k=6, site=site, scale=0.8, **rest)
    sae = architecture(kind)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return sae


def named(*saes: SparseAutoencoder) -> dict[str, SparseAutoencoder]:
    return {sae.content_fingerprint(): sae for sae in saes}


def token(loaded: LoadedModel, position: int = -1) -> GraphTarget:
    return GraphTarget(kind="token", token=loaded.encode("peace")[-1], position=position)


# --- the same as the live path's own edits ----------------------------------------------------------------


def equals_the_edits(loaded: LoadedModel, sae: SparseAutoencoder, rtol: float, atol: float) -> None:
    """Every ablation of a feature is the live path's edit at that position."""
    resident = ResidentModel(loaded, packed_bytes=0)
    name = attach(resident, sae)
    target = token(loaded)
    graph = finished(
        explain(loaded, loaded.encode(PROMPT), target, {name: sae}, limits=FEW, runner=resident.runner)
    )
    resident.open("s", PROMPT)
    before = resident.sessions.get("s").baseline.logits[target.token]
    edges = [e for e in graph.edges if graph.node(e.parent).kind == "feature"]
    assert len(edges) == FEW.shown
    for edge in edges:
        node = graph.node(edge.parent)
        assert node.index is not None
        assert node.position is not None
        where = Positions(mode="set", indices=(node.position,), include_sinks=True)
        for strength, effect in zip(edge.strengths, edge.effects, strict=True):
            edit = make_edit(sae, node.index, "scale", 1 - strength, positions=where)
            after = resident.apply("s", EditPlan(edits=(edit,))).outcome.logits[target.token]
            assert effect == pytest.approx(float(before - after), rel=rtol, abs=atol), (edge.parent, strength)
        assert edge.measured == edge.effects[STRENGTHS.index(1.0)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_an_ablation_is_the_live_edit(kind, model_folders):
    equals_the_edits(opened(model_folders[kind]), random_sae(32, 1, 3), 1e-4, 2e-5)


@pytest.mark.parametrize(
    "name", ["bloom", "mixtral", "mamba", "jamba", "falcon_h1", "deepseek_v3", "gpt_oss"]
)
def test_an_ablation_is_the_live_edit_in_other_families(name, others):
    equals_the_edits(others(name), random_sae(32, 0, 3), 1e-4, 2e-5)


@pytest.mark.parametrize("kind", ["jumprelu", "gated", "batchtopk", "standard", "matryoshka"])
def test_of_every_architecture(kind, model_folders):
    equals_the_edits(opened(model_folders["llama"]), of_kind(kind, "resid_post.1"), 1e-4, 2e-5)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_of_saes_that_norm_their_input(norm, model_folders):
    sae = of_kind("topk", "resid_post.1", input_norm=norm)
    equals_the_edits(opened(model_folders["gpt2"]), sae, 1e-4, 2e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_in_half_precision_too(kind, model_folders):
    """Rounding differs with the rows of a batch; what is left is about one rounding of the logits."""
    equals_the_edits(opened(model_folders[kind], "bfloat16"), random_sae(32, 1, 3), 0.05, 0.06)


# --- the same as hooks on the plain model -----------------------------------------------------------------

Change = Callable[[Tensor], Tensor]


def run_with(loaded: LoadedModel, ids: Sequence[int], changes: Sequence[tuple[str, Change]]) -> Tensor:
    """Logits ``[positions, vocabulary]`` of the plain model with changes ``[positions, d]`` of modules' outputs."""

    def hook(change: Change) -> Any:
        def changed(_module: Any, _inputs: Any, output: Any) -> Any:
            new = change(stream_in(output)[0])[None]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return changed

    handles = [
        loaded.model.get_submodule(path).register_forward_hook(hook(change)) for path, change in changes
    ]
    with removed(handles), torch.no_grad():
        logits: Tensor = loaded.model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def streams(
    loaded: LoadedModel, ids: Sequence[int], *paths: str, changes: Sequence[tuple[str, Change]] = ()
) -> list[Tensor]:
    """What modules put out under changes, ``[positions, d]`` each."""
    seen: dict[str, Tensor] = {}

    def noted(path: str) -> Change:
        def note(x: Tensor) -> Tensor:
            seen[path] = x.clone()
            return x

        return note

    run_with(loaded, ids, [*changes, *((path, noted(path)) for path in paths)])
    return [seen[path] for path in paths]


def without(vector: Tensor, position: int) -> Change:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[position] -= vector
        return x

    return change


HALVES = {
    "llama": ("model.layers.{}.self_attn", "model.layers.{}.mlp"),
    "gpt2": ("transformer.h.{}.attn", "transformer.h.{}.mlp"),
    "gpt_neox": ("gpt_neox.layers.{}.attention", "gpt_neox.layers.{}.mlp"),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("kind", HALVES)
def test_what_a_half_adds_is_removed_there(kind, half, fast, model_folders):
    loaded = opened(model_folders[kind])
    path = HALVES[kind][half].format(1)
    sae = of_kind("topk", f"{('attn_out', 'mlp_out')[half]}.1")
    ids, target = loaded.encode(PROMPT), token(loaded)
    runner = runner_for(loaded, fast=fast)
    assert runner.path == ("fast" if fast else "general")
    graph = finished(explain(loaded, ids, target, named(sae), limits=Limits(1, 0, 8), runner=runner))
    block = path.rsplit(".", 2)[0] + ".0"
    x, below = streams(loaded, ids, path, block)
    codes = sae.encode(x)
    before = run_with(loaded, ids, [])[-1, target.token]
    kinds = set()
    for edge in graph.edges:
        node = graph.node(edge.parent)
        kinds.add(node.kind)
        if node.kind == "bias":
            assert (edge.verdict, edge.measured) == (None, None)
            continue
        assert node.position is not None
        place = block if node.site == "resid_post.0" else path
        if node.kind == "feature":
            f = (codes.values * (codes.indices == node.index)).sum(1)[node.position]
            taken = f * sae.W_dec[node.index] / 0.8
        else:
            taken = (below if place == block else x - sae.decode(codes))[node.position]
        after = run_with(loaded, ids, [(place, without(taken, node.position))])[-1, target.token]
        assert edge.measured == pytest.approx(float(before - after), rel=1e-3, abs=2e-5)
    assert kinds >= {"feature", "error"}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_a_transcoder_is_read_in_front_of_the_mlp_and_removed_behind_it(skip, fast, model_folders):
    loaded = opened(model_folders["llama"])
    coder = of_kind("topk", "resid_mid.2", site_out="mlp_out.2", skip=skip)
    below = random_sae(32, 0, 2)
    ids, target = loaded.encode(PROMPT), token(loaded)
    runner = runner_for(loaded, fast=fast)
    graph = finished(explain(loaded, ids, target, named(coder, below), limits=FEW, runner=runner))
    x1, attention, x0 = streams(loaded, ids, "model.layers.1", "model.layers.2.self_attn", "model.layers.0")
    codes, low = coder.encode(x1 + attention), below.encode(x0)
    before = run_with(loaded, ids, [])[-1, target.token]
    seen = {"mlp_out.2": 0, "resid_post.0": 0}
    for edge in graph.edges:
        node = graph.node(edge.parent)
        if node.kind != "feature":
            continue
        assert node.position is not None
        assert node.index is not None
        seen[node.site] += 1
        sae, own, path = (
            (coder, codes, "model.layers.2.mlp")
            if node.site == "mlp_out.2"
            else (below, low, "model.layers.0")
        )
        f = (own.values * (own.indices == node.index)).sum(1)[node.position]
        change = (path, without(f * sae.W_dec[node.index] / 0.8, node.position))
        if edge.child == "target":
            after = run_with(loaded, ids, [change])[-1, target.token]
            assert edge.measured == pytest.approx(float(before - after), rel=1e-3, abs=2e-5)
            continue
        child = graph.node(edge.child)
        assert child.position is not None
        assert child.index is not None
        readings = []
        for changes in ([], [change]):
            mid = torch.stack(
                streams(loaded, ids, "model.layers.1", "model.layers.2.self_attn", changes=changes)
            ).sum(0)
            pre = coder.pre_activations(mid)
            readings.append(float(pre[child.position, child.index]))
        assert edge.measured == pytest.approx(readings[0] - readings[1], rel=1e-3, abs=2e-5)
    assert all(seen.values())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_mediation_is_what_is_missing_with_the_child_held(kind, model_folders):
    loaded = opened(model_folders[kind])
    low, high = random_sae(32, 0, 2, kind="jumprelu"), random_sae(32, 2, 5, kind="jumprelu")
    low.b_enc -= 0.5
    high.b_enc -= 0.5
    block = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}[kind]
    ids, target = loaded.encode(PROMPT), token(loaded)
    graph = finished(explain(loaded, ids, target, named(low, high), limits=FEW))
    x0, x2 = streams(loaded, ids, block.format(0), block.format(2))
    before = run_with(loaded, ids, [])[-1, target.token]

    def added(sae: SparseAutoencoder, row: Tensor, index: int) -> Tensor:
        codes = sae.encode(row[None])
        return (codes.values[0] * (codes.indices[0] == index)).sum() * sae.W_dec[index] / 0.8

    checked = 0
    for edge in graph.edges:
        parent, child = graph.node(edge.parent), graph.node(edge.child)
        if edge.hop != 2 or parent.kind != "feature" or edge.mediated is None:
            continue
        assert parent.index is not None
        assert parent.position is not None
        assert child.index is not None
        assert child.position is not None
        gone = (block.format(0), without(added(low, x0[parent.position], parent.index), parent.position))

        def hold(x: Tensor, child: Node = child) -> Tensor:
            assert child.index is not None
            assert child.position is not None
            x = x.clone()
            now = added(high, x[child.position], child.index)
            x[child.position] += added(high, x2[child.position], child.index) - now
            return x

        total = float(before - run_with(loaded, ids, [gone])[-1, target.token])
        held = float(before - run_with(loaded, ids, [gone, (block.format(2), hold)])[-1, target.token])
        assert edge.mediated == pytest.approx(1 - held / total, rel=5e-3, abs=5e-3)
        checked += 1
    assert checked >= 5


def test_the_score_of_a_head_is_measured_at_either_end(model_folders):
    loaded = opened(model_folders["gpt2"])
    sae, ids, head, query, key = random_sae(32, 0, 3), loaded.encode(PROMPT), 2, 9, 4
    target = GraphTarget(kind="attention", layer=2, head=head, position=query, key=key)
    graph = finished(explain(loaded, ids, target, named(sae), limits=FEW))
    (x,) = streams(loaded, ids, "transformer.h.0")
    codes = sae.encode(x)

    def ends(changes: Sequence[tuple[str, Change]]) -> tuple[Tensor, Tensor]:
        noted: list[Tensor] = []

        def note(y: Tensor) -> Tensor:
            noted.append(y.clone())
            return y

        run_with(loaded, ids, [*changes, ("transformer.h.2.attn.c_attn", note)])
        q, k, _ = noted[0].split(32, 1)
        return q[query, 8 * head : 8 * head + 8], k[key, 8 * head : 8 * head + 8]

    q0, k0 = ends([])
    assert graph.node("target").value == pytest.approx(float(q0 @ k0) / 8**0.5, rel=1e-4)
    sides = set()
    for edge in graph.edges:
        node = graph.node(edge.parent)
        if node.kind != "feature":
            continue
        assert node.index is not None
        assert node.position is not None
        f = (codes.values * (codes.indices == node.index)).sum(1)[node.position]
        q, k = ends([("transformer.h.0", without(f * sae.W_dec[node.index] / 0.8, node.position))])
        moved = (q0 - q) @ k0 if edge.side == "query" else (k0 - k) @ q0
        assert edge.measured == pytest.approx(float(moved) / 8**0.5, rel=1e-3, abs=1e-5)
        sides.add(edge.side)
    assert sides == {"query", "key"}


def test_a_direction_a_difference_and_embeddings_are_measured(model_folders):
    loaded = opened(model_folders["llama"])
    ids = loaded.encode(PROMPT)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    direction = GraphTarget(kind="direction", layer=2, position=7, vector=tuple(vector.tolist()))
    difference = GraphTarget(kind="difference", token=9, against=4)

    def read(target: GraphTarget, changes: Sequence[tuple[str, Change]]) -> float:
        noted: list[Tensor] = []

        def note(y: Tensor) -> Tensor:
            noted.append(y.clone())
            return y

        logits = run_with(loaded, ids, [*changes, ("model.layers.2", note)])
        if target.kind == "direction":
            return float(noted[0][7] @ vector)
        return float(logits[-1, 9] - logits[-1, 4])

    for target in (direction, difference):
        graph = finished(explain(loaded, ids, target, {}, limits=FEW))
        assert {graph.node(e.parent).kind for e in graph.edges} == {"embedding"}
        (embedded,) = streams(loaded, ids, "model.embed_tokens")
        for edge in graph.edges:
            position = graph.node(edge.parent).position
            assert position is not None
            after = read(target, [("model.embed_tokens", without(embedded[position], position))])
            assert edge.measured == pytest.approx(read(target, []) - after, rel=1e-3, abs=2e-5)
            assert edge.control is not None
            assert edge.control > 0


# --- how effects are judged -------------------------------------------------------------------------------


def test_the_percentile_is_exceeded_by_one_in_twenty():
    assert percentile([2.0]) == 2.0
    assert percentile(range(1, 20)) == pytest.approx(19)
    assert percentile(range(1, 40)) == pytest.approx(38)
    assert percentile(range(32, 0, -1)) == pytest.approx(31.35)
    draws = torch.rand(4000, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    passed = [row[32] > percentile(row[:32]) for row in draws.tolist()]
    assert sum(passed) / len(passed) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("attribution", "effects", "words"),
    [
        (1.0, (0.5, 1.0, 2.0), "causal"),
        (-1.0, (-0.5, -1.0, -2.0), "causal"),
        (1.0, (0.25, 0.5, 1.0), "causal"),  # at the bound of 5 %
        (1.0, (0.2, 0.4, 0.8), "weak"),  # below it
        (1.0, (-0.1, 1.0, 2.0), "weak"),  # not at every strength
        (1.0, (0.5, 1.0, -2.0), "weak"),
        (1.0, (0.05, 0.09, 0.2), "not shown"),  # random features do more
        (1.0, (-0.5, -1.0, -2.0), "not shown"),  # the other way
        (1.0, (0.5, 0.0, 2.0), "not shown"),
        (0.0, (0.5, 1.0, 2.0), "not shown"),
    ],
)
def test_the_rule(attribution, effects, words):
    found = verdict(attribution, dict(zip(STRENGTHS, effects, strict=True)), scale=10.0, control=0.1)
    assert found == (words, words != "not shown")


def test_random_features_move_in_proportion_to_their_size(model_folders, monkeypatch):
    """One set of them is measured and scaled: measured at each parent's own size, bounds stay near."""
    loaded = opened(model_folders["llama"])
    sae, ids, target = random_sae(32, 1, 3), loaded.encode(PROMPT), token(loaded)

    def controls() -> dict[tuple[str, str, str], Edge]:
        graph = finished(explain(loaded, ids, target, named(sae), limits=Limits(1, 0, 30)))
        return {edge.key: edge for edge in graph.edges if edge.control is not None}

    scaled = controls()
    monkeypatch.setattr("microscope.provenance.verification.SIZE_STEP", 1.02)
    exact = controls()
    assert len(scaled) >= 30
    assert any(edge.control != exact[key].control for key, edge in scaled.items())
    ratios = torch.tensor([(edge.control or 0) / (exact[key].control or 1) for key, edge in scaled.items()])
    assert float((ratios - 1).abs().quantile(0.9)) <= 0.15


def test_matched_random_features_would_not_be_verified(model_folders):
    """Of other random features of the same size, about one in twenty moves the target as far as is asked for."""
    loaded = opened(model_folders["gpt2"])
    sae, ids, target = random_sae(32, 1, 3), loaded.encode(PROMPT), token(loaded)
    graph = finished(explain(loaded, ids, target, named(sae), limits=Limits(1, 0, 30)))
    resident = ResidentModel(loaded, packed_bytes=0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    before = resident.sessions.get("s").baseline.logits[target.token]
    codes = sae.encode(streams(loaded, ids, "transformer.h.1")[0])
    firing = [set(row.tolist()) for row in codes.indices]
    passed, tried = 0, 0
    for number, edge in enumerate(graph.edges):
        node = graph.node(edge.parent)
        if node.kind != "feature" or edge.control is None:
            continue
        assert node.position is not None
        assert node.index is not None
        assert node.activation is not None
        size = node.activation * float(sae.W_dec[node.index].norm()) / 0.8
        where = Positions(mode="set", indices=(node.position,), include_sinks=True)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(number)).tolist()
        for index in [i for i in order if i not in firing[node.position]][:12]:
            edit = make_edit(sae, index, "add", -size, positions=where, unit_value=1.0)
            after = resident.apply("s", EditPlan(edits=(edit,))).outcome.logits[target.token]
            passed += abs(float(before - after)) >= edge.control
            tried += 1
    assert tried >= 300
    assert passed / tried / 2 <= 0.05  # half of them would have the sign that was predicted


def test_edges_that_matter_most_come_first_and_all_are_counted(model_folders):
    loaded = opened(model_folders["llama"])
    pieces = list(
        explain(loaded, loaded.encode(PROMPT), token(loaded), named(random_sae(32, 1, 3)), limits=FEW)
    )
    measuring = [p for p in pieces[1:] if isinstance(p, GraphUpdate) and p.phase == "verify"]
    assert [p.done for p in measuring] == sorted(p.done for p in measuring)
    assert measuring[-1].done == measuring[-1].total == sum(len(p.edges) for p in measuring)
    first = next(p for p in measuring if p.edges).edges
    assert isinstance(pieces[0], Graph)
    strongest = max(
        (e for e in pieces[0].edges if pieces[0].node(e.parent).kind != "bias"),
        key=lambda e: abs(e.attribution),
    )
    assert strongest.key in {edge.key for edge in first}
    done = pieces[-1]
    assert isinstance(done, GraphUpdate)
    assert done.summary is not None
    assert done.summary.measured == measuring[-1].total
    assert done.summary.seconds is not None
    assert done.summary.first_seconds is not None
    assert done.summary.seconds >= done.summary.first_seconds


def test_without_verification_no_edge_has_a_verdict(model_folders):
    loaded = opened(model_folders["llama"])
    graph = finished(
        explain(
            loaded,
            loaded.encode(PROMPT),
            token(loaded),
            named(random_sae(32, 1, 3)),
            limits=FEW,
            verify=False,
        )
    )
    assert {(e.verdict, e.verified, e.measured) for e in graph.edges} == {(None, None, None)}
    assert (graph.summary.measured, graph.summary.verified) == (0, 0)


def test_the_same_graph_twice(model_folders):
    loaded = opened(model_folders["llama"])
    graphs = [
        finished(
            explain(loaded, loaded.encode(PROMPT), token(loaded), named(random_sae(32, 1, 3)), limits=FEW)
        )
        for _ in range(2)
    ]
    assert graphs[0].edges == graphs[1].edges


def test_a_session_s_own_run_is_used(model_folders):
    loaded = opened(model_folders["llama"])
    resident = ResidentModel(loaded, packed_bytes=0)
    resident.open("s", PROMPT)
    baseline = resident.sessions.get("s").baseline
    arguments = (loaded, loaded.encode(PROMPT), token(loaded), named(random_sae(32, 1, 3)))
    with_it = finished(explain(*arguments, limits=FEW, runner=resident.runner, baseline=baseline))
    assert with_it.edges == finished(explain(*arguments, limits=FEW)).edges
    assert torch.equal(resident.sessions.get("s").baseline.logits, baseline.logits)


def test_a_graph_without_edges_has_nothing_to_measure(model_folders):
    """The first block's scores are made of the tokens alone."""
    loaded = opened(model_folders["llama"])
    target = GraphTarget(kind="attention", layer=0, head=0, position=4, key=2)
    graph = finished(explain(loaded, loaded.encode(PROMPT), target, named(of_kind("topk", "resid_post.0"))))
    assert (graph.edges, graph.summary.measured) == ((), 0)
    assert graph.completeness == pytest.approx(1, abs=1e-4)


def test_what_is_silent_in_the_precision_the_model_runs_in_is_not_shown(model_folders):
    """A feature that rounding to bfloat16 silences: it fires in float32, where the graph is made."""
    loaded = opened(model_folders["llama"], "bfloat16")
    ids, sae = loaded.encode(PROMPT), of_kind("standard", "resid_post.0")
    exact = PromptPass(loaded, ids).activation(Site("resid_post", 0))[-1]
    nothing_special = torch.zeros(len(ids), dtype=torch.bool)
    run = run_baseline(runner_for(loaded), torch.tensor(ids), nothing_special)
    rounded = run.layers[0].edited[-1].float()
    sae.W_enc[0] = 1000 * (exact - rounded)
    sae.W_dec[0] *= 100
    both = sae.pre_activations(torch.stack((exact, rounded)))[:, 0]
    sae.b_enc[0] -= both.mean()
    limits = Limits(hops=1, shown=500)
    graph = finished(explain(loaded, ids, token(loaded), named(sae), limits=limits))
    (edge,) = [e for e in graph.edges if e.parent == f"resid_post.0:0@{len(ids) - 1}"]
    assert edge.attribution != 0
    assert (edge.measured, edge.verdict, edge.verified) == (0.0, "not shown", False)


def test_where_all_features_fire_random_directions_are_the_controls(model_folders):
    loaded = opened(model_folders["llama"])
    sae = of_kind("standard", "resid_post.0")
    sae.b_enc.fill_(100.0)
    graph = finished(explain(loaded, loaded.encode(PROMPT), token(loaded), named(sae), limits=FEW))
    features = [e for e in graph.edges if graph.node(e.parent).kind == "feature"]
    assert features
    assert all(edge.control for edge in features)
