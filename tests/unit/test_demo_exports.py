"""Patches of the demo's real model, out and loaded by the libraries of others, beside what the live path answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from microscope.live import ResidentModel
from microscope.models import LoadedModel, load_model
from microscope.params import Edit, EditPlan, FeatureRef, PatchExportParams, Positions
from microscope.patching.adapters import LowRank, LowRankAdapter, save_adapter
from microscope.patching.export import export_patch, read_manifest
from microscope.patching.plan_file import PatchFile, write_patch
from microscope.sae import SaeConfig, architecture, save_sae

pytestmark = pytest.mark.model

PROMPTS = ("The capital of France is", "Fellow citizens of the Senate and of the House of", "2 + 2 =")
BLOCK = 15


class Patches:
    """The model, an SAE of one block with directions of a usual length, and an adapter of two writers."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        loaded = load_model(str(model), dtype="float32", device="cpu")
        sae = architecture("topk")(
            SaeConfig(architecture="topk", d_in=loaded.d_model, n_latents=64, k=8, site=f"resid_post.{BLOCK}")
        ).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        save_sae(sae, folder / "sae")
        self.sae = sae.content_fingerprint()
        factors = {}
        for path in (f"model.layers.{BLOCK}.mlp.down_proj", f"model.layers.{BLOCK - 8}.self_attn.o_proj"):
            out, d_in = loaded.model.get_submodule(path).weight.shape
            a, b = (torch.randn(s, generator=generator) * 0.08 for s in ((4, d_in), (out, 4)))
            factors[path] = LowRank(a, b)
        adapter = LowRankAdapter(factors, loaded.fingerprint)
        save_adapter(adapter, folder / "adapter")
        self.adapter, self.modules = adapter.fingerprint, tuple(sorted(factors))
        self.resident = self._resident(loaded)

    def _resident(self, loaded: LoadedModel) -> ResidentModel:
        resident = ResidentModel(loaded)
        resident.attach(self.folder / "sae")
        resident.attach_adapter(self.folder / "adapter")
        return resident

    def lora(self, strength: float = 0.7) -> Edit:
        return Edit(kind="lora", adapter=self.adapter, modules=self.modules, strength=strength)

    def feature(self, kind: str, index: int, **rest: object) -> Edit:
        feature = FeatureRef(sae=self.sae, index=index)
        return Edit(kind=kind, site=f"resid_post.{BLOCK}", feature=feature, **rest)  # type: ignore[arg-type]

    def live(self, plan: EditPlan) -> list[torch.Tensor]:
        """The next-token logits a session computes, incrementally, one prompt after the other."""
        found = []
        for prompt in PROMPTS:
            self.resident.open("s", prompt, top=1)
            found.append(self.resident.apply("s", plan, top=1).outcome.logits)
        return found

    def export(self, plan: EditPlan, target: str) -> Path:
        patch = PatchFile(
            plan=plan,
            model=str(self.model),
            saes={self.sae: str(self.folder / "sae")},
            adapters={self.adapter: str(self.folder / "adapter")},
        )
        write_patch(patch, self.folder / "patch.json")
        out = self.folder / target
        export_patch(
            PatchExportParams(
                patch=str(self.folder / "patch.json"),
                out=str(out),
                target=target,  # type: ignore[arg-type]
                device="cpu",
            )
        )
        assert read_manifest(out).grade == "exact"
        return out

    def plain(self):
        """The base model as transformers itself reads the file."""
        return AutoModelForCausalLM.from_pretrained(
            self.model.parent, gguf_file=self.model.name, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module")
def patches(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Patches:
    return Patches(demo_model, tmp_path_factory.mktemp("demo"))


@torch.no_grad()
def next_logits(patches: Patches, model) -> list[torch.Tensor]:
    tokenizer = patches.resident.loaded.tokenizer
    return [model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1] for prompt in PROMPTS]


def furthest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_peft_gives_the_live_logits(patches: Patches) -> None:
    plan = EditPlan(edits=(patches.lora(),))
    live, base = patches.live(plan), patches.live(EditPlan())
    assert furthest(live, base) > 0.1
    wrapped = PeftModel.from_pretrained(patches.plain(), str(patches.export(plan, "peft")))
    assert furthest(next_logits(patches, wrapped), live) <= 1e-4
    with wrapped.disable_adapter():
        assert furthest(next_logits(patches, wrapped), base) <= 1e-4
    assert furthest(next_logits(patches, wrapped.merge_and_unload()), live) <= 1e-4


def test_a_merged_checkpoint_gives_the_live_logits_in_plain_transformers(patches: Patches) -> None:
    """An adapter, a constant and an ablation at once; the embedding is untied from the head for the last."""
    everywhere = Positions(include_sinks=True)
    plan = EditPlan(
        edits=(
            patches.lora(),
            patches.feature("add", 3, strength=4.0, positions=everywhere),
            patches.feature("ablate_everywhere", 5),
        )
    )
    live = patches.live(plan)
    assert furthest(live, patches.live(EditPlan())) > 0.1
    folder = patches.export(plan, "merged")
    assert read_manifest(folder).untied
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert furthest(next_logits(patches, merged), live) <= 1e-4
