"""Every architecture: its definition, its gradients against dense autograd, its L0, its resume."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch

from microscope.errors import Cancelled
from microscope.params import TrainParams, trained_architectures
from microscope.progress import Progress
from microscope.sae import SaeConfig, SparseAutoencoder, architecture, load_sae
from microscope.training import train
from microscope.training.objectives import LossContext, objective_class
from microscope.training.objectives.jumprelu import BANDWIDTH

NAMES = trained_architectures()


def make(
    name: str, *, d: int = 10, d_out: int | None = None, skip: bool = False, seed: int = 0
) -> SparseAutoencoder:
    transcoder = (
        {"site_out": "mlp_out.1", "d_out": d_out, "scale_out": 1.3, "apply_b_dec": False} if d_out else {}
    )
    config = SaeConfig(
        architecture=name, d_in=d, n_latents=48, k=4, site="resid_post.1", scale=0.7, skip=skip, **transcoder
    )
    sae = architecture(name)(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        if name == "jumprelu":
            sae.log_threshold.copy_(torch.randn(48, generator=generator) * 0.3 - 1)
    return sae


def test_using_saes_imports_nothing_of_training(tmp_path):
    """In a process of its own: every architecture made, saved, loaded and used by whatever uses one."""
    script = f"""
import sys, torch
import microscope.evaluation, microscope.features, microscope.formats, microscope.live, microscope.patching
from microscope.params import architectures
from microscope.sae import SaeConfig, architecture, load_sae, save_sae
for name in architectures():
    config = SaeConfig(architecture=name, d_in=6, n_latents=12, k=3, site="resid_post.1")
    save_sae(architecture(name)(config), {str(tmp_path)!r} + "/" + name)
    sae = load_sae({str(tmp_path)!r} + "/" + name)
    sae(torch.randn(1500, 6))
    sae.feature(torch.randn(4, 6), 2)
print(*(m for m in sys.modules if m.startswith("microscope.training")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def rows(count: int, d: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def winners_of(name: str, sae: SparseAutoencoder, pre: torch.Tensor) -> torch.Tensor:
    """0/1 mask of the winners in training, by the definition."""
    if name == "topk":
        return torch.zeros_like(pre).scatter_(1, pre.topk(4, dim=1).indices, 1.0)
    if name in ("batchtopk", "matryoshka"):
        flat = torch.zeros_like(pre).reshape(-1)
        return flat.scatter_(0, pre.reshape(-1).topk(4 * len(pre)).indices, 1.0).view_as(pre)
    if name == "jumprelu":
        return (pre > sae.log_threshold.exp()).double()
    return (pre > 0).double()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_many_rows_are_encoded_as_few_are(name):
    sae = make(name).float()
    if name in ("batchtopk", "matryoshka"):
        sae.threshold.fill_(0.8)
        sae.threshold_weight.fill_(1.0)
    x = rows(1500, 10).float()
    f = [torch.zeros(1500, 48), torch.zeros(1500, 48)]
    for dense, pieces in zip(f, ([x], x.split(500)), strict=True):
        first = 0
        for piece in pieces:
            codes = sae.encode(piece)
            dense[first : first + len(piece)].scatter_add_(1, codes.indices, codes.values)
            first += len(piece)
    assert (f[0] > 0).any()
    torch.testing.assert_close(f[0], f[1], rtol=1e-5, atol=1e-5)


def dense_loss(
    name: str, sae: SparseAutoencoder, u: torch.Tensor, target: torch.Tensor, context: LossContext
) -> torch.Tensor:
    """The objective written out densely and left to autograd: the oracle of everything but θ's gradient."""
    pre = (u - sae.b_dec if sae.config.apply_b_dec else u) @ sae.W_enc.T + sae.b_enc
    mask = winners_of(name, sae, pre.detach())
    skip = 0 if sae.W_skip is None else u @ sae.W_skip.T
    f = pre.relu() * mask
    if name == "gated":
        f = (sae.r_mag.exp() * (pre - sae.b_enc) + sae.b_mag).relu() * mask
    total = (target - target.mean(0)).square().sum()
    error = f @ sae.W_dec + sae.b_dec + skip - target
    loss = error.square().sum() / total
    objective = objective_class(name)(sae)
    coefficient = float(objective.coefficient()) if name in ("standard", "gated", "jumprelu") else 0.0
    if name == "matryoshka":
        parts = [f[:, :last] @ sae.W_dec[:last] + sae.b_dec + skip - target for last in sae.config.groups]
        loss = torch.stack([p.square().sum() / total for p in parts]).mean()
    if name == "standard":
        loss = loss + coefficient * f.sum(1).mean() / 10**0.5
    if name == "gated":
        gate = pre.relu()
        frozen = gate @ sae.W_dec.detach() + (sae.b_dec + skip).detach() - target
        loss = loss + frozen.square().sum() / total + coefficient * gate.sum(1).mean() / 10**0.5
    if name == "jumprelu":
        loss = loss + coefficient * mask.sum(1).mean() / 10
    if context.dead is not None:
        residual = -error.detach()
        k = min(len(context.dead), residual.shape[1] // 2)
        dead_pre = pre[:, context.dead]
        dead_mask = torch.zeros_like(dead_pre).scatter_(1, dead_pre.topk(k, dim=1).indices, 1.0)
        guess = (dead_pre.relu() * dead_mask) @ sae.W_dec[context.dead]
        share = min(1.0, len(context.dead) / (residual.shape[1] // 2))
        loss = (
            loss
            + context.aux_coefficient * share * (guess - residual).square().sum() / residual.square().sum()
        )
    return loss


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_dense_autograd(name, kind):
    shape = {"sae": {}, "transcoder": {"d_out": 7}, "skip": {"d_out": 7, "skip": True}}[kind]
    ours, oracle = make(name, **shape), make(name, **shape)
    u = rows(25, 10)
    target = u if kind == "sae" else rows(25, 7, seed=4)
    for dead in (None, torch.tensor([0, 3, 11])):
        context = LossContext(progress=0.5, dead=dead, aux_coefficient=0.2)
        expected = dense_loss(name, oracle, u, target, context)
        step = objective_class(name)(ours).loss(u, target, context)
        torch.testing.assert_close(step.loss, expected, rtol=1e-10, atol=1e-12)
        step.loss.backward()
        expected.backward()
        for (parameter, a), b in zip(ours.named_parameters(), oracle.parameters(), strict=True):
            if parameter == "log_threshold":
                continue  # its true gradient is zero almost everywhere; see below
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11, msg=f"{name}.{parameter}")
        ours.zero_grad()
        oracle.zero_grad()
        oracle.load_state_dict(ours.state_dict())  # the controller moved


def test_jumprelu_thresholds_learn_by_the_straight_through_rule():
    """∂L/∂θᵢ = Σ −(θᵢ·∂L/∂f + λ/(d·rows))·[|pre−θ| < ε/2]/ε, with ∂L/∂f from dense autograd."""
    sae, u = make("jumprelu"), rows(400, 10)
    objective = objective_class("jumprelu")(sae)
    coefficient = float(objective.coefficient())
    pre = ((u - sae.b_dec) @ sae.W_enc.T + sae.b_enc).detach()
    threshold = sae.threshold.detach()
    f = torch.where(pre > threshold, pre, 0.0).requires_grad_(True)
    error = f @ sae.W_dec.detach() + sae.b_dec.detach() - u
    (error.square().sum() / (u - u.mean(0)).square().sum()).backward()
    band = ((pre - threshold).abs() < BANDWIDTH / 2).double() / BANDWIDTH
    expected = -(band * (threshold * f.grad + coefficient / (10 * len(u)))).sum(0) * threshold
    objective.loss(u, u, LossContext(progress=0.5)).loss.backward()
    assert band.sum() > 20
    torch.testing.assert_close(sae.log_threshold.grad, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_inference_follows_the_definition(name):
    sae = make(name).float()
    if name in ("batchtopk", "matryoshka"):
        sae.threshold.fill_(0.6 * 0.5)
        sae.threshold_weight.fill_(0.5)
    x = rows(20, 10).float()
    with torch.no_grad():
        pre = (0.7 * x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
        f = {
            "topk": lambda: pre.relu() * torch.zeros_like(pre).scatter_(1, pre.topk(4, dim=1).indices, 1.0),
            "batchtopk": lambda: pre * (pre > 0.6),
            "matryoshka": lambda: pre * (pre > 0.6),
            "jumprelu": lambda: pre * (pre > sae.log_threshold.exp()),
            "standard": lambda: pre.relu(),
            "gated": lambda: (pre > 0) * (sae.r_mag.exp() * (pre - sae.b_enc) + sae.b_mag).relu(),
        }[name]()
        torch.testing.assert_close(sae(x), (f @ sae.W_dec + sae.b_dec) / 0.7, rtol=1e-4, atol=1e-5)
        codes = sae.encode(x)
        dense = torch.zeros_like(f).scatter_add_(1, codes.indices, codes.values)
        torch.testing.assert_close(dense, f)


@pytest.mark.parametrize("norm", ["none", "constant_norm", "layer_norm"])
@pytest.mark.parametrize("name", NAMES)
def test_a_single_feature_is_what_encoding_finds(name, norm, monkeypatch):
    """Also in many blocks of latents, and bit for bit whatever rows come along."""
    monkeypatch.setattr("microscope.sae.architectures.topk.FIRST_LOOK", 5)
    sae = make(name).float()
    sae.config.input_norm = norm
    if name in ("batchtopk", "matryoshka"):
        sae.threshold.fill_(0.6)
        sae.threshold_weight.fill_(1.0)
    x = rows(60, 10).float()
    with torch.no_grad():
        codes = sae.encode(x)
        dense = torch.zeros(60, 48).scatter_add_(1, codes.indices, codes.values)
        alone = torch.stack([sae.feature(x, i) for i in range(48)], 1)
        torch.testing.assert_close(alone, dense, rtol=1e-5, atol=1e-6)
        assert torch.equal(alone > 0, dense > 0)
        assert 0 < (alone > 0).float().mean() < 1
        for part in (x[:1], x[7:20]):
            assert torch.equal(
                sae.feature(part, 3), sae.feature(x, 3)[0 if len(part) == 1 else 7 :][: len(part)]
            )


@pytest.mark.parametrize("name", NAMES)
def test_training_improves_and_reaches_the_wanted_l0(name, tmp_path, recording, recording_folder):
    params = TrainParams(
        activations=str(recording_folder),
        out=str(tmp_path / "sae"),
        layer=2,
        arch=name,  # type: ignore[arg-type]
        width=96,
        k=8,
        tokens=150_000,
        batch_size=250,
        precision="float32",
        device="cpu",
    )
    sae = train(params)
    site = recording.site("resid_post.2")
    x = torch.cat([torch.from_numpy(c.values).float() for c in recording.chunks("held_out", site)])
    fvu = float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    l0 = float((sae.encode(x).values > 0).sum(1).float().mean())
    assert fvu < 0.45, (name, fvu)
    assert 8 / 1.35 < l0 < 8 * 1.35, (name, l0)
    again = load_sae(tmp_path / "sae")
    assert torch.equal(again(x), sae(x))


class _CancelAfter(Progress):
    def __init__(self, checkpoints: int) -> None:
        super().__init__()
        self._left = checkpoints

    def checkpoint(self, done: float) -> None:
        self._left -= 1

    def cancelled(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_bit_identical(name, tmp_path, recording_folder, monkeypatch):
    monkeypatch.setattr("microscope.training.trainer.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("microscope.training.trainer.CHECKPOINT_SHARE", math.inf)

    def params(folder: str, resume: bool) -> TrainParams:
        return TrainParams(
            activations=str(recording_folder),
            out=str(tmp_path / folder),
            layer=2,
            arch=name,  # type: ignore[arg-type]
            width=64,
            k=4,
            tokens=6000,
            batch_size=200,
            dead_after=1000,
            checkpoint_seconds=1e-9,
            resume=resume,
            device="cpu",
        )

    whole = train(params("whole", False))
    for number, after in enumerate((5, 9)):
        with pytest.raises(Cancelled):
            train(params("parts", number > 0), _CancelAfter(after))
    resumed = train(params("parts", True))
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_matryoshka_groups_are_nested_prefixes():
    groups = make("matryoshka").config.groups
    assert groups[-1] == 48
    assert all(a < b for a, b in itertools.pairwise(groups))


def test_transcoder_directions_are_in_the_units_of_their_output():
    sae = make("topk", d_out=7).float()
    torch.testing.assert_close(sae.decoder_direction(3), sae.W_dec[3].detach() / 1.3)
    x = rows(5, 10).float()
    assert sae(x).shape == (5, 7)


def groupmax(k: int = 6) -> SparseAutoencoder:
    sae = make("groupmax").float()
    sae.config.k = k
    return sae


@torch.no_grad()
def test_groupmax_follows_its_definition():
    """The largest of each of k groups of neighbours, rectified; one feature alone is what encoding finds."""
    sae, x = groupmax(), rows(40, 10).float()
    pre = (0.7 * x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    f = torch.zeros_like(pre)
    for row in range(len(x)):
        for group in range(6):
            part = pre[row, 8 * group : 8 * group + 8]
            f[row, 8 * group + int(part.argmax())] = max(0.0, float(part.max()))
    codes = sae.encode(x)
    torch.testing.assert_close(torch.zeros_like(f).scatter_add_(1, codes.indices, codes.values), f)
    torch.testing.assert_close(sae(x), (f @ sae.W_dec + sae.b_dec) / 0.7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.stack([sae.feature(x, i) for i in range(48)], 1), f, rtol=1e-5, atol=1e-6
    )
    assert 0.05 < (f > 0).float().mean() <= 6 / 48
    many = rows(1500, 10).float()
    assert torch.equal(sae.encode(many).indices, torch.cat([sae.encode(p).indices for p in many.split(500)]))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
@torch.no_grad()
def test_a_transcoder_does_not_undo_the_norm_of_its_input(norm):
    """What it writes is another activation; its skip path reads the rows as they are."""
    sae, x = make("standard", d_out=7, skip=True).float(), rows(20, 10).float()
    sae.config.input_norm = norm
    if norm == "layer_norm":
        normed = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    else:
        normed = x * (10**0.5 / x.norm(dim=1, keepdim=True))
    f = ((0.7 * normed) @ sae.W_enc.T + sae.b_enc).relu()
    expected = (f @ sae.W_dec + sae.b_dec + (0.7 * x) @ sae.W_skip.T) / 1.3
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.output_gain(x), torch.full((20, 1), 1 / 1.3))
