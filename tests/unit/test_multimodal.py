"""Multimodal checkpoints load their text part, which computes what the whole model computes of a text."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMultimodalLM

from microscope.errors import MicroscopeError
from microscope.models import inspect_model, load_model, runner_for
from microscope.models.checkpoint import Stored
from microscope.params import Edit, ImportAdapterParams
from microscope.params.traits import TEXT_PART
from microscope.patching.adapters import LowRank, LowRankAdapter, save_adapter
from microscope.patching.importing import import_adapter
from tests.families.tiny import randomise, tiny_config
from tests.patch_lab import Lab, make_sae
from tests.tiny_models import make_tokenizer

WEIGHTS = "model.safetensors"
# Sections of rotary positions for three axes, of heads as wide as a tiny model's.
AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
# What is loaded of each: the type of its text part, and settings of that part that tiny models need.
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {}),
    "llava": ("llama", {}),
    "mistral3": ("mistral", {}),
    "internvl": ("qwen2", {}),
    "idefics3": ("llama", {}),
    "qwen2_audio": ("qwen2", {}),
    "qwen2_vl": ("qwen2", AXES),
    "qwen2_5_vl": ("qwen2", AXES),
    "qwen3_vl": ("qwen3", AXES),
    "qwen2_5_omni_thinker": ("qwen2", AXES),
    "qwen3_omni_moe_thinker": ("qwen3_moe", AXES),
    "qwen3_5": ("qwen3_5_text", {}),
    "kimi_k25": ("deepseek_v3", {}),
    "llama4": ("llama4_text", {}),
    "got_ocr2": ("qwen2", {}),  # said to be tied only of the whole
}
_made: dict[str, Path] = {}


def make(model_type: str, folder: Path, **of_text: Any) -> Path:
    config = tiny_config(model_type)
    for name, value in of_text.items():
        setattr(config.get_text_config(), name, value)
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    randomise(model)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    def found(model_type: str) -> Path:
        if model_type not in _made:
            _made[model_type] = make(
                model_type, tmp_path_factory.mktemp("m") / model_type, **WHOLE[model_type][1]
            )
        return _made[model_type]

    yield found
    _made.clear()


@pytest.fixture
def changed(original, tmp_path):
    def copy(
        model_type: str,
        change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
        **of_text: Any,
    ) -> Path:
        folder = Path(shutil.copytree(original(model_type), tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        tensors = {name: t.clone().contiguous() for name, t in change(load_file(folder / WEIGHTS)).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] |= of_text
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def load(folder: Path, dtype: str = "float32"):
    return load_model(str(folder), dtype=dtype, device="cpu")


def refused(folder: Path, *words: str, code: str) -> None:
    with pytest.raises(MicroscopeError) as caught:
        load(folder)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    assert caught.value.hint


def tokens() -> Tensor:
    return torch.randint(3, 200, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", WHOLE)
@torch.no_grad()
def test_the_text_part_says_what_the_whole_model_says(model_type, original):
    folder = original(model_type)
    loaded = load(folder)
    assert loaded.config.model_type == WHOLE[model_type][0]
    facts = inspect_model(str(folder))
    assert facts["text_part_of"] == model_type
    assert facts["n_layers"] == loaded.n_layers == 4
    whole = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert loaded.parameters == facts["parameters"] < sum(p.numel() for p in whole.parameters())
    if model_type == "llama4":  # does not run on a text alone; the part is a module of it
        whole = whole.language_model
    right = whole(input_ids=tokens()).logits
    assert float((loaded.model(tokens()).logits - right).abs().max()) <= 1e-5 * float(right.abs().max())


def test_weights_of_images_are_not_read(original, monkeypatch):
    seen: list[str] = []
    real = Stored.read

    def read(self: Stored, names):
        seen.extend(names)
        return real(self, names)

    monkeypatch.setattr(Stored, "read", read)
    load(original("gemma3"))
    assert seen
    assert not [name for name in seen if "vision" in name or "projector" in name]


def test_the_part_is_an_ordinary_model(original, tmp_path):
    """The fingerprint is that of the text model saved alone, and the fast path serves it."""
    loaded = load(original("gemma3"))
    assert runner_for(loaded).path == "fast"
    loaded.model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    alone = load(tmp_path)
    assert alone.fingerprint == loaded.fingerprint
    assert "text_part_of" not in inspect_model(str(tmp_path))


def test_answers_end_where_the_whole_model_says(changed):
    folder = changed("gemma3", eos_token_id=1)
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [1, 106]}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).config.eos_token_id == [1, 106]


def test_older_names_and_sharded_files(original, changed):
    right = load(original("gemma3")).fingerprint

    def as_of_4_50(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {}
        for name, t in tensors.items():
            plain = name.removeprefix("model.")
            old[plain.replace("language_model.", "language_model.model.", 1)] = t
        return old

    def as_of_today(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As they are in memory."""
        return {
            name
            if name.startswith("model.")
            else f"model.{name.replace('language_model.model.', 'language_model.')}": t
            for name, t in tensors.items()
        }

    names = set(load_file(original("gemma3") / WEIGHTS))
    for change in (as_of_4_50, as_of_today):
        folder = changed("gemma3", change)
        assert load(folder).fingerprint == right
    assert names != set(as_of_4_50(dict.fromkeys(names))) or names != set(as_of_today(dict.fromkeys(names)))


def test_what_the_text_part_lacks_is_named_and_so_is_what_no_part_knows(changed):
    lacking = changed(
        "llava",
        lambda t: {k: v for k, v in t.items() if "layers.2.mlp.up_proj" not in k or "language" not in k},
    )
    refused(lacking, "in no file", "layers.2.mlp.up_proj", code="bad_model_file")
    more = changed(
        "llava",
        lambda t: {
            **t,
            "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(1),
        },
    )
    refused(more, "merge", code="bad_model_file")
    other = changed("llava", lambda t: {**t, "something.else": torch.ones(1)})
    refused(other, "something.else", code="bad_model_file")
    narrow = changed(
        "llava",
        lambda t: {
            k: (v[:31] if k.endswith("layers.1.mlp.gate_proj.weight") and "language" in k else v)
            for k, v in t.items()
        },
    )
    refused(narrow, "31 × 32", code="bad_model_file")


@pytest.mark.parametrize("model_type", ["aya_vision", "cohere2_vision"])
def test_a_part_that_computes_something_else_is_refused_with_numbers(model_type, tmp_path):
    """Their heads scale logits where they stand alone, and do not within the whole model."""
    refused(make(model_type, tmp_path), "logits of the two differ by", code="unsupported_configuration")


def test_text_that_sees_both_ways_is_refused(tmp_path):
    folder = make("paligemma", tmp_path)
    refused(folder, "use_bidirectional_attention", code="unsupported_configuration")


def test_parts_that_transformers_has_no_model_of_are_refused(tmp_path):
    folder = make("glm4v", tmp_path)
    refused(folder, "glm4v_text", "multimodal", code="unsupported_family")
    with pytest.raises(MicroscopeError, match="multimodal"):
        inspect_model(str(folder))


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_vl", "got_ocr2"])
def test_a_bundle_acts_on_the_whole_model_and_an_adapter_is_refused(model_type, original, tmp_path):
    """Modules of the part have other names in the whole, which is what other programs load."""
    made = Lab(tmp_path, original(model_type), make_sae(layer=1))
    factors = {"model.layers.2.mlp.down_proj": (32, 64), "lm_head": (256, 32)}
    generator = torch.Generator().manual_seed(0)
    adapter = LowRankAdapter(
        {
            path: LowRank(torch.randn(1, d_in, generator=generator), torch.randn(out, 1, generator=generator))
            for path, (out, d_in) in factors.items()
        }
    )
    save_adapter(adapter, tmp_path / "adapter")
    lora = Edit(kind="lora", adapter=adapter.fingerprint, strength=0.1, modules=tuple(factors))
    made.save(
        made.edit("ablate_everywhere", 5),
        made.edit("add", 9, strength=3.0),
        lora,
        adapters={adapter.fingerprint: str(tmp_path / "adapter")},
    )
    folder = made.export("bundle")
    spec = importlib.util.spec_from_file_location("load_patch", folder / "load_patch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = AutoModelForMultimodalLM.from_pretrained(original(model_type), dtype=torch.float32).eval()
    with torch.no_grad():
        base = whole(input_ids=tokens()).logits
        patch = module.attach(whole, folder)
        patched = whole(input_ids=tokens()).logits
        patch.remove()
    live = made.live(tokens())
    assert float((live - base).abs().max()) > 0.1 * float(base.abs().max())
    torch.testing.assert_close(patched, live, rtol=0, atol=2e-5 * float(live.abs().max()))
    with pytest.raises(MicroscopeError, match="other names in the whole"):
        made.export("peft")
    assert inspect_model(str(original(model_type)))["obstacles"]["adapters"] == TEXT_PART


def test_an_adapter_of_the_whole_model_is_refused_with_a_way_out(original, tmp_path):
    whole = AutoModelForMultimodalLM.from_pretrained(original("gemma3"), dtype=torch.float32)
    chosen = r"model\.language_model\.layers\.\d+\.self_attn\.q_proj"
    get_peft_model(whole, LoraConfig(r=2, target_modules=chosen)).save_pretrained(tmp_path / "adapter")
    params = ImportAdapterParams(
        path=str(tmp_path / "adapter"),
        model=str(original("gemma3")),
        out=str(tmp_path / "out"),
        device="cpu",
        dtype="float32",
    )
    with pytest.raises(MicroscopeError, match="language_model") as caught:
        import_adapter(params)
    assert caught.value.code == "no_such_module"
    assert "merge_and_unload" in caught.value.hint


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_vl"])
def test_every_precision(model_type, original):
    folder = original(model_type)
    for dtype in ("bfloat16", "int8"):
        assert load(folder, dtype).n_layers == 4
