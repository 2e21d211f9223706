"""Winners are exactly those of a full sort, whichever way they are looked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microscope.sae import selection
from microscope.sae.cpu import search
from microscope.sae.doubt import HALF_ULP, Doubt, rounded
from microscope.sae.product import Bfloat16Product, product
from microscope.sae.selection import top_k, winners_of_batch, winners_of_rows

# latents and k that are searched block by block, and the last two that are not
SHAPES = [(512, 6), (4096, 32), (4097, 33), (500, 6), (96, 30), (31, 31)]


def problem(latents: int, *, rows: int = 150, d: int = 48, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(latents)
    x = torch.randn(rows, d, generator=generator)
    weight = torch.randn(latents, d, generator=generator) * spread
    return x, weight, torch.randn(latents, generator=generator) * 0.1


def sets(rows: torch.Tensor, latents: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(rows.tolist(), latents.tolist(), strict=True))


@pytest.mark.parametrize(("latents", "k"), [*SHAPES, (16384, 64), (8192 + 64, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k_of_rows_is_exact(latents, k, dtype, monkeypatch):
    monkeypatch.setattr(selection, "MANY", 1)
    pre = torch.randn(87, latents, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, indices = top_k(pre, k)
    assert values.dtype == dtype
    assert torch.equal(values.sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("fill", [0.0, -3.0])
def test_ties_give_distinct_latents(fill, monkeypatch):
    monkeypatch.setattr(selection, "MANY", 1)
    _, indices = top_k(torch.full((70, 8192), fill), 16)
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


def test_rounding_is_that_of_torch():
    """Ties, subnormal numbers, both signs, and what became of each row."""
    bits = np.arange(0, 2**31 - 2**23, 4099, dtype=np.int64).astype(np.int32)  # every exponent that is finite
    ties = (np.arange(0x0080, 0x7F00, dtype=np.int32) << 16) | 0x8000
    numbers = torch.from_numpy(np.concatenate((bits, ties)).view(np.float32))
    x = torch.cat((numbers, -numbers))
    x = x[: len(x) // 64 * 64].view(-1, 64)
    assert torch.equal(rounded(x).values, x.bfloat16())
    x = torch.randn(600, 50)
    values, norm, lost = rounded(x)
    torch.testing.assert_close(norm, x.norm(dim=1))
    torch.testing.assert_close(lost, (values.float() - x).norm(dim=1))


@pytest.mark.parametrize("aligned", [False, True])
def test_the_doubt_about_a_bfloat16_product_is_a_true_bound(aligned):
    x, weight, bias = problem(512, d=300)
    if aligned:  # every number is rounded down by almost the most there is
        x, weight = torch.full_like(x, 1 + 0.99 * 2**-8), torch.full_like(weight, 1 + 0.99 * 2**-8)
    rounded_weight, rounded_x = rounded(weight), rounded(x)
    rough = Bfloat16Product(rounded_weight.values, bias, len(x))(rounded_x.values).double()
    exact = x.double() @ weight.double().T + bias.double()
    doubt = Doubt(rounded_weight, bias)
    lost, norm = doubt.of_rows(rounded_x)
    per_row = doubt.at_most(lost, norm).double()[:, None]
    assert bool(((rough - exact).abs() <= per_row + HALF_ULP * rough.abs()).all())
    row, latent = (torch.from_numpy(a) for a in np.divmod(np.arange(rough.numel()), rough.shape[1]))
    of_pairs = doubt.of_pairs(lost[row], norm[row], latent, rough.float().reshape(-1)).view_as(rough)
    assert bool(((rough - exact).abs() <= of_pairs).all())
    assert bool((of_pairs <= (per_row + HALF_ULP * rough.abs()) * (1 + 1e-6)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_that_of_plain_arithmetic(dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in problem(500))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(product(x, weight, bias), x @ weight.T + bias, **close)


def test_weights_laid_out_beforehand_give_the_same_winners(monkeypatch):
    x, weight, bias = problem(4096)
    narrow, x_narrow = weight.bfloat16(), x.bfloat16()
    plain = Bfloat16Product(narrow, bias, len(x))
    expected = winners_of_rows(x, weight, bias, 32, bfloat16=True)
    monkeypatch.setattr("microscope.sae.product._LAID_OUT_ROWS", 1)
    monkeypatch.setattr("microscope.sae.product._LAID_OUT_NUMBERS", 1)
    laid_out = Bfloat16Product(narrow, bias, len(x))
    assert plain._laid_out is None
    assert laid_out._laid_out is not None
    torch.testing.assert_close(laid_out(x_narrow), plain(x_narrow), rtol=2**-7, atol=1e-3)
    got = winners_of_rows(x, weight, bias, 32, bfloat16=True)
    assert torch.equal(got[1].sort(1).values, expected[1].sort(1).values)


def test_blocks_are_used_where_the_tests_above_mean_them_to_be():
    used = [search._blocks(latents, k) < latents for latents, k in SHAPES]
    assert used == [True, True, True, True, False, False]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(("latents", "k"), SHAPES)
def test_the_search_of_other_devices_agrees(latents, k, elsewhere, monkeypatch):
    """What runs on a GPU, run here: the same winners, by row and over the batch."""
    x, weight, bias = problem(latents)
    exact = x.double() @ weight.double().T + bias.double()
    monkeypatch.setattr(selection, "_compiled", lambda x: not elsewhere)
    for bfloat16 in (False, True):
        _, indices = winners_of_rows(x, weight, bias, k, bfloat16=bfloat16)
        assert torch.equal(indices.sort(1).values, exact.topk(k, dim=1).indices.sort(1).values)
        winners, _, _ = winners_of_batch(x, weight, bias, k, bfloat16=bfloat16)
        best = exact.reshape(-1).topk(k * len(x)).indices
        assert sets(winners.row, winners.latent) == sets(best // latents, best % latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latents", [4096, 77])
def test_entries_that_reach_a_cut_are_found_whatever_their_sign(latents, dtype):
    pre = torch.randn(300, latents, generator=torch.Generator().manual_seed(2)).to(dtype)
    cut = np.linspace(-2, 2, 300, dtype=np.float32)
    pairs = search.reaching(pre, cut)
    missed = pre.float().numpy() >= cut[:, None]
    missed[pairs.row, pairs.latent] = False
    assert not missed.any()
    assert np.array_equal(pairs.value, pre.float().numpy()[pairs.row, pairs.latent])
    assert (np.diff(pairs.row) >= 0).all()
    # a cut between two numbers of the narrow type lets the lower one through
    tolerance = 0 if dtype == torch.float32 else 2**-7
    assert (pairs.value >= cut[pairs.row] - tolerance * np.abs(cut[pairs.row])).all()


def test_results_do_not_depend_on_the_number_of_threads():
    x, weight, bias = problem(4096, rows=600)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            found.append(winners_of_rows(x, weight, bias, 32, bfloat16=True))
            assert torch.get_num_threads() == number
        finally:
            torch.set_num_threads(threads)
    for values, indices in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(indices, found[0][1])


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
