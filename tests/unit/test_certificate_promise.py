"""No plan with an effect is certified by an export that does nothing or half of it, whatever the plan.

Generated plans: kinds, strengths over six orders of magnitude, positions, sites, mixtures, opposites.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from microscope.params import Edit, EditPlan
from microscope.patching import LowRank, LowRankAdapter, save_adapter
from microscope.patching.certify.comparing import Comparison, Effect
from microscope.patching.certify.gates import Gate, judge
from microscope.patching.certify.live import LiveAgreement
from microscope.patching.certify.measure import affected, collateral, parity
from microscope.patching.export.manifest import MANIFEST, list_files, read_manifest
from microscope.patching.fitting.samples import TextWindow, with_prompts
from microscope.patching.hooks import PatchedModel
from tests.live_rig import KINDS, make_edit, one_splice_per_site, random_adapter, random_edit, random_sae
from tests.patch_lab import EVERYWHERE, busiest, measure

PROMISE = {"Share of effect kept", "More than half the patch"}


class Reproduction:
    """Stands for a reloaded export that makes a share of every change."""

    def __init__(self, loaded: Any, plan: EditPlan, saes: Any, adapters: Any, share: float) -> None:
        self.model, self.loaders = loaded.model, {"none": "stands for an export"}
        self._patched = PatchedModel(loaded, plan, saes, adapters, share=share)

    def logits(
        self,
        tokens: torch.Tensor,
        within: contextlib.AbstractContextManager[Any] | None = None,
        prompts: Sequence[int | None] | None = None,
    ) -> torch.Tensor:
        with within or contextlib.nullcontext():
            return self._patched(tokens, prompts=prompts)[0]


def gates_of(
    loaded: Any, plan: EditPlan, saes: Any, adapters: Any, share: float, manifest: Any
) -> tuple[dict[str, Gate], Effect]:
    """What a certificate says of an export that makes a share of every change."""
    rng = np.random.default_rng(5)
    windows = [TextWindow(rng.integers(3, 150, 24), doc, False) for doc in range(8)]
    patched, half = (PatchedModel(loaded, plan, saes, adapters, share=s) for s in (1.0, 0.5))
    export: Any = Reproduction(loaded, plan, saes, adapters, share)
    run = Comparison(loaded, patched, half, export, saes, msgspec.structs.replace(manifest, plan=plan))
    for at in (0, 4):
        run.measure(with_prompts(plan, windows)[at : at + 4], plain=True)
    options = {"bootstrap": 50, "seed": 0}
    acting = affected(run.behind)
    effect = run.effect(acting, **options)
    spread = float(np.sqrt(run.clean.column("spread").mean()))
    cost = collateral(run.clean, "kl_base_export", "loss_export", **options)
    live = LiveAgreement(contexts=1, reference=0.0, export=0.0)
    found = judge(
        manifest, effect, parity(run.clean, **options), parity(acting, **options), live, cost, True, spread
    )
    return {gate.name: gate for gate in found}, effect


def plans(seed: int, saes: list[Any], adapters: list[LowRankAdapter]) -> EditPlan:
    """One to three edits, some with their opposites, at strengths from a thousandth to a thousand."""
    rng = random.Random(seed)
    edits: list[Edit] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        edit = random_edit(rng, saes, 24, adapters, KINDS)
        strength = edit.strength * 10 ** rng.uniform(-3, 3)
        edit = msgspec.structs.replace(edit, enabled=True, strength=strength)
        edits.append(edit)
        if rng.random() < 0.3:
            edits.append(msgspec.structs.replace(edit, strength=-strength))
    return one_splice_per_site(edits)


@pytest.mark.parametrize("grade", ["exact", "approximate"])
def test_nothing_and_half_are_never_certified_and_the_patch_itself_is(lab, grade):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    manifest = msgspec.structs.replace(read_manifest(lab.export("bundle")), grade=grade)
    saes = [
        random_sae(32, layer, layer, kind=kind) for layer, kind in enumerate(("topk", "jumprelu", "gated"))
    ]
    table = {sae.content_fingerprint(): sae for sae in saes}
    adapters = [random_adapter(lab.loaded, seed) for seed in range(2)]
    known = {adapter.fingerprint: adapter for adapter in adapters}
    acted = 0
    for seed in range(40):
        plan = plans(seed, saes, adapters)
        if not plan.active():
            continue
        whole, effect = gates_of(lab.loaded, plan, table, known, 1.0, manifest)
        if effect.share is None:
            assert all(whole[name].passed is None for name in PROMISE), "silence opens no gate"
            continue
        acted += 1
        assert all(whole[name].passed for name in PROMISE), (seed, plan, whole)
        for share in (0.0, 0.5):
            poor, _ = gates_of(lab.loaded, plan, table, known, share, manifest)
            assert any(poor[name].passed is not True for name in PROMISE), (seed, share, plan, poor)
    assert acted >= 25


def test_a_patch_so_strong_that_half_of_it_says_the_same(lab):
    """Norms swallow the strength: by the share alone the half would pass."""
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    manifest = read_manifest(lab.export("bundle"))
    sae = random_sae(32, 2, 0)
    plan = EditPlan(edits=(make_edit(sae, 3, "add", 1e3, positions=EVERYWHERE),))
    saes = {sae.content_fingerprint(): sae}
    half, _ = gates_of(lab.loaded, plan, saes, {}, 0.5, manifest)
    assert half["Share of effect kept"].passed is True
    assert half["More than half the patch"].passed is False
    whole, _ = gates_of(lab.loaded, plan, saes, {}, 1.0, manifest)
    assert all(whole[name].passed for name in PROMISE)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_files_that_do_nothing_or_half_are_measured_as_that(lab, recording_folder, share):
    """A weak low-rank patch, whose absolute KL is within every limit, as a PEFT directory with scaled weights."""
    path = "model.layers.1.mlp.down_proj"
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(s, generator=generator) * 0.03 for s in ((2, 64), (32, 2)))
    adapter = LowRankAdapter({path: LowRank(a, b)}, lab.loaded.fingerprint)
    save_adapter(adapter, lab.folder / "adapter")
    lab.save(
        Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0),
        adapters={adapter.fingerprint: str(lab.folder / "adapter")},
    )
    folder = lab.export("peft")
    scale_files(folder, share)
    found = measure(
        lab, folder, activations=str(recording_folder), adapter_path=(str(lab.folder / "adapter"),)
    )
    assert found.effect.kl_patch_base < 0.005, "an absolute limit would let it pass"
    assert found.passed is (share == 1.0), found.gates
    assert found.effect.share.value == pytest.approx(1 - (1 - share) ** 2, abs=0.02)
    low, high = found.effect.share.interval
    assert low <= found.effect.share.value <= high
    assert found.gates[0].name == "Share of effect kept"
    assert found.gates[0].interval == found.effect.share.interval


def scale_files(folder: Path, share: float) -> None:
    """Scale what an adapter adds, as if it had been written so."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = share * tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = [msgspec.to_builtins(entry) for entry in list_files(folder)]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_case_that_was_certified_once(lab, recording_folder):
    """One feature ablated, another held at a tenth of its usual strength, fitted too briefly: the base passed."""
    index = busiest(lab, recording_folder)
    lab.save(lab.edit("ablate", index), lab.edit("clamp_firing", (index + 1) % 96, strength=0.1))
    folder = lab.export(
        "peft", activations=str(recording_folder), rank=2, fit_steps=1, fit_tokens=2000, fit_blocks=0
    )
    scale_files(folder, 0.0)
    found = measure(lab, folder, activations=str(recording_folder))
    assert not found.passed
    assert {g.name: g.passed for g in found.gates}["Share of effect kept"] is False
    assert found.effect.share.value == pytest.approx(0.0, abs=1e-6)
