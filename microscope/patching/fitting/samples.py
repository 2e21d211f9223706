"""Text for fitting and for certifying: windows of tokens, and among them those where a patch acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from microscope.activations import SPECIAL, Recording
from microscope.activations.contexts import Tokeniser
from microscope.activations.corpus import open_corpus
from microscope.activations.manifest import Split
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.params import EditPlan, Positions
from microscope.patching.apply import Saes, edits_by_layer

_LENGTH = 128
# Rows of a recording looked at for windows where a rare feature fires.
_SCAN_ROWS = 200_000


class TextWindow(NamedTuple):
    """Token ids of one context, the document it is from, and whether the patch is known to act in it."""

    tokens: np.ndarray
    doc: int
    fires: bool


def training_windows(
    loaded: LoadedModel,
    plan: EditPlan,
    saes: Saes,
    *,
    activations: str | None,
    text: Sequence[str],
    tokens: int,
) -> list[TextWindow]:
    """Training text: half of it where the patch acts, as far as there is any, half as it comes.

    Raises:
        MicroscopeError: ``no_text``, ``wrong_model`` or what reading raises.
    """
    if activations:
        found = _recorded(loaded, plan, saes, activations, tokens)
    else:
        found = _tokenised("train", loaded, text, tokens)
    return _refuse_empty(found, "training")


def held_out_windows(
    loaded: LoadedModel,
    plan: EditPlan,
    saes: Saes,
    *,
    activations: str | None,
    text: Sequence[str],
    contexts: int,
) -> tuple[list[TextWindow], list[TextWindow]]:
    """Held-out text nothing was trained or fitted on.

    Returns:
        At most ``contexts`` windows as they come, a fair sample of the text; and up to half as many
        further ones in which the patch is known to act, when a recording tells.

    Raises:
        MicroscopeError: as :func:`training_windows`.
    """
    if not activations:
        return _refuse_empty(
            _tokenised("held_out", loaded, text, contexts * _LENGTH)[:contexts], "held-out"
        ), []
    plain: list[TextWindow] = []
    firing: list[TextWindow] = []
    for window in _scan(_open(activations, loaded), "held_out", plan, saes):
        if len(plain) < contexts:
            plain.append(window)
        elif window.fires:
            firing.append(window)
        if len(firing) >= contexts // 2:
            break
    return _refuse_empty(plain, "held-out"), firing


def _refuse_empty(found: list[TextWindow], part: str) -> list[TextWindow]:
    if not found:
        raise MicroscopeError("no_text", f"The {part} part of the text is empty.", "Give more text.")
    return found


def _tokenised(split: Split, loaded: LoadedModel, text: Sequence[str], tokens: int) -> list[TextWindow]:
    if not text:
        raise MicroscopeError(
            "no_text",
            "There is no text to measure on.",
            "Give a recording with --activations or files with --text.",
        )
    length = min(_LENGTH, loaded.max_context)
    cut = Tokeniser(
        loaded.tokenizer,
        length=length,
        wrapping=loaded.wrapping,
        per_document=None,
        vocabulary=loaded.vocab_size,
    )
    found: list[TextWindow] = []
    seen = 0
    for number, document in enumerate(cut(open_corpus(text=text, held_out=0.1))):
        for window in document.windows if document.split == split else ():
            if len(window) > 1 and seen < tokens:
                found.append(TextWindow(window.astype(np.int64), number, False))
                seen += len(window)
        if seen >= tokens:
            break
    return found


def _open(activations: str, loaded: LoadedModel) -> Recording:
    recording = Recording(activations)
    if recording.manifest.model.fingerprint != loaded.fingerprint:
        raise MicroscopeError(
            "wrong_model",
            f"The recording was made with {recording.manifest.model.reference}, whose weights are others.",
            "Give a recording of the patched model.",
        )
    return recording


def _recorded(
    loaded: LoadedModel, plan: EditPlan, saes: Saes, activations: str, tokens: int
) -> list[TextWindow]:
    kept: dict[bool, list[TextWindow]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    scanned = 0
    for window in _scan(_open(activations, loaded), "train", plan, saes):
        scanned += len(window.tokens)
        if sizes[window.fires] < tokens:
            kept[window.fires].append(window)
            sizes[window.fires] += len(window.tokens)
        if min(sizes.values()) >= tokens / 2 or (sizes[True] >= tokens and scanned >= 2 * tokens):
            break
    # As much of the one as there is room for beside half a budget of the other.
    firing = _up_to(kept[True], max(tokens / 2, tokens - sizes[False]))
    return firing + _up_to(kept[False], tokens - sum(len(w.tokens) for w in firing))


def _up_to(windows: list[TextWindow], tokens: float) -> list[TextWindow]:
    out: list[TextWindow] = []
    for window in windows:
        if tokens <= 0:
            break
        out.append(window)
        tokens -= len(window.tokens)
    return out


def _scan(recording: Recording, split: Split, plan: EditPlan, saes: Saes) -> Iterator[TextWindow]:
    """Windows of a recording; those of a recorded site tell at once whether the patch acts there."""
    recorded = {site.site for site in recording.manifest.sites}
    sites = {
        f"resid_post.{layer}": edits
        for layer, edits in edits_by_layer(_wherever(plan)).items()
        if f"resid_post.{layer}" in recorded
    }
    name, edits = next(iter(sites.items()), (next(iter(sorted(recorded))), None))
    for chunk in recording.chunks(split, recording.site(name), max_rows=_SCAN_ROWS):
        fired = np.zeros(len(chunk.token), bool)
        if edits is not None:
            special = torch.from_numpy((chunk.flags & SPECIAL) != 0)
            with torch.no_grad():
                _, effects = edits.delta(torch.from_numpy(chunk.values).float(), saes, special)
            for effect in effects:
                fired[list(effect.positions)] = True
        for first, last in zip(chunk.starts, [*chunk.starts[1:], len(chunk.token)], strict=True):
            if last - first > 1:
                yield TextWindow(
                    chunk.token[first:last].astype(np.int64),
                    int(chunk.doc[first]),
                    bool(fired[first:last].any()),
                )


def _wherever(plan: EditPlan) -> EditPlan:
    """The plan without its limits on positions, which do not count from the start of a chunk."""
    edits = [
        msgspec.structs.replace(e, positions=Positions(include_sinks=e.positions.include_sinks))
        for e in plan.active()
    ]
    return EditPlan(edits=tuple(edits))
