"""How known families of decoders are put together: which parts they compose, and what their modules are called.

This is data, and the one place where these names stand: where activations are read, which weights an edit
changes and what the composed runner computes all follow from it. Facts follow the module trees of
``transformers``; a declaration that does not fit a model is found out by running it, never trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are turned by their positions.

    ``module`` makes the tables; ``table`` is how it lays out the angles of the pairs of dimensions: all of
    them twice, one behind the other, each twice in a row, or once; ``sines_first`` is the order of the two
    tables. ``pairs`` turns neighbouring dimensions instead of those half a head apart. ``where`` leaves the
    blocks without turned positions out: those without a sliding window, or those that the configuration's
    ``no_rope_layers`` lists with a zero. ``by_kind`` modules have one table per kind of block. ``exact`` turns
    in float32.
    """

    module: str = "model.rotary_emb"
    table: Literal["behind", "in_a_row", "once"] = "behind"
    sines_first: bool = False
    pairs: bool = False
    where: Literal["everywhere", "windowed", "listed"] = "everywhere"
    by_kind: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Attention:
    """Self-attention; module names are within ``module``, numbers are settings of the configuration.

    ``inputs`` are the projections to queries, keys and values, or one that holds all three: one behind the
    other, or ``grouped``, for every head of keys its queries, its key and its value. ``scale`` is the
    attribute with the factor on scores, none for 1, ``softcap`` the setting that bounds them. ``query_norm`` and
    ``key_norm`` act on each head or on the whole width, before the rotation or ``norm_turned``; a module that
    has none is computed without. ``sinks`` are scores of nothing, which take their share of attention.
    ``clip`` bounds queries, keys and values; ``growing`` queries are scaled with the logarithm of their
    position, as ``rope_parameters`` say. ``window`` says which blocks see the last positions
    only, as many as the setting ``window_size`` says: all, or those of that kind in the setting ``kinds``.
    """

    module: str = "self_attn"
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    grouped: bool = False
    output: str = "o_proj"
    scale: str | None = "scaling"
    softcap: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    norm_over: Literal["head", "width"] = "head"
    norm_turned: bool = False
    sinks: str | None = None
    clip: str | None = None
    growing: bool = False
    window: Literal["none", "all", "kinds"] = "none"
    window_size: str = "sliding_window"
    kinds: str = "layer_types"


@dataclass(frozen=True)
class Mlp:
    """The other half of a block; module names are within ``module``.

    ``inputs`` are one projection, or two, or ``gated`` one that holds both: the first of two passes the
    activation and is multiplied with the second. A module without these projections, as of experts, is
    called as it is.
    """

    module: str = "mlp"
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    gated: bool = True
    activation: str = "act_fn"
    output: str = "down_proj"


@dataclass(frozen=True)
class Norms:
    """Paths of a block's norms: in front of each half, and behind it. Of several, a block has one."""

    attention: str | tuple[str, ...] | None = "input_layernorm"
    attention_behind: str | None = None
    mlp: str | tuple[str, ...] | None = "post_attention_layernorm"
    mlp_behind: str | None = None


@dataclass(frozen=True)
class Decoder:
    """Everything about the decoders whose configurations are of these ``model_types``.

    ``positions`` is an embedding of positions, the first of which stands in row ``first_position``.
    ``parallel`` blocks read both halves' input from the same stream; a setting's name where that depends on
    the configuration. A parallel block without a norm for its MLP shares that of its attention.
    Settings with factors: ``embedding_times`` of the embedding, ``residual_times`` of what each half adds;
    logits are multiplied by ``logits_times``, divided by ``logits_over`` and bounded by ``logits_cap``.
    """

    model_types: tuple[str, ...]
    attention: Attention = Attention()
    mlp: Mlp = Mlp()
    norms: Norms = Norms()
    rotary: Rotary | None = Rotary()
    blocks: str = "model.layers"
    tokens: str = "model.embed_tokens"
    positions: str | None = None
    first_position: int = 0
    norm: str = "model.norm"
    head: str = "lm_head"
    parallel: bool | str = False
    embedding_times: str | None = None
    residual_times: str | None = None
    logits_times: str | None = None
    logits_over: str | None = None
    logits_cap: str | None = None


_NORMED = Attention(query_norm="q_norm", key_norm="k_norm")
_WIDELY_NORMED = replace(_NORMED, norm_over="width")
_CAPPED = Attention(window="kinds", softcap="attn_logit_softcapping")
_BEHIND = Norms(
    attention=None,
    attention_behind="post_attention_layernorm",
    mlp=None,
    mlp_behind="post_feedforward_layernorm",
)
_SANDWICH = replace(_BEHIND, attention="input_layernorm", mlp="pre_feedforward_layernorm")
_AROUND = Norms(attention_behind="post_self_attn_layernorm", mlp_behind="post_mlp_layernorm")
_GATE_UP = Mlp(inputs=("gate_up_proj",), activation="activation_fn")
_UNGATED = Mlp(inputs=("up_proj",), gated=False)
_NUMBERED = Mlp(inputs=("fc1",), gated=False, activation="activation_fn", output="fc2")
_WIDENED = Mlp(inputs=("dense_h_to_4h",), gated=False, activation="act", output="dense_4h_to_h")
_GPT2 = Decoder(
    ("gpt2",),
    Attention(module="attn", inputs=("c_attn",), output="c_proj"),
    Mlp(inputs=("c_fc",), gated=False, activation="act", output="c_proj"),
    Norms(attention="ln_1", mlp="ln_2"),
    rotary=None,
    blocks="transformer.h",
    tokens="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
)
_GLM = Decoder(("glm",), mlp=_GATE_UP, rotary=Rotary(pairs=True))
_GRANITE = Decoder(
    ("granite",),
    embedding_times="embedding_multiplier",
    residual_times="residual_multiplier",
    logits_over="logits_scaling",
)
_COHERE = Decoder(
    ("cohere",),
    _NORMED,
    norms=Norms(mlp=None),
    rotary=Rotary(table="in_a_row", pairs=True, exact=True),
    parallel=True,
    logits_times="logit_scale",
)
_OPT = Decoder(
    ("opt",),
    Attention(output="out_proj"),
    replace(_NUMBERED, module=""),
    Norms(attention="self_attn_layer_norm", mlp="final_layer_norm"),
    rotary=None,
    blocks="model.decoder.layers",
    tokens="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    first_position=2,
    norm="model.decoder.final_layer_norm",
)

DECODERS: tuple[Decoder, ...] = (
    Decoder(("llama", "gemma", "seed_oss", "solar_open", "aria_text", "exaone", "internlm3", "iquestcoder")),
    Decoder(("mistral", "mixtral"), Attention(window="all")),
    Decoder(("ministral3",), Attention(window="all", growing=True)),
    Decoder(("qwen2", "qwen2_moe", "ministral", "cwm"), Attention(window="kinds")),
    Decoder(("qwen3", "dots1"), replace(_NORMED, window="kinds")),
    Decoder(("qwen3_moe",), replace(_NORMED, window="all")),
    Decoder(("mellum",), replace(_NORMED, window="kinds"), rotary=Rotary(by_kind=True)),
    Decoder(("glm4_moe", "sarvam_moe", "hy_v3"), _NORMED),
    Decoder(("minimax_m2",), _WIDELY_NORMED),
    Decoder(("gemma2",), _CAPPED, norms=_SANDWICH, logits_cap="final_logit_softcapping"),
    Decoder(
        ("gemma3_text",),
        replace(_NORMED, window="kinds"),
        norms=_SANDWICH,
        rotary=Rotary(by_kind=True),
        logits_cap="final_logit_softcapping",
    ),
    Decoder(
        ("vaultgemma",),
        _CAPPED,
        norms=Norms(mlp="pre_feedforward_layernorm"),
        logits_cap="final_logit_softcapping",
    ),
    Decoder(("phi3",), Attention(inputs=("qkv_proj",), window="all"), _GATE_UP),
    Decoder(
        ("phi",),
        Attention(output="dense", query_norm="q_layernorm", key_norm="k_layernorm"),
        _NUMBERED,
        Norms(mlp=None),
        norm="model.final_layernorm",
        parallel=True,
    ),
    Decoder(("olmo",), Attention(clip="clip_qkv")),
    Decoder(("olmoe",), replace(_WIDELY_NORMED, clip="clip_qkv")),
    Decoder(("olmo2", "flex_olmo"), _WIDELY_NORMED, norms=_BEHIND),
    Decoder(("olmo3",), replace(_WIDELY_NORMED, window="kinds"), norms=_BEHIND, rotary=Rotary(by_kind=True)),
    Decoder(("smollm3",), Attention(window="kinds"), rotary=Rotary(where="listed")),
    Decoder(("exaone4",), replace(_NORMED, window="kinds"), norms=_BEHIND, rotary=Rotary(where="windowed")),
    Decoder(("gpt_oss",), Attention(window="kinds", sinks="sinks"), rotary=Rotary(table="once")),
    Decoder(("kolibri1",), replace(_NORMED, window="kinds"), norms=_AROUND, rotary=Rotary(where="windowed")),
    _GLM,
    replace(_GLM, model_types=("glm4",), norms=_AROUND),
    Decoder(("helium",), rotary=Rotary(pairs=True)),
    Decoder(("ernie4_5", "ernie4_5_moe"), rotary=Rotary(pairs=True, exact=True)),
    _GRANITE,
    replace(_GRANITE, model_types=("granitemoe",), mlp=Mlp(module="block_sparse_moe")),
    replace(
        _GRANITE,
        model_types=("hyperclovax",),
        norms=Norms(attention_behind="post_norm1", mlp_behind="post_norm2"),
    ),
    _COHERE,
    replace(
        _COHERE,
        model_types=("cohere2",),
        attention=Attention(window="kinds"),
        rotary=Rotary(table="in_a_row", pairs=True, exact=True, where="windowed"),
    ),
    Decoder(
        ("hunyuan_v1_dense", "hunyuan_v1_moe"),
        Attention(query_norm="query_layernorm", key_norm="key_layernorm", norm_turned=True),
    ),
    Decoder(("nemotron", "arcee", "jais2"), mlp=_UNGATED),
    Decoder(
        ("apertus", "apertus1p5_text"),
        _NORMED,
        _UNGATED,
        Norms(attention="attention_layernorm", mlp="feedforward_layernorm"),
    ),
    Decoder(("stablelm",), parallel="use_parallel_residual"),
    Decoder(("starcoder2",), Attention(window="all"), _GPT2.mlp),
    Decoder(
        ("persimmon",),
        Attention(
            inputs=("query_key_value",),
            grouped=True,
            output="dense",
            query_norm="q_layernorm",
            key_norm="k_layernorm",
        ),
        _WIDENED,
        norm="model.final_layernorm",
    ),
    Decoder(
        ("gpt_neox",),
        Attention(module="attention", inputs=("query_key_value",), grouped=True, output="dense"),
        _WIDENED,
        rotary=Rotary("gpt_neox.rotary_emb"),
        blocks="gpt_neox.layers",
        tokens="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        parallel="use_parallel_residual",
    ),
    Decoder(
        ("falcon",),
        Attention(
            module="self_attention",
            inputs=("query_key_value",),
            grouped=True,
            output="dense",
            scale="inv_norm_factor",
        ),
        _WIDENED,
        Norms(attention=("ln_attn", "input_layernorm"), mlp=("ln_mlp", "post_attention_layernorm")),
        rotary=Rotary("transformer.rotary_emb"),
        blocks="transformer.h",
        tokens="transformer.word_embeddings",
        norm="transformer.ln_f",
        parallel="parallel_attn",
    ),
    _OPT,
    replace(
        _OPT,
        model_types=("biogpt",),
        blocks="biogpt.layers",
        tokens="biogpt.embed_tokens",
        positions="biogpt.embed_positions",
        norm="biogpt.layer_norm",
        head="output_projection",
    ),
    _GPT2,
    replace(_GPT2, model_types=("gpt_bigcode",), attention=replace(_GPT2.attention, grouped=True)),
    replace(
        _GPT2,
        model_types=("gpt_neo",),
        attention=Attention(
            module="attn.attention",
            output="out_proj",
            scale=None,
            window="kinds",
            window_size="window_size",
            kinds="attention_layers",
        ),
    ),
    replace(
        _GPT2,
        model_types=("gptj",),
        attention=Attention(module="attn", output="out_proj"),
        mlp=Mlp(inputs=("fc_in",), gated=False, activation="act", output="fc_out"),
        norms=Norms(attention="ln_1", mlp=None),
        rotary=Rotary("transformer.rotary_emb", table="once", sines_first=True, pairs=True),
        positions=None,
        parallel=True,
    ),
)


def decoder_of(model_type: str) -> Decoder | None:
    """The declaration of a model type; None where there is none."""
    return next((decoder for decoder in DECODERS if model_type in decoder.model_types), None)
