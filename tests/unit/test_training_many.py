"""Several SAEs in one run, transcoders, and several processes: each equal to the plain way."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from microscope.activations import Recording, record
from microscope.errors import Cancelled, MicroscopeError
from microscope.params import PRESETS, RunKey, TraceParams, TrainParams, decode_params, trained_architectures
from microscope.progress import Progress
from microscope.sae import load_sae, save_sae
from microscope.training import train, train_all
from microscope.training.held_out import held_out_fvu


def settings(activations: Path, out: Path, **changes: object) -> TrainParams:
    base = {
        "activations": str(activations),
        "out": str(out),
        "layer": 2,
        "width": 64,
        "k": 6,
        "tokens": 5000,
        "batch_size": 200,
        "dead_after": 600,
        "device": "cpu",
    }
    return TrainParams(**(base | changes))  # type: ignore[arg-type]


def same_weights(one, other) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class _CancelAt(Progress):
    def __init__(self, checkpoints: int) -> None:
        super().__init__()
        self._left = checkpoints

    def checkpoint(self, done: float) -> None:
        self._left -= 1

    def cancelled(self) -> bool:
        return self._left <= 0


# --- several SAEs -------------------------------------------------------------------------------------


def test_every_combination_is_trained_and_equals_the_sae_trained_alone(tmp_path, recording_folder):
    many = settings(recording_folder, tmp_path / "many", width=(48, 64), k=(4, 6), seed=(0, 3))
    saes = train_all(many)
    assert set(saes) == {RunKey(*v) for v in itertools.product((48, 64), (4, 6), (0, 3))}
    for key in (RunKey(48, 6, 3), RunKey(64, 4, 0)):
        alone = train(
            settings(recording_folder, tmp_path / str(key), width=key.width, k=key.k, seed=key.seed)
        )
        saved = load_sae(tmp_path / "many" / str(key))
        assert same_weights(saved, alone)
        assert saved.config.fingerprint == alone.config.fingerprint
        curve = [
            json.loads(s) for s in (tmp_path / "many" / str(key) / "curve.jsonl").read_text().splitlines()
        ]
        assert curve[-1]["step"] == 25
    seeds = [saes[RunKey(48, 4, seed)].W_enc for seed in (0, 3)]
    assert not torch.equal(*seeds)


def test_a_run_of_several_resumes_bit_for_bit_from_any_step(tmp_path, recording_folder, monkeypatch):
    monkeypatch.setattr("microscope.training.trainer.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("microscope.training.trainer.CHECKPOINT_SHARE", math.inf)
    wide = {"width": (48, 96), "k": (2, 4), "aux_coefficient": 0.2, "dead_after": 200}
    whole = train_all(settings(recording_folder, tmp_path / "whole", **wide))
    often = {"checkpoint_seconds": 1e-9, "resume": True}
    for steps in (3, 6, 4):  # never a multiple of the steps between two counts of dead latents
        with pytest.raises(Cancelled):
            train_all(settings(recording_folder, tmp_path / "parts", **wide, **often), _CancelAt(steps))
    parts = train_all(settings(recording_folder, tmp_path / "parts", **wide, **often))
    assert all(same_weights(whole[key], parts[key]) for key in whole)
    plain = settings(recording_folder, tmp_path / "plain", **wide | {"aux_coefficient": 0})
    assert not same_weights(whole[RunKey(96, 2, 0)], train_all(plain)[RunKey(96, 2, 0)])
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_kill_9_of_a_run_of_several_loses_nothing(tmp_path, recording_folder):
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "microscope",
        "train",
        "--resume",
        "--device",
        "cpu",
        "--arch",
        "jumprelu",
    ]
    command += ["--activations", str(recording_folder), "--layer", "2", "--width", "48", "64", "--k", "6"]
    command += ["--tokens", "16k", "--batch-size", "200", "--checkpoint-seconds", "0.02"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--out", str(out)], **quiet)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/*.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(out.glob("*/sae.json"))
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)
    for name in ("w48-k6-s0", "w64-k6-s0"):
        fingerprints = {load_sae(f / name).config.fingerprint for f in (out, tmp_path / "whole")}
        assert len(fingerprints) == 1


def test_a_run_that_ended_unheard_gives_its_sae_again(tmp_path, recording_folder):
    params = settings(recording_folder, tmp_path / "x", tokens=400, resume=True)
    first = train(params)
    assert same_weights(first, train(params))
    for changed in ({"k": 5}, {"layer": 1}):
        with pytest.raises(MicroscopeError) as caught:
            train(settings(recording_folder, tmp_path / "x", tokens=400, resume=True, **changed))
        assert caught.value.code == "checkpoint_mismatch"


def test_a_run_that_died_between_saving_two_saes_saves_both(tmp_path, recording_folder, monkeypatch):
    params = settings(recording_folder, tmp_path / "x", tokens=400, width=(48, 64), resume=True)
    saved: list[object] = []

    def die_at_the_second(sae, folder):
        if saved:
            raise KeyboardInterrupt
        saved.append(save_sae(sae, folder))

    with monkeypatch.context() as patch:
        patch.setattr("microscope.training.trainer.save_sae", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train_all(params)
    assert len(list((tmp_path / "x").glob("*/sae.json"))) == 1
    assert len(train_all(params)) == len(list((tmp_path / "x").glob("*/sae.json"))) == 2


def test_parameters_describe_several_saes_and_refuse_nonsense():
    good = {"activations": "a", "out": "b", "layer": 1}
    assert decode_params(TrainParams, good | {"width": 64, "k": [2, 4]}).runs == [
        RunKey(64, 2, 0),
        RunKey(64, 4, 0),
    ]
    for bad, code in (
        ({"k": [2, 2]}, "same_sae_twice"),
        ({"width": [64, 8], "k": 9}, "k_above_width"),
        ({"skip": True}, "skip_without_target"),
        ({"layer_out": 1}, "target_is_source"),
        ({"width": []}, "bad_parameters"),
        ({"width": [1]}, "bad_parameters"),
    ):
        with pytest.raises(MicroscopeError) as caught:
            decode_params(TrainParams, good | bad)
        assert caught.value.code == code


def test_a_preset_fills_in_what_was_not_given_and_is_compared_with_what_came_of_it(
    tmp_path, recording_folder
):
    class Listening(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[str] = []

        def log(self, message: str, level: str = "info") -> None:
            self.told.append(message)

    given = {"activations": str(recording_folder), "out": str(tmp_path / "x"), "layer": 2, "preset": "k64"}
    assert decode_params(TrainParams, given).runs == [RunKey(8192, 64, 0)]
    small = {"width": 64, "k": 6, "tokens": 400, "batch_size": 200, "device": "cpu"}
    params = decode_params(TrainParams, given | small)
    assert params.runs == [RunKey(64, 6, 0)]
    assert params.warmup == PRESETS["k64"].values["warmup"]
    listening = Listening()
    fvu = train(params, listening).config.training["held_out_fvu"]
    before, after = listening.told[0], listening.told[-1]
    assert f"{PRESETS['k64'].fvu:.3f}" in before
    assert f"{fvu:.4f}" in after
    assert f"promised {PRESETS['k64'].fvu:.3f}" in after


# --- transcoders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_to_predict_another_site(tmp_path, recording_folder, recording, skip):
    params = settings(
        recording_folder, tmp_path / "t", layer=1, layer_out=2, skip=skip, tokens=40_000, dead_after=10_000
    )
    sae = train(params)
    config = sae.config
    assert (config.site, config.site_out) == ("resid_post.1", "resid_post.2")
    assert not config.apply_b_dec
    source, target = recording.site(config.site), recording.site(config.site_out)
    xs, ys = [], []
    for x, y in zip(recording.chunks("held_out", source), recording.chunks("held_out", target), strict=True):
        keep = recording.keep_mask(source, x.flags, x.norm) & recording.keep_mask(target, y.flags, y.norm)
        xs.append(torch.from_numpy(x.values[keep]))
        ys.append(torch.from_numpy(y.values[keep]).double())
    x, y = torch.cat(xs), torch.cat(ys)
    # against its target, not its input
    expected = float((sae(x).double() - y).square().sum() / (y - y.mean(0)).square().sum())
    got = held_out_fvu(sae, recording, source, target, device=torch.device("cpu"), max_rows=10**6)
    assert got == pytest.approx(expected, rel=1e-6)
    assert got < 0.6
    again = load_sae(tmp_path / "t")
    assert torch.equal(again(x), sae(x))


def test_pairs_of_sites_are_those_of_the_same_token(recording):
    from microscope.activations import ShuffledRows

    one, two = recording.site("resid_post.1"), recording.site("resid_post.2")
    rows = next(ShuffledRows(recording, one, seed=0, buffer_bytes=10**8, target=two).batches(300))
    assert rows.shape == (300, one.width + two.width)
    pairs = {
        a.tobytes(): b.tobytes()
        for x, y in zip(recording.chunks("train", one), recording.chunks("train", two), strict=True)
        for a, b in zip(x.values, y.values, strict=True)
    }
    for row in rows.numpy():
        assert pairs[row[: one.width].tobytes()] == row[one.width :].tobytes()


def test_transcoders_of_different_widths_resume_exactly(tmp_path, model_folders, corpus, monkeypatch):
    """From the hidden activations of an MLP (wider) to its block's output."""
    monkeypatch.setattr("microscope.training.trainer.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("microscope.training.trainer.CHECKPOINT_SHARE", math.inf)
    folder = tmp_path / "acts"
    base = {
        "model": str(model_folders["llama"]),
        "text": (str(corpus),),
        "tokens": 1500,
        "context_length": 32,
        "batch_tokens": 256,
        "held_out": 0.2,
        "dtype": "float32",
        "device": "cpu",
    }
    record(TraceParams(layers=(1, 2), site="mlp_act", out=str(folder), **base))
    chosen = {"site": "mlp_act", "layer": 1, "layer_out": 2, "skip": True, "tokens": 2000}
    whole = train(settings(folder, tmp_path / "whole", **chosen))
    with pytest.raises(Cancelled):
        train(settings(folder, tmp_path / "p", checkpoint_seconds=1e-9, **chosen), _CancelAt(3))
    assert same_weights(whole, train(settings(folder, tmp_path / "p", resume=True, **chosen)))
    assert whole.W_skip is not None
    assert bool((whole.W_skip != 0).any())


# --- several processes --------------------------------------------------------------------------------


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHARED = Path(__file__).parents[1] / "probe" / "shared_training.py"


def run_shared(*command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def assert_equal_training(alone, team) -> None:
    dead = [sae.config.training["dead_share"] for sae in (alone, team)]
    assert dead[0] == pytest.approx(dead[1], abs=0.05)
    assert team.config.training["processes"] == 2
    for (name, a), b in zip(alone.state_dict().items(), team.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_equal_one(tmp_path, recording_folder):
    """torchrun with gloo: weights, thresholds and dead latents as if one process had had the whole batch."""
    shared = {"tokens": 2400, "aux_coefficient": 0.2, "precision": "float32", "dead_after": 400}
    files = []
    for arch in trained_architectures():
        params = settings(recording_folder, tmp_path / f"team-{arch}", arch=arch, **shared)
        files.append(tmp_path / f"{arch}.json")
        files[-1].write_bytes(msgspec.json.encode(params))
    run_shared(str(SHARED), *map(str, files))
    for arch in trained_architectures():
        alone = train(settings(recording_folder, tmp_path / arch, arch=arch, **shared))
        assert_equal_training(alone, load_sae(tmp_path / f"team-{arch}"))


def test_the_command_line_tells_once_for_all_processes(tmp_path, recording_folder):
    shared = {"tokens": 2400, "width": (48, 64), "precision": "float32"}
    params = settings(recording_folder, tmp_path / "team", **shared)
    (tmp_path / "train.json").write_bytes(msgspec.json.encode(params))
    told = run_shared("-m", "microscope", "train", "--config", str(tmp_path / "train.json"), "--json")
    assert set(json.loads(told)["saes"]) == {"w48-k6-s0", "w64-k6-s0"}
    alone = train(settings(recording_folder, tmp_path / "alone", **shared | {"width": 64}))
    assert_equal_training(alone, load_sae(tmp_path / "team" / "w64-k6-s0"))


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, recording_folder, monkeypatch):
    import contextlib

    from microscope.training.distributed import ProcessGroup

    class Three(ProcessGroup):
        size = 3

    monkeypatch.setattr(
        "microscope.training.trainer.joined_group", lambda device: contextlib.nullcontext(Three())
    )
    with pytest.raises(MicroscopeError) as caught:
        train(settings(recording_folder, tmp_path / "x"))
    assert caught.value.code == "batch_not_divisible"
    assert "--batch-size 198" in caught.value.hint


# --- what cannot work ---------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_refused_with_a_batch_that_does(tmp_path, recording_folder, monkeypatch):
    from microscope.training import memory

    huge = {"width": 4096, "batch_size": 10**7, "tokens": 10**7, "buffer_mb": 16}
    params = settings(recording_folder, tmp_path / "x", **huge)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda device: 2**30)
        with pytest.raises(MicroscopeError) as caught:
            train(params)
    assert caught.value.code == "out_of_memory"
    fits = int(caught.value.hint.split("--batch-size ")[1].rstrip("."))
    cpu = torch.device("cpu")
    smaller = msgspec.structs.replace(params, batch_size=fits)
    assert memory.needed_bytes(smaller, 32, 32, cpu) < 2**30 < memory.needed_bytes(params, 32, 32, cpu)


def test_wrong_sites_and_foreign_or_damaged_recordings_are_named(tmp_path, recording_folder, recording):
    with pytest.raises(MicroscopeError, match=r"no site mlp_out\.2"):
        train(settings(recording_folder, tmp_path / "x", site_out="mlp_out"))
    damaged = tmp_path / "damaged"
    shutil.copytree(recording_folder, damaged)
    shard = damaged / recording.manifest.train.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(MicroscopeError) as caught:
        train(settings(damaged, tmp_path / "x"))
    assert caught.value.code == "bad_recording"
    assert isinstance(recording, Recording)
