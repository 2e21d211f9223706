"""Models over several devices: what is asked of transformers, and where sites are looked for.

There is no second device to compute on here. What is tested is that the map reaches ``from_pretrained``,
that places are read from it, and that reading and splicing work on a model dispatched by accelerate with
part of its blocks kept elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import LlamaForCausalLM

from microscope.activations.forward import SiteReader
from microscope.errors import MicroscopeError
from microscope.evaluation.splice import splicer_for
from microscope.models import LoadedModel, load_model, memory, placement, resolve_device, runner_for
from microscope.params import Site
from microscope.sae import SparseAutoencoder

SITES = [Site("resid_post", 0), Site("mlp_act", 2), Site("resid_post", 3)]


class _Asked(Exception):
    pass


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has two GPUs of 10 GB; nothing computes on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10 * 2**30, 12 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``from_pretrained`` is called with."""
    seen: dict[str, Any] = {}

    def from_pretrained(_source: str, **options: Any) -> None:
        seen.update(options)
        raise _Asked

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", from_pretrained)
    return seen


@pytest.mark.usefixtures("two_gpus")
def test_balanced_reaches_transformers_and_nothing_is_moved_after(
    model_folders: dict[str, Path], asked: dict[str, Any]
) -> None:
    with pytest.raises(_Asked):
        load_model(str(model_folders["llama"]), device="balanced")
    assert asked["device_map"] == "balanced"
    assert asked["dtype"] == torch.bfloat16
    assert "quantization_config" not in asked


@pytest.mark.usefixtures("two_gpus")
def test_rounding_and_spreading_go_together(model_folders: dict[str, Path], asked: dict[str, Any]) -> None:
    with pytest.raises(_Asked):
        load_model(str(model_folders["llama"]), device="balanced", dtype="int8")
    assert asked["device_map"] == "balanced"
    assert asked["quantization_config"].load_in_8bit
    assert asked["dtype"] == torch.float32


def test_one_device_is_named_where_weights_are_rounded(
    model_folders: dict[str, Path], asked: dict[str, Any]
) -> None:
    with pytest.raises(_Asked):
        load_model(str(model_folders["llama"]), device="cpu", dtype="int8")
    assert asked["device_map"] == {"": torch.device("cpu")}
    asked.clear()
    with pytest.raises(_Asked):
        load_model(str(model_folders["llama"]), device="cpu")
    assert "device_map" not in asked


@pytest.mark.usefixtures("two_gpus")
def test_all_gpus_count_together_for_what_fits() -> None:
    where = resolve_device("balanced")
    assert where == torch.device("cuda", 0)
    assert memory.bytes_free(where) == 10 * 2**30
    assert memory.bytes_free(where, everywhere=True) == 20 * 2**30


def test_without_a_gpu_balanced_is_refused(model_folders: dict[str, Path]) -> None:
    with pytest.raises(MicroscopeError, match="no GPU") as error:
        load_model(str(model_folders["llama"]), device="balanced")
    assert error.value.code == "no_such_device"


def test_a_site_is_where_the_nearest_entry_of_the_map_says() -> None:
    model = SimpleNamespace(
        hf_device_map={"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "lm_head": "cpu"}
    )
    there = torch.device("cpu")
    assert placement.device_of(model, "model.layers.0.mlp", there) == torch.device("cuda", 0)
    assert placement.device_of(model, "model.layers.1", there) == torch.device("cuda", 1)
    assert placement.device_of(model, "model.layers.11", torch.device("meta")) == torch.device("meta")
    assert placement.is_spread(model)
    assert not placement.is_spread(SimpleNamespace(hf_device_map={"": "cpu"}))
    assert not placement.is_spread(SimpleNamespace())


@pytest.fixture
def dispatched(model_folders: dict[str, Path], tmp_path: Path) -> LoadedModel:
    """A llama whose blocks 1 and 2 accelerate keeps on disk and brings in while they run."""
    loaded = load_model(str(model_folders["llama"]), dtype="float32", device="cpu")
    places = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
    rest = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    dispatch_model(loaded.model, places | rest, main_device="cpu", offload_dir=str(tmp_path))
    assert loaded.model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    return loaded


def test_sites_of_a_dispatched_model_read_as_those_of_the_whole(
    dispatched: LoadedModel, llama: LoadedModel
) -> None:
    tokens = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for loaded in (llama, dispatched):
        with SiteReader(loaded, SITES) as reader:
            found.append(reader.read(tokens, tokens >= 0))
    assert set(found[0]) == set(map(str, SITES))
    for name, values in found[0].items():
        assert torch.equal(values, found[1][name]), name


def test_a_spread_model_is_spliced_through_hooks_and_not_run_block_by_block(
    model_folders: dict[str, Path], llama: LoadedModel, sae: SparseAutoencoder
) -> None:
    """The same numbers as block by block, in float32 rounding. The map names a second device; all is on the first."""
    spread = load_model(str(model_folders["llama"]), dtype="float32", device="cpu")
    spread.model.hf_device_map = {"model": "cpu", "model.layers.3": 0, "lm_head": "cpu"}
    tokens = torch.randint(3, 200, (20,), generator=torch.Generator().manual_seed(3))
    special = torch.zeros(20, dtype=torch.bool)

    def run(loaded: LoadedModel) -> list[torch.Tensor]:
        splicer = splicer_for(loaded, sae)
        start = splicer.start(tokens, special)
        return [start, splicer.replaced("sae", filtered=True), splicer.replaced("zero", filtered=False)]

    with torch.inference_mode():
        plain, hooked = run(llama), run(spread)
    for a, b in zip(plain, hooked, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    with pytest.raises(MicroscopeError) as error:
        runner_for(spread)
    assert error.value.code == "model_is_spread"
