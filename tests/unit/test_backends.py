"""Every backend finds exactly the winners of a full sort, and agrees with the reference in everything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microscope.sae.backends import BACKENDS, REFERENCE, Backend, Winners, backend_for
from microscope.sae.backends.cpu import backend as cpu_backend
from microscope.sae.backends.cpu import search
from microscope.sae.backends.cpu.product import Bfloat16Product, product
from microscope.sae.backends.cpu.rounding import rounded_rows
from microscope.sae.backends.error_bound import HALF_ULP, ErrorBound, rounded
from microscope.training.objectives.batchtopk import winners_of_batch

# latents and k that are searched block by block, and the last two that are not
SHAPES = [(512, 6), (4096, 32), (4097, 33), (500, 6), (96, 30), (31, 31)]


@pytest.fixture(params=["reference", *BACKENDS])
def backend(request, monkeypatch) -> Backend:
    """Each backend; the reference stands in for other devices by computing on the CPU."""
    chosen = BACKENDS.get(request.param, REFERENCE)
    monkeypatch.setitem(BACKENDS, "cpu", chosen)
    monkeypatch.setattr(cpu_backend, "MANY", 1)  # compiled from the first row on
    return chosen


def problem(latents: int, *, rows: int = 150, d: int = 48, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(latents)
    x = torch.randn(rows, d, generator=generator)
    weight = torch.randn(latents, d, generator=generator) * spread
    return x, weight, torch.randn(latents, generator=generator) * 0.1


def sets(rows: torch.Tensor, latents: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(rows.tolist(), latents.tolist(), strict=True))


@pytest.mark.parametrize(("latents", "k"), [*SHAPES, (16384, 64), (8192 + 64, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k_of_rows_is_exact(latents, k, dtype, backend):
    pre = torch.randn(87, latents, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, indices = backend.top_k(pre, k)
    assert values.dtype == dtype
    assert torch.equal(values.sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("fill", [0.0, -3.0])
def test_ties_give_distinct_latents(fill, backend):
    _, indices = backend.top_k(torch.full((70, 8192), fill), 16)
    assert all(len(set(row)) == 16 for row in indices.tolist())


@pytest.mark.parametrize(("latents", "k"), SHAPES)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_winners_of_rows_are_those_of_exact_arithmetic(latents, k, bfloat16, backend):
    x, weight, bias = problem(latents)
    values, indices = backend.winners_of_rows(x, weight, bias, k, bfloat16=bfloat16)
    exact = x.double() @ weight.double().T + bias.double()
    best = exact.topk(k, dim=1)
    assert torch.equal(indices.sort(1).values, best.indices.sort(1).values)
    torch.testing.assert_close(values.double(), exact.gather(1, indices), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latents", [512, 500])
def test_the_bfloat16_search_misses_no_winner_among_near_ties(latents, backend):
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
    _, indices = backend.winners_of_rows(x, weight, bias, 8, bfloat16=True)
    assert torch.equal(indices.sort(1).values, exact.sort(1).values)


@pytest.mark.parametrize("latents", [4096, 500])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("skewed", [False, True])
def test_winners_of_a_batch_are_exact_even_when_few_rows_win_everything(latents, bfloat16, skewed, backend):
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
    assert torch.equal(rounded_rows(x).values, x.bfloat16())
    x = torch.randn(600, 50)
    assert torch.equal(rounded_rows(x).values, rounded(x).values)
    torch.testing.assert_close(rounded_rows(x), rounded(x))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("rounded", [rounded, rounded_rows])
def test_the_error_of_a_bfloat16_product_is_within_its_bound(rounded, aligned):
    x, weight, bias = problem(512, d=300)
    if aligned:  # every number is rounded down by almost the most there is
        x, weight = torch.full_like(x, 1 + 0.99 * 2**-8), torch.full_like(weight, 1 + 0.99 * 2**-8)
    rounded_weight, rounded_x = rounded(weight), rounded(x)
    rough = Bfloat16Product(rounded_weight.values, bias, len(x))(rounded_x.values).double()
    exact = x.double() @ weight.double().T + bias.double()
    bound = ErrorBound(rounded_weight, bias)
    lost, norm = bound.of_rows(rounded_x)
    per_row = bound.at_most(lost, norm).double()[:, None]
    assert bool(((rough - exact).abs() <= per_row + HALF_ULP * rough.abs()).all())
    row, latent = (torch.from_numpy(a) for a in np.divmod(np.arange(rough.numel()), rough.shape[1]))
    of_pairs = bound.of_pairs(lost[row], norm[row], latent, rough.float().reshape(-1)).view_as(rough)
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
    backend = BACKENDS["cpu"]
    expected = backend.winners_of_rows(x, weight, bias, 32, bfloat16=True)
    monkeypatch.setattr("microscope.sae.backends.cpu.product.LAID_OUT_ROWS", 1)
    monkeypatch.setattr("microscope.sae.backends.cpu.product.LAID_OUT_NUMBERS", 1)
    laid_out = Bfloat16Product(narrow, bias, len(x))
    assert plain.laid_out is None
    assert laid_out.laid_out is not None
    torch.testing.assert_close(laid_out(x_narrow), plain(x_narrow), rtol=2**-7, atol=1e-3)
    got = backend.winners_of_rows(x, weight, bias, 32, bfloat16=True)
    assert torch.equal(got[1].sort(1).values, expected[1].sort(1).values)


def test_blocks_are_used_where_the_tests_above_mean_them_to_be():
    used = [search.block_count(latents, k) < latents for latents, k in SHAPES]
    assert used == [True, True, True, True, False, False]


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_backend_agrees_with_the_reference(name, dtype, ragged):
    """Decoding, dot products, the fit and all sums, on rows with none, one and many winners too."""
    backend, generator = BACKENDS[name], torch.Generator().manual_seed(1)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    x, target, base, weight = (
        torch.randn(n, 21, generator=generator, dtype=dtype) for n in (300, 300, 300, 40)
    )
    indices = torch.stack([torch.randperm(40, generator=generator)[:7] for _ in range(300)])
    winners = Winners.of_indices(indices)
    if ragged:
        chosen = torch.rand(2100, generator=generator) < 0.2
        winners = Winners.of_pairs(winners.row[chosen], winners.latent[chosen], 300)
    pairs = len(winners.row)
    active = torch.randn(pairs, generator=generator, dtype=dtype).relu()

    def same(found, expected) -> None:
        torch.testing.assert_close(found, expected, **close)

    if not ragged:
        values = active.view(300, 7)
        same(backend.decode(values, indices, weight), REFERENCE.decode(values, indices, weight))
    same(backend.decode_pairs(active, winners, weight), REFERENCE.decode_pairs(active, winners, weight))
    same(backend.dots(x, winners, weight), torch.einsum("pd,pd->p", x[winners.row], weight[winners.latent]))
    same(backend.dots(x, winners, weight), REFERENCE.dots(x, winners, weight))
    for flat in (base, base[0]):
        arguments = (active, winners, weight, flat, target)
        same(backend.fit(*arguments), REFERENCE.fit(*arguments))
    sums, expected = backend.sums(winners, 40), REFERENCE.sums(winners, 40)
    dense = torch.zeros(300, 40, dtype=dtype).index_put_((winners.row, winners.latent), active)
    same(expected.matrix(active, x), dense.T @ x)
    same(expected.vector(active), dense.sum(0))
    same(sums.matrix(active, x), expected.matrix(active, x))
    same(sums.vector(active), expected.vector(active))
    for first, last in ((0, 40), (7, 19)):
        out, wanted = (torch.ones(last - first, 21, dtype=dtype) for _ in range(2))
        sums.add(active, x, first, last, out)
        expected.add(active, x, first, last, wanted)
        same(out, wanted)


def test_the_device_of_a_tensor_chooses_the_backend():
    assert backend_for(torch.zeros(1)) is BACKENDS["cpu"]
    assert backend_for(torch.zeros(1, device="meta")) is REFERENCE


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
    threads, backend = torch.get_num_threads(), BACKENDS["cpu"]
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            found.append(backend.winners_of_rows(x, weight, bias, 32, bfloat16=True))
            assert torch.get_num_threads() == number
        finally:
            torch.set_num_threads(threads)
    for values, indices in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(indices, found[0][1])


def test_infinite_weights_are_passed_on_for_the_loop_to_report(backend):
    x, weight, bias = problem(512)
    weight[3] = float("nan")
    for bfloat16 in (False, True):
        values, _ = backend.winners_of_rows(x, weight, bias, 6, bfloat16=bfloat16)
        assert bool(values.isnan().any())
        _, values, _ = winners_of_batch(x, weight, bias, 6, bfloat16=bfloat16)
        assert bool(values.isnan().any())


@pytest.mark.parametrize("open_rows", [1, 5, 64])
def test_rows_that_leave_everything_open_are_decided_exactly(open_rows, backend):
    """Among rows with clear winners, some so short beside the bias that rounding decides nothing."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 24, generator=generator)
    rows[:open_rows] *= 1e-4
    weight, bias = torch.randn(512, 24, generator=generator), torch.full((512,), 1.0)
    values, indices = backend.winners_of_rows(rows, weight, bias, 4, bfloat16=True)
    exact = torch.addmm(bias, rows, weight.T)
    wanted = exact.topk(4, dim=1)
    assert torch.equal(indices.sort(1).values, wanted.indices.sort(1).values)
    assert torch.allclose(values.sort(1).values, wanted.values.sort(1).values, atol=1e-5)
