"""Exports of patches, as the programs they are for load them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from microscope.models import load_model
from microscope.params import Edit, Positions
from microscope.patching.adapters import LowRank, LowRankAdapter, save_adapter
from microscope.patching.export import read_manifest
from microscope.sae import TokenFilter
from tests.patch_lab import EVERYWHERE, Lab, logits, make_sae
from tests.refusals import refused

FAMILIES = ("llama", "llama-bias", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2")


@pytest.fixture
def ids():
    return torch.randint(3, 150, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def lab(tmp_path, model_folders):
    def make(kind: str, sae=None) -> Lab:
        return Lab(tmp_path, model_folders[kind], sae)

    return make


# --- what is in the weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen3", "gpt2", "gpt_neox"])
def test_merged_weights_of_an_ablation_have_no_part_along_the_directions(lab, kind):
    """Whatever the modules read, what they write is orthogonal to both directions: checked on the numbers."""
    made = lab(kind)
    made.save(made.edit("ablate_everywhere", 5), made.edit("ablate_everywhere", 9))
    merged = load_model(str(made.export("merged")), dtype="float32", device="cpu")
    directions = made.sae.W_dec[[5, 9]].double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    family, model = merged.family, merged.model
    for layer in range(merged.n_layers):
        for part in (family.parts.attention_projection, family.parts.mlp_projection):
            module = model.get_submodule(f"{family.blocks}.{layer}.{part}")
            weight = module.weight.double()
            weight = weight.T if kind == "gpt2" else weight
            assert (directions @ weight).abs().max() < 1e-6
            if getattr(module, "bias", None) is not None:
                assert (directions @ module.bias.double()).abs().max() < 1e-6
    assert (model.get_input_embeddings().weight.double() @ directions.T).abs().max() < 1e-6


# --- clients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_peft_loads_an_exact_adapter_and_computes_the_live_patch(lab, kind, ids):
    made = lab(kind)
    # Two low-rank deltas share a module, and the span of two directions goes from every writer.
    made.save(
        made.edit("ablate_everywhere", 5),
        made.edit("ablate_everywhere", 9),
        *_adapter_edits(made, {"model.layers.1.mlp.down_proj": 2, "model.layers.3.self_attn.o_proj": 1}),
        adapters={_adapter_edits(made, {})[0].adapter: str(made.folder / "adapter")},
    )
    live, base = made.live(ids), logits(made.fresh(), ids)
    assert (live - base).abs().max() > 1e-2
    folder = made.export("peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 4
    assert config["bias"] == "none"
    assert not config["rank_pattern"]
    wrapped = PeftModel.from_pretrained(made.fresh(), str(folder))
    torch.testing.assert_close(logits(wrapped, ids), live, rtol=0, atol=1e-4)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped, ids), base)
    torch.testing.assert_close(logits(wrapped.merge_and_unload(), ids), live, rtol=0, atol=1e-4)


def _adapter_edits(made: Lab, modules: dict[str, int]) -> list[Edit]:
    """An adapter of two modules on disk, and an edit that applies it at half strength."""
    generator = torch.Generator().manual_seed(7)
    factors = {}
    for path, rank in {"model.layers.1.mlp.down_proj": 2, "model.layers.3.self_attn.o_proj": 1}.items():
        d_out, d_in = made.loaded.model.get_submodule(path).weight.shape
        a, b = (torch.randn(s, generator=generator) * 0.3 for s in ((rank, d_in), (d_out, rank)))
        factors[path] = LowRank(a, b)
    adapter = LowRankAdapter(factors, made.loaded.fingerprint)
    save_adapter(adapter, made.folder / "adapter")
    return [Edit(kind="lora", adapter=adapter.fingerprint, modules=tuple(modules), strength=0.5)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_checkpoints_load_in_plain_transformers(lab, kind, ids):
    """Constants, ablation everywhere and both together, as far as the family can hold them."""
    made = lab(kind)
    constant = made.edit("add", 3, strength=2.0, positions=EVERYWHERE)
    everywhere = made.edit("ablate_everywhere", 5)
    for edits, possible in (
        ([constant], kind in ("llama", "llama-bias", "gpt2", "gpt_neox")),
        ([everywhere], kind != "gemma2"),
        ([constant, everywhere], kind in ("llama", "llama-bias", "gpt2", "gpt_neox")),
    ):
        if not possible:
            continue
        made.save(*edits)
        folder = made.export("merged")
        assert read_manifest(folder).grade == "exact"
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(again, ids), made.live(ids), rtol=0, atol=1e-4)
    assert torch.equal(logits(made.loaded.model, ids), logits(made.fresh(), ids)), "the base was written to"


def test_a_tied_embedding_is_untied_when_merged_and_refused_as_an_adapter(tmp_path, model_folders, ids):
    tied = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    for file in model_folders["llama"].glob("tokenizer*"):
        (tmp_path / "tied" / file.name).write_bytes(file.read_bytes())
    made = Lab(tmp_path, tmp_path / "tied")
    assert made.loaded.model.lm_head.weight is made.loaded.model.model.embed_tokens.weight
    made.save(made.edit("ablate_everywhere"))
    folder = made.export("merged")
    assert read_manifest(folder).untied
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again, ids), made.live(ids), rtol=0, atol=1e-4)
    assert "head" in refused("not_possible", made.export, "peft").message


BUNDLE_EDITS = {
    "ablate": {},
    "scale": {"strength": 3.0},
    "clamp_firing": {"strength": 2.0, "unit_value": 1.5},
    "clamp_all": {"strength": 1.0},
    "add": {"strength": 1.0, "positions": Positions(mode="from", start=4)},
    "project": {"strength": 0.0, "positions": Positions(mode="set", indices=(2, 7))},
    "splice": {"feature": None},
    "ablate_everywhere": {},
}


BUNDLES = [("topk", kind) for kind in BUNDLE_EDITS]
BUNDLES += [("batchtopk", "splice"), ("jumprelu", "scale"), ("gated", "scale"), ("standard", "clamp_firing")]
BUNDLES += [("groupmax", "splice"), ("groupmax", "clamp_firing")]
USE_BUNDLES = """
import sys, torch
sys.modules["microscope"] = None
from transformers import AutoModelForCausalLM
from load_patch import attach
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids, out = torch.load(sys.argv[2]), {}
with torch.no_grad():
    base = model(ids).logits
    for folder in sys.argv[4:]:
        patch = attach(model, folder)
        past = model(ids[:, :8]).past_key_values
        out[folder] = model(ids).logits, model(ids[:, 8:], past_key_values=past).logits
        patch.remove()
        assert torch.equal(model(ids).logits, base)
torch.save(out, sys.argv[3])
"""


def test_bundles_work_without_this_package(tmp_path, model_folders, ids):
    """A process that cannot import this package attaches bundles and computes the live logits, cached or not."""
    script = tmp_path / "use.py"
    script.write_text(USE_BUNDLES)
    wanted, folders = {}, []
    for arch, kind in BUNDLES:
        norm = "layer_norm" if arch == "gated" else "none"
        made = Lab(
            tmp_path,
            model_folders["llama"],
            make_sae(arch, token_filter=TokenFilter(max_norm=9.0), input_norm=norm),
        )
        extra = {"sae": made.fingerprint} if kind == "splice" else {}
        made.save(made.edit(kind, 5, **BUNDLE_EDITS[kind], **extra))
        folder = made.export("bundle").rename(tmp_path / f"{arch}-{kind}")
        wanted[str(folder)] = made.live(ids)
        folders.append(str(folder))
    torch.save(ids, tmp_path / "ids.pt")
    command = [
        sys.executable,
        str(script),
        str(made.model),
        str(tmp_path / "ids.pt"),
        str(tmp_path / "out.pt"),
    ]
    environment = {"PYTHONPATH": folders[0], "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *folders], check=True, timeout=180, env=environment, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt")
    base = logits(made.fresh(), ids)
    for folder, live in wanted.items():
        assert (live - base).abs().max() > 1e-4, f"{folder} does nothing, so it proves nothing"
        torch.testing.assert_close(found[folder][0], live, rtol=0, atol=1e-4)
        torch.testing.assert_close(found[folder][1], live[:, 8:], rtol=0, atol=1e-4)
