"""Where a patch can go, and how faithfully: the verdict on every export target, from data alone.

Sources of the rules: an edit of one residual site is linear in the weights only in special cases. What
every module *writes* can be projected exactly (``W' = P·W``) unless a norm follows, a constant added to a
block's output is a bias of its MLP, a low-rank delta is itself; anything gated by a feature's activation, limited to some
positions, or projecting one site of the stream only, has no equal in weights and is fitted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import msgspec

from microscope.params.edit_kinds import kind_of
from microscope.params.edits import Edit, EditPlan, Positions
from microscope.params.traits import ModelTraits

ExportTarget = Literal["peft", "merged", "control_vector", "gguf_lora", "bundle"]
EXPORT_TARGETS: tuple[ExportTarget, ...] = get_args(ExportTarget)
Grade = Literal["exact", "approximate", "not_possible"]
WeightForm = Literal["bias", "everywhere", "delta", "fitted"]
Judged = tuple[Grade, str, str]

# llama.cpp's names of architectures.
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
}
# Its names of modules whose outputs and inputs keep the order Hugging Face has them in, by their path in a
# block of each family. Queries and keys are permuted for rotary positions in the llama family, queries,
# keys and values rearranged by head in GPT-NeoX. (GPT-2's weights are stored transposed, but factors of a
# change are written by outputs and inputs all the same.)
GGUF_MODULES = {
    "model.layers": {
        "self_attn.o_proj": "attn_output",
        "self_attn.v_proj": "attn_v",
        "mlp.down_proj": "ffn_down",
        "mlp.up_proj": "ffn_up",
        "mlp.gate_proj": "ffn_gate",
    },
    "transformer.h": {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "gpt_neox.layers": {
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
}

# PEFT refuses these modules in models of these types, whose fast kernels read their weights themselves.
PEFT_REFUSES = frozenset({"out_proj", "conv1d"})
PEFT_REFUSES_IN = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})

TITLES: dict[ExportTarget, str] = {
    "peft": "PEFT LoRA directory",
    "merged": "Merged checkpoint",
    "control_vector": "Control vector (GGUF)",
    "gguf_lora": "LoRA for llama.cpp (GGUF)",
    "bundle": "Runtime bundle",
}
LOADERS: dict[ExportTarget, tuple[str, ...]] = {
    "peft": ("peft", "transformers", "vLLM", "SGLang"),
    "merged": ("transformers", "vLLM", "SGLang", "convert_hf_to_gguf.py"),
    "control_vector": ("llama.cpp",),
    "gguf_lora": ("llama.cpp",),
    "bundle": ("transformers",),
}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one target can hold of a plan. ``reason`` says why, ``hint`` what would make it better."""

    target: ExportTarget
    title: str
    grade: Grade
    reason: str
    hint: str = ""
    loaders: tuple[str, ...] = ()


def acts_everywhere(edit: Edit) -> bool:
    """True when no position is spared, which is the only thing weights can do."""
    return kind_of(edit).acts != "site" or edit.positions == Positions(include_sinks=True)


def realisation(edit: Edit, traits: ModelTraits, target: ExportTarget) -> WeightForm:
    """How a target that can hold an edit at all holds it."""
    return kind_of(edit).form_of(edit, traits, target)


def verdicts(plan: EditPlan, traits: ModelTraits) -> tuple[Verdict, ...]:
    """One verdict per target, in the order of :data:`EXPORT_TARGETS`."""
    return tuple(verdict(plan, traits, target) for target in EXPORT_TARGETS)


def verdict(plan: EditPlan, traits: ModelTraits, target: ExportTarget) -> Verdict:
    """What ``target`` can hold of a plan: the worst of its edits decides."""
    edits = plan.active()
    if not edits:
        grade, reason, hint = not_possible("The patch changes nothing, so there is nothing to export.")
    elif traits.obstacles.patches:
        grade, reason, hint = not_possible(traits.obstacles.patches)
    else:
        found = [_judged(edit, traits, target) for edit in edits]
        grade, reason, hint = max(found, key=lambda judged: _ORDER[judged[0]])
    return Verdict(
        target=target,
        title=TITLES[target],
        grade=grade,
        reason=reason,
        hint=hint,
        loaders=LOADERS[target] if grade != "not_possible" else (),
    )


_ORDER: dict[Grade, int] = {"exact": 0, "approximate": 1, "not_possible": 2}


def _judged(edit: Edit, traits: ModelTraits, target: ExportTarget) -> Judged:
    obstacles = traits.obstacles
    if obstacles.writers and kind_of(edit).acts == "writers":
        return not_possible(obstacles.writers)
    if target == "bundle":
        return "exact", "The rows of the edits and a short loader compute the edits as they are.", ""
    if target == "peft" and obstacles.adapters:
        return not_possible(obstacles.adapters, "Use the merged checkpoint.")
    if target == "peft" and traits.model_type in PEFT_REFUSES_IN and _changes(edit, PEFT_REFUSES):
        return not_possible(
            "PEFT refuses adapters on the output matrices of recurrent blocks of this family.",
            "Use the merged checkpoint.",
        )
    if target == "peft" and kind_of(edit).acts == "modules" and _changes(edit, obstacles.renamed):
        return not_possible(
            f"PEFT takes changes of modules named {', '.join(obstacles.renamed)} for changes of this model's experts.",
            "Use the merged checkpoint.",
        )
    if target in ("control_vector", "gguf_lora") and traits.model_type not in GGUF_ARCHITECTURES:
        return not_possible(
            f"llama.cpp's names of the parts of '{traits.model_type}' are not known here.",
            "Merge first, then convert the merged checkpoint.",
        )
    grade, reason, hint = kind_of(edit).judge(edit, traits, target)
    if grade == "approximate" and obstacles.fits:
        return not_possible(obstacles.fits, "The runtime bundle is exact.")
    if grade == "exact" and target in ("merged", "peft") and not obstacles.proven:
        reason += " The export proves that in numbers for this model, or is refused."
    return grade, reason, hint


def _changes(edit: Edit, names: Collection[str]) -> bool:
    """Whether an edit changes modules of such names; one that names no module may change any."""
    return bool(names) and (
        not edit.modules or any(path.rpartition(".")[2] in names for path in edit.modules)
    )


def not_possible(reason: str, hint: str = "") -> Judged:
    """The verdict that a target cannot hold an edit."""
    return "not_possible", reason, hint


MASKED: Judged = (
    "approximate",
    "The patch spares some tokens (special ones, attention sinks or positions); weights act on every token.",
    "Let the edit act on all positions, sinks included: then what you try is what ships.",
)
NO_CONSTANT: Judged = (
    "not_possible",
    "A control vector only adds a constant to the stream.",
    "Use a PEFT directory or the bundle.",
)


def gguf_module(path: str) -> str:
    """llama.cpp's tensor name of a module path such as ``model.layers.3.mlp.down_proj``; empty when unsafe."""
    parts = path.split(".")
    name = GGUF_MODULES.get(".".join(parts[:2]), {}).get(".".join(parts[3:]))
    return f"blk.{parts[2]}.{name}.weight" if name and parts[2].isdecimal() else ""
