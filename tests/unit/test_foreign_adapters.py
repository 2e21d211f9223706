"""Adapters that the real PEFT wrote: its logits, or a refusal when they are brought in."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel
from microscope.models import load_model
from microscope.params import EditPlan, ImportAdapterParams, PatchExportParams
from microscope.patching.export import export_patch
from microscope.patching.hooks import PatchedModel
from microscope.patching.importing import import_adapter
from microscope.patching.peft_files import read_peft
from microscope.patching.plan_file import load_parts, read_patch
from tests.tiny_models import make_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "qwen3": ["k_proj", "v_proj", "up_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gemma2": ["o_proj", "gate_proj"],
}


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@pytest.fixture
def ids():
    return torch.randint(3, 200, (2, 14), generator=torch.Generator().manual_seed(0))


def write(model: Path, out: Path, *, trained: bool = True, edit=None, **settings: Any) -> Path:
    """An adapter as PEFT saves it; ``trained`` moves its factors away from where they began."""
    torch.manual_seed(3)
    wrapped = get_peft_model(base(model), LoraConfig(task_type="CAUSAL_LM", **settings))
    if trained:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name and parameter.is_floating_point():
                    parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(out)
    return out


def change(folder: Path, tensors=None, **settings: Any) -> Path:
    """Edit an adapter's files."""
    if tensors is not None:
        save_file(
            {k: v.contiguous().clone() for k, v in tensors(load_file(folder / WEIGHTS)).items()},
            folder / WEIGHTS,
        )
    if settings:
        config = json.loads((folder / CONFIG).read_text()) | settings
        (folder / CONFIG).write_text(json.dumps(config))
    return folder


def brought_in(adapter: Path, model: Path, out: Path, ids: torch.Tensor) -> torch.Tensor:
    import_adapter(
        ImportAdapterParams(path=str(adapter), model=str(model), out=str(out), dtype="float32", device="cpu")
    )
    loaded = load_model(str(model), dtype="float32", device="cpu")
    patch = read_patch(out / "patch.json")
    return PatchedModel(loaded, patch.plan, *load_parts(patch, loaded))(ids)[0]


def check(adapter: Path, model: Path, tmp_path: Path, ids: torch.Tensor, *, does: float = 1e-2) -> None:
    """Ours equals PEFT's, and is not the base's."""
    found = brought_in(adapter, model, tmp_path / "in", ids)
    right = logits(PeftModel.from_pretrained(base(model), adapter).eval(), ids)
    assert float((found - right).abs().max()) <= 1e-4 * max(1.0, float(right.abs().max()))
    assert float((right - logits(base(model), ids)).abs().max()) >= does


def refused(adapter: Path, model: Path, tmp_path: Path, *words: str) -> MicroscopeError:
    with pytest.raises(MicroscopeError) as caught:
        import_adapter(
            ImportAdapterParams(
                path=str(adapter), model=str(model), out=str(tmp_path / "in"), dtype="float32", device="cpu"
            )
        )
    assert caught.value.code in (
        "bad_adapter",
        "unsupported_adapter",
        "no_such_module",
        "wrong_adapter_shape",
    )
    for word in words:
        assert word in str(caught.value), caught.value
    assert caught.value.hint
    assert not (tmp_path / "in").exists(), "what was refused left something behind"
    return caught.value


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"fan_in_fan_out": True},
        {"rank_pattern": {r"layers\.[01]\..*": 2, "h.1.attn.c_attn": 2}, "alpha_pattern": {r".*\.[23]\..*": 20, "c_fc": 3}},
        {"rank_pattern": {"(q|k|c)_(proj|attn)": 1}, "alpha_pattern": {"^model.layers.0.*": 1}, "use_rslora": True},
        {"layers_to_transform": [1, 3]},
        {"layers_to_transform": 2},
        {"lora_dropout": 0.4},
        {"exclude_modules": r".*\.0\..*"},
    ],
    ids=str,
)  # fmt: skip
def test_adapters_of_peft(kind, settings, model_folders, tmp_path, ids):
    model = model_folders[kind]
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[kind], **settings}
    if kind == "gpt2" and settings.get("init_lora_weights") == "olora":
        with pytest.raises(RuntimeError):  # PEFT itself can't: the weight is transposed
            logits(PeftModel.from_pretrained(base(model), write(model, tmp_path / "a", **config)), ids)
        refused(tmp_path / "a", model, tmp_path, "c_attn")
        return
    check(write(model, tmp_path / "a", **config), model, tmp_path, ids)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("alpha", [1, 4, 16])
def test_an_adapter_that_took_its_weights_and_was_not_trained_changes_nothing(
    init, alpha, model_folders, tmp_path, ids
):
    model = model_folders["llama"]
    adapter = write(
        model,
        tmp_path / "a",
        trained=False,
        r=4,
        lora_alpha=alpha,
        target_modules=TARGETS["llama"],
        init_lora_weights=init,
    )
    found = brought_in(adapter, model, tmp_path / "in", ids)
    assert float((found - logits(base(model), ids)).abs().max()) <= 1e-4


def test_a_pissa_adapter_that_peft_converted_is_a_plain_one(model_folders, tmp_path, ids):
    model = model_folders["llama"]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    wrapped = get_peft_model(base(model), LoraConfig(task_type="CAUSAL_LM", **settings))
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    trained = logits(wrapped.eval(), ids)
    wrapped.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    found = brought_in(tmp_path / "a", model, tmp_path / "in", ids)
    torch.testing.assert_close(found, trained, rtol=0, atol=1e-4)


TARGETS_AS = ["all-linear", r".*\.(q|v)_proj", ["model.layers.1.mlp.down_proj", "layers.2.self_attn.q_proj"]]


@pytest.mark.parametrize("targets", TARGETS_AS, ids=str)
def test_ways_to_name_targets(targets, model_folders, tmp_path, ids):
    model = model_folders["llama"]
    check(write(model, tmp_path / "a", r=2, target_modules=targets), model, tmp_path, ids)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True, "init_lora_weights": True}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [3, 5]}, "tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"target_modules": ["embed_tokens"]}, "embed"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed"),
        ({"layer_replication": [[0, 3], [1, 4]]}, "replicated"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]}, "parameters"),
    ],
    ids=str,
)
def test_what_is_no_low_rank_change_is_refused_when_brought_in(settings, word, tmp_path):
    model = make_model("llama", tmp_path / "m", attention_bias=True)
    config = {"r": 4, "target_modules": ["q_proj"], **settings}
    refused(write(model, tmp_path / "a", **config), model, tmp_path, word)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "something new"])
def test_unknown_beginnings_are_refused(init, model_folders, tmp_path):
    model = model_folders["llama"]
    adapter = change(write(model, tmp_path / "a", r=2, target_modules=["q_proj"]), init_lora_weights=init)
    refused(adapter, model, tmp_path, init)


def test_settings_that_nobody_knows_yet_are_refused(model_folders, tmp_path):
    model = model_folders["llama"]
    adapter = change(
        write(model, tmp_path / "a", r=2, target_modules=["q_proj"]), use_next_year_lora={"a": 1}
    )
    refused(adapter, model, tmp_path, "use_next_year_lora")
    change(adapter, use_next_year_lora=None)
    read_peft(adapter)


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        (lambda t: {k.replace("base_model.model.", ""): v for k, v in t.items()}, "base_model.model."),
        (lambda t: {"_orig_mod." + k: v for k, v in t.items()}, "_orig_mod"),
        (
            lambda t: {k.replace("model.layers", "_orig_mod.model.layers"): v for k, v in t.items()},
            "_orig_mod",
        ),
        (lambda t: {k.replace("lora_A.", "lora_A.default."): v for k, v in t.items()}, "lora_A.default"),
        (lambda t: {k.replace("layers.3", "layers.9"): v for k, v in t.items()}, "layers.9"),
        (lambda t: {k.replace("q_proj", "wq"): v for k, v in t.items()}, "wq"),
        (lambda t: {k.replace("q_proj", "k_proj"): v for k, v in t.items()}, "k_proj"),
        (lambda t: {k: v for k, v in t.items() if "layers.2." not in k}, "layers.2"),
        (lambda t: {k: v for k, v in t.items() if k != f"{LAYER}.lora_B.weight"}, "no B"),
        (lambda t: {k: v for k, v in t.items() if k != f"{LAYER}.lora_A.weight"}, "lora_B"),
        (lambda t: {k: torch.zeros(0) if k.startswith(LAYER) else v for k, v in t.items()}, "shapes"),
        (lambda t: {k: torch.zeros(()) if k.startswith(LAYER) else v for k, v in t.items()}, "shapes"),
        (lambda t: {k: v[:0] if k == f"{LAYER}.lora_A.weight" else v for k, v in t.items()}, "shapes"),
        (lambda t: {k: torch.zeros(0, 0) if k.startswith(LAYER) else v for k, v in t.items()}, "shapes"),
        (lambda t: {k: v[:, :9] if k == f"{LAYER}.lora_A.weight" else v for k, v in t.items()}, "9"),
        (lambda t: {k: v * torch.nan if k == f"{LAYER}.lora_A.weight" else v for k, v in t.items()}, "NaN"),
        (lambda t: {k: v[:1] if "lora_A" in k else v[:, :1] for k, v in t.items()}, "rank 1"),
        (
            lambda t: {k: v.to(torch.int8) if k == f"{LAYER}.lora_A.weight" else v for k, v in t.items()},
            "int8",
        ),
        (lambda t: {}, "no module"),
        (lambda t: {**t, "base_model.model.score.weight": torch.ones(2, 32)}, "score"),
    ],
    ids=range(20),
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors, word, model_folders, tmp_path):
    model = model_folders["llama"]
    adapter = change(write(model, tmp_path / "a", r=4, target_modules=["q_proj"]), tensors)
    refused(adapter, model, tmp_path, word)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_was_not_fetched_is_called_a_pointer(name, model_folders, tmp_path):
    model = model_folders["llama"]
    adapter = write(model, tmp_path / "a", r=4, target_modules=["q_proj"])
    (adapter / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(adapter, model, tmp_path, name, "git lfs pull")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rank_pattern": {"(a+)+$": 4}, "target_modules": "(a|[a-z]|[._0-9])*!"}, "target"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": "4"}}, "q_proj"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [3]}, "target_modules"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"exclude_modules": {"a": 1}}, "exclude_modules"),
        ({"r": 0}, "r of"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
    ],
    ids=str,
)
@pytest.mark.timeout(60)
def test_malformed_settings_are_refused_by_name(settings, word, model_folders, tmp_path):
    model = model_folders["llama"]
    adapter = change(write(model, tmp_path / "a", r=4, target_modules=["q_proj"]), **settings)
    refused(adapter, model, tmp_path, word)


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_on_the_head_is_peft_s_live_merged_and_in_the_bundle(tied, tmp_path, ids):
    """Where the head is also the embedding, merging unties them: the embedding stays what it was."""
    model = make_model("llama", tmp_path / "m", tie_word_embeddings=tied)
    adapter = write(model, tmp_path / "a", r=4, lora_alpha=4, target_modules=["lm_head", "q_proj"])
    check(adapter, model, tmp_path, ids)
    right = logits(PeftModel.from_pretrained(base(model), adapter).eval(), ids)
    merged = tmp_path / "merged"
    manifest = export_patch(
        PatchExportParams(
            patch=str(tmp_path / "in" / "patch.json"),
            target="merged",
            out=str(merged),
            device="cpu",
            dtype="float32",
        )
    )
    assert manifest["untied"] is tied
    torch.testing.assert_close(logits(base(merged), ids), right, rtol=0, atol=1e-4)
    bundle = tmp_path / "bundle"
    export_patch(
        PatchExportParams(
            patch=str(tmp_path / "in" / "patch.json"), target="bundle", out=str(bundle), device="cpu"
        )
    )
    bundled = base(model)
    runpy.run_path(str(bundle / "load_patch.py"))["attach"](bundled, str(bundle))
    torch.testing.assert_close(logits(bundled, ids), right, rtol=0, atol=1e-4)
    loaded = load_model(str(model), dtype="float32", device="cpu")
    patch = read_patch(tmp_path / "in" / "patch.json")
    _, adapters = load_parts(patch, loaded)
    resident = ResidentModel(loaded)
    for path in patch.adapters.values():
        resident.attach_adapter(path)
    resident.open("s", "the state of the union is strong")
    prompt = torch.tensor([loaded.encode("the state of the union is strong")])
    wanted = logits(PeftModel.from_pretrained(base(model), adapter).eval(), prompt)[0, -1].softmax(-1)
    applied = resident.apply("s", patch.plan)
    torch.testing.assert_close(applied.outcome.logits.softmax(-1), wanted, rtol=1e-3, atol=1e-5)
    assert len(adapters) == 1
    (effect,) = applied.outcome.effects
    assert effect.positions == tuple(range(prompt.shape[1]))
    _, kl = resident.read_positions("s", patch.plan)
    base_p, patched_p = (
        logits(m, prompt)[0].double().log_softmax(-1)
        for m in (base(model), PeftModel.from_pretrained(base(model), adapter))
    )
    torch.testing.assert_close(
        torch.tensor(kl, dtype=torch.float64),
        (base_p.exp() * (base_p - patched_p)).sum(-1),
        rtol=1e-3,
        atol=1e-6,
    )
    assert torch.equal(
        resident.apply("s", EditPlan()).outcome.logits, resident.apply("s", EditPlan()).outcome.logits
    )
    assert resident.apply("s", EditPlan()).comparison.kl == 0
    _, before = resident.open("t", "the state of the union is strong")
    assert before.kl == 0
