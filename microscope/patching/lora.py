"""Rank-1 patches on the modules that write to the residual stream, and their export as PEFT adapters.

Scaling a direction v̂ in what a module writes, ``y + s·(v̂·Wx)·v̂``, is exactly the low-rank update
``ΔW = B·A`` with ``B = s·v̂`` and ``A = v̂ᵀW``: s = −1 removes the direction, −2 mirrors it. It is run
here as ``B(Ax)`` beside the untouched weight, and exported as the same two matrices.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError
from microscope.models import facts, module_at
from microscope.models.families import declared_family
from microscope.models.obstacles import renamed_by_peft
from microscope.models.structure import complete, outline
from microscope.patching.adapters import LowRank, matrix_shape
from microscope.patching.hooks import add_deltas
from microscope.patching.peft_files import write_peft
from microscope.patching.weights import weight_of


@dataclass
class LoraPatch:
    """One patch: per module path the factors A ``[1, in]`` and B ``[out, 1]``."""

    name: str
    factors: dict[str, LowRank]
    enabled: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)


class LoRAPatcher:
    """Creates, toggles and exports rank-1 patches of a Hugging Face model.

    Weights are never written: an enabled patch adds its low-rank term to the module's output through a
    hook, and disabling removes the hook, so that the disabled model is bit for bit the original.

    Args:
        model: a causal language model. Where its parts are is found by running a few tokens if its family is
            not a known one.

    Raises:
        MicroscopeError: ``unsupported_family``.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._family = declared_family(model.config.model_type) or complete(model, outline(model))
        self._patches: dict[str, LoraPatch] = {}

    def create_feature_patch(
        self,
        feature_id: str,
        layer_idx: int,
        feature_vector: Tensor,
        strength: float,
        *,
        modules: tuple[str, ...] = (),
    ) -> str:
        """Make a patch that scales a direction in what one block writes; it starts disabled.

        Args:
            feature_id: name of the feature; part of the patch's id.
            layer_idx: block, counted from 0.
            feature_vector: direction ``[d]``; its length does not matter.
            strength: s; −1 removes the direction, 0 does nothing.
            modules: matrices within the block that write to the stream; default are all that are known to, which
                experts are not.

        Returns:
            The patch's id.

        Raises:
            MicroscopeError: ``layer_out_of_range``, ``wrong_width``, ``zero_direction``, ``strength_not_finite`` or
                ``no_such_module`` where nothing linear is known to write.
        """
        layers = facts.n_layers(self._model, self._family)
        if not 0 <= layer_idx < layers:
            raise MicroscopeError(
                "layer_out_of_range", f"Layer {layer_idx} does not exist: the model has {layers} layers."
            )
        if not math.isfinite(strength):
            raise MicroscopeError("strength_not_finite", "The strength is not a finite number.")
        norm = float(feature_vector.float().norm())
        if not math.isfinite(norm) or norm == 0:
            raise MicroscopeError("zero_direction", "The direction has no finite, non-zero length.")
        unit = feature_vector.detach().float() / norm
        block = self._family.block_path(layer_idx)
        writers = modules or self._family.parts_of(layer_idx).projections
        if not writers:
            raise MicroscopeError(
                "no_such_module",
                f"No linear module of block {layer_idx} is known to write to the stream.",
                "Name one in modules, or edit the stream behind the block.",
            )
        factors = {}
        for writer in writers:
            path = f"{block}.{writer}"
            weight = self._matrix(path)
            if feature_vector.shape != weight.shape[:1]:
                raise MicroscopeError(
                    "wrong_width",
                    f"The direction has shape {tuple(feature_vector.shape)}, '{path}' writes {weight.shape[0]} numbers.",
                )
            direction = unit.to(weight.device)
            factors[path] = LowRank((direction @ weight.float())[None], strength * direction[:, None])
        patch_id = self._free_id(f"{feature_id}-layer{layer_idx}")
        self._patches[patch_id] = LoraPatch(patch_id, factors)
        return patch_id

    def enable_patch(self, patch_id: str) -> None:
        """Switch a patch on. Raises :class:`MicroscopeError` ``no_such_patch``."""
        patch = self._find(patch_id)
        if patch.enabled:
            return
        patch.handles += add_deltas(self._model, patch.factors)
        patch.enabled = True

    def disable_patch(self, patch_id: str) -> None:
        """Switch a patch off. Raises :class:`MicroscopeError` ``no_such_patch``."""
        patch = self._find(patch_id)
        for handle in patch.handles:
            handle.remove()
        patch.handles.clear()
        patch.enabled = False

    def export(self, patch_id: str, folder: str | Path) -> Path:
        """Write a patch as a PEFT LoRA directory (``adapter_config.json``, ``adapter_model.safetensors``).

        ``lora_alpha`` equals the rank, so every loader's scale is one. The adapter computes what the
        enabled patch computes, exactly up to floating-point rounding.

        Raises:
            MicroscopeError: ``no_such_patch``, or ``not_possible`` for modules whose names PEFT takes for others'.
        """
        patch = self._find(patch_id)
        renamed = renamed_by_peft(str(self._model.config.model_type))
        taken = next((path for path in patch.factors if path.rpartition(".")[2] in renamed), None)
        if taken is not None:
            raise MicroscopeError(
                "not_possible",
                f"PEFT takes a change of '{taken}' for one of this model's experts.",
                "Leave that module out.",
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        transposed = any(isinstance(module_at(self._model, path), Conv1D) for path in patch.factors)
        write_peft(folder, patch.factors, self._model.config._name_or_path, transposed=transposed)
        return folder

    def _matrix(self, path: str) -> Tensor:
        """The weight ``[out, in]`` of a linear module."""
        module = dict(self._model.named_modules()).get(path)
        if module is None or matrix_shape(module) is None:
            raise MicroscopeError("no_such_module", f"The model has no linear module '{path}'.")
        return weight_of(module)

    def _find(self, patch_id: str) -> LoraPatch:
        try:
            return self._patches[patch_id]
        except KeyError:
            raise MicroscopeError("no_such_patch", f"There is no patch '{patch_id}'.") from None

    def _free_id(self, wanted: str) -> str:
        base = re.sub(r"[^\w-]+", "-", wanted)
        number, patch_id = 2, base
        while patch_id in self._patches:
            patch_id, number = f"{base}-{number}", number + 1
        return patch_id
