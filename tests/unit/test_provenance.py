"""Provenance against formulas written out in float64, and against models replayed with their nonlinear parts held."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import Edge, Graph, GraphTarget, Node, updated
from microscope.models import LoadedModel, load_model
from microscope.provenance import Limits, cuts, explain, gradients, hops
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture
from tests.families.tiny import make_any
from tests.frozen_oracle import Split, Tape, WrittenOut, outputs_changed, pre_activations, split
from tests.tiny_models import WORDS, make_model

# Relative to the sizes of what is summed: activations and logits of float32.
CLOSE = 5e-4
CLOSE_LOGIT = 1e-5
KINDS = ("topk", "jumprelu", "gated", "batchtopk", "standard", "matryoshka", "groupmax")
NORMS = ("none", "layer_norm", "constant_norm")
LATENTS, WIDTH = 48, 32


def make_sae(kind: str, site: str, seed: int, **settings: Any) -> SparseAutoencoder:
    """A random SAE; with ``site_out`` a transcoder."""
    settings = {"scale": 0.8, "token_filter": TokenFilter(exclude_special=False)} | settings
    if "site_out" in settings:
        settings |= {"d_out": WIDTH, "scale_out": 1.3, "apply_b_dec": False}
    config = SaeConfig(architecture=kind, d_in=WIDTH, n_latents=LATENTS, k=6, site=site, **settings)
    sae = architecture(kind)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sae.state_dict().items():
        if name == "threshold_weight":
            weight.fill_(0.5)
        elif name == "threshold":
            weight.fill_(0.4)
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return sae


def fingerprints(saes: Sequence[SparseAutoencoder]) -> dict[str, SparseAutoencoder]:
    """SAEs as they are handed over."""
    return {sae.content_fingerprint(): sae for sae in saes}


def whole(
    loaded: LoadedModel,
    ids: Sequence[int],
    target: GraphTarget,
    saes: Mapping[str, SparseAutoencoder],
    **options: Any,
) -> Graph:
    """A graph with all it gains."""
    items = explain(loaded, ids, target, saes, **{"verify": False, "mlp": "gates"} | options)
    graph = next(items)
    assert isinstance(graph, Graph)
    for item in items:
        assert not isinstance(item, Graph)
        graph = updated(graph, item)
    return graph


def prompt_of(loaded: LoadedModel, seed: int, words: int = 9) -> list[int]:
    """Random words."""
    rng = random.Random(seed)
    return loaded.encode(" ".join(rng.choice(WORDS) for _ in range(words)))


def firing(sae: SparseAutoencoder, rows: Tensor, rng: random.Random) -> tuple[int, int]:
    """A latent that fires, and where: index and position."""
    codes = sae.encode(rows.float())
    position, place = rng.choice((codes.values > 0.05).nonzero().tolist())
    return int(codes.indices[position, place]), position


# --- formulas -------------------------------------------------------------------------------------------------


def order(site: str) -> float:
    """Along the stream."""
    kind, layer = site.split(".")
    return int(layer) + {"attn_out": 0.2, "resid_mid": 0.5, "mlp_out": 0.7, "resid_post": 1.0}[kind]


@dataclass
class Formulas:
    """What a graph has to say, computed from formulas.

    Args:
        model: written out.
        saes: that are used, by fingerprint.
        hops: how many levels were asked for.
    """

    model: WrittenOut
    saes: Mapping[str, SparseAutoencoder]
    hops: int
    sites: dict[str, Tensor] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writes = {name: s.config.site_out or s.config.site for name, s in self.saes.items()}
        self.by_site = {site: self.saes[name] for name, site in self.writes.items()}
        self.last = len(self.model.blocks) - 1
        self.sites["resid_post.-1"] = self.model.embedded

        def noted(site: str, y: Tensor, _sites: Mapping[str, Tensor]) -> Tensor:
            self.sites[site] = y
            return y

        self.model.logits(self.model.run(self.model.embedded, 0, self.last, noted))
        every = torch.ones(len(self.model.ids), dtype=torch.bool)
        for site, sae in self.by_site.items():
            self.splits[site] = split(sae, self.sites[sae.config.site], self.sites[site], every)
            self.leaves[site] = self.sites[site] - self.splits[site].skip

    def child(self, node: Node, target: GraphTarget, side: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Where a node's number is read, and what it is of the activation ``[positions, d]`` there."""
        if node.kind == "feature" or target.kind == "feature":
            site, index = self.saes[node.sae].config.site, node.index
            base, sae, place = self.sites[site], self.saes[node.sae], node.position
            return site, lambda x: pre_activations(sae, x, base)[place, index]
        if target.kind == "direction":
            vector = torch.tensor(target.vector, dtype=torch.float64)
            return f"resid_post.{target.layer}", lambda x: x[target.position] @ vector
        if target.kind == "attention":
            return self._score(target, side)

        def logit(x: Tensor) -> Tensor:
            row = self.model.logits(x)[target.position]
            return row[target.token] - (0.0 if target.against is None else row[target.against])

        return f"resid_post.{self.last}", logit

    def _score(self, target: GraphTarget, side: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        layer, head, model = target.layer, target.head, self.model
        assert layer is not None
        assert head is not None
        site = f"resid_post.{layer - 1}"
        query, key, _ = model.projected(layer, self.sites[site])
        shared = len(query) // len(key)

        def score(x: Tensor) -> Tensor:
            q, k, _ = model.projected(layer, x)
            q, k = (q, key) if side == "query" else (query, k)
            return q[head, target.position] @ k[head // shared, target.key] * q.shape[-1] ** -0.5

        return site, score

    def cuts(self, read: str, top: str, *, behind: bool, top_behind: bool) -> list[str]:
        """Sites below a number at which gradients end; without an SAE that is the lowest input there is."""
        below = [site for site in self.by_site if order(site) < order(top) or (top_behind and site == top)]
        lowest = min(below, key=order, default="")
        found = [site for site in below if order(site) < order(read) or (behind and site == read)]
        if self.hops > len(below):
            found.append("resid_post.-1")
        elif not lowest.startswith("resid_post"):
            found.append(f"resid_post.{int(lowest.split('.')[1]) - 1}")
        return [site for site in found if order(site) < order(read) or (behind and site == read)]

    def value(
        self,
        read: str,
        number: Callable[[Tensor], Tensor],
        cuts: Sequence[str],
        leaves: Mapping[str, Tensor],
        reads: Any = None,
        *,
        behind: bool,
    ) -> Tensor:
        """A number as a function of what passes at the cuts."""
        first = min(int(site.split(".")[1]) + site.startswith("resid_post") for site in cuts)
        found: dict[str, Tensor] = {}

        def at(site: str, y: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
            found[site] = y
            if site not in cuts:
                return y
            sae = self.by_site.get(site)
            if sae is None or sae.W_skip is None:
                return leaves[site]
            # A skip path is the MLP's: it reads what the MLP reads.
            x = sites[sae.config.site] + (reads or {}).get((int(site.split(".")[1]), "mlp"), 0.0)
            skip = sae.config.scale * x @ sae.W_skip.double().T / sae.config.scale_out
            return leaves[site] + skip

        below = f"resid_post.{first - 1}"
        x = leaves.get(below, self.sites[below])
        found[below] = self.sites[below]
        # A leaf at the bottom passes on what it holds; what is read there is in front of it.
        last = int(read.split(".")[1])
        if last >= first:
            self.model.run(x, first, last, at, reads)
        return number(leaves[read] if behind and read in cuts else found[read])

    def base(self, cuts: Sequence[str]) -> dict[str, Tensor]:
        """What passes at the cuts."""
        return {site: self.leaves.get(site, self.sites[site]) for site in cuts}


def contribution(formulas: Formulas, parent: str) -> tuple[str, Tensor]:
    """Where a node writes, and what ``[positions, d]``."""
    site, _, rest = parent.rpartition(":")
    if parent.startswith("embedding"):
        site, rest = "resid_post.-1", f"error@{parent.split('@')[1]}"
    out = torch.zeros_like(formulas.model.embedded)
    if rest == "bias":
        return site, formulas.splits[site].constant
    name, _, position = rest.partition("@")
    row = int(position)
    known = formulas.splits.get(site)
    if name == "error":
        out[row] = formulas.sites[site][row] if known is None else known.error[row]
    else:
        assert known is not None
        index = int(name)
        direction = formulas.by_site[site].W_dec[index].double()
        out[row] = known.codes[row, index] * known.gain[row] * direction
    return site, out


def agrees(graph: Graph, formulas: Formulas, tolerance: float) -> int:
    """Everything a graph says is what formulas say; returns how many edges were compared."""
    top, _ = formulas.child(graph.node("target"), graph.target, graph.accounts[0].side)
    compared = 0
    for account in graph.accounts:
        node = graph.node(account.node)
        read, number = formulas.child(node, graph.target, account.side)
        # What is no feature is read behind an SAE that stands where it is read.
        top_behind = graph.target.kind != "feature"
        behind = node.kind == "target" and top_behind
        cuts = formulas.cuts(read, top, behind=behind, top_behind=top_behind)
        base = {site: leaf.clone().requires_grad_() for site, leaf in formulas.base(cuts).items()}
        value = formulas.value(read, number, cuts, base, behind=behind)
        given = torch.autograd.grad(value, list(base.values()), allow_unused=True)
        gradients = {
            site: torch.zeros_like(leaf) if g is None else g
            for (site, leaf), g in zip(base.items(), given, strict=True)
        }
        near = tolerance * max(1.0, account.absolute)
        sums = sums_of(formulas, gradients)
        assert account.value == pytest.approx(float(value.detach()), abs=near)
        assert account.constant == pytest.approx(
            float(number(torch.zeros_like(formulas.sites[read])).detach())
            if graph.target.kind != "attention" or node.kind == "feature"
            else account.constant,
            abs=near,
        )
        for name, wanted in sums.items():
            assert getattr(account, name) == pytest.approx(wanted, abs=near), (name, account)
        held = formulas.model.gates
        assert abs(account.missing) <= near or not held
        edges = [e for e in graph.edges if e.child == account.node and e.side == account.side]
        assert sum(e.attribution for e in edges) == pytest.approx(account.shown, abs=near)
        for edge in edges:
            site, added = contribution(formulas, edge.parent)
            assert edge.attribution == pytest.approx(float((gradients[site] * added).sum()), abs=near), edge
            assert sum(part.attribution for part in edge.parts) == pytest.approx(edge.attribution, abs=near)
            if held:  # without the parent: predicted is measured
                without = {s: (t - added if s == site else t).detach() for s, t in base.items()}
                measured = float(value.detach() - formulas.value(read, number, cuts, without, behind=behind))
                assert edge.attribution == pytest.approx(measured, abs=near), edge
        for edge in edges[:4] if held else ():
            parts_agree(edge, formulas, read, number, cuts, near, behind=behind)
        compared += len(edges)
    return compared


def sums_of(formulas: Formulas, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """What an account adds up, by its fields."""
    sums = {"features": 0.0, "errors": 0.0, "biases": 0.0}
    for site, g in gradients.items():
        known = formulas.splits.get(site)
        if known is None:
            sums["features" if site == "resid_post.-1" else "errors"] += float(
                (g * formulas.sites[site]).sum()
            )
            continue
        sums["features"] += float(
            (g * (known.codes * known.gain @ formulas.by_site[site].W_dec.double())).sum()
        )
        sums["errors"] += float((g * known.error).sum())
        sums["biases"] += float((g * known.constant).sum())
    return sums


def parts_agree(
    edge: Edge,
    formulas: Formulas,
    read: str,
    number: Callable[[Tensor], Tensor],
    cuts: Sequence[str],
    near: float,
    *,
    behind: bool,
) -> None:
    """A part is what changes when only one head or MLP reads the parent, and nothing else does."""
    _, added = contribution(formulas, edge.parent)
    base = formulas.base(cuts)
    value = formulas.value(read, number, cuts, base, behind=behind)
    assert sum(p.attribution for p in edge.parts) == pytest.approx(edge.attribution, abs=near)
    for part in edge.parts:
        if part.kind in ("head", "mlp"):
            name = (part.layer, part.head if part.kind == "head" else "mlp")
            measured = float(formulas.value(read, number, cuts, base, {name: added}, behind=behind) - value)
            assert part.attribution == pytest.approx(measured, abs=near), (part, edge)
    assert {p.kind for p in edge.parts} <= {"head", "mlp", "direct", "other"}


@pytest.fixture(scope="module", params=["llama", "llama-bias", "gpt2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(request.param, tmp_path_factory.mktemp(request.param))
    return load_model(str(folder), dtype="float32", device="cpu")


def some_saes(rng: random.Random) -> list[SparseAutoencoder]:
    """Random ones of every kind, at all kinds of sites, in any order."""

    def any_kind() -> dict[str, Any]:
        return {"input_norm": rng.choice(NORMS)}

    found = [
        make_sae(rng.choice(KINDS), "resid_post.0", rng.randrange(999), **any_kind()),
        make_sae(rng.choice(KINDS), "resid_post.2", rng.randrange(999), **any_kind()),
    ]
    seed = rng.randrange(999)
    halves = [
        make_sae(rng.choice(KINDS), "attn_out.1", seed, **any_kind()),
        make_sae(rng.choice(KINDS), "mlp_out.1", seed, **any_kind()),
        make_sae(rng.choice(KINDS), "resid_mid.1", seed, site_out="mlp_out.1", skip=rng.random() < 0.7),
        make_sae("topk", "resid_mid.3", seed, site_out="mlp_out.3", skip=True, **any_kind()),
        make_sae(rng.choice(KINDS), "attn_out.3", seed, **any_kind()),
    ]
    chosen = {sae.config.site_out or sae.config.site: sae for sae in rng.sample(halves, 3)}
    found += chosen.values()
    rng.shuffle(found)
    return found[: rng.randint(2, len(found))]


def a_target(
    kind: str, rng: random.Random, saes: Sequence[SparseAutoencoder], formulas: Formulas
) -> GraphTarget:
    """A random one of a kind."""
    length = len(formulas.model.ids)
    position = rng.randrange(length // 2, length)
    match kind:
        case "feature":
            sae = max(saes, key=lambda s: order(s.config.site_out or s.config.site))
            index, position = firing(sae, formulas.sites[sae.config.site], rng)
            return GraphTarget(kind="feature", sae=sae.content_fingerprint(), index=index, position=position)
        case "token":
            return GraphTarget(kind="token", token=rng.randrange(200))
        case "difference":
            return GraphTarget(kind="difference", token=rng.randrange(100), against=150, position=position)
        case "attention":
            key = rng.randrange(position + 1)
            return GraphTarget(kind="attention", layer=3, head=rng.randrange(4), position=position, key=key)
    vector = tuple(rng.gauss(0, 1) for _ in range(WIDTH))
    return GraphTarget(kind="direction", layer=rng.choice([2, 3]), position=position, vector=vector)


@pytest.mark.parametrize("kind", ["feature", "token", "difference", "attention", "direction"])
@pytest.mark.parametrize("mlp", ["gates", "gradient"])
def test_a_graph_is_what_formulas_say(loaded: LoadedModel, mlp: str, kind: str) -> None:
    """With gradients through MLPs, too, which is how a graph is made unless told otherwise."""
    compared = 0
    for seed in range(2 if mlp == "gates" else 1):
        rng = random.Random(f"{kind}{seed}")
        ids = prompt_of(loaded, seed)
        saes, hops = some_saes(rng), rng.randint(1, 4)
        written_out = WrittenOut(loaded.model, torch.tensor(ids), gates=mlp == "gates")
        formulas = Formulas(written_out, fingerprints(saes), hops)
        target = a_target(kind, rng, saes, formulas)
        limits = Limits(hops=hops, parents=3, shown=8)
        graph = whole(loaded, ids, target, fingerprints(saes), limits=limits, mlp=mlp)
        assert (graph.mlp, graph.completeness) == (mlp, pytest.approx(1.0, abs=1e-4))
        used = {sae.fingerprint for sae in graph.saes}
        formulas = Formulas(
            formulas.model,
            {n: s for n, s in fingerprints(saes).items() if n in used or n == target.sae},
            hops,
        )
        for name in set(formulas.saes) - used:  # the target's own is read, and ends nothing
            formulas.by_site.pop(formulas.writes[name])
        compared += agrees(graph, formulas, CLOSE_LOGIT if kind in ("token", "difference") else CLOSE)
    assert compared > 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_saes_of_every_kind(plain: LoadedModel, kind: str, norm: str) -> None:
    ids = prompt_of(plain, 5)
    below, above = (make_sae(kind, f"resid_post.{n}", n, input_norm=norm) for n in (0, 2))
    saes = fingerprints([above, below])
    formulas = Formulas(WrittenOut(plain.model, torch.tensor(ids)), saes, 1)
    index, position = firing(above, formulas.sites["resid_post.2"], random.Random(kind))
    target = GraphTarget(kind="feature", sae=above.content_fingerprint(), index=index, position=position)
    graph = whole(plain, ids, target, saes, limits=Limits(hops=1, shown=8))
    formulas.by_site.pop("resid_post.2")
    assert agrees(graph, formulas, CLOSE) > 5


# --- any family -----------------------------------------------------------------------------------------------

FAMILIES = (
    *("falcon", "gemma2", "gemma3_text", "gpt_neox", "gptj", "mixtral", "mpt"),
    *("nemotron", "olmo2", "opt", "phi3", "qwen3", "stablelm", "starcoder2"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_is_measured_in_every_family(family: str, tmp_path: Path) -> None:
    """A parent's contribution is taken out of the plain model's stream, whose constants are held by a tape."""
    # A bound on logits is no norm, gate or pattern: it is passed by its gradient.
    settings = {"final_logit_softcapping": None} if family == "gemma2" else {}
    loaded = load_model(str(make_any(family, tmp_path, **settings)), dtype="float32", device="cpu")
    ids = prompt_of(loaded, 1)
    low, high = make_sae("topk", "resid_post.0", 1), make_sae("jumprelu", "resid_post.2", 2)
    saes = fingerprints([high, low])
    graph = whole(
        loaded, ids, GraphTarget(kind="token", token=40), saes, limits=Limits(hops=2, parents=3, shown=8)
    )
    assert graph.completeness == pytest.approx(1.0, abs=1e-4)
    assert not any("nonlinear" in note for note in graph.notes)
    blocks = loaded.model.get_submodule(loaded.family.blocks)
    tape = Tape()
    streams: dict[int, Tensor] = {}

    def numbers(layer: int, change: Tensor | float) -> tuple[Tensor, Tensor]:
        """The last logits, and the stream behind block 2, when something is added behind a block."""
        seen: dict[int, Tensor] = {}

        def noted(number: int) -> Callable[[Tensor], Tensor]:
            def passed(x: Tensor) -> Tensor:
                seen[number] = x.detach()
                return (x + change if number == layer else x).requires_grad_()

            return passed

        with outputs_changed(blocks, {0: noted(0), 2: noted(2)}), tape.begin():
            logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].detach()
        streams.update(seen if not streams else {})
        return logits, seen[2]

    logits, stream = numbers(0, 0.0)
    plain_logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].detach()
    torch.testing.assert_close(logits, plain_logits, rtol=1e-3, atol=1e-4)
    checked = 0
    for edge in graph.edges:
        if edge.parent.endswith("bias"):
            continue
        parent, child = graph.node(edge.parent), graph.node(edge.child)
        sae = saes[parent.sae]
        layer, row = parent.layer, streams[parent.layer][parent.position]
        codes = sae.encode(row[None])
        if parent.kind == "feature":
            value = codes.values[0][codes.indices[0] == parent.index].sum()
            added = value * sae.W_dec[parent.index] / sae.config.scale
        else:
            added = row - sae.decode(codes)[0]
        change = torch.zeros_like(streams[0])
        change[parent.position] = -added
        changed = numbers(layer, change)
        if child.kind == "target":
            measured = float(logits[40] - changed[0][40])
        else:
            vector, _ = saes[child.sae].reading(streams[2][child.position], child.index)
            measured = float(vector @ (stream - changed[1])[child.position])
        absolute = next(a.absolute for a in graph.accounts if a.node == edge.child)
        assert edge.attribution == pytest.approx(measured, abs=1e-4 * max(1.0, absolute)), edge
        checked += 1
    assert checked > 10


def test_what_cannot_be_held_is_said(tmp_path: Path) -> None:
    """BLOOM's activation is a function of its own that nothing can look into."""
    loaded = load_model(str(make_any("bloom", tmp_path)), dtype="float32", device="cpu")
    saes = fingerprints([make_sae("topk", "resid_post.0", 1)])
    target = GraphTarget(kind="token", token=40)
    graph = whole(loaded, prompt_of(loaded, 1), target, saes, limits=Limits(hops=1))
    assert any("nonlinear" in note for note in graph.notes)
    assert graph.accounts[0].completeness != pytest.approx(1.0, abs=1e-3)
    other = whole(loaded, prompt_of(loaded, 1), target, saes, limits=Limits(hops=1), mlp="gradient")
    assert not any("nonlinear" in note for note in other.notes)


# --- what a model runs in, and what is refused ------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(
        str(make_model("llama", tmp_path_factory.mktemp("plain"))), dtype="float32", device="cpu"
    )


def test_a_model_in_bfloat16_is_explained_in_float32(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path)
    rounded = load_model(str(folder), dtype="bfloat16", device="cpu")
    exact = load_model(str(folder), dtype="float32", device="cpu")
    with torch.no_grad():
        for name, weight in exact.model.named_parameters():
            weight.copy_(rounded.model.get_parameter(name).float())
    ids, saes = prompt_of(exact, 2), fingerprints([make_sae("topk", "resid_post.1", 1)])
    target = GraphTarget(kind="direction", layer=2, position=4, vector=(1.0,) * WIDTH)
    got, wanted = (whole(model, ids, target, saes, limits=Limits(hops=1)) for model in (rounded, exact))
    assert (got.precision, got.runs_in) == ("float32", "bfloat16")
    assert any("bfloat16" in note and "float32" in note for note in got.notes)
    assert not any("bfloat16" in note for note in wanted.notes)
    # The embedding is the same number in both, so that everything behind it is, too.
    attributions = {e.key: e.attribution for e in wanted.edges}
    assert {e.key for e in got.edges} == set(attributions)
    for edge in got.edges:
        # What the model hands its blocks beside the stream, rotary tables, was rounded by itself.
        assert edge.attribution == pytest.approx(attributions[edge.key], rel=5e-3, abs=5e-2)


def test_the_order_in_which_saes_are_given_does_not_matter(plain: LoadedModel) -> None:
    ids = prompt_of(plain, 3)
    saes = fingerprints([make_sae("topk", f"resid_post.{n}", n) for n in (0, 1, 2)])
    target = GraphTarget(kind="token", token=3)
    first, second = (
        whole(plain, ids, target, dict(pairs)) for pairs in (saes.items(), reversed(list(saes.items())))
    )
    assert replace(first, summary=second.summary) == second


def test_one_number_after_the_other_gives_the_same_graph(
    plain: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt_of(plain, 3)
    saes = fingerprints([make_sae("topk", f"resid_post.{n}", n) for n in (0, 2)])
    target = GraphTarget(kind="token", token=3)
    together = whole(plain, ids, target, saes)
    assert len([a for a in together.accounts if a.node != "target"]) > 3
    sizes: list[int] = []

    def noted(frozen: Any, explained: Sequence[Any]) -> Any:
        sizes.append(len(explained))
        return gradients.gradients(frozen, explained)

    monkeypatch.setattr(gradients, "MOST_BYTES", 1)
    monkeypatch.setattr(hops, "gradients", noted)
    alone = whole(plain, ids, target, saes)
    assert set(sizes) == {1}
    assert {e.key for e in alone.edges} == {e.key for e in together.edges}
    values = {e.key: e.attribution for e in together.edges}
    for edge in alone.edges:
        assert edge.attribution == pytest.approx(values[edge.key], rel=CLOSE, abs=CLOSE)


def refused(
    loaded: LoadedModel, target: GraphTarget, saes: Mapping[str, SparseAutoencoder], code: str
) -> MicroscopeError:
    """The refusal of a target; nothing has been handed out before it."""
    with pytest.raises(MicroscopeError) as refusal:
        next(explain(loaded, prompt_of(loaded, 4), target, saes, verify=False))
    assert refusal.value.code == code
    return refusal.value


def test_targets_that_are_none(plain: LoadedModel) -> None:
    sae = make_sae("topk", "resid_post.2", 1)
    name, saes = sae.content_fingerprint(), fingerprints([sae])
    rows = WrittenOut(plain.model, torch.tensor(prompt_of(plain, 4)))
    codes = sae.encode(rows.run(rows.embedded, 0, 2).float())
    at_three = set(codes.indices[3][codes.values[3] > 0].tolist())
    silent = next(i for i in range(LATENTS) if i not in at_three)
    error = refused(
        plain, GraphTarget(kind="feature", sae=name, index=silent, position=3), saes, "does_not_fire"
    )
    assert any(str(index) in error.message for index in at_three)
    refused(plain, GraphTarget(kind="feature", sae=name, index=LATENTS), saes, "no_such_feature")
    refused(plain, GraphTarget(kind="feature", sae=name), saes, "bad_target")
    refused(plain, GraphTarget(kind="feature", sae="other", index=0), saes, "sae_not_attached")
    refused(plain, GraphTarget(kind="token", token=3, position=99), saes, "no_such_position")
    refused(plain, GraphTarget(kind="token", token=3, position=-99), saes, "no_such_position")
    refused(plain, GraphTarget(kind="token", token=10_000), saes, "no_such_token")
    refused(plain, GraphTarget(kind="token"), saes, "no_such_token")
    refused(plain, GraphTarget(kind="difference", token=1), saes, "no_such_token")
    refused(plain, GraphTarget(kind="difference", token=1, against=1), saes, "bad_target")
    refused(plain, GraphTarget(kind="attention", layer=4, head=0, key=0), saes, "layer_out_of_range")
    refused(plain, GraphTarget(kind="attention", layer=1, head=4, key=0), saes, "no_such_head")
    refused(plain, GraphTarget(kind="attention", layer=1, head=0), saes, "bad_target")
    refused(plain, GraphTarget(kind="attention", layer=1, head=0, position=2, key=5), saes, "not_visible")
    refused(plain, GraphTarget(kind="direction", layer=1, vector=(1.0,)), saes, "bad_target")
    refused(plain, GraphTarget(kind="direction", layer=1, vector=(0.0,) * WIDTH), saes, "bad_target")
    refused(plain, GraphTarget(kind="direction", layer=1, vector=(float("nan"),) * WIDTH), saes, "bad_target")
    refused(plain, GraphTarget(kind="direction", layer=9, vector=(1.0,) * WIDTH), saes, "layer_out_of_range")


def test_a_prompt_whose_activations_overflow_is_refused(tmp_path: Path) -> None:
    loaded = load_model(str(make_any("llama", tmp_path)), dtype="float32", device="cpu")
    with torch.no_grad():
        loaded.model.get_submodule(loaded.family.blocks)[1].mlp.down_proj.weight.fill_(float("inf"))
    error = refused(loaded, GraphTarget(kind="token", token=3), {}, "not_finite")
    assert "Block 1" in error.message


def test_saes_that_do_not_belong_here(plain: LoadedModel) -> None:
    target = GraphTarget(kind="token", token=3)

    def other_width(site: str) -> SparseAutoencoder:
        config = SaeConfig(architecture="topk", d_in=WIDTH + 1, n_latents=LATENTS, k=6, site=site)
        return architecture("topk")(config).requires_grad_(False)

    def own(sae: SparseAutoencoder, code: str) -> None:
        """Refused as the SAE of the target, too."""
        feature = GraphTarget(kind="feature", sae=sae.content_fingerprint(), index=1)
        refused(plain, feature, fingerprints([sae]), code)

    refused(plain, target, fingerprints([other_width("resid_post.1")]), "wrong_width")
    own(other_width("resid_post.1"), "wrong_width")
    own(make_sae("topk", "resid_post.9", 1), "layer_out_of_range")
    refused(
        plain,
        target,
        fingerprints([make_sae("topk", "resid_post.1", s) for s in (1, 2)]),
        "two_saes_at_a_site",
    )
    refused(plain, target, fingerprints([make_sae("topk", "resid_post.9", 1)]), "layer_out_of_range")
    refused(plain, target, fingerprints([make_sae("topk", "resid_mid.1", 1)]), "bad_sae_site")
    across = make_sae("topk", "resid_mid.1", 1, site_out="mlp_out.2")
    refused(plain, target, fingerprints([across]), "bad_sae_site")


def test_a_row_of_many_features_is_read_in_pieces(
    plain: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, target = prompt_of(plain, 6), GraphTarget(kind="token", token=3)
    saes = fingerprints([make_sae("standard", "resid_post.1", 1)])
    graph = whole(plain, ids, target, saes)
    monkeypatch.setattr(cuts, "GATHERED_BYTES", 1)
    pieces = whole(plain, ids, target, saes)
    assert [e.key for e in pieces.edges] == [e.key for e in graph.edges]
    assert [e.attribution for e in pieces.edges] == pytest.approx([e.attribution for e in graph.edges])


def test_components_of_a_score_say_which_end_they_reach(plain: LoadedModel) -> None:
    """Those of either end sum to the score less what that end cannot change."""
    target = GraphTarget(kind="attention", layer=2, head=1, position=5, key=2)
    ids = prompt_of(plain, 6)
    graph = whole(plain, ids, target, {})
    found = {
        side: sum(c.attribution for c in graph.components if c.side == side) for side in ("query", "key")
    }
    for account in graph.accounts:
        assert found[account.side] == pytest.approx(account.value - account.constant, rel=1e-4, abs=1e-4)
    assert len(graph.accounts) == 2
    assert {c.side for c in graph.components} == {"query", "key"}


def test_rows_that_the_token_filter_leaves_out_have_no_features(plain: LoadedModel) -> None:
    ids = prompt_of(plain, 6)
    rows = WrittenOut(plain.model, torch.tensor(ids))
    norms = rows.run(rows.embedded, 0, 1).norm(dim=1)
    limit = float(norms.median())
    sae = make_sae("topk", "resid_post.1", 1, token_filter=TokenFilter(max_norm=limit))
    graph = whole(
        plain, ids, GraphTarget(kind="token", token=3), fingerprints([sae]), limits=Limits(hops=1, shown=200)
    )
    positions = {n.position for n in graph.nodes if n.kind == "feature"}
    assert positions
    assert positions <= {i for i, norm in enumerate(norms.tolist()) if norm <= limit}
