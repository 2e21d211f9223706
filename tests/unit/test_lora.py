"""Rank-1 patches, live and as PEFT reads them back."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from microscope.errors import MicroscopeError
from microscope.patching import LoRAPatcher
from tests.families.tiny import make_any


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def ids():
    return torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fresh(tiny):
    """An own copy: PEFT changes the model it wraps."""
    return AutoModelForCausalLM.from_pretrained(tiny.reference, dtype=torch.float32).eval()


def test_peft_loads_the_export_and_computes_the_live_patch(tiny, fresh, ids, tmp_path):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    patcher = LoRAPatcher(fresh)
    patch = patcher.create_feature_patch("trigger", 2, direction, strength=-2.0)
    base = logits(fresh, ids)
    patcher.enable_patch(patch)
    live = logits(fresh, ids)
    patcher.export(patch, tmp_path)
    patcher.disable_patch(patch)
    assert torch.equal(logits(fresh, ids), base)
    assert (live - base).abs().max() > 1e-2
    again = AutoModelForCausalLM.from_pretrained(tiny.reference, dtype=torch.float32).eval()
    wrapped = PeftModel.from_pretrained(again, str(tmp_path))
    torch.testing.assert_close(logits(wrapped, ids), live, rtol=0, atol=1e-4)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped, ids), base)
    torch.testing.assert_close(logits(wrapped.merge_and_unload(), ids), live, rtol=0, atol=1e-4)


def test_strength_minus_one_removes_the_direction_from_what_the_writers_write(fresh, tiny, ids):
    direction = torch.randn(32)
    unit = direction / direction.norm()
    path = f"{tiny.family.blocks}.1.{tiny.family.parts.mlp_projection}"
    module, written = fresh.get_submodule(path), []
    patcher = LoRAPatcher(fresh)
    patch = patcher.create_feature_patch(
        "f", 1, direction, strength=-1.0, modules=(tiny.family.parts.mlp_projection,)
    )
    patcher.enable_patch(patch)
    module.register_forward_hook(lambda _m, _i, out: written.append(out))
    logits(fresh, ids)
    bias = getattr(module, "bias", None)
    own = written[0] - (bias if bias is not None else 0)
    assert (own @ unit).abs().max() < 1e-5


def test_toggling_twice_adds_nothing_twice(fresh, ids):
    patcher = LoRAPatcher(fresh)
    one = patcher.create_feature_patch("a", 0, torch.randn(32), strength=1.0)
    assert patcher.create_feature_patch("a", 0, torch.randn(32), strength=1.0) != one
    patcher.enable_patch(one)
    once = logits(fresh, ids)
    patcher.enable_patch(one)
    assert torch.equal(logits(fresh, ids), once)
    patcher.disable_patch(one)
    patcher.disable_patch(one)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"layer_idx": 4}, "layer_out_of_range"),
        ({"feature_vector": torch.zeros(32)}, "zero_direction"),
        ({"feature_vector": torch.ones(31)}, "wrong_width"),
        ({"strength": math.nan}, "strength_not_finite"),
    ],
)
def test_bad_patches(fresh, changes, code):
    arguments = {
        "feature_id": "f",
        "layer_idx": 1,
        "feature_vector": torch.ones(32),
        "strength": 1.0,
    } | changes
    with pytest.raises(MicroscopeError) as caught:
        LoRAPatcher(fresh).create_feature_patch(**arguments)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["phi3", "mixtral", "opt", "jamba"])
def test_writers_of_any_family_are_found(kind, ids, tmp_path):
    """Fused projections beside them, experts instead of an MLP, transposed or recurrent: PEFT reads the same."""
    folder = make_any(kind, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    patcher = LoRAPatcher(model)
    patch = patcher.create_feature_patch("f", 1, torch.randn(32), strength=-2.0)
    base = logits(model, ids)
    patcher.enable_patch(patch)
    live = logits(model, ids)
    patcher.export(patch, tmp_path / "adapter")
    assert (live - base).abs().max() > 1e-3
    wrapped = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), str(tmp_path / "adapter")
    )
    torch.testing.assert_close(logits(wrapped, ids), live, rtol=0, atol=1e-4)


def test_a_block_of_which_no_writer_is_known_is_refused(tmp_path, ids):
    model = AutoModelForCausalLM.from_pretrained(make_any("openai-gpt", tmp_path), dtype=torch.float32).eval()
    patcher = LoRAPatcher(model)
    for modules, code in (
        ((), "no_such_module"),
        (("nowhere",), "no_such_module"),
        (("mlp.c_fc",), "wrong_width"),
    ):
        with pytest.raises(MicroscopeError) as caught:
            patcher.create_feature_patch("f", 1, torch.ones(32), strength=1.0, modules=modules)
        assert caught.value.code == code


def test_unknown_patches_are_refused(fresh):
    with pytest.raises(MicroscopeError, match="no patch"):
        LoRAPatcher(fresh).enable_patch("nothing")
