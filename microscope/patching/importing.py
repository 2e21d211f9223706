"""Adapters of others as patches: read, checked against the model, kept in canonical form."""

from __future__ import annotations

from typing import Any

import msgspec

from microscope.errors import MicroscopeError
from microscope.models import load_model
from microscope.params import Edit, EditPlan, ImportAdapterParams, plan_fingerprint
from microscope.patching.adapters import LowRankAdapter, save_adapter
from microscope.patching.hooks import check_called
from microscope.patching.peft_files import read_peft
from microscope.patching.plan_file import PatchFile, write_patch
from microscope.patching.program import block_of
from microscope.progress import SILENT, Progress

PATCH_FILE = "patch.json"


def import_adapter(params: ImportAdapterParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Read a LoRA adapter, check it against its model, and write it with a patch that applies it at strength 1.

    Raises:
        MicroscopeError: what :func:`read_peft`, :func:`load_model` and :func:`check_called` raise, or ``module_not_live`` for a
            module outside the blocks that is not the head.
    """
    progress.log("Reading the adapter")
    read_peft(params.path)  # a bad file is refused before a model is loaded
    progress.log(f"Loading {params.model}")
    loaded = load_model(
        params.model,
        revision=params.revision,
        dtype=params.dtype,
        arithmetic="float32",
        device=params.device,
    )
    try:
        read = read_peft(params.path, loaded.model)
    except MicroscopeError as error:
        if error.code != "no_such_module" or loaded.part_of is None:
            raise
        raise MicroscopeError(
            error.code,
            error.message,
            f"Of {params.model} (a '{loaded.part_of.whole}' model) the text part is loaded, whose modules have other names "
            "than in the whole. Where PEFT loads the whole, merge the adapter (merge_and_unload) and save the model.",
        ) from error
    for path in read.factors:
        if path != loaded.family.head:
            block_of(path, loaded.family, loaded.n_layers)
    check_called(loaded, read.factors)
    adapter = LowRankAdapter(read.factors, loaded.fingerprint, read.about)
    folder = save_adapter(adapter, params.out)
    modules = tuple(sorted(adapter.factors))
    edit = Edit(kind="lora", adapter=adapter.fingerprint, modules=modules, strength=1.0)
    plan = EditPlan(edits=(edit,))
    write_patch(
        PatchFile(plan=plan, model=params.model, adapters={adapter.fingerprint: str(folder.resolve())}),
        folder / PATCH_FILE,
    )
    ranks = [len(factor.a) for factor in adapter.factors.values()]
    return {
        "adapter": adapter.fingerprint,
        "base_model": read.about.get("base_model", ""),
        "modules": list(modules),
        "rank": max(ranks),
        "parameters": sum(t.numel() for pair in adapter.factors.values() for t in pair),
        "model_fingerprint": loaded.fingerprint,
        "plan": msgspec.to_builtins(plan),
        "plan_fingerprint": plan_fingerprint(plan),
    }
