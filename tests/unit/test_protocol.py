"""Messages of live sessions: declared once, whichever way they travel."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import msgspec
import pytest

from microscope import protocol as p
from microscope.errors import MicroscopeError
from microscope.graphs import Edge, Graph, GraphTarget, GraphUpdate
from microscope.params import Edit, EditPlan, FeatureRef

PLAN = EditPlan(
    edits=(Edit(kind="add", site="resid_post.2", feature=FeatureRef(sae="f" * 32, index=3), strength=2.5),)
)
TOKEN = GraphTarget(kind="token", token=7)
ASKED: tuple[p.Request, ...] = (
    p.Open(prompt="the house", top=5),
    p.Apply(rev=3, plan=PLAN, top=7, pinned=(1, 2)),
    p.ReadFeatures(sae="f" * 32, indices=(4, 5)),
    p.ReadPositions(plan=PLAN),
    p.Generate(run=2, plan=PLAN, seed=9, temperature=0.5, max_tokens=8),
    p.StopGeneration(),
    p.ReadProvenance(
        run=4, target=GraphTarget(kind="feature", sae="f" * 32, index=3, position=2), saes=("f" * 32,), hops=3
    ),
    p.StopProvenance(),
    p.ReadAttended(layer=1, head=0, query=5, key=2, saes=("f" * 32,), top=8),
)
OF_THE_PORTAL = {p.Ping, p.Pong, p.ResidentState, p.Result}


def test_all_a_browser_says_and_hears_is_what_the_resident_worker_hears_and_says() -> None:
    assert {type(message) for message in ASKED} == {*get_args(p.LiveRequest)} - OF_THE_PORTAL
    assert {*get_args(p.LiveRequest)} - OF_THE_PORTAL <= {*get_args(p.ResidentRequest)}
    assert {*get_args(p.LiveAnswer)} - OF_THE_PORTAL <= {*get_args(p.ResidentReply)}
    assert issubclass(p.Result, p.Computed)


@pytest.mark.parametrize("message", ASKED, ids=lambda message: type(message).__name__)
def test_a_request_travels_from_json_to_the_resident_worker_unchanged(message: p.Request) -> None:
    heard = msgspec.json.decode(msgspec.json.encode(message), type=p.LiveRequest)
    frame = p.encode_request(12, heard, "session")
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert p.decode_request(frame[4:]) == p.RequestFrame(id=12, session="session", message=message)


def test_what_was_computed_is_told_with_the_time_the_portal_took() -> None:
    receipt = p.Receipt(plan="x", edits=[], baseline="y", reused="computed", first_layer=1, first_position=0)
    computed = p.Computed(
        session="s",
        rev=4,
        tokens=[p.TokenShift(token=1, text="a", base=0.5, patched=0.25)],
        kl=0.1,
        entropy_base=1.0,
        entropy_patched=2.0,
        receipt=receipt,
        timings=p.Timings(queued=0.0, compute=3.0),
    )
    reply = p.decode_reply(p.encode_reply(5, computed)[4:])
    assert (reply.id, reply.message) == (5, computed)
    told = msgspec.to_builtins(p.Result.of(computed, server_ms=4.5))
    assert told == {**msgspec.to_builtins(computed), "type": "result", "server_ms": 4.5}


def test_a_graph_travels_from_the_resident_worker_with_its_edges_named_as_in_its_file() -> None:
    edge = Edge(parent="resid_post.1:3@2", child="target", attribution=0.5, hop=1, measured=0.4)
    graph = Graph(
        model="m", model_fingerprint="f", prompt="p", tokens=(), target=TOKEN, n_layers=2, edges=(edge,)
    )
    update = GraphUpdate(phase="verify", done=1, total=2, edges=(edge,))
    for message in (
        p.GraphBegun(session="s", run=1, graph=graph),
        p.GraphProgress(session="s", run=1, update=update),
        p.GraphEnded(run=1, reason="done"),
    ):
        assert p.decode_reply(p.encode_reply(5, message)[4:]).message == message
        assert msgspec.json.decode(msgspec.json.encode(message), type=p.LiveAnswer) == message
    assert b'"from":"resid_post.1:3@2","to":"target"' in msgspec.json.encode(graph)


@pytest.mark.parametrize("change", [{"postion": 3}, {"position": 2**70}, {"kind": "everything"}])
def test_a_target_with_a_slip_is_noticed_when_it_is_read(change: dict[str, object]) -> None:
    """Left out in silence, another position would be explained than the one asked for."""
    target = {"kind": "token", "token": 7, **change}
    asked = json.dumps({"type": "read_provenance", "run": 1, "target": target})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(asked, type=p.LiveRequest)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (p.Open(prompt="a", top=0), "bad_top"),
        (p.Open(prompt="a" * (p.MAX_PROMPT_CHARACTERS + 1)), "prompt_too_long"),
        (p.Apply(rev=1, plan=EditPlan(), top=201), "bad_top"),
        (p.ReadFeatures(sae="x", top=1001), "bad_top"),
        (p.ReadFeatures(sae="x", indices=tuple(range(1001))), "bad_top"),
        (p.ReadProvenance(run=1, target=TOKEN, hops=0), "bad_graph_size"),
        (p.ReadProvenance(run=1, target=TOKEN, parents=65), "bad_graph_size"),
        (p.ReadProvenance(run=1, target=TOKEN, shown=2001), "bad_graph_size"),
        (p.ReadAttended(layer=0, head=0, query=1, key=0, top=0), "bad_top"),
    ],
)
def test_what_asks_for_too_much_is_refused(
    message: p.Open | p.Apply | p.ReadFeatures | p.ReadProvenance | p.ReadAttended, code: str
) -> None:
    with pytest.raises(MicroscopeError) as caught:
        message.check()
    assert caught.value.code == code


def test_messages_load_no_science() -> None:
    program = (
        "import sys, microscope.protocol; "
        "print({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'django', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
