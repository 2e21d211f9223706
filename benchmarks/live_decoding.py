"""Time of a generated token, patched and unpatched, beside plain Hugging Face.

All columns are written in one process, one token each in turn, in an order that rotates. Ratios are taken
between tokens of the same turn, so that a machine that becomes slower changes all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.contestants.live_ours import FEATURE, SESSION, opened, stand_in
from microscope.live import Continuation, ResidentModel, unpatched
from microscope.params import Edit, EditPlan, FeatureRef
from microscope.patching.program import Program, bind
from microscope.sae import SparseAutoencoder

PLAIN, UNPATCHED = "plain Hugging Face", "unpatched"
_PROMPT_TOKENS = 32
# Wins a place among the k of every token.
_ALWAYS = 1e3
Column = Callable[[], object]


class Row(NamedTuple):
    """Median milliseconds of a token, and median ratios to plain Hugging Face and to our unpatched column."""

    milliseconds: float
    to_plain: float
    to_unpatched: float


def decoding(model: str, text: str, dtype: str, layer: int, tokens: int) -> dict[str, Row]:
    """Write so many tokens in every column and compare."""
    silent = stand_in(576, layer)
    resident = opened(model, text, dtype, silent)
    loaded = resident.loaded
    resident.open(SESSION, loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"][:_PROMPT_TOKENS]))
    columns: dict[str, Column] = {
        PLAIN: _plain(resident),
        UNPATCHED: _ours(resident, unpatched(loaded.n_layers)),
        "scale, TopK, mostly silent": _scaled(resident, silent, 0.0),
        "scale, TopK, fires at every token": _scaled(resident, stand_in(576, layer), _ALWAYS),
        "scale, JumpReLU, fires at every token": _scaled(resident, stand_in(576, layer, "jumprelu"), _ALWAYS),
    }
    times = _in_turns(columns, tokens)
    return {
        name: Row(
            1000 * statistics.median(mine),
            *(
                statistics.median(a / b for a, b in zip(mine, times[to], strict=True))
                for to in (PLAIN, UNPATCHED)
            ),
        )
        for name, mine in times.items()
    }


def _in_turns(columns: dict[str, Column], tokens: int) -> dict[str, list[float]]:
    names = list(columns)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-3, tokens):  # the first few warm up
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            columns[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def _plain(resident: ResidentModel) -> Column:
    """Greedy decoding as Hugging Face does it, with keys and values kept."""
    model = resident.loaded.model
    ids = resident.sessions.get(SESSION).tokens[None]
    with torch.inference_mode():
        out = model(ids, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def write() -> None:
        nonlocal out
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)

    return write


def _ours(resident: ResidentModel, program: Program) -> Column:
    column = Continuation(
        resident.runner, resident.sessions.get(SESSION).baseline, program, resident.attached.saes
    )
    token = int(column.logits(lambda _: False).argmax())

    def write() -> None:
        nonlocal token
        column.push(token)
        token = int(column.logits(lambda _: False).argmax())

    return write


def _scaled(resident: ResidentModel, sae: SparseAutoencoder, bias: float) -> Column:
    """A column under a feature multiplied by 3; ``bias`` is the feature's in the encoder."""
    sae.b_enc[FEATURE] = bias
    resident.attached.saes[sae.content_fingerprint()] = sae
    feature = FeatureRef(sae=sae.content_fingerprint(), index=FEATURE)
    edit = Edit(kind="scale", site=sae.config.site, feature=feature, strength=3.0)
    program = bind(
        EditPlan(edits=(edit,)),
        family=resident.loaded.family,
        n_layers=resident.loaded.n_layers,
        saes=resident.attached.saes,
        adapters={},
        generating=True,
    )
    return _ours(resident, program)
