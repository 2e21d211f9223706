"""Winners are exactly those of a full sort, whichever way they are looked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microscope.sae import selection
from microscope.sae.doubt import HALF_ULP, Doubt
from microscope.sae.product import Bfloat16Product, product
from microscope.sae.selection import (
    Pairs,
    _kth_of_rows,
    top_k,
    winners_of_batch,
    winners_of_rows,
)

# latents and k that are searched block by block, and others that are not
SHAPES = [(512, 6), (4096, 32), (500, 6), (96, 8)]


def problem(latents: int, *, rows: int = 150, d: int = 48, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(latents)
    x = torch.randn(rows, d, generator=generator)
    weight = torch.randn(latents, d, generator=generator) * spread
    return x, weight, torch.randn(latents, generator=generator) * 0.1


def sets(rows: torch.Tensor, latents: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(rows.tolist(), latents.tolist(), strict=True))


@pytest.mark.parametrize(("latents", "k"), [*SHAPES, (16384, 64), (8192 + 64, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k_of_rows_is_exact(latents, k, dtype):
    pre = torch.randn(37, latents, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, indices = top_k(pre, k)
    assert values.dtype == dtype
    assert torch.equal(values.sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("fill", [0.0, -3.0])
def test_ties_give_distinct_latents(fill):
    _, indices = top_k(torch.full((4, 8192), fill), 16)
    assert all(len(set(row)) == 16 for row in indices.tolist())


@pytest.mark.parametrize(("latents", "k"), SHAPES)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_winners_of_rows_are_those_of_exact_arithmetic(latents, k, bfloat16):
    x, weight, bias = problem(latents)
    values, indices = winners_of_rows(x, weight, bias, k, bfloat16=bfloat16)
    exact = x.double() @ weight.double().T + bias.double()
    best = exact.topk(k, dim=1)
    assert torch.equal(indices.sort(1).values, best.indices.sort(1).values)
    torch.testing.assert_close(values.double(), exact.gather(1, indices), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latents", [512, 500])
def test_the_bfloat16_search_misses_no_winner_among_near_ties(latents):
    """Entries that differ by far less than bfloat16 resolves: only float32 can tell which of them win."""
    base = torch.randn(64, generator=torch.Generator().manual_seed(5))
    weight = base.repeat(latents, 1) + 5e-3 * torch.randn(
        latents, 64, generator=torch.Generator().manual_seed(6)
    )
    x = base + 0.3 * torch.randn(50, 64, generator=torch.Generator().manual_seed(7))
    bias = torch.zeros(latents)
    rough = torch.nn.functional.linear(x.bfloat16(), weight.bfloat16()).topk(8, dim=1).indices
    exact = (x.double() @ weight.double().T).topk(8, dim=1).indices
    assert not torch.equal(rough.sort(1).values, exact.sort(1).values)
    _, indices = winners_of_rows(x, weight, bias, 8, bfloat16=True)
    assert torch.equal(indices.sort(1).values, exact.sort(1).values)


@pytest.mark.parametrize("latents", [4096, 500])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("skewed", [False, True])
def test_winners_of_a_batch_are_exact_even_when_few_rows_win_everything(latents, bfloat16, skewed):
    x, weight, bias = problem(latents)
    if skewed:
        x[5] *= 20  # this row holds far more than its share of the winners
    winners, values, lowest = winners_of_batch(x, weight, bias, 6, bfloat16=bfloat16)
    exact = x.double() @ weight.double().T + bias.double()
    best = exact.reshape(-1).topk(6 * len(x))
    expected = sets(best.indices // latents, best.indices % latents)
    assert sets(winners.row, winners.latent) == expected
    torch.testing.assert_close(values.double(), exact[winners.row, winners.latent], rtol=1e-5, atol=1e-4)
    assert lowest == values.min()
    assert (winners.row.diff() >= 0).all()


@pytest.mark.parametrize("aligned", [False, True])
def test_the_doubt_about_a_bfloat16_product_is_a_true_bound(aligned):
    x, weight, bias = problem(512, d=300)
    if aligned:  # every number is rounded down by almost the most there is
        x, weight = torch.full_like(x, 1 + 0.99 * 2**-8), torch.full_like(weight, 1 + 0.99 * 2**-8)
    product = Bfloat16Product(weight, bias, len(x))
    rough = product(x).double()
    exact = x.double() @ weight.double().T + bias.double()
    doubt = Doubt(x, weight, bias, product)
    per_row = doubt.per_row().double()[:, None]
    assert bool(((rough - exact).abs() <= per_row + HALF_ULP * rough.abs()).all())
    row, latent = np.divmod(np.arange(rough.numel()), rough.shape[1])
    of_pairs = torch.from_numpy(doubt.of_pairs(row, latent, rough.float().numpy().reshape(-1))).view_as(rough)
    assert bool(((rough - exact).abs() <= of_pairs).all())
    assert bool((of_pairs <= (per_row + HALF_ULP * rough.abs()) * (1 + 1e-6)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_that_of_plain_arithmetic(dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in problem(500))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(product(x, weight, bias), x @ weight.T + bias, **close)


def test_weights_laid_out_beforehand_give_the_same_winners(monkeypatch):
    x, weight, bias = problem(4096)
    plain = Bfloat16Product(weight, bias, len(x))
    expected = winners_of_rows(x, weight, bias, 32, bfloat16=True)
    monkeypatch.setattr("microscope.sae.product._LAID_OUT_ROWS", 1)
    monkeypatch.setattr("microscope.sae.product._LAID_OUT_NUMBERS", 1)
    laid_out = Bfloat16Product(weight, bias, len(x))
    assert plain._laid_out is None
    assert laid_out._laid_out is not None
    torch.testing.assert_close(laid_out(x), plain(x), rtol=2**-7, atol=1e-3)
    got = winners_of_rows(x, weight, bias, 32, bfloat16=True)
    assert torch.equal(got[1].sort(1).values, expected[1].sort(1).values)


def test_blocks_are_used_where_the_tests_above_mean_them_to_be():
    cpu = torch.device("cpu")
    used = [selection._in_blocks(cpu, latents, k) for latents, k in SHAPES]
    assert used == [True, True, False, False]


def test_infinite_weights_are_passed_on_for_the_loop_to_report():
    x, weight, bias = problem(512)
    weight[3] = float("nan")
    for bfloat16 in (False, True):
        values, _ = winners_of_rows(x, weight, bias, 6, bfloat16=bfloat16)
        assert bool(values.isnan().any())
        _, values, _ = winners_of_batch(x, weight, bias, 6, bfloat16=bfloat16)
        assert bool(values.isnan().any())


@pytest.mark.parametrize("open_rows", [1, 5, 64])
def test_rows_that_leave_everything_open_are_decided_exactly(open_rows):
    """Among rows with clear winners, some so short beside the bias that rounding decides nothing."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 24, generator=generator)
    rows[:open_rows] *= 1e-4
    weight, bias = torch.randn(512, 24, generator=generator), torch.full((512,), 1.0)
    values, indices = winners_of_rows(rows, weight, bias, 4, bfloat16=True)
    exact = torch.addmm(bias, rows, weight.T)
    wanted = exact.topk(4, dim=1)
    assert torch.equal(indices.sort(1).values, wanted.indices.sort(1).values)
    assert torch.allclose(values.sort(1).values, wanted.values.sort(1).values, atol=1e-5)


def test_the_kth_largest_of_uneven_rows():
    rng = np.random.default_rng(0)
    counts = [5, 400, 4, 33, 800]
    pairs = Pairs(np.repeat(np.arange(5), counts), np.arange(sum(counts)), rng.random(sum(counts)))
    wanted = [np.sort(pairs.value[pairs.row == row])[-4] for row in range(5)]
    assert _kth_of_rows(pairs, 5, 4).tolist() == wanted
    only_wide = pairs.where(pairs.row == 1)
    assert _kth_of_rows(only_wide._replace(row=only_wide.row * 0), 1, 4).tolist() == [wanted[1]]
