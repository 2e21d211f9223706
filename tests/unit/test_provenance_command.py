"""``microscope provenance``: what is told and written, and what is refused before anything long begins."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from safetensors.torch import save_file

from microscope.cli import main
from microscope.cli.provenance import show_edges
from microscope.graphs import Graph, GraphTarget, check, depth
from microscope.models import load_model
from microscope.params.provenance import upstream_layers
from microscope.provenance import Limits
from microscope.provenance.needs import bytes_needed
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from tests import graph_documents as documents
from tests.live_rig import random_sae

PROMPT = "the state of union is strong"
LAYERS = (0, 1, 2)


class Rig:
    """A tiny model with an SAE behind each of its first blocks."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.loaded = load_model(str(model), dtype="float32", device="cpu")
        self.tokens = self.loaded.encode(PROMPT)
        self.saes = [random_sae(self.loaded.d_model, layer, layer) for layer in LAYERS]
        self.folders = [folder / f"layer_{layer}" for layer in LAYERS]
        for sae, place in zip(self.saes, self.folders, strict=True):
            save_sae(sae, place)

    def firing(self, sae: SparseAutoencoder) -> int:
        """A feature that fires at the last token."""
        with torch.no_grad():
            out = self.loaded.model(torch.tensor([self.tokens]), output_hidden_states=True)
            layer = int(sae.config.site.split(".")[1])
            codes = sae.encode(out.hidden_states[layer + 1][0, -1:])
        return int(codes.indices[0][codes.values[0].argmax()])

    def call(self, *arguments: object, saes: tuple[int, ...] = LAYERS) -> Result:
        paths = [str(self.folders[number]) for number in saes]
        given = ["--sae-path", *paths] if paths else []
        return CliRunner().invoke(
            main,
            [
                *("provenance", "--model", str(self.model), "--prompt", PROMPT),
                *("--dtype", "float32", "--device", "cpu"),
                *given,
                *map(str, arguments),
            ],
        )

    def run(self, *arguments: object, **more: Any) -> dict[str, Any]:
        done = self.call(*arguments, "--json", **more)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *arguments: object, **more: Any) -> str:
        done = self.call(*arguments, **more)
        assert done.exit_code == 3, done.output
        return " ".join(done.output.split())


@pytest.fixture(scope="module")
def rig(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(model_folders["llama"], tmp_path_factory.mktemp("provenance"))


def test_a_feature_is_explained_by_the_features_below_it(rig: Rig, tmp_path: Path) -> None:
    out = tmp_path / "new" / "graph.json"
    found = rig.run("--feature", rig.firing(rig.saes[2]), "--out", out, "--parents", 3)
    assert json.loads(out.read_bytes()) == found, "the file says what standard output says"
    assert {"depth", "completeness", "spearman", "nodes", "edges", "seconds"} <= found.keys()
    assert found["completeness"] == pytest.approx(1, abs=1e-4)
    assert found["seconds"] > 0
    edge = found["edges"][0]
    assert {"from", "to", "attribution", "parts", "verified", "verdict", "measured"} <= edge.keys()
    graph = msgspec.json.decode(out.read_bytes(), type=Graph)
    check(graph)
    assert {node.site for node in graph.nodes if node.hop == 1} >= {"resid_post.1"}
    assert {edge.hop for edge in graph.edges} == {1, 2}
    assert graph.summary.measured == sum(edge.measured is not None for edge in graph.edges) > 0
    assert found["spearman"] == graph.summary.spearman
    assert found["depth"] == depth(graph)
    assert [sae.site for sae in graph.saes] == [f"resid_post.{layer}" for layer in LAYERS]
    assert graph.target.sae == load_sae(rig.folders[2]).content_fingerprint()


def test_a_person_reads_it_as_tables(rig: Rig) -> None:
    shown = rig.call("--feature", rig.firing(rig.saes[2]), "--no-verify", "--parents", 2)
    assert shown.exit_code == 0, shown.output
    for words in ("completeness", "depth", "Component", "Through", "resid_post.1:"):
        assert words in " ".join(shown.output.split()), words


@pytest.mark.parametrize("verdict", ["causal", "weak", "not shown", None])
@pytest.mark.parametrize("carry", [False, True])
def test_every_kind_of_edge_can_be_shown(verdict: Any, carry: bool) -> None:
    parent = documents.feature(3, 5, 1)
    edges = [documents.edge(parent.id, "target", verdict=verdict, carry=carry)]
    shown = io.StringIO()
    show_edges(documents.graph([parent], edges), Console(file=shown, width=200))
    row = next(line for line in shown.getvalue().splitlines() if "resid_post.3:5" in line)
    assert (verdict or "") in row
    assert ("carried" in row) is carry


@pytest.mark.parametrize("saes", [(1, 0), (0, 1)], ids=str)
def test_the_order_of_the_saes_does_not_matter(rig: Rig, saes: tuple[int, ...]) -> None:
    found = rig.run("--token-id", 3, "--no-verify", "--hops", 2, "--parents", 2, saes=saes)
    straight = rig.run("--token-id", 3, "--no-verify", "--hops", 2, "--parents", 2, saes=(0, 1))
    assert found["edges"] == straight["edges"]


def test_an_sae_above_the_target_is_left_out_and_that_is_said(rig: Rig) -> None:
    index = rig.firing(rig.saes[1])
    done = rig.call("--feature", index, "--layer", 1, "--no-verify", "--json")
    assert done.exit_code == 0, done.output
    assert [sae["site"] for sae in json.loads(done.stdout)["saes"]] == ["resid_post.0", "resid_post.1"]
    assert "The SAE at resid_post.2 is not below the target: it was left out." in " ".join(
        done.stderr.split()
    )


def test_tokens_differences_scores_and_directions(rig: Rig, tmp_path: Path) -> None:
    text = rig.loaded.texts(rig.tokens[2])
    one = rig.run("--token", text, "--no-verify", "--hops", 1)
    assert (one["target"]["kind"], one["target"]["token"]) == ("token", rig.tokens[2])
    both = rig.run("--token", text, "--against-id", 6, "--no-verify", "--hops", 1)
    assert (both["target"]["kind"], both["target"]["against"]) == ("difference", 6)
    score = rig.run("--attention", "1.0:-1:1", "--no-verify", "--hops", 1)
    last = len(rig.tokens) - 1
    assert {k: score["target"][k] for k in ("layer", "head", "position", "key")} == {
        "layer": 1,
        "head": 0,
        "position": last,
        "key": 1,
    }
    ends = score["attended"]
    assert [ends[k] for k in ("layer", "head", "query", "key")] == [1, 0, last, 1]
    assert ends["query_contributors"]
    assert ends["key_contributors"]
    shown = rig.call("--attention", "1.0:-1:1", "--no-verify", "--hops", 1)
    assert all(words in shown.output for words in ("At the query", "At the key", "weight")), shown.output
    vector = torch.randn(rig.loaded.d_model, generator=torch.Generator().manual_seed(1))
    save_file({"v": vector}, tmp_path / "v.safetensors")
    (tmp_path / "v.json").write_text(json.dumps(vector.tolist()))
    options = ("--direction-layer", 1, "--no-verify", "--hops", 1)
    tensor = rig.run("--direction", tmp_path / "v.safetensors", *options)
    numbers = rig.run("--direction", tmp_path / "v.json", *options)
    assert tensor["nodes"][0]["value"] == pytest.approx(numbers["nodes"][0]["value"])


def test_without_saes_below_the_commands_that_make_them_are_told(rig: Rig) -> None:
    done = rig.call("--token-id", 3, "--json", saes=())
    assert done.exit_code == 0, done.output
    found, said = json.loads(done.stdout), " ".join(done.stderr.split())
    assert (found["depth"], found["saes"]) == (0, [])
    assert found["completeness"] == pytest.approx(1, abs=1e-4), "what is exact is told all the same"
    top = rig.loaded.n_layers - 1
    blocks = " ".join(map(str, upstream_layers(top)))
    assert f"microscope trace --model {rig.model} --layers {blocks}" in said.replace("- ", "-")
    assert "microscope train" in said


@pytest.mark.parametrize(
    ("layer", "blocks"), [(15, (3, 7, 11)), (3, (0, 1, 2)), (2, (0, 1)), (1, (0,)), (0, ())]
)
def test_blocks_below_a_target_are_spread(layer: int, blocks: tuple[int, ...]) -> None:
    assert upstream_layers(layer) == blocks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Nothing to explain was given"),
        (("--feature", 1, "--token", " a"), "--feature and --token were both given"),
        (("--feature", 1, "--position", 99), "Position 99 is outside the prompt, which has"),
        (("--feature", 64), "64"),
        (("--feature", 1, "--layer", 3), "No SAE was at block 3"),
        (("--token", "strong house"), "is 2 tokens for this model"),
        (("--token", "é"), "is nothing that this model's tokenizer knows"),
        (("--token-id", 10**6), "is not in the vocabulary"),
        (("--attention", "9.0:1:0"), "Layer 9 does not exist"),
        (("--direction", "/nowhere/v.json", "--direction-layer", 1), "holds no direction"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_explained_is_refused_in_words(
    rig: Rig, arguments: tuple[Any, ...], words: str
) -> None:
    assert words in rig.refused(*arguments)


def test_a_feature_that_is_silent_there_is_refused_with_those_that_are_not(rig: Rig) -> None:
    sae, loud = rig.saes[2], rig.firing(rig.saes[2])
    with torch.no_grad():
        out = rig.loaded.model(torch.tensor([rig.tokens]), output_hidden_states=True)
        codes = sae.encode(out.hidden_states[3][0, -1:])
    fires = set(codes.indices[0][codes.values[0] > 0].tolist())
    silent = next(i for i in range(64) if i not in fires)
    said = rig.refused("--feature", silent)
    assert "does_not_fire" in said
    assert str(loud) in said


def test_saes_given_twice_and_of_another_model_are_refused(rig: Rig, tmp_path: Path) -> None:
    assert "sae_given_twice" in rig.refused("--feature", 1, saes=(2, 1, 1))
    other = random_sae(rig.loaded.d_model, 1, 9)
    other.config.model = {"reference": "another", "fingerprint": "0" * 32}
    save_sae(other, tmp_path / "other")
    assert "wrong_model" in rig.refused("--token-id", 1, "--sae-path", tmp_path / "other")
    wide = random_sae(rig.loaded.d_model + 1, 1, 9)
    save_sae(wide, tmp_path / "wide")
    assert "wrong_width" in rig.refused("--token-id", 1, "--sae-path", tmp_path / "wide")


def test_a_prompt_too_long_for_memory_is_refused_with_the_numbers(rig: Rig) -> None:
    said = rig.refused("--token-id", 1, "--memory-mb", 1)
    assert "graph_needs_memory" in said
    assert f"A graph of {len(rig.tokens)} tokens needs about 0.03 GB" in said
    assert "0.00 GB are allowed" in said


def test_what_a_graph_needs_grows_with_what_it_holds(rig: Rig) -> None:
    saes = {str(number): sae for number, sae in enumerate(rig.saes)}
    target = GraphTarget(kind="token", token=1)

    def need(n_tokens: int, hops: int = 2, chosen: tuple[int, ...] = (0, 1, 2), parents: int = 8) -> int:
        given = {name: saes[name] for name in map(str, chosen)}
        return bytes_needed(rig.loaded, n_tokens, target, given, Limits(hops, parents, 40))

    assert need(40) < need(80) < need(160)
    assert need(160) - need(120) > need(80) - need(40), "attention patterns grow with the square"
    assert need(80, chosen=(2,), hops=1) < need(80, chosen=(0,), hops=1) <= need(80, hops=1)
    assert need(80, parents=1) < need(80, parents=16)
    assert need(80, chosen=(2,), hops=1) < need(80, chosen=(2,), hops=2), (
        "down to the tokens, all blocks are held"
    )


def test_a_place_that_cannot_be_written_to_is_refused_first(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    assert "bad_output" in rig.refused("--feature", 1, "--out", tmp_path / "taken")
