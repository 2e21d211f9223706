"""``lora``: W·x + s·B(A·x) in modules, with s the strength. The factors are an adapter's, never merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microscope.errors import MicroscopeError
from microscope.params.edit_kinds import Slider
from microscope.params.targets import NO_CONSTANT, gguf_module, not_possible
from microscope.patching.mechanisms import ModulesKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microscope.params import Edit, ExportTarget, ModelTraits
    from microscope.params.targets import Judged, WeightForm
    from microscope.patching.adapters import LowRank, LowRankAdapter


class Lora(ModulesKind, frozen=True):
    """Adds the low-rank changes of an adapter to the modules it was made for."""

    def identity(self, edit: Edit) -> dict[str, Any]:
        """The adapter, which of its modules, and how much."""
        return {
            "adapter": edit.adapter,
            "modules": sorted(set(edit.modules)),
            "strength": edit.strength,
        }

    def factors(self, edit: Edit, adapters: Mapping[str, LowRankAdapter]) -> dict[str, LowRank]:
        """The factors of the modules an edit names, all of them when it names none.

        Raises:
            MicroscopeError: ``adapter_not_attached`` or ``no_such_module``.
        """
        adapter = adapters.get(edit.adapter)
        if adapter is None:
            raise MicroscopeError(
                "adapter_not_attached",
                f"The adapter {edit.adapter[:12]} is not attached to this model.",
                "Attach it first.",
            )
        missing = [path for path in edit.modules if path not in adapter.factors]
        if missing:
            raise MicroscopeError("no_such_module", f"The adapter does not change '{missing[0]}'.")
        wanted = edit.modules or adapter.factors
        return {path: pair for path, pair in adapter.factors.items() if path in wanted}

    def form_in(self, traits: ModelTraits, target: ExportTarget) -> WeightForm:
        """Itself."""
        return "delta"

    def judge(self, edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
        """Exact wherever low-rank changes of these modules can be written."""
        if target == "control_vector":
            return NO_CONSTANT
        if target == "merged":
            untied = " The embedding is untied from the head if that is changed." if traits.tied else ""
            return "exact", f"The low-rank update is added to the weights.{untied}", ""
        unsafe = [path for path in edit.modules if not gguf_module(path)]
        if target == "gguf_lora" and unsafe:
            return not_possible(
                f"llama.cpp stores {unsafe[0]} permuted, or under no name of its own.",
                "Merge first, then convert the merged checkpoint.",
            )
        return "exact", "The low-rank update is the adapter.", ""


KIND = Lora(
    name="lora",
    title="LoRA",
    description="adds a low-rank change of weights; 1 is the adapter as it came, 0 changes nothing",
    formula="W·x + s·B(A·x) in modules",
    sentence="add {strength} × adapter {adapter}",
    refers_to="adapter",
    neutral=0.0,
    slider=Slider(min=-1, max=3),
    initial=1.0,
    order=90,
)
