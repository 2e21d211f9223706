"""Adapters on the command line: brought in, tried live alone and beside other edits, found again when moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model

from microscope.cli import main
from tests.patch_lab import Lab, logits

PROMPT = "the state of union is strong"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["patch", *map(str, arguments)])


def run(*arguments: object) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def lab(tmp_path: Path, model_folders: dict[str, Path]) -> Lab:
    return Lab(tmp_path, model_folders["llama"])


@pytest.fixture
def theirs(lab: Lab):
    """A model PEFT has put an adapter on, and the directory it saved."""
    torch.manual_seed(0)
    made = get_peft_model(lab.fresh(), LoraConfig(r=3, lora_alpha=6, target_modules=["o_proj", "up_proj"]))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made.save_pretrained(lab.folder / "theirs")
    return made.eval()


@pytest.mark.parametrize("option", ["--strength", "--unit-value"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_strength_that_is_no_number_leaves_the_patch_as_it_was(
    sae_folder: Path, tmp_path: Path, option: str, value: str
) -> None:
    """JSON would hold null for it, and nobody could read the file again."""
    patch = tmp_path / "p.json"
    asked = ("create", "--sae-path", sae_folder, "--feature", 1, "--kind", "add", "--out", patch)
    for before in (None, b"made"):
        if before is not None:
            run(*asked, "--strength", 2)
            before = patch.read_bytes()
        refused = call(*asked, f"{option}={value}")
        assert refused.exit_code in (2, 3), refused.output
        assert "finite" in refused.output or "not in the range" in refused.output
        assert (patch.read_bytes() if patch.exists() else None) == before


def test_a_patch_whose_strength_was_lost_says_what_to_do(tmp_path: Path) -> None:
    patch = tmp_path / "p.json"
    edit = {"kind": "add", "site": "resid_post.1", "feature": {"sae": "a", "index": 1}, "strength": None}
    patch.write_text(json.dumps({"format": "microscope-patch", "plan": {"edits": [edit]}}))
    refused = call("apply", "--patch", patch, "--prompt", PROMPT, "--model", "x")
    assert refused.exit_code == 3
    assert "Replace null by the strength" in " ".join(refused.output.split())


def apply(lab: Lab, patch: Path, *more: object) -> dict[str, Any]:
    return run("apply", "--patch", patch, "--prompt", PROMPT, "--dtype", "float32", "--top", 20, *more)


def test_an_adapter_is_tried_alone_and_beside_a_feature_and_a_splice(
    lab: Lab, theirs, tmp_path: Path
) -> None:
    run("import", "--path", lab.folder / "theirs", "--model", lab.model, "--out", tmp_path / "mine")
    patch = tmp_path / "mine" / "patch.json"
    ids = torch.tensor([lab.loaded.tokenizer(PROMPT)["input_ids"]])
    wanted = logits(theirs, ids)[0, -1].softmax(-1)
    base = logits(lab.fresh(), ids)[0, -1].softmax(-1)
    shifts = apply(lab, patch)["shifts"]
    assert max(abs(s["patched"] - s["base"]) for s in shifts) > 1e-3
    for shift in shifts:
        assert shift["patched"] == pytest.approx(float(wanted[shift["token"]]), abs=1e-5)
        assert shift["base"] == pytest.approx(float(base[shift["token"]]), abs=1e-5)

    sae = lab.folder / "sae"
    common = ("--sae-path", sae, "--model", lab.model, "--out", patch)
    run("create", *common, "--feature", 5, "--kind", "add", "--strength", 2.0)
    shown = call("create", *common, "--kind", "splice")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")] == [
        "lora",
        "add",
        "splice",
    ]
    mixed = apply(lab, patch)
    assert [r["kind"] for r in mixed["receipts"]] == ["lora", "add", "splice"]
    (lab.folder / "patch.json").write_bytes(patch.read_bytes())
    expected = lab.live(ids)[0, -1].softmax(-1)
    for shift in mixed["shifts"]:
        assert shift["patched"] == pytest.approx(float(expected[shift["token"]]), abs=1e-5)

    text = call("apply", "--patch", patch, "--prompt", PROMPT, "--dtype", "float32")
    assert text.exit_code == 0, text.output
    assert all(
        word in text.stdout for word in ("Base", "Patched", "points", "KL(base ‖ patched)", "splice: fired")
    )


def test_what_moved_is_asked_for_and_found(lab: Lab, theirs, tmp_path: Path) -> None:
    run("import", "--path", lab.folder / "theirs", "--model", lab.model, "--out", tmp_path / "mine")
    moved = (tmp_path / "mine").rename(tmp_path / "elsewhere")
    patch = tmp_path / "patch.json"
    found = json.loads((moved / "patch.json").read_text())
    patch.write_text(json.dumps({**found, "adapters": {}}))
    refused = call("apply", "--patch", patch, "--prompt", PROMPT)
    assert refused.exit_code != 0
    assert "adapter_missing" in refused.output
    assert "--adapter-path" in refused.output
    assert apply(lab, patch, "--adapter-path", moved)["kl"] > 0


def test_edits_say_what_they_miss(lab: Lab, tmp_path: Path) -> None:
    common = ("--sae-path", lab.folder / "sae", "--model", lab.model, "--out", tmp_path / "p.json")
    for kind, hint in (("ablate", "--feature"), ("lora", "patch import")):
        refused = call("create", *common, "--kind", kind)
        assert refused.exit_code != 0
        assert "incomplete_edit" in refused.output
        assert hint in refused.output
    assert not (tmp_path / "p.json").exists()
