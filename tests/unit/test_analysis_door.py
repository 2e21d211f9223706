"""An analysis of another package runs in `microscope features`, and what it does wrong harms no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from microscope.params.analyses import BUILT_IN, FeatureAnalysis
from microscope.params.features import FeatureDetails

DECLARATIONS = """
from microscope.params.analyses import FeatureAnalysis

def declared(name, title, **more):
    return FeatureAnalysis(
        name=name, title=title, description="For a test.", reads=("firings",), compute="extra_pkg.compute:" + title, **more
    )

counted = declared("counted", "Counted")
windows = declared("windows", "Windows", columns=("window", "times"))
raises = declared("raises", "Raises")
narrow = declared("narrow", "Narrow", columns=("one", "two"))
missing = declared("missing", "NotThere")
bare = declared("bare", "Bare")
unwritable = declared("unwritable", "Unwritable")
writes = declared("writes", "Counted", writes=("density",))
"""
COMPUTE = """
import numpy as np
from microscope.features import Accumulator

class Counted(Accumulator):
    def __init__(self, context):
        super().__init__(context)
        self.once, self.twice = (np.zeros(context.sae.config.n_latents, int) for _ in range(2))
    def first_pass(self, firings):
        np.add.at(self.once, firings.feature, 1)
    def between_passes(self):
        assert (self.once == self.context.statistics.firings).all()
    def second_pass(self, firings):
        np.add.at(self.twice, firings.feature, 1)
    def results(self):
        assert (self.once == self.twice).all()
        yield from self.once[self.context.features]

class Windows(Accumulator):
    def results(self):
        for index in self.context.features:
            yield [[int(index), 0.5], [0, None]] if index % 2 else []

class Raises(Accumulator):
    def second_pass(self, firings):
        raise RuntimeError("not today")
    def results(self):
        yield from self.context.features

class Narrow(Accumulator):
    def results(self):
        yield [[1, 2]]
        while True:
            yield [[1]]

class Bare:
    def __init__(self, context):
        self.context = context
    def results(self):
        yield from self.context.features

class Unwritable(Accumulator):
    def results(self):
        for index in self.context.features:
            yield chr(0xD800) if index == 2 else "text"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    module, information = folder / "extra_pkg", folder / "extra_pkg-2.0.dist-info"
    for made in (module, information):
        made.mkdir()
    (module / "__init__.py").write_text(DECLARATIONS)
    (module / "compute.py").write_text(COMPUTE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-pkg\nVersion: 2.0\n")
    names = ("counted", "windows", "raises", "narrow", "missing", "bare", "unwritable", "writes")
    points = [f"{n} = extra_pkg:{n}" for n in names]
    (information / "entry_points.txt").write_text("\n".join(["[microscope.analyses]", *points, ""]))
    return folder


def features(package: Path, sae: Path, recording: Path, *more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(Path(__file__).parents[2])])
    command = [
        sys.executable,
        "-m",
        "microscope",
        "features",
        "--sae-path",
        str(sae),
        "--activations",
        str(recording),
    ]
    return subprocess.run(
        [*command, "--device", "cpu", *more], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )  # fmt: skip


def test_its_results_stand_beside_the_built_in_ones(package, sae_folder, recording_folder, tmp_path):
    out = tmp_path / "analysis"
    done = features(package, sae_folder, recording_folder, "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [msgspec.json.decode(line, type=FeatureDetails) for line in (out / "details.jsonl").open("rb")]
    assert len(rows) == 96
    assert [row.more["counted"] for row in rows] == [row.firings for row in rows]
    assert rows[3].more["windows"] == [[3, 0.5], [0, None]]
    assert rows[4].more["windows"] == []
    assert rows[0].more["narrow"] == [[1, 2]]
    assert rows[1].more["narrow"] is None
    assert all(row.more[name] is None for row in rows for name in ("raises", "missing", "bare"))
    assert [row.more["unwritable"] for row in rows[:4]] == ["text", "text", None, None]
    shown = {one["name"]: one for one in json.loads((out / "analysis.json").read_text())["analyses"]}
    assert set(shown) == {"counted", "windows", "raises", "narrow", "missing", "bare", "unwritable"}
    assert shown["windows"]["columns"] == ["window", "times"]
    assert shown["counted"] == {
        "name": "counted", "title": "Counted", "description": "For a test.", "package": "extra-pkg 2.0",
        "columns": [], "error": "",
    }  # fmt: skip
    for name, reason in (
        ("raises", "not today"),
        ("narrow", "2 values of its columns"),
        ("missing", "NotThere"),
        ("bare", "not derived from Accumulator"),
        ("unwritable", "surrogates"),
    ):
        assert shown[name]["error"].startswith(f"The analysis '{name}' of the package extra-pkg 2.0 failed")
        assert reason in shown[name]["error"]
    assert "'writes' of the package extra-pkg 2.0 cannot be used" in done.stderr


def test_the_command_line_shows_one_features_results(package, sae_folder, recording_folder):
    done = features(package, sae_folder, recording_folder, "--feature", "3")
    assert done.returncode == 0, done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    for words in ("Counted", "Windows", "window", "0.5", "not today"):
        assert words in told


def test_the_built_in_ones_write_every_field_of_a_feature_once():
    written = [field for analysis in BUILT_IN for field in analysis.writes]
    assert sorted([*written, "index", "more"]) == sorted(FeatureDetails.__struct_fields__)


def test_a_declaration_needs_a_title():
    with pytest.raises(ValueError, match="no title"):
        FeatureAnalysis(name="a", title="", description="", reads=(), compute="a:B").check()
