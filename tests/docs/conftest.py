"""What the examples of the documents are about: tiny models under the names they use, a text, a recording, SAEs."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.examples import ROOT
from tests.tiny_gguf import made_gguf
from tests.tiny_models import make_corpus, make_model

QWEN, GPT2, SMOL = "Qwen/Qwen3-0.6B", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"
_RECORD = ["--tokens", "4000", "--context-length", "32", "--held-out", "0.2", "--dtype", "float32"]
_TRAIN = ["--width", "64", "--k", "8", "--tokens", "20000", "--batch-size", "256"]

Ran = dict[str, Any]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the Hub that holds tiny models under the names of the examples."""
    home = tmp_path_factory.mktemp("hub")
    for name, kind, settings in (
        (QWEN, "qwen3", {"num_hidden_layers": 16, "layer_types": ["full_attention"] * 16}),
        (GPT2, "gpt2", {"n_layer": 9}),
        (SMOL, "llama", {"num_hidden_layers": 16}),
    ):
        repository = home / "hub" / f"models--{name.replace('/', '--')}"
        revision = "0" * 40
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        make_model(kind, repository / "snapshots" / revision, width=64, **settings)
    return home


@pytest.fixture(scope="session")
def run_all(hub: Path) -> Callable[[list[tuple[Path, list[str]]]], list[Ran]]:
    """Runs command lines in their folders, offline, with the cache above."""

    def run(commands: list[tuple[Path, list[str]]]) -> list[Ran]:
        asked = [{"folder": str(folder), "argv": argv} for folder, argv in commands]
        done = subprocess.run(
            [sys.executable, "-m", "tests.docs.runner"],
            input=json.dumps(asked),
            cwd=ROOT,
            env=environment(hub),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found: list[Ran] = json.loads(done.stdout)
        return found

    return run


def environment(hub: Path) -> dict[str, str]:
    """The machine's environment without a portal's settings, offline."""
    dropped = ("WORKBENCH_", "DJANGO_", "PYTEST_", "DATABASE_URL", "REDIS_URL", "MICROSCOPE_", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "MICROSCOPE_CACHE_DIR": str(hub / "converted"),
        "COLUMNS": "160",
    }


@pytest.fixture(scope="session")
def things(
    tmp_path_factory: pytest.TempPathFactory, hub: Path, run_all: Callable[[Any], list[Ran]]
) -> dict[str, Path]:
    """What the examples name as given: name → where it is. ``NAME@gpt2`` is of the other model."""
    folder = tmp_path_factory.mktemp("things")
    make_corpus(folder / "corpus", documents=40, words=120)
    make_model("llama", folder / "M", width=64)
    speeches = folder / "var" / "corpora" / "sotu"
    speeches.mkdir(parents=True)
    for number in range(40):
        (speeches / f"{number}.txt").write_text("".join(random.Random(number).choices("0123456789", k=120)))
    (folder / "var" / "models").mkdir()
    made_gguf(
        folder / "var" / "models" / "SmolLM2-135M-Instruct.gguf", {"llama.context_length": 256}, blocks=22
    )
    texts = (path.read_text() for path in sorted((folder / "corpus").iterdir()))
    (folder / "speeches.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def trace(model: str, layer: int, out: str) -> list[str]:
        return ["trace", "--model", model, "--layer", str(layer), "--text", "corpus", *_RECORD, "--out", out]

    def train(recording: str, layer: int, out: str) -> list[str]:
        return ["train", "--activations", recording, "--layer", str(layer), *_TRAIN, "--out", out]

    steps = [
        trace(QWEN, 10, "activations.parquet"),
        train("activations.parquet", 10, "sae"),
        ["trace", "--model", QWEN, "--layers", "6", "14", "--text", "corpus", *_RECORD, "--out", "around"],
        train("around", 6, "saes/6"),
        train("around", 14, "saes/14"),
        trace(GPT2, 8, "activations@gpt2"),
        train("activations@gpt2", 8, "sae@gpt2"),
        trace(SMOL, 15, "activations@smol"),
        train("activations@smol", 15, "saes@smol"),
        ["export", "--sae-path", "sae", "--format", "saelens", "--out", "their_sae"],
        ["export", "--sae-path", "sae@gpt2", "--format", "saelens", "--out", "their_sae@gpt2"],
        [
            "patch",
            "create",
            "--sae-path",
            "sae",
            "--feature",
            "42",
            "--kind",
            "ablate",
            "--out",
            "patch.json",
        ],
        [
            "patch",
            "export",
            "--patch",
            "patch.json",
            "--target",
            "peft",
            "--activations",
            "activations.parquet",
            "--out",
            "adapter",
        ],
        ["recording", "pack", "--activations", "activations.parquet", "--out", "packed"],
    ]
    for step, ran in zip(steps, run_all([(folder, step) for step in steps]), strict=True):
        assert ran["status"] == 0, (step, ran["err"])
    for copy in ("sae_checkpoints", "one", "other", "ours", "theirs", "saes/10"):
        shutil.copytree(folder / "sae", folder / copy)
    _write_adapter(folder / "their_adapter@gpt2", hub)
    return {path.name: path for path in folder.iterdir()} | {
        "FOLDER": folder / "their_sae",
        "RECORDING": folder / "activations.parquet",
    }


def _write_adapter(folder: Path, hub: Path) -> None:
    """A LoRA adapter of the small GPT-2, as PEFT writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    snapshot = hub / "hub" / "models--gpt2" / "snapshots" / ("0" * 40)
    torch.manual_seed(0)
    how = LoraConfig(r=4, target_modules=["c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(snapshot), how).save_pretrained(folder)
