"""Hops 1, 2, …: from a number to the features of the SAEs below it, and from those on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import Account, Edge, Node
from microscope.params import Site
from microscope.params.provenance import MlpRule
from microscope.provenance.cuts import Cut, Explained
from microscope.provenance.gradients import Gradients, gradients, numbers_at_once
from microscope.provenance.passes import Frozen, PromptPass, order
from microscope.sae import SparseAutoencoder

# Sites at which gradients can be made to end: the stream behind a block, and what a half adds to it.
_CUTTABLE = ("resid_post", "attn_out", "mlp_out")
# An edge along the stream is the same direction found again from this cosine and this share of the edge on.
CARRY_COSINE, CARRY_DIRECT = 0.7, 0.7
# Rows of what an SAE leaves over that are shown of one number.
_ERRORS = 3


@dataclass(frozen=True)
class Parent:
    """An edge's upper end: where it is, and what it adds there ``[rows, width]`` at these positions."""

    node: Node
    leaf: Site
    positions: tuple[int, ...]
    contribution: Tensor
    direction: Tensor | None = None


@dataclass
class Hop:
    """What one backward pass found."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)


class Upstream:
    """The SAEs below a target, in one frozen pass.

    Args:
        held: the prompt.
        saes: by fingerprint; those whose output does not reach the target are left out.
        read: the target.
        special: which tokens are special, ``[positions]``.
        hops: how many levels will be asked for; where there are fewer SAEs, the tokens' embeddings are the last one.
        mlp: what is held of MLPs.

    Attributes:
        cuts: the SAEs that are used, lowest first.
        special: which tokens are special, ``[positions]``.

    Raises:
        MicroscopeError: ``bad_sae_site``, ``two_saes_at_a_site``, ``wrong_width`` or ``no_such_site``.
    """

    def __init__(
        self,
        held: PromptPass,
        saes: Mapping[str, SparseAutoencoder],
        read: Explained,
        special: Tensor,
        hops: int,
        mlp: MlpRule,
    ) -> None:
        self.held, self.special, self.mlp = held, special, mlp
        cuts: dict[Site, Cut] = {}
        for name, sae in saes.items():
            cut = Cut(name, sae, special)
            _check(held, cut)
            if not read.is_above(cut.writes):
                continue
            if cut.writes in cuts:
                raise MicroscopeError(
                    "two_saes_at_a_site", f"Two SAEs write {cut.writes}.", "Give one SAE for each site."
                )
            cuts[cut.writes] = cut
        self.cuts = sorted(cuts.values(), key=lambda cut: order(cut.writes))
        self._by_site = cuts
        self._top = read.site.layer
        self._embedding = hops > len(cuts) and self._top >= 0
        self.frozen: Frozen | None = None

    def run(self) -> Frozen:
        """The frozen pass; made when first asked for."""
        if self.frozen is None:
            first = 0
            if not self._embedding:
                lowest = self.cuts[0].writes
                first = lowest.layer + 1 if lowest.kind == "resid_post" else lowest.layer
            self.frozen = self.held.frozen(first, self._top, self._by_site, self.mlp)
        return self.frozen

    def cut_of(self, node: Node) -> Cut:
        """The SAE of a feature's node."""
        return next(cut for cut in self.cuts if cut.name == node.sae)

    def explained(self, node: Node) -> Explained:
        """A feature's node as a number to explain."""
        assert node.index is not None
        assert node.position is not None
        return self.cut_of(node).explained(node.id, node.index, node.position)

    def has_parents(self, e: Explained) -> bool:
        """Whether an SAE lies below a number, or the embedding as the last level."""
        if self._embedding:
            return e.site.layer >= 0
        return bool(self.cuts) and e.is_above(self.cuts[0].writes)

    def hop(self, explained: Sequence[Explained], number: int, shown: int) -> Hop:
        """The parents of some numbers: one backward pass, or several where gradients would take too much memory.

        Args:
            explained: the numbers.
            number: which hop this is, from 1.
            shown: features shown of each number.
        """
        hop = Hop()
        chosen = [e for e in explained if self.has_parents(e)]
        at_once = self._at_once()
        for first in range(0, len(chosen), at_once):
            for found in gradients(self.run(), chosen[first : first + at_once]):
                self._parents(found, number, shown, hop)
        return hop

    def _at_once(self) -> int:
        blocks = self.run().blocks.values()
        heads = max((b.attention.out.shape[1] for b in blocks if b.attention is not None), default=0)
        return numbers_at_once(len(blocks), len(self.held.tokens), heads, self.held.embedded.shape[1])

    # --- one number -----------------------------------------------------------------------------------

    def _parents(self, found: Gradients, number: int, shown: int, hop: Hop) -> None:
        e = found.explained
        parents: list[tuple[float, Parent]] = []
        features = errors = biases = absolute = absolute_errors = 0.0
        for site, gradient in found.at_leaf.items():
            if not bool(gradient.any()):
                continue
            cut = self._by_site.get(site)
            if cut is None:
                each = (gradient * self._stream(site)).sum(1)
                if site.layer < 0:
                    features += float(each.sum())
                    absolute += float(each.abs().sum())
                else:
                    errors += float(each.sum())
                    absolute_errors += float(each.abs().sum())
                count = shown if site.layer < 0 else _ERRORS
                parents += self._left_over(site, None, self._stream(site), each, number, count)
                continue
            shares = cut.shares(gradient)
            missed = (gradient * cut.error).sum(1)
            constant = float((gradient * cut.constant).sum())
            features += float(shares.sum())
            errors += float(missed.sum())
            biases += constant
            absolute += float(shares.abs().sum()) + abs(constant)
            absolute_errors += float(missed.abs().sum())
            parents += self._features(cut, shares, number, shown)
            parents += self._left_over(site, cut, cut.error, missed, number, _ERRORS)
            if constant:
                rows = tuple(range(len(cut.constant)))
                node = Node(
                    id=f"{site}:bias", kind="bias", layer=site.layer, site=str(site), sae=cut.name, hop=number
                )
                parents.append((constant, Parent(node, site, rows, cut.constant)))
        parents.sort(key=lambda pair: -abs(pair[0]))
        kept = _most(parents, shown)
        for share, parent in kept:
            hop.nodes.append(parent.node)
            hop.edges.append(self._edge(found, share, parent, number))
        hop.accounts.append(
            Account(
                node=e.node,
                value=e.value,
                constant=e.constant,
                features=features,
                errors=errors,
                biases=biases,
                modules=found.modules,
                shown=sum(share for share, _ in kept),
                absolute=absolute + absolute_errors + abs(found.modules),
                absolute_errors=absolute_errors,
                side=e.side,
            )
        )

    def _stream(self, site: Site) -> Tensor:
        """What passes at the bottom of the pass, where no SAE is, ``[positions, d]``."""
        return self.held.input_of(site.layer + 1)

    def _features(self, cut: Cut, shares: Tensor, number: int, shown: int) -> Iterator[tuple[float, Parent]]:
        site, width = cut.writes, shares.shape[1]
        best = shares.abs().flatten().topk(min(shown, shares.numel())).indices.tolist()
        for entry in best:
            position, place = divmod(entry, width)
            share = float(shares[position, place])
            if not share:
                continue
            index = int(cut.codes.indices[position, place])
            node = Node(
                id=f"{site}:{index}@{position}",
                kind="feature",
                layer=site.layer,
                position=position,
                site=str(site),
                sae=cut.name,
                index=index,
                hop=number,
                activation=float(cut.codes.values[position, place]),
                value=cut.explained("", index, position).value,
            )
            added = cut.contribution(index, position)
            yield share, Parent(node, site, (position,), added[None], cut.sae.W_dec[index].detach())

    def _left_over(
        self, site: Site, cut: Cut | None, rows: Tensor, shares: Tensor, number: int, count: int
    ) -> Iterator[tuple[float, Parent]]:
        """What no feature stands for, by position, or the embeddings of tokens: the largest."""
        embedding = site.layer < 0
        for position in shares.abs().topk(min(count, len(shares))).indices.tolist():
            if not float(shares[position]):
                continue
            node = Node(
                id=f"embedding@{position}" if embedding else f"{site}:error@{position}",
                kind="embedding" if embedding else "error",
                layer=site.layer,
                position=position,
                site="" if embedding else str(site),
                sae="" if cut is None else cut.name,
                hop=number,
            )
            yield float(shares[position]), Parent(node, site, (position,), rows[position][None])

    def _edge(self, found: Gradients, share: float, parent: Parent, number: int) -> Edge:
        e = found.explained
        parts = found.parts(parent.leaf, parent.positions, parent.contribution)
        return Edge(
            parent=parent.node.id,
            child=e.node,
            attribution=share,
            hop=number,
            parts=parts,
            side=e.side,
            carry=self._is_carry(e, share, parent, sum(p.attribution for p in parts if p.kind == "direct")),
        )

    def _is_carry(self, e: Explained, share: float, parent: Parent, direct: float) -> bool:
        """Whether the child is the parent's direction found again: same position, and not computed in between."""
        child = e.direction
        if parent.direction is None or child is None or parent.positions != (e.position,):
            return False
        if parent.direction.shape != child.shape:
            return False
        cosine = float(torch.cosine_similarity(parent.direction, child, dim=0))
        return cosine >= CARRY_COSINE and share > 0 and direct >= CARRY_DIRECT * share


def _check(held: PromptPass, cut: Cut) -> None:
    """Whether an SAE can be a place where gradients end."""
    n_layers = held.loaded.n_layers
    for site in (cut.reads, cut.writes):
        if not 0 <= site.layer < n_layers:
            raise MicroscopeError(
                "layer_out_of_range",
                f"An SAE is for {site}, and the model has {n_layers} layers.",
                "It belongs to another model.",
            )
        held.loaded.family.tap(site)  # raises where the model has no such site
    inside = cut.reads == cut.writes or (
        cut.writes.kind == "mlp_out"
        and (
            cut.reads == Site("resid_mid", cut.writes.layer)
            or cut.reads == Site("resid_post", cut.writes.layer - 1)
        )
    )
    if cut.writes.kind not in _CUTTABLE or not inside:
        raise MicroscopeError(
            "bad_sae_site",
            f"An SAE from {cut.reads} to {cut.writes} cannot be part of a graph.",
            "Use SAEs of resid_post, attn_out or mlp_out, or transcoders of one block's MLP.",
        )
    width = held.embedded.shape[1]
    cut.sae.check_width(held.embedded)
    if cut.sae.config.width_out != width:
        raise MicroscopeError(
            "wrong_width",
            f"The SAE at {cut.writes} writes {cut.sae.config.width_out} numbers, the stream has {width}.",
            "It belongs to another model.",
        )


def _most(parents: list[tuple[float, Parent]], shown: int) -> list[tuple[float, Parent]]:
    """The largest features or embeddings up to a number, with what lies between them of errors and constants."""
    kept, features = [], 0
    for share, parent in parents:
        if parent.node.kind in ("feature", "embedding"):
            if features == shown:
                continue
            features += 1
        elif features >= shown:
            continue
        kept.append((share, parent))
    return kept
