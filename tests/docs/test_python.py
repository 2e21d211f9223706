"""The Python example of the README runs as it stands there, and the model answers as its comments say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from tests.docs.conftest import environment
from tests.docs.examples import python_blocks

# What the example's last two comments promise, with its own names.
PROMISED = """
import torch

ids = torch.tensor([[5, 9, 11]])
before = loaded.model(ids).logits
patcher.enable_patch(patch)
assert not torch.equal(loaded.model(ids).logits, before)
patcher.disable_patch(patch)
assert torch.equal(loaded.model(ids).logits, before)
"""


def test_the_example_of_the_readme(tmp_path: Path, hub: Path, things: dict[str, Path]) -> None:
    shutil.copytree(things["corpus"], tmp_path / "corpus")
    done = subprocess.run(
        [sys.executable, "-c", python_blocks()["README.md"] + PROMISED],
        cwd=tmp_path,
        env=environment(hub),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "layer8.parquet" / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["held_out"]["rows"] > 0
    assert load_file(tmp_path / "saes" / "sae.safetensors")["W_dec"].shape == (4096, 64)
