"""A step in pieces is the step of torch's own optimiser on dense gradients."""

from __future__ import annotations

import pytest
import torch

from microscope.params import trained_architectures
from microscope.sae import SaeConfig, SparseAutoencoder, architecture
from microscope.training import update
from microscope.training.objectives import LossContext, Objective, objective_class
from microscope.training.objectives.sparse import LatentGradients
from microscope.training.update import Adam, step_in_pieces

RATE, BETAS, FACTORS = 1e-2, (0.8, 0.98), {"W_dec": 3.0, "log_threshold": 10.0}


def fresh(name: str) -> Objective[SparseAutoencoder]:
    config = SaeConfig(architecture=name, d_in=12, n_latents=70, k=4, site="resid_post.1", scale=0.7)
    sae = architecture(name)(config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    objective = objective_class(name)(sae)
    objective.after_step()
    return objective


def ours_of(objective: Objective[SparseAutoencoder]) -> Adam:
    adam = Adam(objective.sae.named_parameters(), FACTORS, BETAS)
    adam.rate = RATE
    return adam


def torchs_of(objective: Objective[SparseAutoencoder]) -> torch.optim.Adam:
    groups = [
        {"params": [p], "lr": RATE * FACTORS.get(name, 1.0)} for name, p in objective.sae.named_parameters()
    ]
    return torch.optim.Adam(groups, betas=BETAS)


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize("name", trained_architectures())
def test_steps_equal_steps_of_torchs_adam(name, pieces, monkeypatch):
    """Several steps with and without dead latents, in pieces that do not divide the width, in float64."""
    monkeypatch.setattr(update, "PIECE", 12 * 16)
    ours, plain = fresh(name), fresh(name)
    adam, theirs = ours_of(ours), torchs_of(plain)
    for step in range(6):
        u = torch.randn(30, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        dead = torch.tensor([2, 17, 18, 69]) if step % 2 else None
        sink = LatentGradients() if pieces else None
        context = {"progress": 0.1 * step, "dead": dead, "aux_coefficient": 0.3}
        a = ours.loss(u, u, LossContext(**context, sink=sink))
        b = plain.loss(u, u, LossContext(**context))
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-10, atol=1e-12)
        for optimiser, loss in ((adam, a.loss), (theirs, b.loss)):
            optimiser.zero_grad()
            loss.backward()
        if sink is not None:
            step_in_pieces(ours.sae, adam, sink)
        else:
            ours.before_step()
            adam.step()
            ours.after_step()
        plain.before_step()
        theirs.step()
        plain.after_step()
    for parameter, q in plain.sae.named_parameters():
        found = adam.moments[parameter]
        torch.testing.assert_close(found.parameter, q, rtol=1e-9, atol=1e-11, msg=f"{name}.{parameter}")
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            expected = theirs.state[q][moment]
            torch.testing.assert_close(getattr(found, moment), expected, rtol=1e-8, atol=1e-13)


def test_topk_never_makes_a_full_gradient():
    objective = fresh("topk")
    sae, adam = objective.sae, ours_of(objective)
    u = torch.randn(30, 12, dtype=torch.float64)
    sink = LatentGradients()
    context = LossContext(dead=torch.tensor([3, 5]), aux_coefficient=0.1, sink=sink)
    objective.loss(u, u, context).loss.backward()
    assert sae.W_dec.grad is None
    assert sae.W_enc.grad is None
    before = sae.W_dec.detach().clone()
    step_in_pieces(sae, adam, sink)
    assert not torch.equal(before, sae.W_dec)
