"""What can be read off the runs of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microscope.activations.token_filters import SINK_FACTOR
from microscope.live.run import PromptRun
from microscope.models import BlockRunner
from microscope.params import Site
from microscope.patching.apply import feature_values
from microscope.sae import SparseAutoencoder

# Positions whose whole vocabulary is held at once.
_HEAD_ROWS = 16


@torch.inference_mode()
def feature_activations(
    sae: SparseAutoencoder, baseline: PromptRun, indices: Sequence[int], top: int
) -> list[tuple[int, list[float]]]:
    """Activations of features at every position, 0 where the SAE's token filter leaves it out.

    Args:
        indices: which features; when empty, the ``top`` by their highest activation.

    Raises:
        MicroscopeError: ``no_such_feature``.
    """
    codes = sae.encode(baseline.residuals[Site.parse(sae.config.site).layer])
    codes = codes._replace(values=codes.values * filtered(sae, baseline)[:, None])
    for index in indices:
        sae.check_feature(index)
    chosen = list(indices) or _strongest(codes.values, codes.indices, sae.config.n_latents, top)
    return [(i, feature_values(codes, i).tolist()) for i in chosen]


@torch.inference_mode()
def position_shifts(runner: BlockRunner, baseline: PromptRun, run: PromptRun) -> Tensor:
    """KL(base ‖ patched) in nats of the next-token distribution, ``[positions]`` in float64.

    Exactly 0 in front of the first row that the plan changes.
    """
    run = run.complete(runner)
    top, base = run.layers[-1].edited, baseline.layers[-1].edited
    kl = torch.zeros(len(base), dtype=torch.float64, device=base.device)
    changed = ((top != base).any(1) | bool(run.program.head)).nonzero()[:, 0]
    for rows in changed.split(_HEAD_ROWS) if len(changed) else ():
        heads = ((base, ()), (top, run.program.head))
        p, q = (runner.head(x[rows], deltas).double().log_softmax(1) for x, deltas in heads)
        kl[rows] = (p.exp() * (p - q)).sum(1).clamp_min(0)
    return kl


def filtered(sae: SparseAutoencoder, baseline: PromptRun) -> Tensor:
    """Which positions the SAE's token filter keeps, ``[positions]`` bool."""
    return sae.config.token_filter.keep(baseline.special, _norms(baseline, Site.parse(sae.config.site).layer))


def sinks(baseline: PromptRun) -> Tensor:
    """Attention sinks of a prompt, ``[positions]`` bool: 8× its median norm half-way up, whatever is attached.

    What an SAE leaves out, and with it the edits of its features, is its token filter's affair (:func:`filtered`).
    """
    norms = _norms(baseline, len(baseline.layers) // 2)
    return norms > SINK_FACTOR * norms.median()


def _norms(baseline: PromptRun, layer: int) -> Tensor:
    return baseline.residuals[layer].float().norm(dim=1)


def _strongest(values: Tensor, indices: Tensor, latents: int, count: int) -> list[int]:
    """Features by their highest activation, strongest first, silent ones left out."""
    peak = torch.zeros(latents, device=values.device).scatter_reduce_(
        0, indices.flatten(), values.flatten(), "amax"
    )
    best = peak.topk(min(count, latents))
    return best.indices[best.values > 0].tolist()
