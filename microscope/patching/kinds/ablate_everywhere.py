"""``ablate_everywhere``: y − (d̂·y)·d̂ for the embedding and for all y that blocks add to the stream.

Several of them remove the span of their directions. As weights: every matrix that writes to the stream is
projected, ``W' = P·W``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microscope.errors import MicroscopeError
from microscope.params.sites import Site
from microscope.params.targets import NO_CONSTANT, not_possible
from microscope.patching.mechanisms import WritersKind

if TYPE_CHECKING:
    from torch import Tensor

    from microscope.params import Edit, ExportTarget, ModelTraits
    from microscope.params.targets import Judged, WeightForm
    from microscope.sae import SparseAutoencoder


class AblateEverywhere(WritersKind, frozen=True):
    """Removes a feature's direction from everything that is written to the stream."""

    def identity(self, edit: Edit) -> dict[str, Any]:
        """The feature and the site its SAE reads."""
        return {"site": edit.site, "feature": edit.feature}

    def direction(self, edit: Edit, sae: SparseAutoencoder) -> Tensor:
        """The unit direction a feature writes, ``[d]`` in float32."""
        row = sae.decoder_direction(edit.index).float()
        return row / row.norm()

    def form_in(self, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """A projection of what is written."""
        return "everywhere"

    def judge(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
        """Exact wherever what is written can be projected."""
        if target == "control_vector":
            return NO_CONSTANT
        if target == "gguf_lora":
            return not_possible(
                "It needs an adapter on the embedding, which llama.cpp handles apart.",
                "Merge first, then convert the merged checkpoint.",
            )
        obstacles = traits.obstacles
        if obstacles.projection:
            return not_possible(obstacles.projection, "The runtime bundle is exact.")
        if target == "merged":
            untied = " The embedding is untied from the head first." if traits.tied else ""
            return "exact", f"Every module that writes to the stream is projected.{untied}", ""
        if obstacles.adapted_projection:
            return not_possible(obstacles.adapted_projection, "Use the merged checkpoint.")
        return (
            "exact",
            "Every module that writes to the stream has a rank-one adapter, the embedding too.",
            "vLLM refuses adapters on embeddings of some families; the merged checkpoint loads there.",
        )

    def _wrong_site(self, site: Site, number: int) -> MicroscopeError:
        return MicroscopeError(
            "site_not_editable",
            f"Edit {number}'s feature lives at {site}, which is not in the space of the residual stream.",
        )


KIND = AblateEverywhere(
    name="ablate_everywhere",
    title="Ablate everywhere",
    description="removes the direction from the embedding and from all that blocks write, as changed weights would",
    formula="y − (d̂·y)·d̂ for the embedding and all y that blocks add",
    sentence="remove the direction of {target} from everything blocks write",
    refers_to="feature",
    order=70,
)
