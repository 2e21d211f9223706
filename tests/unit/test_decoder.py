"""The composed decoder against the models of ``transformers``, for every declared family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from microscope.features.logits import direction_effects
from microscope.models.declarations import DECODERS, decoder_of
from microscope.models.families import Family
from microscope.models.runner import BlockPatch, Delta, run_blocks
from microscope.models.runner.decoder import DecoderRunner
from microscope.models.runner.parts.attention import SelfAttention
from microscope.models.structure import complete, outline
from tests.families.tiny import POSITIONS, WINDOW, randomise, tiny_config

TYPES = [kind for decoder in DECODERS for kind in decoder.model_types]
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
GROWING = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": WINDOW,
    }
}
# What configurations may say, by type; each is another composition.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 12}),
    ("mistral", {"sliding_window": None}),
    *((kind, ALTERNATING) for kind in ("qwen2", "qwen3", "qwen2_moe", "dots1", "smollm3", "mellum")),
    *((kind, {"sliding_window": 6}) for kind in ("mixtral", "qwen3_moe", "phi3", "starcoder2", "ministral3")),
    ("qwen2_moe", {"mlp_only_layers": [1]}),
    ("phi", {"qk_layernorm": True}),
    ("olmo", {"clip_qkv": 0.5}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0]}),
    ("cohere", {"use_qk_norm": True}),
    ("glm4_moe", {"use_qk_norm": True}),
    ("granite", {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0, "attention_multiplier": 0.1}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    ("stablelm", {"use_parallel_residual": True}),
    ("stablelm", {"use_qkv_bias": True}),
    ("persimmon", {"qk_layernorm": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"parallel_attn": False, "bias": True}),
    ("gpt_bigcode", {"multi_query": False}),
    ("ministral3", GROWING),
    ("hyperclovax", {"use_post_norm": False, "residual_multiplier": 0.3}),
    ("gemma3_text", {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 0.7}),
]  # fmt: skip
CASES = [(kind, {}) for kind in TYPES] + VARIANTS


def build(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = tiny_config(kind)
    config.update(settings)
    # Fused attention leaves soft caps out, so these are loaded with the plain one.
    plain = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **plain).eval().requires_grad_(False)
    randomise(model)
    return model


def composed(model: Any, family: Family | None = None) -> DecoderRunner:
    """The runner; only where what is written is changed it needs to know by which modules."""
    declared = decoder_of(model.config.model_type)
    assert declared is not None
    return DecoderRunner(model, declared, family or outline(model), POSITIONS)


def ids(batch: int = 1, length: int = 3 * WINDOW, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 200, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(runner: DecoderRunner, tokens: torch.Tensor) -> torch.Tensor:
    rows = runner.rows(tokens)
    return runner.head(run_blocks(runner, runner.embed(rows), rows, 0, runner.n_layers))


def assert_near(out: torch.Tensor, right: torch.Tensor, limit: float = 1e-5) -> None:
    assert float((out - right).abs().max()) <= limit * float(right.abs().max())


@pytest.mark.parametrize(("kind", "settings"), CASES)
@torch.inference_mode()
def test_composed_blocks_equal_the_model_from_any_position_beyond_the_window(kind, settings):
    model, tokens = build(kind, **settings), ids(2)
    right = model(tokens).logits
    runner = composed(model)
    whole = runner.rows(tokens)
    assert_near(logits_of(runner, tokens), right)
    assert_near(model(tokens).logits, right)  # weights that are fused are what they were
    for start in (1, tokens.shape[1] // 2, tokens.shape[1] - 1):
        rest, x = runner.rows(tokens, start), runner.embed(whole)
        part = runner.embed(rest)
        for layer in range(runner.n_layers):
            below, below_part = x, part
            x, past = runner.block(layer, below, whole, None)
            part, new = runner.block(layer, below_part, rest, past.upto(start))
            last, same = runner.last_row(layer, below_part, rest, past.upto(start))
            assert_near(last, part[:, -1:])
            assert_near(same.key, new.key)
            assert_near(same.value, new.value)
            last, same = runner.last_row(layer, below, whole, None)
            assert_near(last, x[:, -1:])
            assert_near(same.key, past.key)
        assert_near(runner.head(part), right[:, start:])


@pytest.mark.parametrize("kind", [k for d in DECODERS if d.attention.window != "none" for k in d.model_types])
def test_every_declared_window_is_shorter_than_the_text_in_some_case(kind):
    """Where no window acts the cases above would pass without any."""
    declared = decoder_of(kind)
    assert declared is not None
    windows = set()
    for model in (build(name, **settings) for name, settings in CASES if name == kind):
        for layer, block in enumerate(model.get_submodule(declared.blocks)):
            windows.add(SelfAttention(block, declared.attention, model.config, layer, None).window)
    assert any(window is not None and window < 3 * WINDOW for window in windows)


@pytest.mark.parametrize(("kind", "settings"), CASES)
@torch.inference_mode()
def test_changed_weights_and_what_is_written_equal_hooks(kind, settings):
    """A low-rank change of every matrix in a block, and a direction removed from what its halves add."""
    model, tokens, layer = build(kind, **settings), ids(), 1
    family = complete(model, outline(model))
    runner = composed(model, family)
    block = model.get_submodule(family.block_path(layer))
    generator = torch.Generator().manual_seed(1)
    deltas, handles = {}, []
    for number, (path, module) in enumerate(block.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        out, into = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
        a, b = (torch.randn(s, generator=generator) * 0.2 for s in ((2, into), (out, 2)))
        deltas[path] = (Delta(number, a, b, 0.7),)
        handles.append(module.register_forward_hook(lambda _m, args, y, d=deltas[path][0]: y + d(args[0])))
    direction = torch.randn(runner.d_model, generator=generator)
    direction /= direction.norm()

    def without(_module: object, _args: object, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        y = y - (y @ direction)[..., None] * direction
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handles += [block.get_submodule(p).register_forward_hook(without) for p in family.parts_of(layer).writers]
    right = model(tokens).logits
    for handle in handles:
        handle.remove()
    assert not torch.allclose(model(tokens).logits, right, atol=1e-3)
    patch = BlockPatch(deltas, direction[:, None], {1000: direction})
    rows = runner.rows(tokens)
    x = run_blocks(runner, runner.embed(rows), rows, 0, layer)
    x, _ = runner.block(layer, x, rows, None, patch)
    patch.check_obeyed(layer)
    assert all(size.shape == (tokens.shape[1],) for size in patch.sizes.values())
    assert set(patch.sizes) == {1000, *(d[0].edit for d in deltas.values())}
    assert_near(runner.head(run_blocks(runner, x, rows, layer + 1, runner.n_layers)), right)


@pytest.mark.parametrize("kind", TYPES)
@torch.inference_mode()
def test_half_precision_is_no_farther_from_the_truth_than_the_model_itself(kind):
    """With experts this holds only where rows are sent to those that the model chooses."""
    model = build(kind, torch.bfloat16)
    exact = copy.deepcopy(model).float()
    runner = composed(model)
    ours = theirs = 0.0
    for seed in range(2):
        tokens = ids(4, seed=seed)
        right = exact(tokens).logits
        ours += float((logits_of(runner, tokens).float() - right).square().sum())
        theirs += float((model(tokens).logits.float() - right).square().sum())
    assert ours**0.5 <= 1.05 * theirs**0.5


@pytest.mark.parametrize("kind", TYPES)
@torch.inference_mode()
def test_packed_products_of_every_family_compute_the_same(kind):
    runner, tokens = composed(build(kind)), ids()
    before = logits_of(runner, tokens)
    assert runner.pack(10**9) > 0
    assert_near(logits_of(runner, tokens), before)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_another_runner_of_a_model_uses_the_same_fused_weights(kind):
    model = build(kind)
    first, second = composed(model), composed(model)
    pairs = zip(first.products, second.products, strict=True)
    assert all(a.weight.data_ptr() == b.weight.data_ptr() for a, b in pairs)


def test_kinds_of_attention_that_are_not_known_are_not_composed():
    model = build("qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention"] * 2
    with pytest.raises(ValueError, match="chunked_attention"):
        composed(model)


@pytest.mark.parametrize("kind", TYPES)
@torch.inference_mode()
def test_the_final_norms_gain_and_the_factor_on_logits_are_the_models(kind):
    """Logits of two opposite streams: half their difference is linear in gain and unembedding, whatever the norm."""
    model = build(kind)
    runner = composed(model)
    if getattr(model.config, "final_logit_softcapping", None):
        return
    x = torch.randn(runner.d_model, generator=torch.Generator().manual_seed(2))
    x -= x.mean()
    right = (runner.head(x) - runner.head(-x)) / 2
    unit = x / x.square().mean().sqrt()
    assert_near(direction_effects(runner)(unit[None])[0], right, 1e-4)
