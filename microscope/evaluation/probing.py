"""k-sparse probing: how well a handful of latents tells simple properties of the text.

For each property the k latents whose means differ most between its two classes (in units of their
standard deviation) are chosen on training documents, and a logistic regression on them is scored on
other documents; a regression on the raw activations is the ceiling it is compared with (Gurnee et al.,
arXiv 2305.01610).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COUNTS = (1, 5, 16)
_FEWEST = 50  # of either class, in either half
_RIDGE, _STEPS = 1e-3, 50


class ProbeTask(msgspec.Struct, kw_only=True, frozen=True):
    """One property: share of tokens that have it, and the AUROC on held-back documents by number of latents."""

    name: str
    positive_share: float
    auroc: dict[int, float]
    auroc_dense: float
    latents: list[int]


class Probing(msgspec.Struct, kw_only=True, frozen=True):
    """Means over the tasks; ``tokens`` were used, half of the documents to choose and fit."""

    tokens: int
    tasks: list[ProbeTask]
    auroc: dict[int, float]
    auroc_dense: float


_PROPERTIES: dict[str, Callable[[str], bool]] = {
    "capitalised": lambda t: t.strip()[:1].isupper(),
    "a number": lambda t: t.strip().isdigit(),
    "punctuation": lambda t: bool(t.strip()) and not any(c.isalnum() for c in t),
    "a new word": lambda t: t[:1].isspace(),
    "a line break": lambda t: "\n" in t,
}


def text_properties(
    windows: list[np.ndarray], read: Callable[[Sequence[int]], list[str]]
) -> dict[str, np.ndarray]:
    """Properties of the token, of the one before and of the one after, and whether a quotation is open.

    Args:
        windows: token ids of whole contexts.
        read: what each of consecutive tokens adds to their text.

    Returns:
        By name, for all tokens in a row: 1 or 0, −1 where it is not defined (beyond a context's end).
    """
    columns: dict[str, list[np.ndarray]] = {}
    for window in windows:
        words = read(window.tolist())
        for name, holds in _PROPERTIES.items():
            own = np.array([holds(w) for w in words], np.int8)
            columns.setdefault(f"the token is {name}", []).append(own)
            columns.setdefault(f"the next token is {name}", []).append(np.append(own[1:], -1).astype(np.int8))
            before = np.append(-1, own[:-1]).astype(np.int8)
            columns.setdefault(f"the token before is {name}", []).append(before)
        quotes = np.cumsum([w.count('"') + w.count("“") - w.count("”") for w in words]) % 2
        columns.setdefault("inside a quotation", []).append(quotes.astype(np.int8))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def probe(
    values: Tensor, indices: Tensor, x: Tensor, labels: dict[str, np.ndarray], doc: np.ndarray, n_latents: int
) -> Probing | None:
    """Probe for every property that is frequent enough; None when none is.

    Args:
        values, indices: sparse codes ``[tokens, width]``.
        x: raw activations ``[tokens, d]``.
        labels: as of :func:`text_properties`, ``[tokens]`` each.
        doc: document of each token; alternate documents fit and score.
        n_latents: how many latents there are.
    """
    number = np.unique(doc, return_inverse=True)[1]
    fits = torch.from_numpy(number % 2 == 0)
    sigma = x[fits].std(0).clamp_min(1e-6)
    dense = (x - x[fits].mean(0)) / sigma
    tasks = []
    for name, column in labels.items():
        label = torch.from_numpy(column)
        known = label >= 0
        train, test = known & fits, known & ~fits
        if min(int((label[part] == side).sum()) for part in (train, test) for side in (0, 1)) < _FEWEST:
            continue
        order = _most_different(values[train], indices[train], label[train], n_latents)
        found = order[: max(COUNTS)]
        columns = _columns(values, indices, found, n_latents)
        tasks.append(
            ProbeTask(
                name=name,
                positive_share=float((label[known] == 1).double().mean()),
                auroc={k: _score(columns[:, :k], label, train, test) for k in COUNTS if k <= len(found)},
                auroc_dense=_score(dense, label, train, test),
                latents=found[: COUNTS[1]].tolist(),
            )
        )
    if not tasks:
        return None
    return Probing(
        tokens=len(x),
        tasks=tasks,
        auroc={k: float(np.mean([t.auroc[k] for t in tasks])) for k in tasks[0].auroc},
        auroc_dense=float(np.mean([t.auroc_dense for t in tasks])),
    )


def _most_different(values: Tensor, indices: Tensor, label: Tensor, n_latents: int) -> Tensor:
    """Latents by |difference of class means| over their standard deviation, the largest first."""
    flat, weight = indices.flatten(), values.flatten().double()
    side = (label == 1).repeat_interleave(values.shape[1])
    zero = torch.zeros(n_latents, dtype=torch.float64)
    total, squares = zero.index_add(0, flat, weight), zero.index_add(0, flat, weight.square())
    positive = zero.index_add(0, flat[side], weight[side])
    n, n_positive = len(label), int((label == 1).sum())
    gap = positive / n_positive - (total - positive) / (n - n_positive)
    spread = (squares / n - (total / n).square()).clamp_min(1e-12).sqrt()
    return (gap.abs() / (spread + 1e-6)).argsort(descending=True)


def _columns(values: Tensor, indices: Tensor, latents: Tensor, n_latents: int) -> Tensor:
    """Dense activations ``[tokens, chosen]`` of a few latents."""
    column = torch.full((n_latents,), -1)
    column[latents] = torch.arange(len(latents))
    where = column[indices]
    out = torch.zeros(len(values), len(latents) + 1)
    out.scatter_add_(1, torch.where(where < 0, len(latents), where), values)
    return out[:, :-1]


def _score(x: Tensor, label: Tensor, train: Tensor, test: Tensor) -> float:
    """AUROC on ``test`` of a ridge logistic regression fitted on ``train``, classes weighted equally."""
    mean, sigma = x[train].mean(0), x[train].std(0).clamp_min(1e-6)
    x = ((x - mean) / sigma).double()
    y = (label == 1).double()
    share = y[train].mean()
    balance = torch.where(y[train] == 1, 0.5 / share, 0.5 / (1 - share))
    weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=_STEPS, line_search_fn="strong_wolfe")
    inputs, target = x[train], y[train]

    def closure() -> Any:
        optimiser.zero_grad()
        logits = inputs @ weight[:-1] + weight[-1]
        loss = F.binary_cross_entropy_with_logits(logits, target, weight=balance)
        loss = loss + _RIDGE * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return auroc((x[test] @ weight.detach()[:-1]).numpy(), y[test].numpy() == 1)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))
