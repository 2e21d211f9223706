"""What a resident model computed, as the messages that say so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from microscope import protocol as p
from microscope.errors import MicroscopeError
from microscope.live import Applied, Comparison, Piece, PromptView, Step
from microscope.models import BlockRunner
from microscope.params import EditPlan

log = logging.getLogger(__name__)

TokenText = Callable[[int], str]


def opened(
    session: str,
    view: PromptView,
    comparison: Comparison,
    text: TokenText,
    milliseconds: float,
    runner: BlockRunner,
) -> p.Opened:
    """The answer to ``open``."""
    columns = zip(view.tokens, view.texts, view.special, view.sink, strict=True)
    prompt = [
        p.PromptToken(token=t, text=text, special=special, sink=sink) for t, text, special, sink in columns
    ]
    return p.Opened(
        session=session,
        prompt=prompt,
        next=_shifts(comparison, text),
        entropy=comparison.entropy_base,
        milliseconds=milliseconds,
        path=runner.path,
        path_reason=runner.why,
    )


def computed(session: str, request: p.Apply, applied: Applied, text: TokenText) -> p.Computed:
    """The answer to ``apply``, with no time spent in the queue: the sender of the answer knows that."""
    comparison = applied.comparison
    return p.Computed(
        session=session,
        rev=request.rev,
        tokens=_shifts(comparison, text),
        kl=comparison.kl,
        entropy_base=comparison.entropy_base,
        entropy_patched=comparison.entropy_patched,
        receipt=_receipt(request.plan, applied),
        timings=p.Timings(queued=0.0, compute=applied.milliseconds),
    )


def generated(session: str, run: int, step: Step) -> p.Generated:
    """One token of a continuation."""
    return p.Generated(
        session=session,
        run=run,
        number=step.number,
        plan=step.plan,
        base=_piece(step.base),
        patched=_piece(step.patched),
    )


def failure(error: Exception) -> p.Failure:
    """An exception as it is told to the portal; one that is no refusal is logged."""
    if isinstance(error, MicroscopeError):
        return p.Failure(code=error.code, message=error.message, hint=error.hint)
    log.error("a request failed", exc_info=error)
    return p.Failure(
        code="crashed",
        message=f"{type(error).__name__}: {error}",
        hint="This is a defect; the resident worker's log has the details.",
    )


def too_large(size: int) -> p.Failure:
    """Said instead of an answer of so many bytes."""
    return p.Failure(
        code="answer_too_large",
        message=f"The answer has {size / 2**20:.0f} MiB; {p.MAX_FRAME_BYTES / 2**20:.0f} are the limit.",
        hint="Ask for less at a time.",
    )


def closed(request: p.ResidentRequest) -> p.Superseded | p.Failure:
    """Said to a request whose session was closed before its turn came."""
    if isinstance(request, p.Apply):
        return p.Superseded(rev=request.rev)
    return p.Failure(code="no_session", message="The session was closed.", hint="Open it again.")


def _shifts(comparison: Comparison, text: TokenText) -> list[p.TokenShift]:
    return [
        p.TokenShift(token=s.token, text=text(s.token), base=s.base, patched=s.patched)
        for s in comparison.shifts
    ]


def _piece(piece: Piece | None) -> p.GeneratedPiece | None:
    if piece is None:
        return None
    return p.GeneratedPiece(token=piece.token, text=piece.text, probability=piece.probability)


def _receipt(plan: EditPlan, applied: Applied) -> p.Receipt:
    """What each edit did; edits that were muted or cannot change anything are no-ops too."""
    effects = {effect.edit: effect for effect in applied.outcome.effects}
    edits = []
    for number, edit in enumerate(plan.edits):
        effect = effects.get(edit)
        positions = list(effect.positions) if effect else []
        size = effect.max_delta if effect else 0.0
        edits.append(p.EditReceipt(edit=number, noop=not positions, positions=positions, max_delta=size))
    return p.Receipt(
        plan=applied.fingerprint,
        edits=edits,
        baseline=applied.baseline,
        reused=applied.reused,
        first_layer=applied.outcome.first_layer,
        first_position=applied.outcome.first_position,
        path=applied.path,
    )
