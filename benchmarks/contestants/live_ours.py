"""A toggle answered by our resident model."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from benchmarks.child import Turn, repeated
from microscope.live import ResidentModel
from microscope.models import load_model
from microscope.params import Edit, EditPlan, FeatureRef, Positions
from microscope.sae import SaeConfig, SparseAutoencoder, architecture

LATENTS, K = 4096, 32
SESSION, FEATURE = "benchmark", 7


def stand_in(d: int, layer: int, kind: str = "topk") -> SparseAutoencoder:
    """A random autoencoder of usual size with tied unit rows: its quality changes no time."""
    config = SaeConfig(architecture=kind, d_in=d, n_latents=LATENTS, k=K, site=f"resid_post.{layer}")
    sae = architecture(kind)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, d, generator=generator), dim=1))
    sae.W_enc.copy_(sae.W_dec)
    return sae


def opened(model: str, text: str, dtype: Any, sae: SparseAutoencoder) -> ResidentModel:
    """A resident model with the autoencoder attached and a session on the text."""
    resident = ResidentModel(load_model(model, dtype=dtype, device="cpu"))
    resident._saes[sae.content_fingerprint()] = sae
    resident.open(SESSION, text)
    return resident


def toggle(
    *, model: str, text: str, ids: list[int], dtype: str, layer: int, start: int, strength: float, times: int
) -> Turn:
    """An ``add`` from one position on with a strength not seen before, to the next token's distribution."""
    resident, sae = _resident(model, text, ids, dtype, layer)
    strengths = itertools.count(1)
    where = Positions(mode="from", start=start, include_sinks=True)

    def work() -> None:
        applied = resident.apply(SESSION, _plan(sae, strength * (1 + next(strengths) / 1000), where))
        assert applied.reused == "computed"

    return repeated(work, times, 1)


def seen(
    *, model: str, text: str, ids: list[int], dtype: str, layer: int, strength: float, times: int
) -> Turn:
    """Back to a state seen before: a patch off and on again."""
    resident, sae = _resident(model, text, ids, dtype, layer)
    states = itertools.cycle((EditPlan(), _plan(sae, strength, Positions(include_sinks=True))))
    for _ in range(2):
        resident.apply(SESSION, next(states))

    def work() -> None:
        assert resident.apply(SESSION, next(states)).reused != "computed"

    return repeated(work, times, 1)


def _resident(
    model: str, text: str, ids: list[int], dtype: str, layer: int
) -> tuple[ResidentModel, SparseAutoencoder]:
    sae = stand_in(576, layer)
    resident = opened(model, text, dtype, sae)
    assert resident._session(SESSION).tokens.tolist() == ids, "all contestants run the same tokens"
    return resident, sae


def _plan(sae: SparseAutoencoder, strength: float, where: Positions) -> EditPlan:
    feature = FeatureRef(sae=sae.content_fingerprint(), index=FEATURE)
    edit = Edit(kind="add", site=sae.config.site, feature=feature, strength=strength, positions=where)
    return EditPlan(edits=(edit,))
