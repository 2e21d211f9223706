"""Recordings killed at any write, and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from microscope.activations import Recording, read_manifest, record
from microscope.activations.manifest import MANIFEST, STATISTICS
from microscope.models import LoadedModel
from tests.recordings import contents, interrupted, killed, trace
from tests.refusals import refusal


def test_killed_at_any_write_and_resumed_equals_an_uninterrupted_recording(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    """Rows, statistics and every other byte; and whatever is there says in between that it is unfinished."""
    record(trace(tmp_path / "whole", "tiny", texts, tokens=1300), loaded=llama)
    whole, finished = contents(tmp_path / "whole"), read_manifest(tmp_path / "whole")
    assert len(finished.train.shards) > 1
    assert sorted(whole) == sorted(
        [
            MANIFEST,
            STATISTICS,
            *(s.file for split in (finished.train, finished.held_out) for s in split.shards),
        ]
    )
    places = 0
    while killed(params := trace(tmp_path / "cut", "tiny", texts, tokens=1300), llama, places):
        if (tmp_path / "cut" / MANIFEST).exists() and not read_manifest(tmp_path / "cut").complete:
            assert refusal(lambda: Recording(tmp_path / "cut")).code == "recording_incomplete"
        record(msgspec.structs.replace(params, resume=True), loaded=llama)
        assert contents(tmp_path / "cut") == whole, f"killed at place {places}"
        shutil.rmtree(tmp_path / "cut")
        places += 1
    assert contents(tmp_path / "cut") == whole
    assert places > 30


def test_killed_again_and_again(tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None) -> None:
    """Every attempt gets a few writes further, until one comes through."""
    record(trace(tmp_path / "whole", "tiny", texts), loaded=llama)
    params = trace(tmp_path / "cut", "tiny", texts, resume=True)
    attempts = 0
    while killed(params, llama, 19):
        attempts += 1
        assert attempts < 50
    assert attempts > 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_interrupted_recording_of_an_older_version_is_summed_up_again(
    tmp_path: Path, llama: LoadedModel, texts: Path, small_shards: None
) -> None:
    """It named no statistics file, and a kill between that and the manifest left the sums of other rows."""
    record(trace(tmp_path / "whole", "tiny", texts), loaded=llama)
    manifest = interrupted(tmp_path / "old", "tiny", texts, llama)
    tensors = load_file(tmp_path / "old" / manifest.statistics)
    (tmp_path / "old" / manifest.statistics).unlink()
    save_file(
        {name: 2 * t for name, t in tensors.items() if "total" not in name}, tmp_path / "old" / STATISTICS
    )
    raw = json.loads((tmp_path / "old" / MANIFEST).read_text())
    for name in ("statistics", "settings"):
        raw.pop(name)
    for site in raw["sites"]:
        site.pop("nonfinite")
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(raw))
    assert refusal(
        lambda: record(trace(tmp_path / "old", "tiny", texts, resume=True, held_out=0.3), loaded=llama)
    )
    record(trace(tmp_path / "old", "tiny", texts, resume=True), loaded=llama)
    whole, old = (load_file(tmp_path / name / STATISTICS) for name in ("whole", "old"))
    assert whole["resid_post.1.count"] == old["resid_post.1.count"]
    for name in ("resid_post.1.mean", "resid_post.1.squares"):
        np.testing.assert_allclose(old[name], whole[name], rtol=1e-6, atol=1e-6)
    shards = [{f.name: f.read_bytes() for f in (tmp_path / n).glob("*.parquet")} for n in ("whole", "old")]
    assert shards[0] == shards[1]
    assert Recording(tmp_path / "old").manifest.fingerprint == read_manifest(tmp_path / "whole").fingerprint
