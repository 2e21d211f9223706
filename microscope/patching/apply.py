"""What an edit plan does to the residual stream at one site.

All edits of a site read the same unpatched stream, so their order is irrelevant, and their deltas are
summed in float32 and cast once. A row on which nothing happens is returned bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.params import Edit, EditPlan, Site, kind_of
from microscope.patching.mechanisms import StreamKind
from microscope.sae import Codes, SparseAutoencoder

Saes = Mapping[str, SparseAutoencoder]


@dataclass(frozen=True)
class EditEffect:
    """What one edit did: the L2 norm of its change at each row ``[rows]``, from position ``start`` on."""

    edit: Edit
    sizes: Tensor
    start: int = 0

    @property
    def positions(self) -> tuple[int, ...]:
        """Where it changed something."""
        return tuple((self.sizes.nonzero()[:, 0] + self.start).tolist())

    @property
    def max_delta(self) -> float:
        """The largest change."""
        return float(self.sizes.max()) if len(self.sizes) else 0.0


@dataclass(frozen=True)
class SiteEdits:
    """The active edits of one plan at one block."""

    layer: int
    edits: tuple[Edit, ...]
    kinds: tuple[StreamKind, ...]

    def delta(
        self,
        x: Tensor,
        saes: Saes,
        special: Tensor,
        start: int = 0,
        *,
        prompt: int | None = None,
        codes: Mapping[str, Codes] | None = None,
    ) -> tuple[Tensor | None, list[EditEffect]]:
        """The change to the stream.

        Args:
            x: unpatched residual stream ``[positions, d]`` after this block.
            saes: autoencoders by fingerprint.
            special: True for special tokens, ``[positions]``.
            start: absolute position of the first row of ``x``.
            prompt: length of the prompt, behind which positions are generated; None when all are prompt.
            codes: what autoencoders encode ``x`` to, where that is known already.

        Returns:
            Delta ``[positions, d]`` in float32, None when no row changes, and one effect per edit.

        Raises:
            MicroscopeError: ``sae_not_attached``, ``no_such_feature`` or ``wrong_width``.
        """
        stream = x.float()
        norms = stream.norm(dim=1)
        known = codes or {}
        total: Tensor | None = None
        effects = []
        for edit, kind in zip(self.edits, self.kinds, strict=True):
            sae = find_sae(saes, edit)
            sae.check_width(x)
            keep = _mask(edit, sae, norms, special, start, start + len(x) if prompt is None else prompt)
            delta = kind.delta(edit, sae, stream, known.get(edit.sae_needed))
            delta = torch.where(keep[:, None], delta, 0.0)  # also where an absurd strength made infinity
            effects.append(EditEffect(edit, delta.norm(dim=1), start))
            if bool(effects[-1].sizes.any()):
                total = delta if total is None else total + delta
        return total, effects

    def encoding(self, saes: Saes) -> set[str]:
        """SAEs whose activations are worth caching: an edit here computes all of them."""
        return {
            edit.sae_needed
            for edit, kind in zip(self.edits, self.kinds, strict=True)
            if kind.encodes(find_sae(saes, edit))
        }


def edits_by_layer(plan: EditPlan) -> dict[int, SiteEdits]:
    """The edits that can change something, grouped by block, lowest first."""
    found: dict[int, list[tuple[Edit, StreamKind]]] = {}
    for edit in plan.active():
        kind = kind_of(edit)
        if isinstance(kind, StreamKind):
            found.setdefault(Site.parse(edit.site).layer, []).append((edit, kind))
    return {
        layer: SiteEdits(layer, tuple(e for e, _ in found[layer]), tuple(k for _, k in found[layer]))
        for layer in sorted(found)
    }


def find_sae(saes: Saes, edit: Edit) -> SparseAutoencoder:
    """The autoencoder an edit refers to; it must read and write the edited site.

    Raises:
        MicroscopeError: ``sae_not_attached``, ``wrong_site``, ``transcoder_not_editable`` or
            ``no_such_feature``.
    """
    sae = saes.get(edit.sae_needed)
    if sae is None:
        raise MicroscopeError(
            "sae_not_attached",
            f"The SAE {edit.sae_needed[:12]} is not attached to this model.",
            "Attach it first.",
        )
    if sae.config.site != edit.site:
        what = f"Feature {edit.index} lives" if edit.feature else "This SAE reads"
        raise MicroscopeError("wrong_site", f"{what} at {sae.config.site}, the edit is at {edit.site}.")
    if sae.config.is_transcoder:
        raise MicroscopeError(
            "transcoder_not_editable",
            "This is a transcoder: what its features read and what they write are different sites.",
            "Use an SAE of the residual stream.",
        )
    if edit.feature is not None:
        sae.check_feature(edit.feature.index)
    return sae


def feature_values(codes: Codes, index: int) -> Tensor:
    """Activation of one feature on every row, ``[rows]``."""
    return (codes.values * (codes.indices == index)).sum(1)


def _mask(
    edit: Edit, sae: SparseAutoencoder, norms: Tensor, special: Tensor, start: int, prompt: int
) -> Tensor:
    """True where the edit may act."""
    rows, where = len(norms), edit.positions
    position = torch.arange(start, start + rows, device=norms.device)
    if where.mode == "from":
        keep = position >= where.start
    elif where.mode == "generated":
        keep = position >= prompt
    elif where.mode == "set":
        keep = torch.isin(position, torch.tensor(where.indices, dtype=position.dtype, device=position.device))
    else:
        keep = torch.ones_like(position, dtype=torch.bool)
    if not where.include_sinks:
        keep &= ~special
        if sae.config.token_filter.max_norm is not None:
            keep &= norms <= sae.config.token_filter.max_norm
    return keep


def check_references(plan: EditPlan, saes: Saes) -> None:
    """Raises what :func:`find_sae` raises, before anything is computed."""
    for edit in plan.active():
        if edit.sae_needed:
            find_sae(saes, edit)
