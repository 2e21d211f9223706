"""What rounding a model's weights does to its answers, measured on a short fixed text."""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import memory
from microscope.models.load import LoadedModel, inspect_model, load_model
from microscope.models.quantised import is_quantisation
from microscope.models.runner import runner_for
from microscope.models.running import running_of, site_reach
from microscope.params import InspectParams, Running
from microscope.progress import SILENT, Progress

# Prose, numbers, names, code and a list, so that no single kind of text decides.
TEXT = """\
The harbour at Mirrow froze twice that winter, and both times the ferry waited in the outer basin until \
the ice had been cut. Captain Ines Aldous kept the log: 14 January, -9 degrees, 212 passengers; 3 February, \
-11 degrees, 187 passengers. She wrote in a small hand and never crossed anything out.

Water expands when it freezes because its molecules settle into an open lattice. Ice is therefore lighter \
than the water it floats on, by about eight percent, which is why lakes freeze from the top and fish survive \
underneath.

def area(radius):
    # the square of the radius, times pi
    return 3.14159 * radius ** 2

Bring to the meeting: (1) the signed contract, (2) two copies of the map, (3) a list of everyone who voted \
against the bridge. The committee sits on the first Tuesday of each month. Its chair, Dr. Okafor, said \
yesterday: "If the numbers are right, we build; if they are wrong, we count again."
"""


def inspect(params: InspectParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Facts about a model; with ``int8`` or ``nf4`` also what rounding does to it.

    The result is that of :func:`inspect_model`; a rounded model adds ``fingerprint`` and ``rounding``
    (see :func:`measure_rounding`), one that is to be loaded ``running``, as :class:`Running`, and ``obstacles``
    as its weights show them, if they are whole.

    Raises:
        MicroscopeError: what :func:`inspect_model` and, for rounded weights, :func:`load_model` raise.
    """
    facts = inspect_model(params.model, params.revision)
    if is_quantisation(params.dtype):
        facts |= measure_rounding(params, progress)
    if params.load:
        # Imported here: patches know models.
        from microscope.patching.realisation import traits_of

        loaded = load_model(params.model, revision=params.revision, dtype=params.dtype, device=params.device)
        facts["running"] = msgspec.to_builtins(_running(loaded))
        if loaded.quantisation is None:
            facts["obstacles"] = msgspec.to_builtins(traits_of(loaded).obstacles)
    return facts


def _running(loaded: LoadedModel) -> Running:
    """How the model is run; a path of ``"none"`` says that it cannot be run live, and the reason why."""
    try:
        return running_of(loaded, runner_for(loaded))
    except MicroscopeError as error:
        return Running(path="none", reason=error.message, sites=site_reach(loaded.family, loaded.n_layers))


def measure_rounding(params: InspectParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Load a model whole and rounded, one after the other, and compare their logits on :data:`TEXT`.

    Returns:
        ``fingerprint`` of the rounded model and ``rounding``: ``dtype``; ``reference``, the precision of
        the whole model, or None when it does not fit and nothing could be compared; ``tokens``; ``kl``,
        the mean of KL(whole ‖ rounded) in nats; ``kl_max``; ``max_abs_logit``, the largest
        \\|Δlogit\\|; ``top1_agreement``; and ``bytes``, the weights' sizes by precision.

    Raises:
        MicroscopeError: errors of :func:`load_model` for the rounded model.
    """
    with progress.phase("comparing", 2, "models"):
        whole, reference = _whole_logits(params, progress)
        progress.advance(1)
        loaded = load_model(
            params.model,
            revision=params.revision,
            dtype=params.dtype,
            arithmetic=reference or "auto",
            device=params.device,
        )
        rounding: dict[str, Any] = {"dtype": params.dtype, "reference": reference, "tokens": 0}
        if whole is not None:
            rounding |= compare_logits(whole, _logits(loaded))
        progress.advance(2, final=True)
    skeleton = memory.skeleton(type(loaded.model), loaded.config)
    sizes = {name: memory.weight_bytes(skeleton, name) for name in memory.PRECISIONS}
    return {"fingerprint": loaded.fingerprint, "rounding": {**rounding, "bytes": sizes}}


def compare_logits(whole: Tensor, rounded: Tensor) -> dict[str, Any]:
    """How two runs' logits ``[positions, vocabulary]`` differ."""
    p, q = whole.double().log_softmax(-1), rounded.double().log_softmax(-1)
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return {
        "tokens": len(p),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "max_abs_logit": float((whole - rounded).abs().max()),
        "top1_agreement": float((whole.argmax(-1) == rounded.argmax(-1)).double().mean()),
    }


def _whole_logits(params: InspectParams, progress: Progress) -> tuple[Tensor | None, str | None]:
    """Logits in the highest precision that fits, and which that is."""
    for precision in ("float32", "bfloat16"):
        try:
            loaded = load_model(params.model, revision=params.revision, dtype=precision, device=params.device)
        except MicroscopeError as error:
            if error.code != "model_too_big":
                raise
            progress.log(f"Not compared in {precision}: {error.message}", "warning")
            continue
        logits = _logits(loaded)
        del loaded
        gc.collect()
        return logits, precision
    return None, None


@torch.inference_mode()
def _logits(loaded: LoadedModel) -> Tensor:
    ids = loaded.encode(TEXT)[: loaded.max_context]
    tokens = torch.tensor([ids], device=loaded.device)
    logits: Tensor = loaded.model(tokens).logits
    return logits[0].float().cpu()
