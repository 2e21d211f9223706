"""Which weights write to the stream: found by differentiating, and what follows for exports."""

from __future__ import annotations

import msgspec
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from microscope.models import load_model
from microscope.models.families import Family, Parts, Tap
from microscope.models.load import LoadedModel, inspect_model
from microscope.models.sample import some_tokens
from microscope.params import Obstacles
from microscope.params.traits import (
    NO_BIAS,
    NORM_BEHIND,
    NORM_BEHIND_EMBEDDING,
    OTHER_MATRICES,
    SEVERAL_TABLES,
)
from microscope.patching.hooks import project_writers
from microscope.patching.realisation import traits_of
from microscope.patching.weights import WeightChange, change_weights, held_hooks
from microscope.patching.writing import find_writing
from tests.tiny_models import KINDS, make_model, make_tokenizer

SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA = Parts(
    attention="self_attn",
    attention_projection="self_attn.o_proj",
    between=Tap("post_attention_layernorm", "input"),
    mlp="mlp",
)


def build(model_type: str, blocks: str, parts: Parts, **settings: object) -> LoadedModel:
    """A tiny random model of a type, with its parts as given."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(0, 0.15) if weight.dim() > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return LoadedModel(
        "tiny",
        None,
        model,
        make_tokenizer(),
        Family(model_type, (model_type,), blocks, parts),
        torch.device("cpu"),
        torch.float32,
    )


CASES = {
    # Several matrices and a router write; scales between matrix and stream; a shared expert behind a gate.
    "mixtral": lambda: build("mixtral", "model.layers", LLAMA, num_local_experts=4, num_key_value_heads=2),
    "qwen2_moe": lambda: build(
        *("qwen2_moe", "model.layers", LLAMA),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_key_value_heads=2,
        decoder_sparse_step=1,
    ),
    "gpt_oss": lambda: build(
        *("gpt_oss", "model.layers", LLAMA),
        num_local_experts=4,
        head_dim=8,
        num_key_value_heads=2,
        sliding_window=8,
    ),
    "granite": lambda: build(
        *(
            "granite",
            "model.layers",
            Parts(**{**vars_of(LLAMA), "mlp_projection": "mlp.down_proj", "mlp_scale": 0.22}),
        ),
        residual_multiplier=0.22,
        embedding_multiplier=12.0,
        num_key_value_heads=2,
    ),
    "opt": lambda: build(
        *("opt", "model.decoder.layers", OPT),
        ffn_dim=64,
        word_embed_proj_dim=16,
    ),
    "bloom": lambda: build("bloom", "transformer.h", BLOOM, n_layer=3, n_head=4),
    "olmo2": lambda: build(
        "olmo2",
        "model.layers",
        Parts(
            attention="post_attention_layernorm",
            attention_projection="self_attn.o_proj",
            mlp="post_feedforward_layernorm",
            mlp_projection="mlp.down_proj",
        ),
        num_key_value_heads=2,
    ),
}
OPT = Parts(attention="self_attn", attention_projection="self_attn.out_proj", mlp="fc2", mlp_projection="fc2")
BLOOM = Parts(
    attention="self_attention.dense",
    attention_projection="self_attention.dense",
    mlp="mlp.dense_4h_to_h",
    mlp_projection="mlp.dense_4h_to_h",
)


def vars_of(parts: Parts) -> dict[str, object]:
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def span_of(d: int) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(d, 2, generator=torch.Generator().manual_seed(3)))
    return q


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss", "granite", "opt"])
def test_projecting_what_writes_is_removing_it_by_hooks(kind):
    """Experts, gates, multipliers, several tables of embeddings and a projection behind a narrow one."""
    loaded = CASES[kind]()
    tokens, span = some_tokens(loaded), span_of(32)
    base = loaded.model(tokens).logits
    hooks = project_writers(loaded, span)
    wanted = loaded.model(tokens).logits
    for hook in hooks:
        hook.remove()
    assert not find_writing(loaded).mixed
    change_weights(loaded, WeightChange(span=span))
    found = loaded.model(tokens).logits
    assert (wanted - base).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "layer"), [("granite", 1), ("opt", 2), ("llama", 1), ("gpt_neox", 2)])
def test_a_bias_holds_a_constant_whatever_multiplies_it(kind, layer, tmp_path):
    """Granite multiplies what its blocks add by 0.22, and has a setting that gives its MLP biases."""
    loaded = CASES[kind]() if kind in CASES else load_model(str(make_model(kind, tmp_path)), dtype="float32")
    tokens = some_tokens(loaded)
    change = WeightChange(constants={layer: torch.randn(32, generator=torch.Generator().manual_seed(2))})
    hooks = held_hooks(loaded, change)
    wanted = loaded.model(tokens).logits
    for hook in hooks:
        hook.remove()
    assert layer in traits_of(loaded).obstacles.constant_blocks
    change_weights(loaded, change)
    torch.testing.assert_close(
        loaded.model(tokens).logits, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mixtral", {"adapted_projection": OTHER_MATRICES, "constant": NO_BIAS}),
        ("qwen2_moe", {"adapted_projection": OTHER_MATRICES, "constant": NO_BIAS}),
        ("bloom", {"projection": NORM_BEHIND_EMBEDDING, "constant_blocks": (0, 1, 2)}),
        ("olmo2", {"projection": NORM_BEHIND, "constant": NO_BIAS}),
    ],
)
def test_what_stands_in_the_way_is_found_in_the_model(kind, expected):
    found = traits_of(CASES[kind]()).obstacles
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_bias_that_not_every_token_gets_alike_holds_no_constant():
    """Biases of experts reach the stream times what the router says; nothing in such a block holds a constant."""
    found = traits_of(CASES["gpt_oss"]()).obstacles
    assert found.constant_blocks == ()
    assert not found.projection


@pytest.mark.parametrize("kind", KINDS)
def test_modules_alone_say_what_the_weights_say(kind, tmp_path):
    """Of families whose parts are known, what a form shows before anything is loaded is what an export finds."""
    folder = make_model(kind, tmp_path)
    early = msgspec.convert(inspect_model(str(folder))["obstacles"], Obstacles)
    assert early == traits_of(load_model(str(folder), dtype="float32", device="cpu")).obstacles


def test_two_tables_are_more_than_an_adapter_projects():
    loaded = build(
        *("opt", "model.decoder.layers", OPT),
        ffn_dim=64,
        word_embed_proj_dim=32,
        enable_bias=False,
    )
    assert len(find_writing(loaded).weights[""]) == 2
    assert traits_of(loaded).obstacles.adapted_projection == SEVERAL_TABLES
