"""An export loaded the way its users load it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, load_model
from microscope.params.targets import GGUF_MODULES
from microscope.patching.adapters import LowRank
from microscope.patching.export.gguf_files import CONTROL_VECTOR, LORA
from microscope.patching.export.manifest import ExportManifest
from microscope.patching.hooks import add_constants, add_deltas
from microscope.patching.peft_files import read_peft


@dataclass
class Reloaded:
    """A model with an export on it.

    ``model`` has the base model's module paths; ``on`` is a context in which the export acts, for those
    that act by hooks; ``off`` one in which it is switched off, None when it cannot be; ``merge`` folds it
    into the weights for good, None when that makes no sense. ``loaders`` says what was tried: name → result.
    """

    model: Any
    loaders: dict[str, str]
    on: Callable[[], contextlib.AbstractContextManager[Any]]
    off: Callable[[], contextlib.AbstractContextManager[Any]] | None
    merge: Callable[[], Any] | None = None

    @torch.no_grad()
    def logits(
        self,
        tokens: Tensor,
        within: contextlib.AbstractContextManager[Any] | None = None,
        prompts: Sequence[int | None] | None = None,
    ) -> Tensor:
        """``[batch, positions, vocabulary]`` with the export.

        ``within`` is entered once it acts; ``prompts`` are lengths of the rows' prompts, behind which positions
        count as generated, for exports that can tell.
        """
        with self.on() as patch, within or contextlib.nullcontext():
            if hasattr(patch, "prompt_length"):
                width = tokens.shape[1]
                lengths = [width if n is None else n for n in prompts or [None] * len(tokens)]
                patch.prompt_length = torch.tensor(lengths)[:, None]
            return _run(self.model, tokens)

    @torch.no_grad()
    def logits_off(self, tokens: Tensor) -> Tensor | None:
        """The same with the export switched off."""
        if self.off is None:
            return None
        with self.off():
            return _run(self.model, tokens)


def _run(model: Any, tokens: Tensor) -> Tensor:
    out: Tensor = model(tokens.to(next(model.parameters()).device), use_cache=False).logits
    return out


def reload(folder: Path, manifest: ExportManifest, base: LoadedModel) -> Reloaded:
    """Load an export.

    Args:
        folder: its files.
        manifest: what they are.
        base: the untouched model; exports that act by hooks act on it while they are on.

    Raises:
        MicroscopeError: ``bad_export`` when a file is not what the manifest says.
    """
    match manifest.target:
        case "peft":
            return _peft(folder, base)
        case "merged":
            merged = load_model(str(folder), dtype=manifest.dtype, device=str(base.device))
            return Reloaded(merged.model, {"transformers": "loaded"}, contextlib.nullcontext, None)
        case "bundle":
            return _bundle(folder, base)
        case "control_vector":
            constants = read_control_vector(folder / CONTROL_VECTOR)
            return _hooked(base, lambda: add_constants(base.model, base.family, constants))
        case "gguf_lora":
            deltas = read_gguf_lora(folder / LORA, base)
            return _hooked(base, lambda: add_deltas(base.model, deltas))


def _peft(folder: Path, base: LoadedModel) -> Reloaded:
    if importlib.util.find_spec("peft") is None:
        try:
            deltas = read_peft(folder, base.model).factors
        except MicroscopeError as error:
            raise MicroscopeError(
                "peft_missing",
                "This adapter changes the embedding, which only PEFT itself can load.",
                "Install it: pip install peft.",
            ) from error
        reloaded = _hooked(base, lambda: add_deltas(base.model, deltas))
        reloaded.loaders = {"peft": "not installed", "own reader": "loaded"}
        return reloaded
    from peft import PeftModel

    own = load_model(base.reference, revision=base.revision, dtype="float32", device=str(base.device))
    wrapped: Any = PeftModel.from_pretrained(own.model, str(folder)).eval()
    inner = wrapped.base_model.model

    def merge() -> None:
        for module in inner.modules():
            if hasattr(module, "merge") and hasattr(module, "lora_A"):
                module.merge()

    return Reloaded(inner, {"peft": "loaded"}, contextlib.nullcontext, wrapped.disable_adapter, merge)


def _bundle(folder: Path, base: LoadedModel) -> Reloaded:
    file = folder / "load_patch.py"
    spec = importlib.util.spec_from_file_location("load_patch", file)
    if spec is None or spec.loader is None:
        raise MicroscopeError("bad_export", f"{file.name} is missing.", "Export the patch again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    @contextlib.contextmanager
    def on() -> Iterator[Any]:
        patch = module.attach(base.model, folder)
        try:
            yield patch
        finally:
            patch.remove()

    return Reloaded(base.model, {"its own loader": "loaded"}, on, contextlib.nullcontext)


def _hooked(base: LoadedModel, attach: Callable[[], list[Any]]) -> Reloaded:
    @contextlib.contextmanager
    def on() -> Iterator[None]:
        handles = attach()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    loaders = {"gguf reader": "loaded, applied as llama.cpp does"}
    return Reloaded(base.model, loaders, on, contextlib.nullcontext)


def read_control_vector(path: Path) -> dict[int, Tensor]:
    """Directions ``[d]`` by block of a control-vector file."""
    reader = gguf.GGUFReader(path)
    if _text(reader, "general.architecture") != "controlvector":
        raise MicroscopeError("bad_export", f"{path.name} is no control vector.")
    out = {}
    for tensor in reader.tensors:
        name, _, layer = tensor.name.partition(".")
        if name == "direction" and layer.isdecimal() and int(layer) > 0:
            out[int(layer)] = torch.from_numpy(tensor.data.copy()).float()
    return out


def read_gguf_lora(path: Path, base: LoadedModel) -> dict[str, LowRank]:
    """Deltas by Hugging Face module path of a LoRA file, scaled by alpha over the rank as llama.cpp does."""
    reader = gguf.GGUFReader(path)
    if (_text(reader, "general.type"), _text(reader, "adapter.type")) != ("adapter", "lora"):
        raise MicroscopeError("bad_export", f"{path.name} is no LoRA adapter.")
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    modules = {name: part for part, name in GGUF_MODULES[base.family.blocks].items()}
    tensors = {t.name: torch.from_numpy(t.data.copy()).float() for t in reader.tensors}
    out = {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            _, layer, module, _, _ = name.split(".")
            b = tensors[name.removesuffix("a") + "b"]
            out[f"{base.family.block_path(int(layer))}.{modules[module]}"] = LowRank(a, b * (alpha / len(a)))
    return out


def _text(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.fields.get(key)
    return str(field.contents()) if field is not None else ""
