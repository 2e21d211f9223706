"""Families that are refused, and why. Whatever is in no table has to be equal in everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microscope.errors import MicroscopeError
from tests.families.outcome import Case


@dataclass(frozen=True)
class Expected:
    """Cases that fail with a code (empty for errors of transformers) in a sentence that holds some words."""

    code: str
    words: str
    cases: tuple[str, ...]


# What transformers itself cannot build here from its default configuration.
UNBUILDABLE: tuple[Expected, ...] = (
    Expected("", "requires the PIL library", ("gemma3n", "fast_vlm", "perception_lm")),
    Expected("", "No module named 'scipy'", ("inkling_mm_model",)),
    Expected("", "Unrecognized configuration class", ("evolla", "evolla is_decoder=True")),
    # Drafts for another model, whose keys and values they read.
    Expected("", "hidden_size_per_layer_input must be 0", ("gemma4_assistant",)),
    Expected("", "The set of layer types producing a cache", ("gemma4_unified_assistant",)),
    # Encoder–decoder models of sound whose decoder has no class of its own.
    Expected("", "has no attribute 'dropout'", ("musicgen", "musicgen_melody")),
    # Small sizes contradict others, or a default is missing.
    Expected(
        "",
        "Class validation error",
        ("apertus1p5", "cosmos3_edge", "glm5_next", "hy_v4_vl", "molmo2", "muse_spark", "nemotron_h_omni"),
    ),
    Expected("", "Validation error for field", ("ovis2",)),
    Expected("", "list index out of range", ("deepseek_ocr2", "florence2", "unlimited_ocr")),
    Expected("", "NoneType", ("chameleon", "diffusion_gemma", "granite4_vision")),
    Expected("", "must match the existing size (0)", ("ernie4_5_vl_moe",)),
)
# Not loaded.
REFUSED: tuple[Expected, ...] = (
    Expected(
        "unsupported_family",
        "is a text encoder, whose tokens see those that follow them",
        (
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
    ),
    Expected("unsupported_family", "it sees both ways", ("bert-generation",)),
    Expected(
        "unsupported_configuration",
        "use_bidirectional_attention to true",
        (
            "gemma use_bidirectional_attention=True",
            "gemma2 use_bidirectional_attention=True",
            "gemma3_text use_bidirectional_attention=True",
            "paligemma",
        ),
    ),
    Expected(
        "unsupported_configuration", "is_causal to false", ("gemma4_text use_bidirectional_attention=all",)
    ),
    Expected("unsupported_configuration", "causal to false", ("xlm",)),
    Expected("unsupported_configuration", "attn_type to bi", ("xlnet",)),
    Expected(
        "unsupported_configuration", "sets is_decoder", ("bert is_decoder=True", "roberta is_decoder=True")
    ),
    Expected("unsupported_configuration", "add_cross_attention", ("prophetnet",)),
    Expected(
        "unsupported_family",
        "no single residual stream",
        ("blt", "cpmant", "deepseek_v4", "gemma3n_text", "hy_v4"),
    ),
    # Blocks that run several times, or not without an image.
    Expected("unsupported_family", "not through each once", ("dory", "hrm_text", "mllama")),
    Expected("unsupported_family", "does not run on tokens alone", ("mistral4", "reformer")),
    Expected(
        "unsupported_family",
        "is an encoder–decoder model",
        ("pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
    ),
    Expected("unsupported_family", "is no causal language model", ("idefics", "pi0")),
    Expected(
        "unsupported_family",
        "transformers has no model of its text part",
        (
            "blip",
            "glm46v",
            "glm4v",
            "glm4v_moe",
            "glm_ocr",
            "glmga",
            "granite_docling",
            "hunyuan_vl",
            "kosmos-2",
            "kosmos-2.5",
            "mistral_large4",
            "muse_glimmer",
            "paddleocr_vl",
            "qwen3_vl_moe",
            "step3p7",
        ),
    ),
    Expected(
        "unsupported_configuration",
        "its text part alone could not be shown to compute what the whole model computes",
        ("aya_vision", "cohere2_vision"),
    ),
    Expected("bad_model_file", "weights", ("minimax_m3_vl", "shieldgemma2")),
)
# Recorded, but not run live.
LIVE_REFUSED: tuple[Expected, ...] = (
    Expected("unsupported_family", "cannot be run live", ("bert", "roberta")),
    Expected("unsupported_family", "cannot be run one by one", ("zaya",)),
    Expected(
        "unsupported_family",
        "its logits deviate",
        ("inkling2", "inkling2_loop", "inkling2_loop_text", "inkling2_text"),
    ),
    Expected("unsupported_family", "reads what earlier blocks computed besides the stream", ("glm_moe_dsa",)),
)
# Cases whose ``generate`` contradicts the model's own forward pass, which is what counts here.
# (RoBERTa-like ones count positions without padding, of which the text has some, in one and not in the other.)
GENERATES_OTHERWISE: tuple[str, ...] = (
    "camembert is_decoder=True",
    "data2vec-text is_decoder=True",
    "roberta-prelayernorm is_decoder=True",
    "xlm-roberta is_decoder=True",
    "xlm-roberta-xl is_decoder=True",
    "xmod is_decoder=True",
)
# Multimodal models that do not run on text alone, unlike their text parts.
NEED_IMAGES: tuple[str, ...] = ("blip-2", "instructblip", "instructblipvideo", "llama4")
# Run live, but attributions through their blocks do not sum to what they explain, and say so: blocks hold nonlinear
# parts that are not held constant, such as recurrent mixers, convolutions, and activations of their own making.
NOT_HELD: tuple[str, ...] = (
    "apertus1p5_text",
    "apertus",
    "bailing_hybrid",
    "bamba",
    "bloom",
    "falcon_h1",
    "falcon_mamba",
    "gpt_oss",
    "granitemoehybrid",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "lara_mini",
    "lfm2_moe",
    "lfm3_vl",
    "lfm3",
    "mamba2",
    "mamba",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m3_vl_text",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_moe",
    "qwen3_5_text",
    "qwen3_5",
    "qwen3_next",
    "qwen4_exp_text",
    "qwen4_exp",
    "rwkv",
    "xlstm",
    "zamba2",
    "zamba",
)


def listed(table: Sequence[Expected], case: Case) -> Expected | None:
    """The entry of a case."""
    return next((entry for entry in table if str(case) in entry.cases), None)


def require(table: Sequence[Expected], case: Case, found: str | MicroscopeError | None) -> None:
    """Raises :class:`AssertionError` unless a table says that a case fails like this."""
    entry = listed(table, case)
    code, sentence = (found.code, str(found)) if isinstance(found, MicroscopeError) else ("", str(found))
    assert entry is not None, f"not expected: {code} {sentence}"
    assert (entry.code, True) == (code, entry.words in sentence), f"{entry} expected: {code} {sentence}"
