"""Text for fitting and for certifying: windows of tokens, and among them those where a patch acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from microscope.patching.apply import Saes, SiteEdits, edits_by_layer

_LENGTH = 128
# Rows of a recording looked at for windows where a rare feature fires.
_SCAN_ROWS = 200_000


class TextWindow(NamedTuple):
    """Token ids of one context, the document it is from, and whether the patch is known to act in it.

    ``prompt`` is how many of the tokens are prompt, the others counting as generated; None when all are.
    """

    tokens: np.ndarray
    doc: int
    fires: bool
    prompt: int | None = None


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
    return with_prompts(plan, _refuse_empty(found, "training"))


def held_out_windows(
    loaded: LoadedModel,
    plan: EditPlan,
    saes: Saes,
    *,
    activations: str | None,
    text: Sequence[str],
    contexts: int,
    seed: int = 0,
    seen: SeenText | None = None,
) -> tuple[list[TextWindow], list[TextWindow]]:
    """Held-out text nothing was trained or fitted on, drawn from all of its documents.

    Args:
        contexts: how many windows.
        seed: of the draw.
        seen: what a fit read; windows of that text are left out whatever split they are of.

    Returns:
        At most ``contexts`` windows, of as many documents as possible, whether the patch acts in them or not;
        and up to half as many further ones in which it is known to act, when a recording tells.

    Raises:
        MicroscopeError: as :func:`training_windows`; ``text_was_fitted`` when nothing else is left.
    """
    rng = np.random.default_rng(seed)
    if activations:
        found = _candidates(_open(activations, loaded), plan, saes, rng)
    else:
        found = _tokenised("held_out", loaded, text, None)
    _refuse_empty(found, "held-out")
    fresh = [w for w in found if seen is None or not seen.holds(w.tokens)]
    if not fresh:
        raise MicroscopeError(
            "text_was_fitted",
            "All of the held-out text is text that the fit was made on, so it would prove nothing.",
            "Measure on the recording the export was fitted on, or on other text.",
        )
    order = _across_documents(fresh, rng)
    plain, rest = order[:contexts], order[contexts:]
    firing = [w for w in rest if w.fires][: contexts // 2]
    return with_prompts(plan, plain), with_prompts(plan, firing)


def with_prompts(plan: EditPlan, windows: Sequence[TextWindow]) -> list[TextWindow]:
    """For plans that act while generating: the second half of every context counts as generated."""
    if all(edit.positions.mode != "generated" for edit in plan.active()):
        return list(windows)
    return [w._replace(prompt=len(w.tokens) // 2) for w in windows]


def _across_documents(windows: Sequence[TextWindow], rng: np.random.Generator) -> list[TextWindow]:
    """In random order, one of every document first, then a second one, and so on."""
    drawn = rng.permutation(len(windows))
    before: dict[int, int] = {}
    rounds = np.empty(len(windows), dtype=np.int64)
    for place, number in enumerate(drawn):
        doc = windows[number].doc
        rounds[place] = before.get(doc, 0)
        before[doc] = before.get(doc, 0) + 1
    return [windows[drawn[place]] for place in np.argsort(rounds, kind="stable")]


class SeenText:
    """Which text a fit read: hashes of all runs of 16 tokens in it (of shorter contexts, the whole).

    Tokens and not documents are compared, since the same text may have come by another way, in another split
    or cut at other places.
    """

    RUN = 16

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes

    @classmethod
    def of(cls, windows: Sequence[TextWindow]) -> SeenText:
        """What is in some windows."""
        return cls(np.unique(np.concatenate([cls._runs(w.tokens) for w in windows])))

    def holds(self, tokens: np.ndarray) -> bool:
        """Whether more than half of a context was read. A phrase that many texts share is no overlap."""
        return float(np.isin(self._runs(tokens), self.hashes).mean()) > 0.5

    @classmethod
    def _runs(cls, tokens: np.ndarray) -> np.ndarray:
        runs = np.lib.stride_tricks.sliding_window_view(tokens, min(cls.RUN, len(tokens)))
        # A polynomial hash; overflow is its modulus.
        weights = np.full(runs.shape[1], 6364136223846793005, dtype=np.uint64).cumprod()
        mixed = (runs.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) * weights
        return mixed.sum(1, dtype=np.uint64).view(np.int64)


def _refuse_empty(found: list[TextWindow], part: str) -> list[TextWindow]:
    if not found:
        raise MicroscopeError("no_text", f"The {part} part of the text is empty.", "Give more text.")
    return found


def _tokenised(
    split: Split, loaded: LoadedModel, text: Sequence[str], tokens: int | None
) -> list[TextWindow]:
    """Windows of a split, up to a number of tokens."""
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
            if len(window) > 1 and (tokens is None or seen < tokens):
                found.append(TextWindow(window.astype(np.int64), number, False))
                seen += len(window)
        if tokens is not None and seen >= tokens:
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


def _candidates(
    recording: Recording, plan: EditPlan, saes: Saes, rng: np.random.Generator
) -> list[TextWindow]:
    """Held-out windows: all of them, or of much text an even random part."""
    share = min(1.0, _SCAN_ROWS / max(recording.rows("held_out"), 1))
    return list(_scan(recording, "held_out", plan, saes, lambda: bool(rng.random() < share)))


def _scan(
    recording: Recording,
    split: Split,
    plan: EditPlan,
    saes: Saes,
    wanted: Callable[[], bool] | None = None,
) -> Iterator[TextWindow]:
    """Windows of a recording; those of a recorded site tell at once whether the patch acts there.

    ``wanted`` is asked once for every window, and those it declines are left out unread; without it the
    scan ends after so many rows.
    """
    recorded = {site.site for site in recording.manifest.sites}
    found = {f"resid_post.{layer}": edits for layer, edits in edits_by_layer(_wherever(plan)).items()}
    sites = {name: edits for name, edits in found.items() if name in recorded}
    names = list(sites) or sorted(recorded)[:1]
    limit = _SCAN_ROWS if wanted is None else None
    streams = [recording.chunks(split, recording.site(name), max_rows=limit) for name in names]
    for chunks in zip(*streams, strict=True):
        chunk = chunks[0]
        ends = [*chunk.starts[1:], len(chunk.token)]
        windows = [
            (int(first), int(last))
            for first, last in zip(chunk.starts, ends, strict=True)
            if last - first > 1 and (wanted is None or wanted())
        ]
        if not windows:
            continue
        rows = np.concatenate([np.arange(*window) for window in windows])
        fired = np.zeros(len(chunk.token), bool)
        for name, values in zip(names, chunks, strict=True):
            if name in sites:
                fired[rows] |= _fires(sites[name], values.values[rows], chunk.flags[rows], saes)
        for first, last in windows:
            yield TextWindow(
                chunk.token[first:last].astype(np.int64),
                int(chunk.doc[first]),
                bool(fired[first:last].any()),
            )


@torch.no_grad()
def _fires(edits: SiteEdits, values: np.ndarray, flags: np.ndarray, saes: Saes) -> np.ndarray:
    """On which rows ``[rows, d]`` of a site an edit changes something, ``[rows]``."""
    device = next(iter(saes.values())).W_dec.device
    special = torch.from_numpy((flags & SPECIAL) != 0).to(device)
    _, effects = edits.delta(torch.from_numpy(values).float().to(device), saes, special)
    fired = torch.zeros(len(values), dtype=torch.bool)
    for effect in effects:
        fired |= (effect.sizes > 0).cpu()
    return fired.numpy()


def _wherever(plan: EditPlan) -> EditPlan:
    """The plan without its limits on positions, which do not count from the start of a chunk."""
    edits = [
        msgspec.structs.replace(e, positions=Positions(include_sinks=e.positions.include_sinks))
        for e in plan.active()
    ]
    return EditPlan(edits=tuple(edits))
