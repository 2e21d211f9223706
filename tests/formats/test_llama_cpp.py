"""Exports for llama.cpp, as llama.cpp itself computes them: its logits beside those of the live patch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from microscope.models import LoadedModel
from microscope.params import Edit, EditPlan
from microscope.params.targets import GGUF_MODULES
from microscope.patching.adapters import LowRank, LowRankAdapter, matrix_shape, save_adapter
from microscope.patching.export import read_manifest
from tests.formats.conftest import run_peer
from tests.formats.llama_base import ASSUMED, F32, use_table_gelu, write_base
from tests.patch_lab import EVERYWHERE, Lab, logits
from tests.tiny_models import make_model
from tests.unit.test_demo_exports import PROMPTS, Patches

pytestmark = pytest.mark.peers

GELU = {"gemma2", "gemma3", "gpt2", "gpt_neox"}
IDS = torch.randint(3, 150, (2, 12), generator=torch.Generator().manual_seed(5))
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def vector_rows(file: Path, blocks: int, d: int) -> np.ndarray:
    """``direction.{il}`` in row il − 1 and nothing elsewhere, as llama.cpp's loader fills its buffer."""
    rows = np.zeros((blocks - 1, d), dtype=np.float32)
    for tensor in gguf.GGUFReader(file).tensors:
        rows[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    return rows


@dataclass
class Answer:
    """Logits ``[sequences, positions, vocabulary]``: untouched, with the export, and with it taken off again."""

    base: torch.Tensor
    patched: torch.Tensor
    off: torch.Tensor


def ask(
    folder: Path,
    model: Path,
    ids: torch.Tensor,
    *,
    lora: Path | None = None,
    vector: np.ndarray | None = None,
) -> Answer:
    """What llama.cpp computes."""
    if vector is not None:
        np.save(folder / "vector.npy", vector)
    request = {
        "model": str(model),
        "tokens": ids.tolist(),
        "lora": str(lora) if lora else None,
        "vector": str(folder / "vector.npy") if vector is not None else None,
    }
    (folder / "request.json").write_text(json.dumps(request))
    run_peer("peer_llama.py", folder)
    return Answer(*(torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("base", "patched", "off")))


def save_low_rank(loaded: LoadedModel, folder: Path, *, size: float, blocks: tuple[int, ...]) -> Edit:
    """An adapter of every module llama.cpp has in this order, on disk, and the edit that applies half of it."""
    generator, factors = torch.Generator().manual_seed(7), {}
    for block in blocks:
        for rank, part in enumerate(GGUF_MODULES[loaded.family.blocks], 1):
            path = f"{loaded.family.blocks}.{block}.{part}"
            out, d_in = matrix_shape(loaded.model.get_submodule(path))
            a, b = (torch.randn(s, generator=generator) * size for s in ((rank, d_in), (out, rank)))
            factors[path] = LowRank(a, b)
    adapter = LowRankAdapter(factors, loaded.fingerprint)
    save_adapter(adapter, folder)
    return Edit(kind="lora", adapter=adapter.fingerprint, modules=tuple(sorted(factors)), strength=0.5)


def lab_of(kind: str, folder: Path, model_folders: dict[str, Path]) -> Lab:
    """A tiny model that computes what llama.cpp can compute."""
    settings = ASSUMED.get(kind)
    made = Lab(folder, make_model(kind, folder / "model", **settings) if settings else model_folders[kind])
    assert use_table_gelu(made.loaded.model) == (made.loaded.n_layers if kind in GELU else 0)
    return made


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("llama", F32), ("llama", Q8_0)]
    + [(kind, F32) for kind in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox")],
    ids=str,
)
def test_a_lora_file_does_in_llama_cpp_what_the_patch_does_live(tmp_path, model_folders, kind, stored):
    made = lab_of(kind, tmp_path, model_folders)
    edit = save_low_rank(made.loaded, tmp_path / "adapter", size=0.2, blocks=(1, 3))
    made.save(edit, adapters={edit.adapter: str(tmp_path / "adapter")})
    folder = made.export("gguf_lora")
    assert read_manifest(folder).grade == "exact"
    model = write_base(made.loaded, tmp_path / "base.gguf", stored)
    found = ask(tmp_path, model, IDS, lora=folder / "lora.gguf")
    compare(found, logits(made.loaded.model, IDS), made.live(IDS), stored, kind)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("llama", F32), ("llama", Q8_0)] + [(kind, F32) for kind in ("gpt2", "gpt_neox", "gemma2", "gemma3")],
    ids=str,
)
def test_a_control_vector_does_in_llama_cpp_what_the_patch_does_live(tmp_path, model_folders, kind, stored):
    made = lab_of(kind, tmp_path, model_folders)
    made.save(
        made.edit("add", 3, strength=2.0, positions=EVERYWHERE),
        made.edit("add", 4, strength=-1.0, positions=EVERYWHERE),
    )
    folder = made.export("control_vector")
    assert read_manifest(folder).grade == "exact"
    file = folder / "control_vector.gguf"
    model = write_base(made.loaded, tmp_path / "base.gguf", stored)
    rows = vector_rows(file, made.loaded.n_layers, made.loaded.d_model)
    found = ask(tmp_path, model, IDS, vector=rows)
    compare(found, logits(made.loaded.model, IDS), made.live(IDS), stored, kind)


def compare(
    found: Answer, base: torch.Tensor, live: torch.Tensor, stored: gguf.GGMLQuantizationType, kind: str
) -> None:
    """Within rounding in float32; quantised, no farther off than the untouched model is."""
    effect, apart = distance(live, base), distance(found.base, base)
    assert torch.equal(found.off, found.base), "taking the adapter off leaves nothing behind"
    assert effect > 0.3, "a patch that does little proves little"
    if stored is F32:
        limit = 1e-3 if kind in GELU else 5e-4  # llama.cpp looks GELU up in half precision
        assert apart < limit
        assert distance(found.patched, live) < limit
    else:
        assert apart > 1e-3, "nothing was quantised"
        assert distance(found.patched, live) < 2 * apart < effect / 2


@pytest.mark.model
@pytest.mark.parametrize("target", ["gguf_lora", "control_vector"])
def test_the_demo_model_says_in_llama_cpp_what_it_says_live(tmp_path, demo_model, target):
    """One quantised file on both sides. llama.cpp rounds activations too, so the untouched model sets the measure."""
    patches = Patches(demo_model, tmp_path)
    edit = patches.feature("add", 3, strength=40.0, positions=EVERYWHERE)
    plan = EditPlan(edits=(patches.lora(4.0) if target == "gguf_lora" else edit,))
    folder, loaded = patches.export(plan, target), patches.resident.loaded
    ids = torch.tensor([loaded.tokenizer(PROMPTS[0])["input_ids"]])
    if target == "gguf_lora":
        found = ask(tmp_path, demo_model, ids, lora=folder / "lora.gguf")
    else:
        rows = vector_rows(folder / "control_vector.gguf", loaded.n_layers, loaded.d_model)
        found = ask(tmp_path, demo_model, ids, vector=rows)
    base, live = patches.live(EditPlan())[0], patches.live(plan)[0]
    apart, effect = distance(found.base[0, -1], base), distance(live, base)
    assert torch.equal(found.off, found.base)
    assert distance(found.patched[0, -1], live) < 2 * apart < effect / 2
