"""The largest entries of rows.

Floating-point numbers are compared as the integers that order like them ("keys"), so that a rank is found by
halving the range of integers and counting. A row is first cut into blocks of strided columns: the k-th largest
block maximum is a lower bound of the k-th largest entry and hardly below it, so that one more comparison leaves
a few dozen candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from microscope.sae.backends.cpu.compiled import compiled
from microscope.sae.backends.cpu.product import Bfloat16Product, product
from microscope.sae.backends.cpu.rounding import rounded_rows
from microscope.sae.backends.error_bound import HALF_ULP, ErrorBound
from microscope.threads import in_pieces

# Rows that are looked at while they are in the cache, at most, and about how many entries.
_PIECE_ROWS, _PIECE = 256, 2**21
_HALF_ULP = np.float32(HALF_ULP)
_INFINITE_16, _INFINITE_32 = np.int16(0x7F80), np.int32(0x7F800000)


class Entries(NamedTuple):
    """Entries of a matrix, ordered by row: each array is ``[pairs]``."""

    row: np.ndarray
    latent: np.ndarray
    value: np.ndarray

    def where(self, chosen: np.ndarray) -> Entries:
        """Some of them, by mask."""
        return Entries(self.row[chosen], self.latent[chosen], self.value[chosen])


def piece_rows(latents: int) -> int:
    """How many rows of so many entries are looked at together."""
    return max(16, min(_PIECE_ROWS, _PIECE // latents))


def best_of_rows(centred: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k largest of ``centred·weightᵀ + bias`` per row, computed piece by piece in float32.

    Returns:
        Values and latents ``[rows, k]`` in no particular order; None if something is not finite.
    """
    values, latents = _empty(len(centred), k)

    def piece(first: int, last: int) -> bool:
        pre = product(centred[first:last], weight, bias)
        return _best_of_exact(*_with_bits(pre), k, values[first:last], latents[first:last])

    fine = all(in_pieces(piece, len(centred), piece_rows(len(weight))))
    return (torch.from_numpy(values), torch.from_numpy(latents)) if fine else None


def best_of_matrix(pre: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The same of the rows of a float32 matrix ``[rows, latents]``."""
    values, latents = _empty(len(pre), k)

    def piece(first: int, last: int) -> bool:
        return _best_of_exact(*_with_bits(pre[first:last]), k, values[first:last], latents[first:last])

    fine = all(in_pieces(piece, len(pre), piece_rows(pre.shape[1])))
    return (torch.from_numpy(values), torch.from_numpy(latents)) if fine else None


def best_of_rounded_rows(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, rough: Bfloat16Product, bound: ErrorBound
) -> tuple[Tensor, Tensor] | None:
    """As :func:`best_of_rows`, looked for in a bfloat16 product and decided in float32."""
    values, latents = _empty(len(centred), k)
    exact = (weight.detach().contiguous().numpy(), bias.detach().numpy())
    of_latents = (bound.weight.numpy(), bound.weight_lost.numpy(), bound.bias_lost.numpy())

    def piece(first: int, last: int) -> bool:
        x = rounded_rows(centred[first:last])
        lost, norm = bound.of_rows(x)
        slack = 2 * bound.at_most(lost, norm)
        return _best_of_rounded(
            rough(x.values).view(torch.int16).numpy(),
            k,
            centred[first:last].numpy(),
            *exact,
            slack.numpy(),
            lost.numpy(),
            norm.numpy(),
            *of_latents,
            values[first:last],
            latents[first:last],
        )

    fine = all(in_pieces(piece, len(centred), piece_rows(len(weight))))
    return (torch.from_numpy(values), torch.from_numpy(latents)) if fine else None


def block_maxima(pre: Tensor, k: int) -> np.ndarray | None:
    """At least 2k entries per row among which are the largest: float32 ``[rows, blocks]``; None if not finite.

    ``pre`` is float32 or bfloat16 ``[rows, latents]``.
    """
    bits = pre.view(torch.int16 if pre.dtype == torch.bfloat16 else torch.int32).numpy()
    maxima = np.empty((len(pre), block_count(pre.shape[1], k)), bits.dtype)
    infinite = _INFINITE_16 if bits.dtype == np.int16 else _INFINITE_32

    def piece(first: int, last: int) -> bool:
        return _block_maxima(bits[first:last], maxima[first:last], infinite)

    if not all(in_pieces(piece, len(pre), piece_rows(pre.shape[1]))):
        return None
    return _floats(maxima)


def reaching(pre: Tensor, cut: np.ndarray) -> Entries:
    """All entries of a float32 or bfloat16 matrix that reach their row's cut, float32 ``[rows]``."""
    narrow = pre.dtype == torch.bfloat16
    bits = pre.view(torch.int16 if narrow else torch.int32).numpy()
    keys = _keys(cut)
    if narrow:
        keys = _just_below(keys)

    def piece(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = _count_reaching(bits[first:last], keys[first:last])
        latent, found = _collect(bits[first:last], keys[first:last], int(counts.sum()))
        return np.repeat(np.arange(first, last), counts), latent, found

    columns = zip(*in_pieces(piece, len(pre), piece_rows(pre.shape[1])), strict=True)
    row, latent, found = (np.concatenate(column) for column in columns)
    return Entries(row, latent, _floats(found))


def _empty(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((rows, k), np.float32), np.empty((rows, k), np.int64)


def _with_bits(pre: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = pre.numpy()
    return values, values.view(np.int32)


def _keys(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _just_below(keys: np.ndarray) -> np.ndarray:
    """Keys of bfloat16 numbers that are not above these float32 ones."""
    return (keys >> 16).astype(np.int16)


def _floats(keys: np.ndarray) -> np.ndarray:
    """The float32 numbers of keys of either width."""
    if keys.dtype == np.int16:
        wide = keys.astype(np.int32)
        return ((wide ^ ((wide >> 15) & np.int32(0x7FFF))) << 16).view(np.float32)
    return (keys ^ ((keys >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)


# --- compiled -----------------------------------------------------------------------------------------


@compiled
def block_count(latents, k):
    """Into how many blocks a row is cut: as many as its entries if it is too narrow to gain from it."""
    wanted = (max(4 * k, latents // 64) + 31) // 32 * 32
    return wanted if 2 * wanted <= latents else latents


@compiled
def _ordered(bits, keys):
    """Keys of one row's numbers of either width, given as their bits."""
    shift, mask = (15, 0x7FFF) if bits.itemsize == 2 else (31, 0x7FFFFFFF)
    for i in range(len(bits)):
        keys[i] = bits[i] ^ ((bits[i] >> shift) & mask)


@compiled
def _kth(keys, count, k):
    """The k-th largest of the first ``count`` keys."""
    low = -(1 << (8 * keys.itemsize - 1))
    high = -(low + 1)
    while low < high:
        middle = (low + high + 1) >> 1
        limit = keys.dtype.type(middle)
        reach = np.int32(0)
        for i in range(count):
            reach += np.int32(keys[i] >= limit)
        if reach >= k:
            low = middle
        else:
            high = middle - 1
    return keys.dtype.type(low)


@compiled
def _maxima(keys, maxima):
    """The largest of each block of strided columns."""
    blocks = len(maxima)
    for b in range(blocks):
        maxima[b] = keys[b]
    strips = len(keys) // blocks
    for s in range(1, strips):
        strip = keys[s * blocks : (s + 1) * blocks]
        for b in range(blocks):
            maxima[b] = max(maxima[b], strip[b])
    rest = keys[strips * blocks :]
    for b in range(len(rest)):
        maxima[b] = max(maxima[b], rest[b])


@compiled
def _reaching(keys, limit, reached, positions):
    """Where keys reach a limit; how many there are. ``reached`` is room for a flag per key and seven more."""
    n = len(keys)
    for i in range(n):
        reached[i] = keys[i] >= limit
    found = np.int64(0)
    eights = reached.view(np.int64)
    for e in range(len(eights)):
        if eights[e] != 0:
            for i in range(8 * e, min(8 * e + 8, n)):
                positions[found] = i
                found += np.int64(reached[i])
    return found


@compiled
def _dots(x, weight, bias, latents, count, out):
    """``x·weight[latent] + bias[latent]`` of some latents; four rows at a time hide the latency of memory."""
    d = len(x)
    zero = x.dtype.type(0)
    for p in range(0, count - 3, 4):
        a, b, c, e = (
            weight[latents[p]],
            weight[latents[p + 1]],
            weight[latents[p + 2]],
            weight[latents[p + 3]],
        )
        sa, sb, sc, se = zero, zero, zero, zero
        for j in range(d):
            sa += x[j] * a[j]
            sb += x[j] * b[j]
            sc += x[j] * c[j]
            se += x[j] * e[j]
        out[p], out[p + 1], out[p + 2], out[p + 3] = sa, sb, sc, se
    for p in range(count - count % 4, count):
        a = weight[latents[p]]
        sa = zero
        for j in range(d):
            sa += x[j] * a[j]
        out[p] = sa
    for p in range(count):
        out[p] += bias[latents[p]]


@compiled
def _emit(found, keys, where, count, k, values, latents):
    """The k largest of the candidates; of equal ones the first."""
    _ordered(found[:count].view(np.int32), keys)
    limit = _kth(keys, count, k)
    done = 0
    for i in range(count):
        if keys[i] > limit:
            values[done], latents[done] = found[i], where[i]
            done += 1
    for i in range(count):
        if done < k and keys[i] == limit:
            values[done], latents[done] = found[i], where[i]
            done += 1


@compiled
def _lower_bound(keys, k, maxima):
    """A key that at least k of a row's reach, and hardly more."""
    if len(maxima) == len(keys):
        return _kth(keys, len(keys), k)
    _maxima(keys, maxima)
    return _kth(maxima, len(maxima), k)


@compiled
def _best_of_exact(pre, bits, k, values, latents):
    rows, n = pre.shape
    keys, reached = np.empty(n, np.int32), np.zeros(n + 8, np.uint8)
    maxima, where = np.empty(block_count(n, k), np.int32), np.empty(n + 8, np.int32)
    found, some = np.empty(n, np.float32), np.empty(n, np.int32)
    flags = reached[: (n + 7) // 8 * 8]
    for r in range(rows):
        strange = np.int32(0)
        for i in range(n):
            strange |= np.int32((bits[r, i] & 0x7F800000) == 0x7F800000)
        if strange:
            return False
        _ordered(bits[r], keys)
        count = _reaching(keys, _lower_bound(keys, k, maxima), flags, where)
        for i in range(count):
            found[i] = pre[r, where[i]]
        _emit(found, some, where, count, k, values[r], latents[r])
    return True


@compiled
def _best_of_rounded(
    bits, k, x, weight, bias, slack, x_lost, x_norm, w_norm, w_lost, b_lost, values, latents
):
    """The k largest of float32 products whose bfloat16 rounding is given.

    What can win lies less than the slack below the rounded k-th. Of those, the k best by the rounded value are
    computed first: the smallest of them bounds from below what wins, and of the others only those are computed
    whose error bound reaches up to there.
    """
    rows, n = bits.shape
    keys, reached = np.empty(n, np.int16), np.zeros(n + 8, np.uint8)
    maxima, where = np.empty(block_count(n, k), np.int16), np.empty(n + 8, np.int32)
    rough, some = np.empty(n, np.int16), np.empty(n, np.int32)
    likely, others = np.empty(n, np.int32), np.empty(n, np.int32)
    found = np.empty(n, np.float32)
    word = np.empty(1, np.int32)
    number = word.view(np.float32)
    flags = reached[: (n + 7) // 8 * 8]
    for r in range(rows):
        _ordered(bits[r], keys)
        key = np.int32(_lower_bound(keys, k, maxima))
        word[0] = (key ^ ((key >> 15) & 0x7FFF)) << 16
        cut = number[0]
        if not np.isfinite(cut) or not np.isfinite(slack[r]):
            return False
        # lowered so far that no entry misses it whose exact value reaches the exact cut
        lower = cut - _HALF_ULP * abs(cut) - slack[r]
        number[0] = lower - _HALF_ULP * abs(lower)
        limit = np.int16((word[0] ^ ((word[0] >> 31) & 0x7FFFFFFF)) >> 16)
        count = _reaching(keys, limit, flags, where)
        for i in range(count):
            rough[i] = keys[where[i]]
        best = _kth(rough, count, k)
        first, second = 0, 0
        for i in range(count):
            if rough[i] >= best:
                likely[first] = where[i]
                first += 1
            else:
                others[second] = where[i]
                second += 1
        _dots(x[r], weight, bias, likely, first, found)
        lowest = found[0]
        for i in range(first):
            lowest = min(lowest, found[i])
        extra = 0
        for i in range(second):
            at = others[i]
            key = np.int32(keys[at])
            word[0] = (key ^ ((key >> 15) & 0x7FFF)) << 16
            value = number[0]
            error = x_lost[r] * w_norm[at] + x_norm[r] * w_lost[at] + b_lost[at] + _HALF_ULP * abs(value)
            if value + error >= lowest:
                others[extra] = at
                extra += 1
        _dots(x[r], weight, bias, others, extra, found[first:])
        likely[first : first + extra] = others[:extra]
        _emit(found, some, likely, first + extra, k, values[r], latents[r])
    return True


@compiled
def _block_maxima(bits, maxima, infinite):
    rows, n = bits.shape
    keys = np.empty(n, bits.dtype)
    for r in range(rows):
        strange = np.int32(0)
        for i in range(n):
            strange |= np.int32((bits[r, i] & infinite) == infinite)
        if strange:
            return False
        _ordered(bits[r], keys)
        if maxima.shape[1] == n:
            maxima[r] = keys
        else:
            _maxima(keys, maxima[r])
    return True


@compiled
def _count_reaching(bits, limits):
    rows, n = bits.shape
    keys = np.empty(n, bits.dtype)
    counts = np.zeros(rows, np.int64)
    for r in range(rows):
        _ordered(bits[r], keys)
        reach = np.int32(0)
        for i in range(n):
            reach += np.int32(keys[i] >= limits[r])
        counts[r] = reach
    return counts


@compiled
def _collect(bits, limits, total):
    rows, n = bits.shape
    keys, reached = np.empty(n, bits.dtype), np.zeros(n + 8, np.uint8)
    flags, where = reached[: (n + 7) // 8 * 8], np.empty(n + 8, np.int32)
    latents, found = np.empty(total, np.int64), np.empty(total, bits.dtype)
    done = 0
    for r in range(rows):
        _ordered(bits[r], keys)
        count = _reaching(keys, limits[r], flags, where)
        for i in range(count):
            latents[done + i] = where[i]
            found[done + i] = keys[where[i]]
        done += count
    return latents, found
