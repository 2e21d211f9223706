"""Graphs on the resident worker: streamed piece by piece, ended, and never mixed between people."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import torch

from microscope import protocol as p
from microscope.graphs import Graph, GraphTarget, Summary, updated
from microscope.live import ResidentModel
from microscope.models import LoadedModel
from microscope.params import EditPlan
from microscope.provenance import Limits, attended, explain
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from tests.live_rig import random_sae
from tests.resident_talk import Client
from worker.resident.server import ResidentServer

PROMPTS = {"a": "the state of union is strong", "b": "people ask congress the state of"}
Pieces = list[p.GraphBegun | p.GraphProgress]


@pytest.fixture(scope="module")
def saes(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, SparseAutoencoder]:
    """SAEs of three blocks, lowest first."""
    folder = tmp_path_factory.mktemp("saes")
    places = [folder / str(layer) for layer in range(3)]
    for layer, place in enumerate(places):
        save_sae(random_sae(llama.d_model, layer, layer), place)
    return {place: load_sae(place) for place in places}


@pytest.fixture
async def server(llama: LoadedModel, tmp_path: Path) -> AsyncIterator[tuple[ResidentServer, str]]:
    server = ResidentServer(ResidentModel(llama))
    listener, _ = await server.listen(f"unix:{tmp_path}/r.sock")
    async with listener:
        yield server, f"{tmp_path}/r.sock"
        for connection in tuple(server.connections):
            connection.end()
        # Others use the same model in their own thread next.
        await server.submit("last", lambda: None).done


async def opened(address: str, saes: dict[Path, SparseAutoencoder], *sessions: str) -> Client:
    client = await Client.connect(address)
    for folder, sae in saes.items():
        await client.attach(sae, folder)
    for name in sessions:
        assert isinstance(await client.ask(p.Open(prompt=PROMPTS[name]), name), p.Opened)
    return client


def asked(saes: dict[Path, SparseAutoencoder], target: GraphTarget, verify: bool = False) -> p.ReadProvenance:
    names = tuple(sae.config.fingerprint for sae in saes.values())
    return p.ReadProvenance(run=1, target=target, saes=names, hops=3, parents=3, shown=6, verify=verify)


def assembled(pieces: Pieces) -> Graph:
    first = pieces[0]
    assert isinstance(first, p.GraphBegun)
    graph = first.graph
    for piece in pieces[1:]:
        assert isinstance(piece, p.GraphProgress)
        graph = updated(graph, piece.update)
    return msgspec.structs.replace(graph, summary=Summary())  # times differ


async def alone(client: Client, name: str, request: p.ReadProvenance) -> Graph:
    """The same in a session that nobody else is beside."""
    await client.ask(p.Open(prompt=PROMPTS[name]), "alone")
    number, pieces = client.send(request, "alone"), []
    while not isinstance(reply := await client.answer(number), p.GraphEnded):
        pieces.append(reply)
    return assembled(pieces)


def by_library(
    llama: LoadedModel, saes: dict[Path, SparseAutoencoder], name: str, target: GraphTarget
) -> Graph:
    known = {sae.config.fingerprint: sae for sae in saes.values()}
    graph: Graph | None = None
    for piece in explain(
        llama, llama.encode(PROMPTS[name]), target, known, limits=Limits(3, 3, 6), verify=False
    ):
        graph = piece if isinstance(piece, Graph) else updated(graph, piece) if graph else None
    assert graph is not None
    return graph


async def test_two_peoples_graphs_take_turns_and_each_is_as_if_alone(server, llama, saes) -> None:
    _, address = server
    targets = {"a": GraphTarget(kind="token", token=5), "b": GraphTarget(kind="token", token=9, position=3)}
    client = await opened(address, saes, "a", "b")
    first = client.send_at_once(*((asked(saes, targets[name], verify=True), name) for name in targets))
    of = {first: "a", first + 1: "b"}
    pieces: dict[str, Pieces] = {"a": [], "b": []}
    order, ended = [], 0
    while ended < 2:
        frame = await client.frame()
        if isinstance(frame.message, p.GraphEnded):
            assert frame.message == p.GraphEnded(run=1, reason="done")
            ended += 1
            continue
        assert frame.message.session == of[frame.id]
        order.append(of[frame.id])
        pieces[of[frame.id]].append(frame.message)
    assert order[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"]), order
    for name, target in targets.items():
        found = assembled(pieces[name])
        assert found == await alone(client, name, asked(saes, target, verify=True))
        assert any(edge.verdict is not None for edge in found.edges), "something was measured"
        told = {edge.key: edge.attribution for edge in by_library(llama, saes, name, target).edges}
        assert {edge.key: edge.attribution for edge in found.edges} == told
    assert torch.is_grad_enabled()


async def test_others_toggle_between_the_pieces(server, saes) -> None:
    """A toggle waits for one piece, not for the graph."""
    _, address = server
    client = await opened(address, saes, "a", "b")
    graph = client.send_at_once(
        (asked(saes, GraphTarget(kind="token", token=5)), "a"), (p.Apply(rev=1, plan=EditPlan()), "b")
    )
    before = 0
    while True:
        frame = await client.frame()
        if isinstance(frame.message, p.Computed):
            break
        before += frame.id == graph
    assert before <= 1


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (p.ReadProvenance(run=2, target=GraphTarget(kind="token", token=1), verify=False), "replaced"),
        (p.StopProvenance(), "stopped"),
        (p.Open(prompt="people"), "stopped"),
        (p.CloseSession(), "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, p.Request) else "",
)
async def test_a_graph_is_ended(server, saes, ending, reason) -> None:
    resident = server[0].resident
    client = await opened(server[1], saes, "a")
    asks = asked(saes, GraphTarget(kind="token", token=5))
    started = client.send_at_once((asks, "a"), (ending, "a"))
    said: dict[int, list[p.ResidentReply]] = {started: [], started + 1: []}
    while not (said[started + 1] and said[started] and isinstance(said[started][-1], p.GraphEnded)):
        frame = await client.frame()
        said[frame.id].append(frame.message)
    *pieces, end = said[started]
    assert end == p.GraphEnded(run=1, reason=reason)
    assert len(pieces) <= 1
    if not isinstance(ending, p.ReadProvenance):
        assert all(state.graph is None for state in resident.sessions.by_name.values())


async def test_a_graph_ends_with_its_connection(server, saes) -> None:
    held, address = server
    client = await opened(address, saes, "a")
    client.send(asked(saes, GraphTarget(kind="token", token=5)), "a")
    client.writer.close()
    other = await Client.connect(address)
    async with asyncio.timeout(20):
        while (await other.ask(p.ReadStatus())).sessions:
            await asyncio.sleep(0.02)
    assert not held.resident.sessions.by_name


async def test_what_cannot_be_explained_is_an_answer_and_the_session_goes_on(server, saes) -> None:
    _, address = server
    client = await opened(address, saes, "a")
    top = list(saes.values())[-1].config.fingerprint
    for request, code in (
        (asked(saes, GraphTarget(kind="token", token=10**6)), "no_such_token"),
        (asked(saes, GraphTarget(kind="token", token=1, position=99)), "no_such_position"),
        (asked(saes, GraphTarget(kind="feature", sae=top, index=64)), "no_such_feature"),
        (asked(saes, GraphTarget(kind="feature", sae="0" * 32, index=1)), "sae_not_attached"),
        (
            p.ReadProvenance(run=1, target=GraphTarget(kind="token", token=1), saes=("0" * 32,)),
            "sae_not_attached",
        ),
        (p.ReadProvenance(run=1, target=GraphTarget(kind="token", token=1), hops=99), "bad_graph_size"),
    ):
        reply = await client.ask(request, "a")
        assert isinstance(reply, p.Failure), (code, reply)
        assert reply.code == code
    reply = await client.ask(asked(saes, GraphTarget(kind="token", token=1)), "nobody")
    assert isinstance(reply, p.Failure)
    assert reply.code == "no_session"
    assert isinstance(await client.ask(p.Apply(rev=1, plan=EditPlan()), "a"), p.Computed)


async def test_graphs_share_the_memory_that_is_free(server, saes, monkeypatch) -> None:
    """The second is refused with the numbers while the first may come to take what is left."""
    _, address = server
    client = await opened(address, saes, "a", "b")
    monkeypatch.setattr("microscope.provenance.needs.bytes_free", lambda device: 50 * 2**20)
    asks = asked(saes, GraphTarget(kind="token", token=5))
    first = client.send_at_once((asks, "a"), (asks, "b"))
    replies: dict[int, list[p.ResidentReply]] = {first: [], first + 1: []}
    while not (replies[first + 1] and replies[first] and isinstance(replies[first][-1], p.GraphEnded)):
        frame = await client.frame()
        replies[frame.id].append(frame.message)
    [refused] = replies[first + 1]
    assert isinstance(refused, p.Failure)
    assert refused.code == "graph_needs_memory"
    assert "beside other graphs" in refused.message
    assert replies[first][-1] == p.GraphEnded(run=1, reason="done")
    again = await client.answer(client.send(asks, "b"))
    assert isinstance(again, p.GraphBegun), "what the first had been promised is free again"


async def test_why_a_head_attends_is_answered_in_a_turn(server, llama, saes) -> None:
    _, address = server
    client = await opened(address, saes, "a")
    below = list(saes.values())[1].config.fingerprint
    asks = p.ReadAttended(layer=2, head=1, query=-1, key=0, saes=(below,), top=5)
    reply = await client.ask(asks, "a")
    assert isinstance(reply, p.AttentionExplained), reply
    known = {below: list(saes.values())[1]}
    wanted = attended(llama, llama.encode(PROMPTS["a"]), 2, 1, -1, 0, known, 5)
    assert reply.attended == wanted
    assert reply.session == "a"
    assert any(one.kind == "feature" for one in wanted.query_contributors)
    assert sum(pair.attribution for pair in wanted.pairs) == pytest.approx(wanted.bilinear, abs=1e-3)
    for request, code in (
        (p.ReadAttended(layer=99, head=0, query=1, key=0), "layer_out_of_range"),
        (p.ReadAttended(layer=0, head=99, query=1, key=0), "no_such_head"),
        (p.ReadAttended(layer=0, head=0, query=0, key=1), "not_visible"),
        (p.ReadAttended(layer=0, head=0, query=1, key=0, saes=("0" * 32,)), "sae_not_attached"),
        (p.ReadAttended(layer=0, head=0, query=1, key=0, top=0), "bad_top"),
    ):
        refused = await client.ask(request, "a")
        assert isinstance(refused, p.Failure), request
        assert refused.code == code


async def test_status_answers_while_a_piece_is_computed(server, saes, monkeypatch) -> None:
    _, address = server
    client = await opened(address, saes, "a")
    go = threading.Event()

    def slowly(*_args: object, **_more: object):
        go.wait(20)
        yield from ()

    monkeypatch.setattr("microscope.live.graphs.explain", slowly)
    number = client.send(asked(saes, GraphTarget(kind="token", token=5)), "a")
    try:
        status = await client.answer(client.send(p.ReadStatus(), ""))
        assert isinstance(status, p.Status)
    finally:
        go.set()
    assert await client.answer(number) == p.GraphEnded(run=1, reason="done")
