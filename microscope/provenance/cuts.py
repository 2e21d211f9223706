"""An SAE at its site in a frozen pass: the activation there as features, what they miss, and a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microscope.graphs import Side
from microscope.params import Site
from microscope.provenance.passes import order
from microscope.sae import Codes, SparseAutoencoder

# Bytes of decoder directions that are gathered at once, unless those of one row take more.
GATHERED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Explained:
    """A number of a frozen pass that is to be explained: ``value = vector·activation + constant``.

    The activation is that at ``site`` and ``position``; ``vector`` is as wide as it. ``side`` tells the two ends of
    an attention score apart; ``direction`` is what a feature writes. ``behind`` numbers read what passes on where an
    SAE stands at their own site, so that its features are parents; a feature reads in front of its own SAE.
    """

    node: str
    site: Site
    position: int
    vector: Tensor
    value: float
    constant: float
    side: Side = ""
    direction: Tensor | None = None
    behind: bool = False

    def is_above(self, written: Site) -> bool:
        """Whether what an SAE writes at a site can reach this number."""
        return order(written) < order(self.site) or (self.behind and written == self.site)


@dataclass
class Cut:
    """An SAE or transcoder where it writes: gradients end here, and its latents are nodes.

    The activation ``y`` there is ``Σ f·gain·W_dec + constant + error [+ skip]``, exactly: the error is what is left
    over. Rows that the SAE's token filter leaves out have no features, all of them is error.

    Args:
        name: the SAE's fingerprint.
        special: which tokens are special, ``[positions]``.
        codes: activations of all rows, zero where filtered.
        kept: rows that the token filter keeps, ``[positions]``.
        gain: what one unit of decoded output is worth, ``[positions, 1]``.
        error, constant: ``[positions, d_out]`` each.
        x: what the SAE reads, ``[positions, d_in]``.
    """

    name: str
    sae: SparseAutoencoder
    special: Tensor
    codes: Codes = field(init=False)
    kept: Tensor = field(init=False)
    gain: Tensor = field(init=False)
    error: Tensor = field(init=False)
    constant: Tensor = field(init=False)
    x: Tensor = field(init=False)

    @property
    def reads(self) -> Site:
        """Where its encoder reads."""
        return Site.parse(self.sae.config.site)

    @property
    def writes(self) -> Site:
        """Where its decoder writes, and gradients end."""
        return Site.parse(self.sae.config.site_out or self.sae.config.site)

    def __call__(self, y: Tensor, sites: Mapping[Site, Tensor]) -> Tensor:
        """Take the activations of a pass, and return what passes on: a leaf, with a skip path in front of it."""
        x = sites[self.reads][0]
        skip = self.sae.skipped(x)
        with torch.no_grad():
            self.fill(x.detach(), y[0].detach())
        if skip is None:
            return y.detach().clone().requires_grad_()
        leaf = (y[0] - skip).detach().requires_grad_()
        return (leaf + skip)[None]

    def fill(self, x: Tensor, y: Tensor) -> None:
        """Take what the SAE reads ``[positions, d_in]`` and what passes where it writes ``[positions, d_out]``."""
        self.x, skip = x, self.sae.skipped(x)
        kept = self.sae.config.token_filter.keep(self.special, x.norm(dim=1))
        codes = self.sae.encode(x)
        self.kept, self.codes = kept, codes._replace(values=codes.values * kept[:, None])
        self.gain = self.sae.output_gain(x)
        none = Codes(
            torch.zeros(len(x), 1, device=x.device), torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        )
        shown = self.sae.decode(self.codes, x)
        constant = self.sae.decode(none, x)
        if skip is not None:
            shown, constant = shown - skip, constant - skip
            y = y - skip
        self.constant = constant * kept[:, None]
        self.error = y - shown * kept[:, None]

    def shares(self, gradient: Tensor) -> Tensor:
        """What each entry of the codes contributes, for a gradient ``[positions, d_out]``: ``[positions, width]``."""
        found = torch.empty_like(self.codes.values)
        # Rows of untypical size may fire thousands of latents, and all rows of codes are as wide as the widest.
        row = 4 * found.shape[1] * gradient.shape[1]
        at_once = max(1, GATHERED_BYTES // row)
        for rows in torch.arange(len(gradient), device=gradient.device).split(at_once):
            directions = self.sae.W_dec.detach()[self.codes.indices[rows]]
            found[rows] = (directions @ gradient[rows, :, None])[..., 0]
        return found * self.codes.values * self.gain

    def contribution(self, index: int, position: int) -> Tensor:
        """What a feature adds at a position, ``[d_out]``."""
        entries = self.codes.indices[position] == index
        value = (self.codes.values[position] * entries).sum()
        return value * self.gain[position] * self.sae.W_dec[index].detach()

    def activation(self, index: int, position: int) -> float:
        """A feature's activation."""
        return float((self.codes.values[position] * (self.codes.indices[position] == index)).sum())

    def explained(self, node: str, index: int, position: int) -> Explained:
        """A feature's pre-activation, to be explained."""
        return feature_explained(node, self.sae, self.x[position], index, position)


def feature_explained(node: str, sae: SparseAutoencoder, row: Tensor, index: int, position: int) -> Explained:
    """A feature's pre-activation on the row ``[d_in]`` that its SAE reads at a position, to be explained."""
    vector, constant = sae.reading(row, index)
    value = float(vector @ row + constant)
    return Explained(
        node,
        Site.parse(sae.config.site),
        position,
        vector,
        value,
        float(constant),
        direction=sae.W_dec[index].detach(),
    )
