"""Where a patch can go, and how faithfully: the verdict on every export target, from data alone.

Sources of the rules: an edit of one residual site is linear in the weights only in special cases. What
every module *writes* can be projected exactly (``W' = P·W``), a constant added to a block's output is a
bias of its MLP, a low-rank delta is itself; anything gated by a feature's activation, limited to some
positions, or projecting one site of the stream only, has no equal in weights and is fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import msgspec

from microscope.params.edits import WEIGHT_KINDS, Edit, EditPlan, Positions
from microscope.params.sites import Site

ExportTarget = Literal["peft", "merged", "control_vector", "gguf_lora", "bundle"]
EXPORT_TARGETS: tuple[ExportTarget, ...] = get_args(ExportTarget)
Grade = Literal["exact", "approximate", "not_possible"]
WeightForm = Literal["bias", "everywhere", "delta", "fitted"]
Judged = tuple[Grade, str, str]

# Norms behind attention and MLP: what a module writes is not what reaches the stream.
SANDWICH_TYPES = frozenset({"gemma2", "gemma3_text"})
# Architectures whose MLP output has a bias, or a switch in the configuration that gives it one.
BIASED_MLP_TYPES = frozenset({"llama", "gpt2", "gpt_neox"})
CONV1D_TYPES = frozenset({"gpt2"})
ENCODER_TYPES = frozenset({"bert", "roberta"})
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


class ModelTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What the verdicts need to know of a model: found in its configuration.

    ``tied`` says that the embedding is also the head; ``writer_bias`` that an output projection has a bias.
    """

    model_type: str
    n_layers: int
    tied: bool = False
    writer_bias: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one target can hold of a plan. ``reason`` says why, ``hint`` what would make it better."""

    target: ExportTarget
    title: str
    grade: Grade
    reason: str
    hint: str = ""
    loaders: tuple[str, ...] = ()


def weight_form(edit: Edit) -> WeightForm:
    """Which kind of change of weights an edit is; ``fitted`` when it is none."""
    if edit.kind == "add":
        return "bias"
    if edit.kind == "ablate_everywhere":
        return "everywhere"
    return "delta" if edit.kind == "lora" else "fitted"


def acts_everywhere(edit: Edit) -> bool:
    """True when no position is spared, which is the only thing weights can do."""
    return edit.kind in WEIGHT_KINDS or edit.positions == Positions(include_sinks=True)


def realisation(edit: Edit, traits: ModelTraits, target: ExportTarget) -> WeightForm:
    """How a target that can hold an edit at all holds it."""
    form = weight_form(edit)
    if form != "bias":
        return form
    held = target == "control_vector" or (target == "merged" and traits.model_type in BIASED_MLP_TYPES)
    return "bias" if held else "fitted"


def verdicts(plan: EditPlan, traits: ModelTraits) -> tuple[Verdict, ...]:
    """One verdict per target, in the order of :data:`EXPORT_TARGETS`."""
    return tuple(verdict(plan, traits, target) for target in EXPORT_TARGETS)


def verdict(plan: EditPlan, traits: ModelTraits, target: ExportTarget) -> Verdict:
    """What ``target`` can hold of a plan: the worst of its edits decides."""
    edits = plan.active()
    if not edits:
        grade, reason, hint = _no("The patch changes nothing, so there is nothing to export.")
    elif traits.model_type in ENCODER_TYPES:
        grade, reason, hint = _no("Encoders predict no next token; patches of them are not exported.")
    else:
        found = [_JUDGES[target](edit, traits) for edit in edits]
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


def _no(reason: str, hint: str = "") -> Judged:
    return "not_possible", reason, hint


_MASKED: Judged = (
    "approximate",
    "The patch spares some tokens (special ones, attention sinks or positions); weights act on every token.",
    "Let the edit act on all positions, sinks included: then what you try is what ships.",
)
_FITTED: dict[str, Judged] = {
    "project": (
        "approximate",
        "Projecting the stream at one layer has no equal in weights; a low-rank update is fitted to it.",
        "“Ablate everywhere” is exact in weights, and runs live with the same meaning.",
    ),
    "splice": (
        "approximate",
        "An SAE's reconstruction is no change of weights; a low-rank update is fitted to it.",
        "The runtime bundle is exact.",
    ),
}
_GATED: Judged = (
    "approximate",
    "The edit acts only where its feature fires, which weights cannot decide; a low-rank update is fitted to it.",
    "The runtime bundle is exact.",
)
_SANDWICH: Judged = (
    "not_possible",
    "This family normalises what a module writes before adding it: projected weights would not stay projected.",
    "The runtime bundle is exact.",
)


def _fitted(edit: Edit) -> Judged:
    return _FITTED.get(edit.kind, _GATED)


def _bundle(edit: Edit, traits: ModelTraits) -> Judged:
    return "exact", "The rows of the edits and a short loader compute the edits as they are.", ""


def _merged(edit: Edit, traits: ModelTraits) -> Judged:
    form = weight_form(edit)
    if form == "delta":
        untied = " The embedding is untied from the head if that is changed." if traits.tied else ""
        return "exact", f"The low-rank update is added to the weights.{untied}", ""
    if form == "fitted":
        return _fitted(edit)
    if form == "everywhere" and traits.model_type in SANDWICH_TYPES:
        return _SANDWICH
    if form == "bias" and traits.model_type not in BIASED_MLP_TYPES:
        return (
            "approximate",
            "This architecture has no place for a bias; a low-rank update that is nearly constant is fitted.",
            "The control vector holds a constant exactly.",
        )
    if not acts_everywhere(edit):
        return _MASKED
    if form == "bias":
        return "exact", "A constant is a bias of the block's MLP.", ""
    untied = " The embedding is untied from the head first." if traits.tied else ""
    return "exact", f"Every module that writes to the stream is projected.{untied}", ""


def _peft(edit: Edit, traits: ModelTraits) -> Judged:
    if traits.model_type in CONV1D_TYPES:
        return _no(
            "GPT-2 keeps its weights transposed and has biases; servers refuse or misread adapters for it.",
            "Use the merged checkpoint.",
        )
    return _adapter(edit, traits)


def _adapter(edit: Edit, traits: ModelTraits) -> Judged:
    form = weight_form(edit)
    if form == "delta":
        return "exact", "The low-rank update is the adapter.", ""
    if form == "bias":
        return (
            "approximate",
            "An adapter without biases holds no constant; a low-rank update that is nearly constant is fitted.",
            "The control vector or the merged checkpoint holds a constant exactly.",
        )
    if form == "fitted":
        return _fitted(edit)
    if traits.model_type in SANDWICH_TYPES:
        return _SANDWICH
    if traits.writer_bias:
        return _no(
            "The output projections have biases, which an adapter cannot project.",
            "Use the merged checkpoint.",
        )
    if traits.tied:
        return _no(
            "The embedding is also the head: an adapter on it would change both when merged.",
            "Use the merged checkpoint, which unties them.",
        )
    if not acts_everywhere(edit):
        return _MASKED
    return (
        "exact",
        "Every module that writes to the stream has a rank-one adapter, the embedding too.",
        "vLLM refuses adapters on embeddings of some families; the merged checkpoint loads there.",
    )


def _gguf_lora(edit: Edit, traits: ModelTraits) -> Judged:
    if weight_form(edit) == "everywhere":
        return _no(
            "It needs an adapter on the embedding, which llama.cpp handles apart.",
            "Merge first, then convert the merged checkpoint.",
        )
    unsafe = [path for path in edit.modules if not gguf_module(path)]
    if unsafe:
        return _no(
            f"llama.cpp stores {unsafe[0]} permuted, or under no name of its own.",
            "Merge first, then convert the merged checkpoint.",
        )
    return _adapter(edit, traits)


def _control_vector(edit: Edit, traits: ModelTraits) -> Judged:
    if weight_form(edit) != "bias":
        return _no(
            "A control vector only adds a constant to the stream.", "Use a PEFT directory or the bundle."
        )
    if Site.parse(edit.site).layer == 0:
        return _no("llama.cpp has no control vector for block 0.", "Use another block.")
    if not acts_everywhere(edit):
        return _MASKED
    return "exact", "A constant added to a block's output is what a control vector is.", ""


_JUDGES: dict[ExportTarget, Callable[[Edit, ModelTraits], Judged]] = {
    "peft": _peft,
    "merged": _merged,
    "control_vector": _control_vector,
    "gguf_lora": _gguf_lora,
    "bundle": _bundle,
}


def gguf_module(path: str) -> str:
    """llama.cpp's tensor name of a module path such as ``model.layers.3.mlp.down_proj``; empty when unsafe."""
    parts = path.split(".")
    name = GGUF_MODULES.get(".".join(parts[:2]), {}).get(".".join(parts[3:]))
    return f"blk.{parts[2]}.{name}.weight" if name and parts[2].isdecimal() else ""
