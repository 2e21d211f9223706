"""Exports of families that no table names: exact where what is exported computes what the hooks do, else refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from microscope.models.effect import inspect
from microscope.models.load import inspect_model
from microscope.params import Edit, EditPlan, InspectParams, ModelTraits, Obstacles, Positions, verdict
from microscope.params.traits import EMBEDDING_ELSEWHERE, NORM_BEHIND, NORM_BEHIND_EMBEDDING
from microscope.patching.adapters import LowRank, LowRankAdapter, save_adapter
from microscope.patching.export import read_manifest
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import load_parts, read_patch
from microscope.patching.realisation import realisations, traits_of
from tests.families.tiny import make_any
from tests.patch_lab import EVERYWHERE, Lab, logits, make_sae, measure
from tests.refusals import refused

IDS = torch.randint(3, 150, (2, 9), generator=torch.Generator().manual_seed(0))


def lab_of(kind: str, folder: Path) -> Lab:
    return Lab(folder, make_any(kind, folder / "model"), make_sae(layer=1))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "kind",
    [
        "mixtral",
        "gpt_oss",
        "llama4_text",
        "deepseek_v3",
        "falcon",
        "cohere",
        "granite",
        "opt",
        "mamba",
        "jamba",
    ],
)
def test_a_direction_is_out_of_everything_a_merged_checkpoint_writes(kind, tmp_path):
    """Experts in either layout, shared ones, parallel blocks, multipliers, tables of positions, recurrent blocks."""
    made = lab_of(kind, tmp_path)
    made.save(made.edit("ablate_everywhere", 5), made.edit("ablate_everywhere", 9))
    folder = made.export("merged")
    assert read_manifest(folder).grade == "exact"
    live, base = made.live(IDS), logits(made.fresh(), IDS)
    assert (live - base).abs().max() > 0.01 * base.abs().max()
    close(logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), IDS), live)


@pytest.mark.parametrize("kind", ["falcon", "helium", "granite", "seed_oss"])
def test_a_constant_is_a_bias_of_any_block_that_has_room_for_one(kind, tmp_path):
    """Biases that are there, and those that a setting of the configuration brings."""
    made = lab_of(kind, tmp_path)
    traits = traits_of(made.loaded)
    made.save(made.edit("add", 3, strength=2.0, positions=EVERYWHERE))
    if not traits.obstacles.constant_blocks:
        assert realisations(traits)["add"]["merged"].grade == "approximate"
        return
    folder = made.export("merged")
    assert read_manifest(folder).grade == "exact"
    close(
        logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), IDS), made.live(IDS)
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("olmo2", NORM_BEHIND),
        ("bloom", NORM_BEHIND_EMBEDDING),
        ("zamba2", EMBEDDING_ELSEWHERE),
        ("rwkv", "add up"),
        ("falcon_h1", "adds 3 things"),
    ],
)
def test_what_is_not_exact_is_refused_with_the_reason(kind, reason, tmp_path):
    made = lab_of(kind, tmp_path)
    made.save(made.edit("ablate_everywhere", 5))
    assert reason in refused("not_possible", made.export, "merged").message


def adapter_of(made: Lab, *paths: str) -> Edit:
    generator, factors = torch.Generator().manual_seed(7), {}
    for path in paths:
        d_out, d_in = made.loaded.model.get_submodule(path).weight.shape
        a, b = (torch.randn(s, generator=generator) * 0.3 for s in ((2, d_in), (d_out, 2)))
        factors[path] = LowRank(a, b)
    adapter = LowRankAdapter(factors, made.loaded.fingerprint)
    save_adapter(adapter, made.folder / "adapter")
    edit = Edit(kind="lora", adapter=adapter.fingerprint, modules=tuple(sorted(factors)), strength=0.5)
    made.save(edit, adapters={adapter.fingerprint: str(made.folder / "adapter")})
    return edit


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("mamba", "backbone.layers.1.mixer.dt_proj"),
        ("llama4_text", "model.layers.1.feed_forward.router"),
    ],
)
def test_an_adapter_that_would_not_act_as_a_change_of_its_weight_is_refused(kind, path, tmp_path):
    """Of Mamba's steps the weight is read past the module; Llama-4's router returns more than a product."""
    made = lab_of(kind, tmp_path)
    adapter_of(made, path)
    refused("module_not_linear", made.export, "bundle")


def test_an_adapter_on_one_of_several_modules_that_share_a_weight_cannot_be_merged(tmp_path):
    made = lab_of("zamba", tmp_path)
    adapter_of(made, "model.layers.1.shared_transf.self_attn.q_proj")
    assert "differ by" in refused("not_exact", made.export, "merged").message


def test_peft_s_own_refusals_are_told_before(tmp_path):
    made = lab_of("mamba", tmp_path)
    edit = adapter_of(made, "backbone.layers.1.mixer.out_proj")
    traits = traits_of(made.loaded)
    assert verdict(EditPlan(edits=(edit,)), traits, "peft").grade == "not_possible"
    assert verdict(EditPlan(edits=(edit,)), traits, "merged").grade == "exact"
    assert verdict(EditPlan(edits=(edit,)), traits, "gguf_lora").grade == "not_possible"


def test_modules_that_peft_takes_for_experts_are_left_to_other_targets(tmp_path):
    """Once such models kept their experts as modules; PEFT renames all changes of modules called like those."""
    made = lab_of("deepseek_v3", tmp_path)
    shared = adapter_of(made, "model.layers.1.mlp.shared_experts.down_proj")
    traits = traits_of(made.loaded)
    assert verdict(EditPlan(edits=(shared,)), traits, "peft").grade == "not_possible"
    attention = adapter_of(made, "model.layers.1.self_attn.o_proj")
    assert verdict(EditPlan(edits=(attention,)), traits, "peft").grade == "exact"
    adapter = made.export("peft")
    wrapped = PeftModel.from_pretrained(made.fresh(), str(adapter))
    close(logits(wrapped, IDS), made.live(IDS))
    assert (made.live(IDS) - logits(made.fresh(), IDS)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "openai-gpt", "bloom"])
def test_bundles_generate_with_states_that_have_no_length(kind, tmp_path):
    """Positions are counted where a recurrent state does not say how much it has seen; outputs may be lists."""
    made = lab_of(kind, tmp_path)
    prompt = IDS.shape[1]
    made.save(
        made.edit("add", 5, strength=3.0, positions=Positions(mode="from", start=4)),
        made.edit("clamp_all", 7, strength=3.0, positions=Positions(mode="generated")),
    )
    folder = made.export("bundle")
    spec = importlib.util.spec_from_file_location("load_patch", folder / "load_patch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = made.fresh()
    patch = module.attach(model, folder)
    out = model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    patch.remove()
    plan = read_patch(made.folder / "patch.json")
    patched = PatchedModel(made.loaded, plan.plan, *load_parts(plan, made.loaded))
    wanted = patched(out, prompts=[prompt] * len(out))[0][:, prompt - 1 : -1]
    chosen = wanted.gather(-1, out[:, prompt:, None])[..., 0]
    assert float((wanted.max(-1).values - chosen).max()) <= 1e-4 * float(wanted.abs().max())


def test_a_form_says_that_exports_of_a_family_that_is_found_are_proven_later(tmp_path):
    """Before weights are at hand the parts of its blocks are not known; the export looks at them."""
    kind, folder = "gpt_neo", str(make_any("gpt_neo", tmp_path))
    found = msgspec.convert(inspect_model(folder)["obstacles"], Obstacles)
    assert not found.proven
    loaded = inspect(InspectParams(model=folder, load=True))["obstacles"]
    assert loaded["proven"]
    assert loaded["constant_blocks"]
    judged = realisations(ModelTraits(model_type=kind, n_layers=4, found=found))
    assert judged["ablate_everywhere"]["merged"].grade == "exact"
    assert "numbers" in judged["ablate_everywhere"]["merged"].reason
    assert judged["ablate"]["merged"].grade == "approximate"
    assert judged["add"]["control_vector"].reason.startswith("llama.cpp")


@pytest.mark.parametrize("kind", ["opt", "falcon", "mamba2"])
def test_what_is_fitted_is_measured_in_any_family(kind, corpus, tmp_path):
    """Modules that read all rows as one list, parallel blocks, recurrent blocks with one matrix."""
    made = lab_of(kind, tmp_path)
    made.save(made.edit("project", 5, strength=-1.0, positions=EVERYWHERE))
    text = (str(corpus),)
    folder = made.export("merged", text=text, fit_tokens=1500, fit_steps=5, rank=4)
    fitted = read_manifest(folder).fit
    assert fitted is not None
    assert fitted.share > 0
    assert fitted.r2["resid_post.1"] > 0
    found = measure(made, folder, text=text, contexts=2, bootstrap=20)
    assert next(gate for gate in found.gates if gate.name == "Measured is live").passed


def test_an_sae_of_another_width_is_refused(tmp_path):
    """One that does not say which model it was trained on."""
    made = lab_of("xlstm", tmp_path)
    made.save(made.edit("ablate_everywhere", 5))
    found = refused("wrong_width", made.export, "merged")
    assert "32" in found.message
    assert "128" in found.message
