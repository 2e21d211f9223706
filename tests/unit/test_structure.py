"""Parts of any decoder found by running it, and runners that serve only when their numbers agree with the model."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

from microscope.errors import MicroscopeError
from microscope.models.families import declared_family
from microscope.models.own_blocks import OwnBlocks
from microscope.models.plain_pass import deviation, plain_pass
from microscope.models.runner import decoder, general, runner_for
from microscope.models.runner.product import as_product
from microscope.models.runner.proof import prove, same_arguments
from microscope.models.runner.tail import measured_gain
from microscope.models.structure import complete, outline, verified
from tests.families.tiny import randomise, tiny_config

CPU = torch.device("cpu")


def build(model_type: str, **settings):
    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.update(settings)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    randomise(model)
    return model


def parts_of(model, layer: int = 1):
    return complete(model, outline(model)).parts_of(layer)


@torch.no_grad()
def inside(model, path: str, ids: torch.Tensor):
    """A module's first input and output in a plain pass, by a hook of our own."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _m, args, kwargs, out: seen.append((args[0] if args else kwargs["hidden_states"], out)),
        with_kwargs=True,
    )
    model(ids, use_cache=False)
    handle.remove()
    read, wrote = seen[0]
    return read, wrote[0] if isinstance(wrote, tuple) else wrote


IDS = torch.randint(3, 200, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model_type", "attention", "attention_projection", "mlp", "mlp_projection", "scale"),
    [
        ("granite", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", 0.22),
        ("olmo2", "post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm", "mlp.down_proj", 1.0),
        ("bloom", "self_attention.dense", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.dense_4h_to_h", 1.0),
        ("dbrx", "norm_attn_norm.attn", "norm_attn_norm.attn.out_proj", "ffn", None, 1.0),
        ("phi", "self_attn", "self_attn.dense", "mlp", "mlp.fc2", 1.0),
        ("opt", "self_attn", "self_attn.out_proj", "fc2", "fc2", 1.0),
        ("mamba", "mixer", "mixer.out_proj", None, None, 1.0),
    ],
)  # fmt: skip
def test_halves_of_a_block_are_the_modules_that_add_up(
    model_type, attention, attention_projection, mlp, mlp_projection, scale
):
    settings = {"residual_multiplier": scale} if scale != 1 else {}
    model = build(model_type, **settings)
    family = complete(model, outline(model))
    parts = family.parts_of(1)
    assert (parts.attention, parts.mlp) == (attention, mlp)
    assert (parts.attention_projection, parts.mlp_projection) == (attention_projection, mlp_projection)
    block = family.block_path(1)
    x, y = inside(model, block, IDS)
    halves = [(p, s) for p, s in ((attention, parts.attention_scale), (mlp, parts.mlp_scale)) if p]
    total = x + sum(s * inside(model, f"{block}.{p}", IDS)[1].view(x.shape) for p, s in halves)
    torch.testing.assert_close(total, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))
    assert all(s == pytest.approx(scale) for _, s in halves)


def test_the_stream_between_the_halves_is_found_where_there_is_one():
    assert parts_of(build("granite", residual_multiplier=0.22)).between.path == "post_attention_layernorm"
    parallel = parts_of(build("phi"))
    assert parallel.between is None
    assert "parallel" in parallel.missing["resid_mid"]
    assert "one half" in parts_of(build("mamba")).missing["resid_mid"]


def test_a_norm_behind_the_sum_leaves_the_halves_unproven():
    """In blocks that norm the stream itself what is added is no module's output."""
    parts = parts_of(build("openai-gpt"))
    assert not parts.adds_up
    assert parts.attention is None
    assert "add up" in parts.missing["attn_out"]


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "sees both ways"),
        ("bert", {}, "sees both ways"),
        ("hrm_text", {}, "not through each once"),
        ("gemma3n_text", {}, "no single residual stream"),
        ("xlm", {"causal": True}, "block 1 does not read"),
    ],
)
def test_what_is_no_chain_over_one_stream_is_refused_with_what_was_found(model_type, settings, reason):
    model = build(model_type, **settings)
    with pytest.raises(MicroscopeError, match=reason) as caught:
        complete(model, outline(model))
    assert caught.value.code == "unsupported_family"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("model_type", "halves"),
    [("opt", ("self_attn", "fc2")), ("falcon", ("self_attention", "mlp")), ("granite", ("self_attn", "mlp"))],
)
def test_halves_are_found_beside_a_row_that_is_hundreds_of_times_longer(
    model_type, halves, dtype, monkeypatch
):
    """As behind the first blocks of most large models: the other rows' halves are less than rounding of that one."""
    model = build(model_type, **({"residual_multiplier": 0.22} if model_type == "granite" else {}))
    blocks = model.get_submodule(outline(model).blocks)
    for weight in blocks.parameters():
        weight.mul_(0.5)
    model.get_input_embeddings().weight.mul_(3)
    half = blocks[1].get_submodule(halves[1])
    own = half.forward

    def huge(x, *args, **kwargs):
        out = own(x, *args, **kwargs).clone()
        out.view(-1, out.shape[-1])[0, 3] += 3000
        return out

    monkeypatch.setattr(half, "forward", huge)
    model = model.to(dtype)
    family = complete(model, outline(model))
    found = [family.parts_of(layer) for layer in range(len(blocks))]
    assert [(parts.attention, parts.mlp, parts.adds_up) for parts in found] == [(*halves, True)] * len(blocks)


def test_what_a_block_adds_is_not_taken_for_one_half_where_the_other_is_small():
    """In half precision a half may add less than rounding may leave over."""
    model = build("opt").to(torch.bfloat16)
    blocks = model.get_submodule(outline(model).blocks)
    blocks[1].self_attn.out_proj.weight.mul_(0.01)
    blocks[1].self_attn.out_proj.bias.mul_(0.01)
    parts = parts_of(model)
    assert (parts.attention, parts.mlp) == ("self_attn", "fc2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weak_attention_to_later_rows_is_found_in_any_precision(dtype):
    """The last of 20 tokens alone would move the others' rows by less than half precision may round."""
    model = build("gemma3_text", use_bidirectional_attention=True)
    for block in model.model.layers:
        # A tenth of what the stream is; all rows are attended to alike.
        block.post_attention_layernorm.weight.fill_(-0.9)
        block.post_feedforward_layernorm.weight.fill_(-1)
        block.self_attn.q_proj.weight.zero_()
    model = model.to(dtype)
    with pytest.raises(MicroscopeError, match="sees both ways"):
        complete(model, outline(model))


def test_a_model_is_let_go_of_when_nobody_has_it(model_folders):
    from microscope.models import load_model

    for folder in ("llama", "gpt_neox"):
        loaded = load_model(str(model_folders[folder]), dtype="float32", device="cpu")
        assert runner_for(loaded).proof.holds
        assert runner_for(loaded).proof.holds  # as it was proven before
        model = weakref.ref(loaded.model)
        del loaded
        gc.collect()
        assert model() is None


def test_a_copied_layer_computes_with_its_own_weights():
    layer = torch.nn.Linear(8, 8)
    as_product(layer).pack()
    changed = copy.deepcopy(layer)
    x = torch.randn(3, 8)
    with torch.no_grad():
        before = layer(x)
        changed.weight.zero_()
        torch.testing.assert_close(changed(x), changed.bias.expand(3, 8))
        assert torch.equal(layer(x), before)


def test_a_runner_whose_blocks_read_each_others_caches_does_not_serve(monkeypatch):
    """Run in the model's order, blocks of one pass would find there what those below them left."""
    model = build("opt")
    family = complete(model, outline(model))
    seen = plain_pass(OwnBlocks(model, model.get_submodule(family.blocks)), 256, CPU)
    put = general.Caches.put

    def shared(self, cache, layer, past, start):
        put(self, cache, layer, past, start)
        if layer == 2 and cache.layers[1].new is None:
            raise AttributeError("nothing there")

    monkeypatch.setattr(general.Caches, "put", shared)
    assert "nothing there" in prove(general.GeneralRunner(model, family), seen).against


def test_an_argument_that_is_missing_when_blocks_are_noted_shows():
    model = build("opt")
    calls = plain_pass(OwnBlocks(model, model.get_submodule(outline(model).blocks)), 256, CPU).calls
    assert not same_arguments(calls, calls)
    for other in (None, 3, torch.zeros(1)):
        changed = [replace(calls[0], kwargs={**calls[0].kwargs, "values": torch.ones(1)}), *calls[1:]]
        noted = [replace(calls[0], kwargs={**calls[0].kwargs, "values": other}), *calls[1:]]
        assert "block 0 reads" in same_arguments(noted, changed)


@pytest.mark.parametrize("error", [0.0, 3e-3])
def test_a_fast_runner_that_is_wrong_does_not_serve(error, model_folders, monkeypatch):
    """A variant that a declaration does not fit is answered by the model's own blocks, and says so."""
    from microscope.models import load_model

    own = decoder.DecoderRunner.block

    def off(self, layer, x, rows, past, patch=None):
        out, new = own(self, layer, x, rows, past, patch)
        return out + error * (out - x) * (layer == 2), new

    monkeypatch.setattr(decoder.DecoderRunner, "block", off)
    loaded = load_model(str(model_folders["llama"]), dtype="float32", device="cpu")
    runner = runner_for(loaded)
    assert runner.proof.error < 1e-5
    if error:
        assert runner.path == "general"
        assert "its blocks deviate by" in runner.why
    else:
        assert (runner.path, runner.why) == ("fast", "")


def test_a_runner_whose_cache_is_wrong_goes_without_one(monkeypatch):
    """Keys and values of the wrong rows show in rows that continue others, and nowhere else."""
    model = build("opt")
    family = complete(model, outline(model))
    seen = plain_pass(OwnBlocks(model, model.get_submodule(family.blocks)), 256, CPU)
    runner = general.GeneralRunner(model, family)
    assert prove(runner, seen).holds
    take = general.Caches.take
    monkeypatch.setattr(
        general.Caches, "take", lambda self, cache, layer: type(new := take(self, cache, layer))(*(t * 1.5 for t in new))
    )  # fmt: skip
    proof = prove(runner, seen)
    assert not proof.holds
    assert proof.blocks < 1e-6
    assert "rows that continue others" in proof.against
    assert prove(general.GeneralRunner(model, family, remembering=False), seen).holds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_allowed_for_where_only_the_stream_is_not_in_it(dtype):
    """Mamba keeps its stream in float32: what its blocks keep of earlier rows serves all the same."""
    model = build("mamba", residual_in_fp32=True).to(dtype)
    family = complete(model, outline(model))
    seen = plain_pass(OwnBlocks(model, model.get_submodule(family.blocks)), 256, CPU)
    assert seen.streams[0].dtype == torch.float32
    proof = prove(general.GeneralRunner(model, family), seen)
    assert proof.error > 1e-4
    assert proof.holds


def test_a_copy_of_a_model_runs_its_own_blocks():
    """Stand-ins are bound to their block: a copy that is changed must not run the original."""
    model = build("opt")
    OwnBlocks(model, model.get_submodule(outline(model).blocks))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        before = model(IDS).logits
        for weight in changed.get_submodule(outline(model).blocks)[0].parameters():
            weight.zero_()
        assert not torch.allclose(changed(IDS).logits, before)
        assert torch.equal(model(IDS).logits, before)


def test_gains_are_measured_whatever_the_norm():
    torch.manual_seed(0)
    layer_norm = torch.nn.LayerNorm(32)
    torch.nn.init.normal_(layer_norm.weight, 1, 0.3)
    torch.nn.init.normal_(layer_norm.bias)
    like = torch.zeros(1)
    with torch.no_grad():
        torch.testing.assert_close(
            measured_gain(layer_norm, 32, like), layer_norm.weight, rtol=1e-3, atol=1e-3
        )
        gemma = build("gemma2").model.norm
        torch.testing.assert_close(measured_gain(gemma, 32, like), 1 + gemma.weight, rtol=1e-3, atol=1e-3)


def test_a_declaration_that_does_not_fit_is_replaced_by_what_is_found():
    """A declared family whose modules are not what adds up is read where the sums say."""
    model = build("llama")
    declared = declared_family("llama")
    assert verified(model, declared) is declared
    wrong = replace(declared, parts=replace(declared.parts, mlp="mlp.up_proj"))
    assert verified(model, wrong).parts_of(2).mlp == "mlp"


def test_an_error_in_ordinary_rows_is_not_hidden_by_a_huge_one():
    x = torch.randn(1, 6, 16)
    out = x + torch.randn(1, 6, 16)
    out[0, 0] *= 1e4  # as at the first token of many models
    off = out.clone()
    off[0, 4] += 0.01 * (out[0, 4] - x[0, 4])
    assert float((off - out).abs().max() / out.abs().max()) < 1e-5
    assert deviation(off, out, x) == pytest.approx(0.01, rel=0.05)
