"""A model, an SAE, patches of them on disk, their exports and certificates."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from microscope.models import load_model
from microscope.params import CertifyParams, Edit, EditPlan, FeatureRef, PatchExportParams, Positions
from microscope.patching.certify import certify
from microscope.patching.export import export_patch
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import PatchFile, load_parts, read_patch, write_patch
from microscope.sae import SaeConfig, architecture, save_sae

EVERYWHERE = Positions(include_sinks=True)


def make_sae(arch: str = "topk", *, layer: int = 2, seed: int = 1, **rest: object):
    config = SaeConfig(
        architecture=arch,
        d_in=32,
        n_latents=64,
        k=8 if arch == "groupmax" else 6,  # groups of equal size
        site=f"resid_post.{layer}",
        scale=0.8,
        **rest,
    )  # type: ignore[arg-type]
    sae = architecture(arch)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    if arch == "batchtopk":
        sae.threshold.fill_(0.4)
        sae.threshold_weight.fill_(1.0)
    return sae


class Lab:
    """A model, an SAE, and patches of them on disk."""

    def __init__(self, folder: Path, model: Path, sae=None) -> None:
        self.folder, self.model = folder, model
        self.loaded = load_model(str(model), dtype="float32", device="cpu")
        self.sae = sae or make_sae()
        self.fingerprint = self.sae.content_fingerprint()
        save_sae(self.sae, folder / "sae")

    def edit(self, kind: str, index: int = 5, **rest) -> Edit:
        rest = {"feature": FeatureRef(sae=self.fingerprint, index=index), **rest}
        return Edit(kind=kind, site=self.sae.config.site, **rest)

    def save(self, *edits: Edit, adapters: dict[str, str] | None = None) -> Path:
        patch = PatchFile(
            plan=EditPlan(edits=edits),
            model=str(self.model),
            saes={self.fingerprint: str(self.folder / "sae")},
            adapters=adapters or {},
        )
        write_patch(patch, self.folder / "patch.json")
        return self.folder / "patch.json"

    def live(self, ids: torch.Tensor) -> torch.Tensor:
        patch = read_patch(self.folder / "patch.json")
        return PatchedModel(self.loaded, patch.plan, *load_parts(patch, self.loaded))(ids)[0]

    def export(self, target: str, **rest) -> Path:
        out = self.folder / target
        params = {
            "patch": str(self.folder / "patch.json"),
            "out": str(out),
            "target": target,
            "device": "cpu",
        }
        export_patch(PatchExportParams(**{**params, **rest}))
        return out

    def fresh(self):
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def measure(lab: Lab, folder, **rest):
    params = {
        "export": str(folder),
        "out": str(lab.folder / "certificate"),
        "sae_path": (str(lab.folder / "sae"),),
        "contexts": 8,
        "bootstrap": 200,
        "device": "cpu",
    }
    return certify(CertifyParams(**{**params, **rest}))


def busiest(lab: Lab, recording_folder) -> int:
    """The latent that fires most on the recording."""
    from microscope.activations import Recording

    recording = Recording(recording_folder)
    chunk = next(iter(recording.chunks("train", recording.site(lab.sae.config.site))))
    codes = lab.sae.encode(torch.from_numpy(chunk.values).float())
    return int(torch.bincount(codes.indices[codes.values > 0]).argmax())
