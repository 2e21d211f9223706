"""The command line as a person and as a supervisor use it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from microscope.cli import main
from microscope.params import ExitCode, JobEvent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "microscope", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def events(text: str) -> list[JobEvent]:
    return [msgspec.json.decode(line, type=JobEvent) for line in text.splitlines()]


@pytest.fixture(scope="module")
def traced(tmp_path_factory, model_folders, corpus) -> Path:
    out = tmp_path_factory.mktemp("cli") / "activations.parquet"
    done = run(
        "trace", "--model", model_folders["gpt2"], "--layers", 1, 2, "--text", corpus, "--out", out,
        "--tokens", "2.5k", "--context-length", 32, "--held-out", 0.2, "--dtype", "fp32", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(done.stdout)["tokens"] == 2500
    return out


def test_the_four_steps_in_a_row(traced, tmp_path):
    out = tmp_path / "saes"
    done = run(
        "train",
        "--activations",
        traced,
        "--layer",
        2,
        "--width",
        64,
        "--k",
        4,
        "--tokens",
        "10k",
        "--out",
        out,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    fingerprint = json.loads(done.stdout)["fingerprint"]
    report = tmp_path / "report.html"
    done = run(
        "eval",
        "--sae-path",
        out / "sae.safetensors",
        "--activations",
        traced,
        "--layer",
        2,
        "--report",
        report,
        "--loss-contexts",
        3,
    )
    assert done.returncode == 0, done.stderr
    assert "Σ‖x−x̂‖²" in done.stdout
    assert fingerprint[:12] in report.read_text()
    done = run("features", "--sae-path", out, "--activations", traced, "--out", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "f" / "details.jsonl").read_text().splitlines()) == 64
    done = run("features", "--sae-path", out, "--activations", traced, "--feature", 7)
    assert "Feature 7" in done.stdout
    done = run("features", "--sae-path", out, "--activations", traced)
    assert done.returncode == ExitCode.REFUSED
    assert "--out or --feature" in done.stderr


def test_inspect_says_how_a_model_is_run_once_it_is_loaded(model_folders):
    done = run("inspect", "--model", model_folders["gpt_neox"], "--load")
    shown = " ".join(done.stdout.split())
    assert "the fast path" in shown
    assert "resid_post │ 0, 1, 2, 3 │" in shown
    assert "resid_mid │ none │ attention and MLP run in parallel" in shown


def test_inspect(model_folders):
    done = run("inspect", "--model", model_folders["qwen3"], "--json")
    assert json.loads(done.stdout)["family"] == "qwen"


def test_a_supervised_job_speaks_json_lines_only(traced, tmp_path):
    config = tmp_path / "job.json"
    settings = {
        "activations": str(traced),
        "out": str(tmp_path / "out"),
        "layer": 1,
        "width": 64,
        "k": 4,
        "tokens": 20_000,
    }
    config.write_text(json.dumps(settings | {"batch_size": 200, "device": "cpu"}))
    done = run("train", "--config", config, "--events", "-")
    assert done.returncode == 0, done.stderr
    said = events(done.stdout)
    assert said[-1].type == "result"
    assert said[-1].result["n_latents"] == 64
    last = [e for e in said if e.type == "progress"][-1]
    assert (last.phase, last.done, last.total, last.unit) == ("training", 20_000, 20_000, "tokens")
    assert {"fvu", "l0", "dead"} <= set(last.metrics)


def test_a_supervised_job_reports_refusals_as_events(tmp_path):
    config = tmp_path / "job.json"
    config.write_text(json.dumps({"activations": str(tmp_path), "out": str(tmp_path / "o"), "layer": 1}))
    done = run("train", "--config", config, "--events", "-")
    assert done.returncode == ExitCode.REFUSED
    said = events(done.stdout)[-1]
    assert (said.type, said.code) == ("error", "no_recording")
    assert said.hint
    done = run("train", "--config", tmp_path / "missing.json", "--events", "-")
    assert events(done.stdout)[-1].code == "bad_config"


def test_a_cancel_file_stops_a_job(traced, tmp_path):
    flag = tmp_path / "cancel"
    command = [
        sys.executable, "-m", "microscope", "train", "--activations", traced, "--out", tmp_path / "o", "--layer", 1,
        "--width", 64, "--k", 4, "--tokens", "500M", "--events", "-", "--cancel-file", flag,
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "training" in process.stdout.readline()
    flag.touch()
    started = time.monotonic()
    assert process.wait(30) == ExitCode.CANCELLED
    assert time.monotonic() - started < 10


def test_training_waits_for_nothing_it_does_not_need(traced, tmp_path):
    """transformers and torch's compiler take seconds to import, and many where nothing is in the file cache."""
    code = (
        "import sys, microscope.cli\n"
        "try:\n"
        f"    microscope.cli.main(['train','--activations',{str(traced)!r},'--out',{str(tmp_path / 'o')!r},"
        "'--layer','1','--width','16','--k','2','--tokens','400','--batch-size','200'])\n"
        "finally:\n"
        "    print({'transformers', 'torch._dynamo'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (tmp_path / "o" / "sae.json").exists(), done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


def test_unforeseen_errors_end_with_status_one_and_a_traceback(traced, tmp_path):
    code = (
        "import microscope.training, microscope.cli\n"
        "def explode(*_): raise RuntimeError('boom')\n"
        "microscope.training.train_all = explode\n"
        f"microscope.cli.main(['train','--activations',{str(traced)!r},'--out',{str(tmp_path / 'o')!r},'--layer','1','--events','-'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ExitCode.CRASHED
    assert "Traceback" in done.stderr
    assert events(done.stdout)[-1].code == "crashed"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("train", "--width", "many"), "not a number"),
        (("trace", "--dtype", "int3"), "bfloat16"),
        (("train", "--nonsense"), "No such option"),
        (("nothing",), "No such command"),
    ],
)
def test_wrong_options_are_usage_errors(arguments, word):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == ExitCode.USAGE
    assert word in result.output


def test_missing_parameters_are_named():
    done = run("train", "--layer", 3)
    assert done.returncode == ExitCode.REFUSED
    assert "activations" in done.stderr


def test_a_machine_without_torch_gets_advice(tmp_path):
    code = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import microscope.cli; microscope.cli.main(['inspect', '--model', 'gpt2'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ExitCode.REFUSED
    assert "engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_units_and_defaults():
    text = CliRunner().invoke(main, ["train", "--help"]).output
    assert "--width LATENTS" in text
    assert "4096]" in " ".join(text.split())


def test_doctor_finds_this_machine_fit_and_says_so_in_json():
    done = run("doctor", "--json")
    found = {f["subject"]: f for f in json.loads(done.stdout)}
    assert found["torch"]["level"] == "ok"
    assert all(f["remedy"] for f in found.values() if f["level"] == "problem")
    assert done.returncode == int(any(f["level"] == "problem" for f in found.values()))
