"""``add``: x + c·d̂, with c the strength in units. A constant, which some targets hold exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.params.edit_kinds import Slider
from microscope.params.sites import Site
from microscope.params.targets import MASKED, acts_everywhere, not_possible
from microscope.patching.mechanisms import DirectionKind

if TYPE_CHECKING:
    from torch import Tensor

    from microscope.params import Edit, ExportTarget, ModelTraits
    from microscope.params.targets import Judged, WeightForm
    from microscope.sae import SparseAutoencoder


class Add(DirectionKind, frozen=True):
    """Adds a constant along a feature's direction."""

    why_fitted = (
        "An adapter without biases holds no constant; a low-rank update that is nearly constant is fitted.",
        "The control vector or the merged checkpoint holds a constant exactly.",
    )

    @staticmethod
    def change(x: Tensor, unit: Tensor, amount: float) -> Tensor:
        """c·d̂ at every position."""
        return (amount * unit).expand_as(x)

    def constant(self, edit: Edit, sae: SparseAutoencoder) -> Tensor:
        """c·d̂, ``[d]``."""
        row = sae.W_dec[edit.index].detach().float()
        return self.amount(edit) * row / row.norm()

    def form_in(self, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """A bias, where there is room for one."""
        held = target == "control_vector" or (target == "merged" and traits.obstacles.constant_blocks)
        return "bias" if held else "fitted"

    def form_of(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """A bias, where the edited block has room for one."""
        here = Site.parse(edit.site).layer in traits.obstacles.constant_blocks
        return self.form_in(traits, target) if here or target != "merged" else "fitted"

    def judge(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
        """Exact as a bias or a control vector, if no token is spared; fitted in an adapter."""
        if target == "control_vector" and Site.parse(edit.site).layer == 0:
            return not_possible("llama.cpp has no control vector for block 0.", "Use another block.")
        if target in ("peft", "gguf_lora"):
            return "approximate", *self.why_fitted
        if self.form_of(edit, traits, target) == "fitted":
            return (
                "approximate",
                traits.obstacles.constant,
                "The control vector holds a constant exactly.",
            )
        if not acts_everywhere(edit):
            return MASKED
        if target == "merged":
            return "exact", "A constant is a bias of the block's MLP.", ""
        return "exact", "A constant added to a block's output is what a control vector is.", ""


KIND = Add(
    name="add",
    title="Add",
    description="adds the feature's direction everywhere, in multiples of its own 99.9th percentile",
    formula="x + c·d̂",
    sentence="add {strength} × {unit} of {target}",
    counts="length",
    neutral=0.0,
    slider=Slider(min=-4, max=4),
    initial=1.0,
    order=50,
)
