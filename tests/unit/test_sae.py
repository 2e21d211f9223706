"""The sparse step against plain dense implementations."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from microscope.errors import MicroscopeError
from microscope.sae import (
    SaeConfig,
    SparseAutoencoder,
    TokenFilter,
    architecture,
    load_sae,
    save_sae,
)
from microscope.sae.backends import Winners
from microscope.training.objectives import LossContext, objective_class
from microscope.training.objectives.sparse import SparseAutoencode


def make_sae(
    d: int = 12, latents: int = 40, k: int = 5, *, scale: float = 0.7, seed: int = 0
) -> SparseAutoencoder:
    config = SaeConfig(architecture="topk", d_in=d, n_latents=latents, k=k, site="resid_post.1", scale=scale)
    sae = architecture("topk")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return sae


@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_pass_gradcheck_in_float64(ragged):
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (11, 5), (11,), (11, 5), (5,)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    if ragged:  # rows with none, one and many winners
        row = torch.tensor([0, 0, 0, 2, 3, 3, 6])
        winners = Winners.of_pairs(row, torch.tensor([1, 4, 10, 4, 0, 7, 2]), 7)
    else:
        winners = Winners.of_indices(
            torch.stack([torch.randperm(11, generator=generator)[:3] for _ in range(7)])
        )

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return SparseAutoencode.apply(*tensors, winners, None)[0]

    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7)


def dense_loss(sae, u, dead, aux):
    """The same loss written out densely and left to autograd: the oracle."""
    pre = (u - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    mask = torch.zeros_like(pre).scatter_(1, pre.topk(sae.config.k, dim=1).indices, 1.0)
    out = (pre.relu() * mask) @ sae.W_dec + sae.b_dec
    loss = (out - u).square().sum() / (u - u.mean(0)).square().sum()
    if dead is not None:
        wanted, residual = u.shape[1] // 2, (u - out).detach()
        k = min(wanted, len(dead))
        pre_dead = pre[:, dead]
        mask = torch.zeros_like(pre_dead).scatter_(1, pre_dead.topk(k, dim=1).indices, 1.0)
        guess = (pre_dead.relu() * mask) @ sae.W_dec[dead]
        loss = (
            loss
            + aux * min(1, len(dead) / wanted) * (guess - residual).square().sum() / residual.square().sum()
        )
    return loss


@pytest.mark.parametrize("dead", [None, [3], [1, 2, 5, 8, 13, 21, 34]])
def test_whole_steps_equal_a_plain_dense_implementation(dead):
    """Losses, all gradients, and the weights after several Adam steps, in float64."""
    sparse, dense = make_sae().double(), make_sae().double()
    dead = None if dead is None else torch.tensor(dead)
    optimisers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (sparse, dense)]
    for step in range(4):
        u = torch.randn(30, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        losses = [
            objective_class("topk")(sparse).loss(u, u, LossContext(dead=dead, aux_coefficient=0.3)).loss,
            dense_loss(dense, u, dead, 0.3),
        ]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
        for optimiser, loss in zip(optimisers, losses, strict=True):
            optimiser.zero_grad()
            loss.backward()
        for (name, a), b in zip(sparse.named_parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=name)
        for optimiser in optimisers:
            optimiser.step()
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_definition_is_that_of_the_paper():
    """Encode and decode by hand, scale and pre-bias included."""
    sae = make_sae(scale=0.37)
    x = torch.randn(8, 12)
    with torch.no_grad():
        pre = (0.37 * x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
        best = pre.topk(5, dim=1)
        f = torch.zeros(8, 40).scatter_(1, best.indices, best.values.relu())
        expected = (f @ sae.W_dec + sae.b_dec) / 0.37
        torch.testing.assert_close(sae(x), expected)
        codes = sae.encode(x)
        # one unit of a feature adds its decoder direction, in raw units
        more = sae.decode(codes._replace(values=codes.values + torch.eye(5)[0]))
        step = torch.stack([sae.decoder_direction(i) for i in codes.indices[:, 0].tolist()])
        torch.testing.assert_close(more - sae.decode(codes), step)


# --- files ----------------------------------------------------------------------------------------------


def test_saving_and_loading_keeps_the_function_and_the_fingerprint(tmp_path):
    sae = make_sae()
    save_sae(sae, tmp_path)
    for path in (tmp_path, tmp_path / "sae.safetensors"):
        again = load_sae(path)
        assert again.config == sae.config
        assert again.content_fingerprint() == sae.config.fingerprint
        x = torch.randn(5, 12)
        assert torch.equal(again(x), sae(x))


def test_fingerprint_depends_on_the_function_only(tmp_path):
    sae = make_sae()
    before = sae.content_fingerprint()
    sae.config.training = {"seconds": 3}
    assert sae.content_fingerprint() == before
    sae.config.k = 4
    assert sae.content_fingerprint() != before
    sae.config.k = 5
    with torch.no_grad():
        sae.W_dec[0, 0] += 1e-3
    assert sae.content_fingerprint() != before


@pytest.mark.parametrize("damage", ["truncated", "missing", "nan", "shape", "json", "architecture"])
def test_damaged_sae_files_are_refused(tmp_path, damage):
    save_sae(make_sae(), tmp_path)
    weights, config = tmp_path / "sae.safetensors", tmp_path / "sae.json"
    tensors = load_file(weights)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "missing":
        weights.unlink()
    elif damage == "nan":
        tensors["b_dec"][0] = float("nan")
        save_file(tensors, weights)
    elif damage == "shape":
        save_file(tensors | {"b_dec": torch.zeros(3)}, weights)
    elif damage == "json":
        config.write_text("{")
    else:
        config.write_text(config.read_text().replace('"topk"', '"novel"'))
    with pytest.raises(MicroscopeError) as caught:
        load_sae(tmp_path)
    assert caught.value.code in ("bad_sae", "no_sae", "unknown_architecture")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 0}, "0 of 40"),
        ({"k": -1}, "-1 of 40"),
        ({"k": 41}, "41 of 40"),
        ({"k": 10**30}, "of 40"),
        ({"architecture": "groupmax", "k": 7}, "groups of equal size"),
        ({"architecture": "groupmax", "k": 0}, "0 of 40"),
        ({"n_latents": 10**12}, "W_enc"),
        ({"n_latents": 10**19}, "W_enc"),
        ({"n_latents": -1}, "W_enc"),
        ({"d_in": -12}, "W_enc"),
        ({"d_out": 10**12}, "W_dec"),
        ({"d_out": -1}, "W_dec"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": 1e300}, "scale"),
        ({"scale_out": 1e-300}, "scale_out"),
        ({"site": "somewhere"}, "somewhere"),
        ({"site": "resid_post." + "9" * 5000}, "names no site"),
        ({"site_out": "resid_post.-1"}, "resid_post.-1"),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_refused_before_anything_is_built(tmp_path, changes, said):
    save_sae(make_sae(), tmp_path)
    config = json.loads((tmp_path / "sae.json").read_text())
    (tmp_path / "sae.json").write_text(json.dumps(config | changes))
    with pytest.raises(MicroscopeError) as caught:
        load_sae(tmp_path)
    assert caught.value.code == "bad_sae"
    assert said in caught.value.message


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    save_sae(make_sae(), tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    save_file(tensors | {"W_dec": tensors["W_dec"].to(dtype)}, tmp_path / "sae.safetensors")
    with pytest.raises(MicroscopeError) as caught:
        load_sae(tmp_path)
    assert caught.value.code == "bad_sae"
    assert "W_dec" in caught.value.message


def test_rows_of_another_width_are_refused():
    with pytest.raises(MicroscopeError, match="13 wide"):
        make_sae()(torch.randn(2, 13))


def test_token_filter_travels_with_the_sae(tmp_path):
    sae = make_sae()
    sae.config.token_filter = TokenFilter(max_norm=12.5)
    save_sae(sae, tmp_path)
    assert load_sae(tmp_path).config.token_filter.max_norm == 12.5
