"""Graphs in files: attribution graphs of other programs read, checked and given back, and ours written for them."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs import (
    Graph,
    GraphTarget,
    Node,
    Summary,
    pinned_completeness,
    read_graph_file,
    summarise,
    write_attribution_graph,
)
from tests.graph_documents import edge, feature, graph, random_graph

# written by the classes with which circuit-tracer itself writes such files
FOREIGN = Path(__file__).with_name("attribution_graph.json")

# what Neuronpedia asks of an attribution graph before it takes one
TEXT, WHOLE, TEXTS = {"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}}
SCHEMA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": TEXT,
                "scan": TEXT,
                "prompt_tokens": TEXTS,
                "prompt": TEXT,
                "node_threshold": {"type": "number"},
                "info": {
                    "type": "object",
                    "properties": {"description": TEXT, "generator": {"type": "object"}},
                },
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": TEXTS,
                "supernodes": {"type": "array", "items": TEXTS},
                "linkType": TEXT,
                "clickedId": TEXT,
                "sg_pos": TEXT,
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": TEXT,
                    # null by the schema, but not by the classes of circuit-tracer
                    "feature": WHOLE,
                    "layer": TEXT,
                    "ctx_idx": WHOLE,
                    "feature_type": TEXT,
                    "jsNodeId": TEXT,
                    "clerp": TEXT,
                    "token_prob": {"type": "number"},
                    "is_target_logit": {"type": "boolean"},
                    "influence": {"type": ["number", "null"]},
                    "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": TEXT, "target": TEXT, "weight": {"type": "number"}},
            },
        },
    },
}


def foreign(**metadata: Any) -> dict[str, Any]:
    """A fresh copy of the file of circuit-tracer."""
    found: dict[str, Any] = json.loads(FOREIGN.read_bytes())
    found["metadata"] |= metadata
    return found


def test_a_file_of_circuit_tracer_is_read() -> None:
    read = read_graph_file(FOREIGN.read_bytes())
    nodes = {node.id: node for node in read.graph.nodes}
    assert len(nodes) == 15
    assert len(read.graph.edges) == 15
    assert read.graph.n_layers == 6
    assert [token.token for token in read.graph.tokens] == [2, 651, 6037, 576, 22605, 108, 603]
    assert read.graph.target == GraphTarget(kind="token", position=6, token=9432)
    latent = nodes["3_16001_4"]
    # the layer stands in front of the digits of its number in the file: 316001
    assert (latent.kind, latent.layer, latent.position, latent.index) == ("feature", 3, 4, 16001)
    assert nodes["3_5_6"].index == 5
    assert latent.activation == 7.25
    assert nodes["0_2_4"].kind == "error"
    assert nodes["E_576_3"].layer == -1
    output = nodes["7_9432_6"]
    assert (output.kind, output.text, output.probability, output.layer) == (
        "target",
        ' Texas ("TX")',
        0.625,
        6,
    )
    assert [nodes[name].hop for name in ("7_573_6", "5_902_6", "3_5_6", "0_17_1", "E_651_1")] == [
        0,
        1,
        2,
        2,
        3,
    ]
    assert all(e.verdict is None and e.measured is None for e in read.graph.edges)
    assert read.view == {
        "pins": ["3_16001_4", "5_902_6", "7_9432_6"],
        "groups": [
            {"name": "Texas", "nodes": ["3_16001_4", "3_5_6"], "closed": True},
            {"name": "Texas (2)", "nodes": ["5_902_6"], "closed": True},
        ],
    }
    assert any("gemma-2-2b" in note for note in read.notes)
    assert any("verified" in note for note in read.notes)
    assert any(note.startswith("1 pins") for note in read.notes)
    assert set(read.notes) <= set(read.graph.notes)


def test_a_pinned_part_of_it_has_a_completeness() -> None:
    read = read_graph_file(FOREIGN.read_bytes())
    # both outputs weigh by their probability: 5 to 1; of the first, 7 of 9.5 come from the two pinned latents
    first, second = 5 / 6, 1 / 6
    of_902 = (3.5 / 5.25) * (first * 6 / 9.5 + second * 1.5 / 2.25)
    total = 1 + (first * 6 / 9.5 + second * 1.5 / 2.25) + (first * 1 / 9.5 + of_902)
    expected = (first * 7 / 9.5 + second * 1.5 / 2.25 + of_902) / total
    assert pinned_completeness(read.graph, ["5_902_6", "3_16001_4"]) == pytest.approx(expected, abs=1e-12)


def test_it_comes_back_as_it_was() -> None:
    read = read_graph_file(FOREIGN.read_bytes())
    kept = msgspec.json.decode(msgspec.json.encode(read.graph), type=Graph)
    back = json.loads(write_attribution_graph(kept, read.view, "another name"))
    was = foreign()
    was["qParams"]["pinnedIds"].remove("9_9_9")
    was["qParams"]["supernodes"][1][0] = "Texas (2)"
    assert back == was


def test_what_other_programs_add_comes_back_too() -> None:
    content = foreign(feature_details={"neuronpedia_source_set": "x"}, node_threshold=0.5)
    content["nodes"][0]["vis_link"] = "somewhere"
    # what a file leaves out is not made up for it
    del (
        content["nodes"][-1]["clerp"],
        content["nodes"][-1]["token_prob"],
        content["nodes"][-1]["is_target_logit"],
    )
    content["qParams"]["gridsnap"] = "0-1-2"
    content["qk_only_nodes"] = {"a": {"node_id": "a"}}
    read = read_graph_file(content)
    back = json.loads(write_attribution_graph(read.graph, read.view))
    assert back["metadata"] == content["metadata"]
    assert back["nodes"] == content["nodes"]
    assert back["qParams"]["gridsnap"] == "0-1-2"
    assert back["qk_only_nodes"] == content["qk_only_nodes"]


@pytest.mark.parametrize(("layer", "index"), [(0, 0), (0, 7), (3, 16001), (25, 2**17), (61, 2**20 + 1)])
def test_paired_numbers_of_neuronpedia_are_taken_apart(layer: int, index: int) -> None:
    content = foreign(schema_version=1)
    paired = (layer + index) * (layer + index + 1) // 2 + index
    content["nodes"][3] |= {"feature": paired, "layer": layer, "node_id": "a"}
    content["links"] = []
    node = read_graph_file(content).graph.node("a")
    assert (node.layer, node.index) == (layer, index)
    content["nodes"][3]["layer"] = layer + 1
    assert read_graph_file(content).graph.node("a").index is None


def test_kinds_that_nobody_here_knows_are_kept_and_said() -> None:
    content = foreign()
    content["nodes"][0]["feature_type"] = "lorsa"
    content["nodes"][1] |= {"feature_type": "crosscoder", "feature": None, "layer": 3}
    content["nodes"][4]["feature_type"] = "lorsa error"
    read = read_graph_file(content)
    kinds = [read.graph.nodes[place].kind for place in (0, 1, 4)]
    assert kinds == ["feature", "block", "error"]
    assert any('"crosscoder"' in note for note in read.notes)


def test_the_viewer_gets_numbers_it_can_draw() -> None:
    document = graph([feature(9, 1, 6)], [edge("resid_post.9:1@6", "target")])
    written = json.loads(write_attribution_graph(document))
    (target,) = [node for node in written["nodes"] if node["feature_type"] == "logit"]
    # the viewer takes the label apart at "(p=" and fails where it is missing
    assert target["clerp"].split("(p=")[1].split(")")[0] == "?"
    assert target["token_prob"] == 1.0
    assert target["is_target_logit"] is True
    likely = replace(document, nodes=(replace(document.nodes[0], probability=0.25), *document.nodes[1:]))
    (target, _) = json.loads(write_attribution_graph(likely))["nodes"]
    assert target["clerp"] == 'Output "token 12" (p=0.250)'
    assert target["token_prob"] == 0.25


@pytest.mark.parametrize("seed", range(40))
def test_ours_written_for_others_comes_back_whole(seed: int) -> None:
    document = replace(
        random_graph(seed),
        completeness=0.99,
        summary=Summary(depth=2, spearman=0.5),
        notes=("Mind the gap.",),
    )
    names = [node.id for node in document.nodes]
    view = {"pins": names[1:3], "groups": [{"name": "group 1", "nodes": names[2:4], "closed": True}]}
    content = write_attribution_graph(document, view, "a name")
    jsonschema.validate(json.loads(content), SCHEMA)
    for read in (read_graph_file(content), read_graph_file(json.loads(content))):
        assert read.graph == document
        assert read.view == view
        assert read.notes == ()


@pytest.mark.parametrize("kind", ["feature", "token", "difference", "attention", "direction"])
def test_every_target_can_be_written(kind: Any) -> None:
    target = GraphTarget(kind=kind, sae="sae9", index=5, token=1, against=2, layer=3, head=4, key=0)
    document = replace(
        graph([feature(9, 1, 6)], [edge("resid_post.9:1@6", "target", side="key")]), target=target
    )
    content = write_attribution_graph(document)
    jsonschema.validate(json.loads(content), SCHEMA)
    assert read_graph_file(content).graph == document


def test_labels_and_weights_changed_elsewhere_are_taken() -> None:
    document = graph([feature(9, 1, 6)], [edge("resid_post.9:1@6", "target", parts=())])
    content = json.loads(write_attribution_graph(document))
    content["nodes"][1]["clerp"] = "cats"
    content["links"][0]["weight"] = 7.0
    read = read_graph_file(content).graph
    assert read.nodes[1].text == "cats"
    assert read.edges[0].attribution == 7.0
    # but not where what was measured here would then belie it
    honest = json.loads(
        write_attribution_graph(graph([feature(9, 1, 6)], [edge("resid_post.9:1@6", "target")]))
    )
    honest["links"][0]["weight"] = 7.0
    with pytest.raises(MicroscopeError, match="parts sum to"):
        read_graph_file(honest)


def test_a_view_of_another_shape_is_left_out() -> None:
    document = random_graph(1)
    for view in (
        {"pins": 3},
        {"groups": [{"name": 1}]},
        {"pins": ["nobody"], "groups": [{"name": "a", "nodes": []}]},
    ):
        content = json.loads(write_attribution_graph(document, view))
        assert content["qParams"]["pinnedIds"] == content["qParams"]["supernodes"] == []


def test_our_own_json_is_read_and_checked() -> None:
    document = random_graph(2)
    read = read_graph_file(msgspec.json.encode(document))
    assert (read.graph, read.view, read.notes) == (document, {}, ())
    with pytest.raises(MicroscopeError) as refusal:
        read_graph_file(msgspec.json.encode(replace(document, nodes=document.nodes[1:])))
    assert refusal.value.code == "graph_node_missing"


def changed(path: list[str | int], value: Any) -> dict[str, Any]:
    content: Any = foreign()
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content  # type: ignore[no-any-return]


def linked(*pairs: tuple[str, str]) -> dict[str, Any]:
    content = foreign()
    content["links"] += [{"source": source, "target": target, "weight": 1.0} for source, target in pairs]
    return content


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (linked(("5_902_6", "0_17_1")), "graph_cycle"),
        (linked(("5_902_6", "5_902_6")), "graph_cycle"),
        (linked(("nobody", "5_902_6")), "graph_node_missing"),
        (linked(("5_902_6", "7_9432_6")), "graph_duplicate"),
        (changed(["nodes", 1, "node_id"], "0_17_1"), "graph_duplicate"),
        (changed(["nodes", 1, "ctx_idx"], 7), "graph_position"),
        (changed(["nodes", 1, "ctx_idx"], -1), "graph_position"),
        (changed(["nodes", 1, "ctx_idx"], "4"), "graph_file_malformed"),
        (changed(["nodes", 1, "layer"], -3), "graph_block_missing"),
        (changed(["nodes", 1, "layer"], 10**9), "graph_too_large"),
        (changed(["nodes", 1, "layer"], "three"), "graph_file_malformed"),
        (changed(["nodes", 1, "layer"], "9" * 5000), "graph_file_malformed"),
        (changed(["nodes", 1, "feature"], "7"), "graph_file_malformed"),
        (changed(["links", 0, "weight"], None), "graph_file_malformed"),
        (changed(["links", 0, "weight"], "1"), "graph_file_malformed"),
        (changed(["links", 0, "weight"], float("nan")), "graph_file_malformed"),
        (changed(["links"], {}), "graph_file_malformed"),
        (changed(["nodes"], None), "graph_file_malformed"),
        (changed(["metadata"], []), "graph_file_malformed"),
        (changed(["metadata", "slug"], "\ud800"), "graph_file_malformed"),
        (changed(["qParams", "pinnedIds"], "a,b"), "graph_file_malformed"),
        (changed(["metadata", "microscope"], {"format": "microscope-graph"}), "graph_file_malformed"),
        (changed(["nodes", 1, "microscope"], {"id": 3}), "graph_file_malformed"),
        (changed(["nodes"], foreign()["nodes"][:-2]), "graph_target_missing"),
    ],
)
def test_what_is_wrong_with_a_foreign_file_is_said(content: dict[str, Any], code: str) -> None:
    with pytest.raises(MicroscopeError) as refusal:
        read_graph_file(content)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"links": 1}', b"[" * 100_000, b'{"a":' * 100_000),
        FOREIGN.read_bytes()[:-100],
        FOREIGN.read_bytes().replace(b"0.75", b"NaN"),
        FOREIGN.read_bytes().replace(b"0.75", b"1e999"),
        b'{"format": "someone else\'s"}',
    ],
)
def test_bytes_that_are_no_graph_are_refused(content: bytes) -> None:
    with pytest.raises(MicroscopeError) as refusal:
        read_graph_file(content)
    assert refusal.value.code == "graph_file_malformed"
    assert "circuit-tracer" in refusal.value.hint


JUNK: list[Any] = [
    None,
    True,
    -1,
    2**70,
    1e308,
    -1e-320,
    "",
    "E",
    "²",
    "9" * 40,
    [],
    {},
    [None],
    "5_902_6",
    "target",
]


@pytest.mark.parametrize("seed", range(300))
def test_a_file_with_anything_anywhere_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    ours = json.loads(write_attribution_graph(random_graph(3), {"pins": ["target"]}))
    content: Any = rng.choice((foreign(), ours, msgspec.to_builtins(random_graph(3), str_keys=True)))
    place = content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner and rng.random() < 0.9):
            break
        place = inner
    if rng.random() < 0.8:
        place[key] = rng.choice(JUNK)
    else:
        del place[key]
    try:
        read = read_graph_file(content)
    except MicroscopeError:
        return
    summarise(read.graph)
    again = read_graph_file(write_attribution_graph(read.graph, read.view)).graph
    assert (again.nodes, again.edges) == (read.graph.nodes, read.graph.edges)


def test_numbers_beyond_a_browsers_are_no_latents() -> None:
    assert read_graph_file(changed(["nodes", 0, "feature"], 2**60)).graph.nodes[0].index is None


def test_sizes_are_refused_before_anything_is_built() -> None:
    with pytest.raises(MicroscopeError, match="at most") as refusal:
        read_graph_file(b'{"nodes": [], "links": [' + b'{"a":1},' * 1_000_000 + b"{}]}")
    assert refusal.value.code == "graph_too_large"
    assert "1,000,001 edges" in refusal.value.message
    with pytest.raises(MicroscopeError) as refusal:
        read_graph_file(b" " * (64 * 1024 * 1024 + 1))
    assert refusal.value.code == "graph_file_too_large"


def test_a_large_foreign_file_is_read_in_seconds() -> None:
    content = foreign()
    node = content["nodes"][0]
    count = 10_000
    content["nodes"] += [
        node | {"node_id": f"0_{1000 + number}_1", "feature": 1000 + number} for number in range(count)
    ]
    content["links"] += [
        {"source": f"0_{1000 + number}_1", "target": child, "weight": 0.5}
        for number in range(count)
        for child in ("5_902_6", "3_16001_4", "7_9432_6", "7_573_6")
    ]
    encoded = json.dumps(content).encode()
    began = time.process_time()
    read = read_graph_file(encoded)
    assert len(read.graph.edges) == 4 * count + 15
    assert time.process_time() - began < 5


def test_a_node_kind_of_ours_needs_no_field_there() -> None:
    head = Node(id="head 3.1@2", kind="head", layer=3, position=2, index=1, hop=1)
    bias = Node(id="resid_post.9:bias", kind="bias", layer=9, site="resid_post.9", sae="sae9", hop=1)
    document = graph([head, bias], [edge(head.id, "target"), edge(bias.id, "target")])
    written = json.loads(write_attribution_graph(document))
    assert [node["feature_type"] for node in written["nodes"]] == ["logit", "attention head", "bias"]
    assert written["nodes"][2]["ctx_idx"] == 0
    assert read_graph_file(written).graph == document
