"""Training: it learns, it resumes bit for bit, and it refuses what makes no sense."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from microscope.activations import Recording, ShuffledRows
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import TrainParams
from microscope.progress import Progress
from microscope.sae import load_sae
from microscope.training import train, train_sae
from microscope.training.objectives import LossContext, objective_class
from microscope.training.schedule import rate_factor


def settings(activations: Path, out: Path, **changes: object) -> TrainParams:
    base = {
        "activations": str(activations),
        "out": str(out),
        "layer": 2,
        "width": 96,
        "k": 8,
        "tokens": 20_000,
        "batch_size": 200,
        "precision": "float32",
        "device": "cpu",
    }
    return TrainParams(**(base | changes))  # type: ignore[arg-type]


def fvu(sae, recording: Recording) -> float:
    site = recording.site("resid_post.2")
    rows = torch.cat([torch.from_numpy(c.values).double() for c in recording.chunks("held_out", site)])
    error = (sae(rows.float()).double() - rows).square().sum()
    return float(error / (rows - rows.mean(0)).square().sum())


def test_training_explains_held_out_activations(sae, recording, tmp_path, recording_folder):
    untrained = train(settings(recording_folder, tmp_path / "u", tokens=200))
    assert fvu(sae, recording) < 0.5 * fvu(untrained, recording)
    assert sae.config.training["steps"] == 100
    norms = sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=1e-5)


class _CancelAt(Progress):
    def __init__(self, checkpoints: int) -> None:
        super().__init__()
        self._left = checkpoints

    def checkpoint(self, done: float) -> None:
        self._left -= 1

    def cancelled(self) -> bool:
        return self._left <= 0


@pytest.fixture
def eager(monkeypatch) -> None:
    """Report and checkpoint after every step."""
    monkeypatch.setattr("microscope.training.trainer.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("microscope.training.trainer.CHECKPOINT_SHARE", math.inf)


def test_resuming_gives_bit_identical_weights(tmp_path, recording_folder, eager):
    whole = train(settings(recording_folder, tmp_path / "whole", aux_coefficient=0.1, dead_after=2000))
    often = {"checkpoint_seconds": 1e-9, "aux_coefficient": 0.1, "dead_after": 2000}
    for attempt, steps in enumerate((7, 30, 1)):
        with pytest.raises(Cancelled):
            train(
                settings(recording_folder, tmp_path / "parts", resume=attempt > 0, **often), _CancelAt(steps)
            )
    resumed = train(settings(recording_folder, tmp_path / "parts", resume=True, **often))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert whole.config.fingerprint == resumed.config.fingerprint
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "parts" / "curve.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) == list(range(1, 101))
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_kill_9_during_training_loses_nothing(tmp_path, recording_folder):
    """The command line is killed twice at a random moment after a checkpoint; the result is that of one run."""
    out = tmp_path / "killed"
    options = {"--activations": recording_folder, "--out": out, "--layer": 2, "--width": 96, "--k": 8}
    options |= {
        "--tokens": 300_000,
        "--batch-size": 200,
        "--checkpoint-seconds": 0.05,
        "--precision": "float32",
    }
    command = [sys.executable, "-m", "microscope", "train", "--resume", "--device", "cpu"]
    command += [str(part) for pair in options.items() for part in pair]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seen: set[str] = set()
    for _ in range(2):
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )
        deadline = time.monotonic() + 120
        while not ({f.name for f in out.glob("checkpoints/*.safetensors")} - seen):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = {f.name for f in out.glob("checkpoints/*.safetensors")}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    whole = tmp_path / "whole"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True, env=environment)
    assert load_sae(out).config.fingerprint == load_sae(whole).config.fingerprint
    assert "Continuing" not in (whole / "sae.json").read_text()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, recording_folder, eager):
    often = {"checkpoint_seconds": 1e-9}
    with pytest.raises(Cancelled):
        train(settings(recording_folder, tmp_path / "x", **often), _CancelAt(20))
    newest = sorted((tmp_path / "x" / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed = train(settings(recording_folder, tmp_path / "x", resume=True, **often))
    whole = train(settings(recording_folder, tmp_path / "y"))
    assert resumed.config.fingerprint == whole.config.fingerprint


def test_checkpoints_of_other_settings_are_refused(tmp_path, recording_folder, eager):
    with pytest.raises(Cancelled):
        train(settings(recording_folder, tmp_path / "x", checkpoint_seconds=1e-9), _CancelAt(3))
    with pytest.raises(MicroscopeError) as caught:
        train(settings(recording_folder, tmp_path / "x", resume=True, k=9))
    assert caught.value.code == "checkpoint_mismatch"
    with pytest.raises(MicroscopeError) as caught:
        train(settings(recording_folder, tmp_path / "x"))
    assert caught.value.code == "sae_exists"


def test_a_finished_sae_is_not_overwritten(sae_folder, recording_folder):
    with pytest.raises(MicroscopeError) as caught:
        train(settings(recording_folder, sae_folder))
    assert caught.value.code == "sae_exists"


@pytest.mark.parametrize("aux", [0.0, 1.0])
def test_dead_latents_are_revived_by_the_auxiliary_loss(sae_folder, recording, aux):
    """Latents that are always outranked never fire again, unless the auxiliary loss gives them gradients."""
    sae = load_sae(sae_folder).requires_grad_(True)
    rows = next(
        ShuffledRows(recording, recording.site("resid_post.2"), seed=0, buffer_bytes=10**8).batches(1000)
    )
    u = rows.float() * sae.config.scale
    hopeless = torch.arange(48)
    with torch.no_grad():
        sae.W_enc[hopeless] *= 0.01
        sae.b_enc[hopeless] = 0
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for _ in range(300):
        loss = objective_class("topk")(sae).loss(u, u, LossContext(dead=hopeless, aux_coefficient=aux))
        optimiser.zero_grad()
        loss.loss.backward()
        optimiser.step()
    fired = (loss.fired[hopeless] > 0).float().mean()
    assert fired == 0 if aux == 0 else fired > 0.2


def test_divergence_is_reported(tmp_path, recording_folder, eager):
    with pytest.raises(MicroscopeError) as caught:
        train(settings(recording_folder, tmp_path / "x", lr=1e30))
    assert caught.value.code == "run_diverged"


def test_an_sae_worse_than_the_mean_says_so_for_ever(tmp_path, recording_folder):
    """A run that blew up without becoming infinite ends with words, in its log and in its files."""
    said = []

    class Heard(Progress):
        def log(self, message: str, level: str = "info") -> None:
            said.append((level, message))

    train(settings(recording_folder, tmp_path / "wild", lr=300.0), Heard())
    kept = load_sae(tmp_path / "wild").config.training
    assert kept["held_out_fvu"] > 1
    assert ("warning", kept["warning"]) in said
    assert f"{kept['held_out_fvu']:.4g}" in kept["warning"]
    train(settings(recording_folder, tmp_path / "tame"))
    kept = load_sae(tmp_path / "tame").config.training
    assert kept["held_out_fvu"] < 1
    assert "warning" not in kept


def test_schedule_rises_holds_and_falls():
    factors = [rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == [1.0] * 71
    assert factors[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(factors[80:]))


def test_function_form(tmp_path, recording_folder):
    sae = train_sae(
        str(recording_folder), str(tmp_path / "s"), 1, 64, k=4, tokens=2000, batch_size=200, device="cpu"
    )
    assert sae.config.site == "resid_post.1"
    with pytest.raises(MicroscopeError, match=r"resid_post\.3"):
        train_sae(str(recording_folder), str(tmp_path / "t"), 3)
