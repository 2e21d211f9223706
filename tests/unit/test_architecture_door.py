"""An architecture of another package: declared without torch, and then an architecture like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from microscope.params import TrainParams
from microscope.params.architectures import RESERVED, Architecture

DECLARATION = """
from typing import Annotated
from msgspec import Meta, Struct
from microscope.params.architectures import Architecture

class Parameters(Struct, frozen=True, kw_only=True):
    weight: Annotated[float, Meta(gt=0, description="Weight of the penalty.")] = 1e-3

SHIFTED = Architecture(
    name="shifted",
    description="ReLU above a fixed level.",
    model="shifted_sae.model:ShiftedSae",
    objective="shifted_sae.objective:ShiftedObjective",
    parameters=Parameters,
)
"""
MODEL = """
from microscope.sae import IndependentLatents

class ShiftedSae(IndependentLatents):
    def rectify(self, pre, latents):
        return (pre - 0.05).relu()
"""
OBJECTIVE = """
from microscope.training.objectives import Objective, StepLoss

class ShiftedObjective(Objective):
    def loss(self, u, target, context):
        sae = self.sae
        f = sae.rectify(sae.centred(u) @ sae.W_enc.T + sae.b_enc, slice(None))
        error = f @ sae.W_dec + self.offset(u) - target
        fvu = error.square().sum() / context.variance(target)
        l0 = (f > 0).sum() / context.rows(u)
        loss = fvu + self.parameters.weight * f.sum() / context.rows(u) + self.auxiliary(u, -error, context)
        return StepLoss(loss, fvu.detach(), l0, (f > 0).sum(0).float())
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    module, information = folder / "shifted_sae", folder / "shifted_sae-1.0.dist-info"
    for made in (module, information):
        made.mkdir()
    for name, text in {"__init__": DECLARATION, "model": MODEL, "objective": OBJECTIVE}.items():
        (module / f"{name}.py").write_text(text)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shifted-sae\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[microscope.architectures]\nshifted = shifted_sae:SHIFTED\n"
    )
    return folder


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


def test_it_is_trained_measured_and_loaded_like_any_other(package, recording_folder, tmp_path):
    where = ("--activations", str(recording_folder), "--layer", "2", "--device", "cpu", "--json")
    size = (
        "--width",
        "64",
        "--k",
        "8",
        "--tokens",
        "40000",
        "--batch-size",
        "250",
        "--checkpoint-seconds",
        "1",
    )
    options = (*where, *size, "--out", str(tmp_path / "sae"))
    run = ("-m", "microscope", "train", *options, "--arch", "shifted", "--shifted-weight")
    refused = python(package, *run, "-1")
    assert refused.returncode != 0
    assert "shifted_weight" in refused.stdout + refused.stderr
    done = python(package, *run, "0.002")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "sae" / "sae.json").read_text())
    assert config["architecture"] == "shifted"
    assert config["training"]["params"]["shifted_weight"] == 0.002
    assert config["training"]["held_out_fvu"] < 0.5
    measured = python(
        package, "-m", "microscope", "eval", "--sae-path", str(tmp_path / "sae"), *where[:2], "--loss-contexts", "0", "--json"
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    # without the package the file is still there, and says what it lacks
    alone = python(tmp_path, "-m", "microscope", "eval", "--sae-path", str(tmp_path / "sae"), *where[:2])
    assert "There is no architecture 'shifted'" in alone.stderr
    exported = python(
        package, "-m", "microscope", "export", "--sae-path", str(tmp_path / "sae"), "--out", str(tmp_path / "x")
    )  # fmt: skip
    assert "shifted-sae 1.0" in exported.stderr


def test_a_loss_that_leaves_out_a_parameter_says_which(package, recording_folder, tmp_path):
    broken = shutil.copytree(package, tmp_path / "broken")
    model = broken / "shifted_sae" / "model.py"
    made = "\n    def __init__(self, config):\n        super().__init__(config)\n        self.idle = nn.Parameter(torch.ones(3))\n"
    model.write_text(f"import torch\nfrom torch import nn\n{model.read_text()}{made}")
    where = (
        "--activations",
        str(recording_folder),
        "--layer",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "sae"),
    )
    done = python(
        broken, "-m", "microscope", "train", *where, "--arch", "shifted", "--width", "64", "--k", "8"
    )
    assert done.returncode != 0
    assert "no_gradient" in done.stderr
    assert "does not depend on idle" in " ".join(done.stderr.split())


def test_forms_learn_its_parameters_without_torch_and_others_keep_their_identity(package):
    """Also when the package itself is what is imported first."""
    script = """
import sys, shifted_sae
from microscope.params import JOB_PARAMS, field_specs
from microscope.params.schema import json_schema
specs = {spec.name: spec for spec in field_specs(JOB_PARAMS["train"])}
assert specs["arch"].choices[-1] == "shifted", specs["arch"]
own = specs["shifted_weight"]
assert own.description == "shifted: Weight of the penalty." and own.advanced and own.default == 1e-3, own
schema = json_schema(JOB_PARAMS["train"])
assert "shifted" in str(schema) and "shifted_weight" in str(schema)
assert not {"torch", "shifted_sae.model"} & set(sys.modules)
from microscope.training.identity import run_identity
params = JOB_PARAMS["train"](activations="a", out="b", layer=1)
print(run_identity(params, "r"))
"""
    done = python(package, "-c", script)
    assert done.returncode == 0, done.stderr
    from microscope.training.identity import run_identity

    assert done.stdout.strip() == run_identity(TrainParams(activations="a", out="b", layer=1), "r")


def test_a_job_of_another_architecture_outlives_the_package(package, tmp_path):
    """What a portal keeps of it is understood by a worker that has the package not, or no more."""
    checked = "import django, sys, json; django.setup(); from apps.jobs.kinds import get_kind; print(json.dumps(get_kind('train').validate(json.loads(sys.argv[1]))))"
    given = {"layer": 2, "arch": "topk", "shifted_weight": 0.5}
    with_package = python(package, "-c", checked, json.dumps(given))
    assert with_package.returncode == 0, with_package.stderr
    without = python(tmp_path, "-c", checked, with_package.stdout)
    assert without.returncode == 0, without.stderr
    assert without.stdout == with_package.stdout
    own = python(package, "-c", checked, json.dumps(given | {"arch": "shifted"}))
    assert json.loads(own.stdout)["shifted_weight"] == 0.5


class _Needs(msgspec.Struct):
    weight: float


class _Strange(msgspec.Struct):
    weight: Annotated[dict[str, int], msgspec.Meta(description="?")] = {}


class _Limited(msgspec.Struct):
    """A text has no smallest value: every training would fail by it."""

    weight: Annotated[str, msgspec.Meta(ge=1)] = "a"


class _Below(msgspec.Struct):
    weight: Annotated[int, msgspec.Meta(ge=1)] = 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "batch"}, "how other parameters of training begin"),
        ({"parameters": 3}, "not a msgspec.Struct"),
        ({"parameters": _Needs}, "'weight' has no default"),
        ({"parameters": _Strange}, "dict"),
        ({"parameters": _Limited}, "`ge` on a numeric type"),
        ({"parameters": _Below}, r"`int` >= 1 - at `\$\.weight`"),
    ],
)
def test_what_forms_could_not_show_is_refused(changes, said):
    declared = Architecture(**({"name": "own", "description": "", "model": "a:B"} | changes))
    with pytest.raises((TypeError, ValueError), match=said):
        declared.check()


def test_nothing_of_training_begins_like_an_architecture_may_be_called():
    names = [name for name in dir(TrainParams) if not name.startswith("_")]
    assert {name.split("_")[0] for name in names if "_" in name} == RESERVED


def test_of_two_with_a_parameter_of_the_same_name_the_second_is_refused():
    """``soft_top``'s ``k`` and ``soft``'s ``top_k`` are both ``soft_top_k`` among the parameters of training."""
    parts = {"description": "", "model": "a:B"}
    first = Architecture(name="soft", parameters=msgspec.defstruct("First", [("top_k", int, 1)]), **parts)
    second = Architecture(
        name="soft_top", parameters=msgspec.defstruct("Second", [("k", float, 2.0)]), **parts
    )
    second.check_beside([])
    with pytest.raises(ValueError, match="'soft_top_k' would be taken for one of 'soft'"):
        second.check_beside([first])
