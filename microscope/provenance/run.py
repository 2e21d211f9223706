"""The job: parameters to a graph, written and told."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from safetensors import SafetensorError, safe_open

from microscope.activations.token_filters import settle_on_model
from microscope.errors import MicroscopeError
from microscope.graphs import Attended, Graph, GraphTarget, GraphUpdate, check, summarise, updated
from microscope.models import LoadedModel, load_model
from microscope.outputs import write_durably
from microscope.params import ProvenanceParams, Site
from microscope.params.provenance import upstream_layers
from microscope.progress import SILENT, Progress
from microscope.provenance.attended import attended
from microscope.provenance.explain import Limits, explain
from microscope.provenance.needs import bytes_needed, require_memory
from microscope.sae import SparseAutoencoder, load_sae

_MOST_DIRECTION_BYTES = 64 * 2**20
_PHASES = {"components": "components", "hop": "further hops", "verify": "measuring edges"}


class Found(NamedTuple):
    """The graph of a target and, where that is an attention score, what is at its two ends."""

    graph: Graph
    attended: Attended | None


def explain_target(params: ProvenanceParams, progress: Progress = SILENT) -> Found:
    """Load a model and its SAEs, and explain one target.

    With ``params.out`` what was found is also written there, as :func:`as_json` says it.

    Raises:
        MicroscopeError: ``bad_target``, ``empty_prompt``, ``prompt_too_long``, ``not_one_token``, ``bad_direction``,
            ``no_sae_at_layer``, ``sae_given_twice``, ``wrong_model``, ``wrong_width``, ``graph_needs_memory``, or what loading the model and
            the SAEs and :func:`explain` raise.
    """
    params.require_target()
    started = time.perf_counter()
    progress.log(f"Loading {params.model}")
    loaded = load_model(params.model, revision=params.revision, dtype=params.dtype, device=params.device)
    tokens = loaded.encode_prompt(params.prompt)
    saes = load_saes(params.sae_path, loaded)
    target = target_of(params, loaded, saes)
    limits = Limits(params.hops, params.parents, params.shown)
    need = bytes_needed(loaded, len(tokens), target, saes, limits)
    allowed = None if params.memory_mb is None else params.memory_mb * 10**6
    require_memory(need, len(tokens), loaded.device, allowed=allowed)
    pieces = explain(
        loaded,
        tokens,
        target,
        saes,
        prompt=params.prompt,
        limits=limits,
        mlp=params.mlp,
        verify=params.verify,
    )
    graph = _gathered(pieces, progress)
    graph = msgspec.structs.replace(graph, summary=summarise(graph, seconds=time.perf_counter() - started))
    check(graph)
    for note in graph.notes:
        progress.log(note, "warning")
    used = {sae.fingerprint for sae in graph.saes}
    for name, sae in saes.items():
        if name not in used:
            progress.log(f"The SAE at {sae.config.site} is not below the target: it was left out.", "warning")
    if not used - {graph.target.sae}:
        for line in how_to_train(params, graph):
            progress.log(line)
    try:
        ends = _attended(graph.target, loaded, tokens, saes)
    except MicroscopeError as error:  # the graph is there all the same
        progress.log(f"What is at the two ends of the score cannot be told apart: {error}", "warning")
        ends = None
    found = Found(graph, ends)
    if params.out is not None:
        out = Path(params.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(out, msgspec.json.format(msgspec.json.encode(as_json(found)), indent=1))
    return found


def _attended(
    target: GraphTarget, loaded: LoadedModel, tokens: list[int], saes: dict[str, SparseAutoencoder]
) -> Attended | None:
    if target.kind != "attention":
        return None
    assert target.layer is not None
    assert target.head is not None
    assert target.key is not None
    return attended(loaded, tokens, target.layer, target.head, target.position, target.key, saes)


def as_json(found: Found) -> dict[str, Any]:
    """A graph as plain values: its document, with the headline figures beside it, and with ``attended``."""
    summary = found.graph.summary
    headline = {"depth": summary.depth, "spearman": summary.spearman, "seconds": summary.seconds}
    plain: dict[str, Any] = msgspec.to_builtins(found.graph)
    ends = {} if found.attended is None else {"attended": msgspec.to_builtins(found.attended)}
    return {**plain, **headline, **ends}


def _gathered(pieces: Iterator[Graph | GraphUpdate], progress: Progress) -> Graph:
    """The whole graph, with a bar for each phase; a cancelled job ends between two pieces."""
    with progress.phase("first picture", 1, "graphs"):
        graph = next(pieces)
        assert isinstance(graph, Graph)
        progress.advance(1, final=True)
    phase = ""
    with contextlib.ExitStack() as bars:
        for update in pieces:
            assert isinstance(update, GraphUpdate)
            graph = updated(graph, update)
            if update.phase not in _PHASES:
                continue
            if update.phase != phase:
                bars.close()
                phase = update.phase
                unit = "edges" if phase == "verify" else "hops"
                bars.enter_context(progress.phase(_PHASES[phase], update.total, unit))
            progress.advance(update.done, final=update.done == update.total)
    return graph


# --- what is explained --------------------------------------------------------------------------------


def load_saes(paths: tuple[str, ...], loaded: LoadedModel) -> dict[str, SparseAutoencoder]:
    """SAEs of a model by fingerprint, in the order given.

    Raises:
        MicroscopeError: ``sae_given_twice``, ``wrong_model``, or what :func:`load_sae` raises.
    """
    saes: dict[str, SparseAutoencoder] = {}
    for path in paths:
        sae = load_sae(path, device=loaded.device)
        trained_on = sae.config.model.get("fingerprint")
        if trained_on and trained_on != loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                f"The SAE at '{path}' was trained on another model ({sae.config.model.get('reference')}).",
                "Give SAEs of this model.",
            )
        settle_on_model(sae, loaded)
        fingerprint = sae.content_fingerprint()
        if fingerprint in saes:
            raise MicroscopeError(
                "sae_given_twice", f"The SAE at '{path}' was given before.", "Give each SAE once."
            )
        saes[fingerprint] = sae
    return saes


def target_of(
    params: ProvenanceParams, loaded: LoadedModel, saes: dict[str, SparseAutoencoder]
) -> GraphTarget:
    """What the parameters say is to be explained.

    Raises:
        MicroscopeError: ``bad_target``, ``no_sae_at_layer``, ``not_one_token`` or ``bad_direction``.
    """
    position = params.position
    if params.feature is not None:
        own = _own_sae(params, saes)
        return GraphTarget(kind="feature", sae=own, index=params.feature, position=position)
    if params.attention is not None:
        score = params.attention_score()
        return GraphTarget(
            kind="attention", layer=score.layer, head=score.head, position=score.query, key=score.key
        )
    if params.direction is not None:
        vector = read_direction(Path(params.direction))
        return GraphTarget(kind="direction", layer=params.direction_layer, vector=vector, position=position)
    token = _token(loaded, params.token, params.token_id)
    against = _token(loaded, params.against, params.against_id)
    if against is None:
        return GraphTarget(kind="token", token=token, position=position)
    return GraphTarget(kind="difference", token=token, against=against, position=position)


def _own_sae(params: ProvenanceParams, saes: dict[str, SparseAutoencoder]) -> str:
    """The SAE of the feature: of the layer and site that were named, or the topmost."""
    sites = {name: Site.parse(sae.config.site) for name, sae in saes.items()}
    fitting = {
        name: site
        for name, site in sites.items()
        if params.layer in (None, site.layer) and params.site in (None, site.kind)
    }
    if not fitting:
        wanted = f"at {params.site or 'block'} {params.layer}" if params.layer is not None else "given"
        raise MicroscopeError(
            "no_sae_at_layer",
            f"No SAE was {wanted}, so there is no feature {params.feature} to explain.",
            "Give the SAE the feature is of with --sae-path.",
        )
    top = max(site.layer for site in fitting.values())
    of_top = [name for name, site in fitting.items() if site.layer == top]
    if len(of_top) > 1:
        several = ", ".join(sorted(str(fitting[name]) for name in of_top))
        raise MicroscopeError(
            "bad_target",
            f"Feature {params.feature} may be of {len(of_top)} SAEs of block {top}: {several}.",
            "Say which with --site."
            if len({fitting[name] for name in of_top}) > 1
            else "Give only one of them.",
        )
    return of_top[0]


def _token(loaded: LoadedModel, text: str | None, number: int | None) -> int | None:
    if text is None:
        return number
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1:
        pieces = " ".join(repr(piece) for piece in loaded.texts.each(ids)) or "nothing"
        raise MicroscopeError(
            "not_one_token",
            f"{text[:80]!r} is {len(ids)} tokens for this model ({pieces[:200]}); one is needed.",
            "Mind the space in front of a word, or give the number with --token-id.",
        )
    if ids[0] == loaded.tokenizer.unk_token_id and text.strip() != loaded.tokenizer.unk_token:
        raise MicroscopeError(
            "not_one_token",
            f"{text[:80]!r} is nothing that this model's tokenizer knows.",
            "Choose another token, or give its number with --token-id.",
        )
    return ids[0]


def read_direction(path: Path) -> tuple[float, ...]:
    """The vector in a ``.json`` file (a list of numbers) or a ``.safetensors`` file (one tensor).

    Raises:
        MicroscopeError: ``bad_direction``.
    """
    try:
        if path.stat().st_size > _MOST_DIRECTION_BYTES:
            raise _bad_direction(path, "it is larger than 64 MiB")
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if len(names) != 1:
                    raise _bad_direction(path, f"it has {len(names)} tensors, and one is needed")
                tensor = file.get_tensor(names[0]).squeeze()
            if tensor.dim() != 1:
                raise _bad_direction(path, f"its tensor has the shape {tuple(tensor.shape)}")
            return tuple(tensor.double().tolist())
        return msgspec.json.decode(path.read_bytes(), type=tuple[float, ...])
    except (OSError, SafetensorError, msgspec.MsgspecError) as error:
        raise _bad_direction(path, str(error)) from error


def _bad_direction(path: Path, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "bad_direction",
        f"'{path}' holds no direction: {reason}.",
        "Give a .json file with a list of numbers, or a .safetensors file with one vector.",
    )


def how_to_train(params: ProvenanceParams, graph: Graph) -> Iterator[str]:
    """The two commands that make SAEs below the target: one records three blocks in one pass, one trains on them."""
    target = graph.nodes[0]
    layer = min(target.layer, graph.n_layers - 1)
    blocks = " ".join(map(str, upstream_layers(layer)))
    if not blocks:
        return
    yield "To have SAEs below the target, record these blocks in one pass and train on them:"
    yield (
        f"  microscope trace --model {shlex.quote(params.model)} --layers {blocks} --text TEXT --tokens 2M "
        "--out activations.parquet"
    )
    yield (
        f"  for layer in {blocks}; do microscope train --activations activations.parquet --layer $layer "
        "--out saes/layer_$layer; done"
    )
