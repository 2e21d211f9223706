"""The live path beside the reference a certificate measures with.

A certificate runs whole batches through hooks, since it needs every position. What people saw when they
approved a patch came from the incremental replay; here it answers for some contexts, as in a session.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from microscope.live.generate import Continuation
from microscope.live.replay import replay
from microscope.live.run import run_baseline
from microscope.models import LoadedModel, runner_for
from microscope.params import EditPlan
from microscope.patching.apply import Saes
from microscope.patching.certify.reload import Reloaded
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel
from microscope.patching.program import Adapters, bind

CONTEXTS = 8


class LiveAgreement(msgspec.Struct, kw_only=True, frozen=True):
    """Largest |Δ logit| behind the last token of ``contexts`` contexts.

    ``reference`` is between the live path and the hooks that all else is measured with, ``export`` between
    the live path and the reloaded export.
    """

    contexts: int
    reference: float
    export: float


def live_agreement(
    loaded: LoadedModel,
    plan: EditPlan,
    saes: Saes,
    adapters: Adapters,
    patched: PatchedModel,
    reloaded: Reloaded,
    windows: Sequence[TextWindow],
) -> LiveAgreement | None:
    """Replay the plan on the first :data:`CONTEXTS` windows; None when there are none.

    Raises:
        MicroscopeError: what :func:`bind` and :func:`replay` raise.
    """
    chosen = [window for window in windows if len(window.tokens)][:CONTEXTS]
    if not chosen:
        return None
    runner, special_ids = runner_for(loaded), torch.tensor(sorted(loaded.tokenizer.all_special_ids))
    program, generating = (
        bind(
            plan,
            family=loaded.family,
            n_layers=loaded.n_layers,
            saes=saes,
            adapters=adapters,
            generating=generating,
        )
        for generating in (False, True)
    )
    reference = export = 0.0
    for window in chosen:
        ids = torch.from_numpy(window.tokens)
        prompt = ids[: window.prompt]
        special = torch.isin(prompt, special_ids)
        baseline = run_baseline(runner, prompt.to(loaded.device), special.to(loaded.device))
        run = replay(runner, (baseline,), program, saes).run
        live = run.logits
        if window.prompt is not None:
            column = Continuation(runner, run, generating, saes)
            for token in ids[window.prompt :].tolist():
                column.push(token)
            live = column.logits(set(special_ids.tolist()).__contains__)
        prompts = [window.prompt]
        hooked = patched(ids[None], prompts=prompts)[0][0, -1].float()
        loaded_again = reloaded.logits(ids[None], prompts=prompts)[0, -1].float()
        reference = max(reference, float((live - hooked).abs().max()))
        export = max(export, float((live - loaded_again).abs().max()))
    return LiveAgreement(contexts=len(chosen), reference=reference, export=export)
