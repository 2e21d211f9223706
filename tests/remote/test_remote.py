"""The command line and the Python client against a real portal, over a network that breaks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from microscope.errors import MicroscopeError
from microscope.remote import Workbench
from microscope.remote.transfers import sha256_of
from tests.running import ROOT, TRAIN, Lab
from tests.tiny_models import make_corpus

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


class Breaking(httpx.HTTPTransport):
    """A network that loses one request in three, half of them only after the server has answered."""

    def __init__(self) -> None:
        super().__init__()
        self.rng, self.lost = random.Random(3), 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        fate = self.rng.random()
        if fate < 1 / 6:
            self.lost += 1
            raise httpx.ConnectError("cut before it was sent")
        answer = super().handle_request(request)
        if fate < 1 / 3:
            self.lost += 1
            answer.read()
            raise httpx.ReadError("cut before the answer")
        return answer


@pytest.fixture(scope="module")
def token(lab: Lab) -> str:
    made = lab.alice.post("/tokens", {"name": "remote", "scopes": ["write", "jobs", "artifacts"]})
    return str(made["secret"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "config"


@pytest.fixture
def microscope(home: Path, lab: Lab) -> Any:
    def run(*arguments: str, status: int = 0, **more: str) -> Any:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MICROSCOPE_")}
        done = subprocess.run(
            [sys.executable, "-m", "microscope", "remote", *arguments, "--json"],
            cwd=ROOT,
            env=kept | {"XDG_CONFIG_HOME": str(home), "PYTHONPATH": str(ROOT)} | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else done.stderr

    return run


@pytest.fixture
def signed_in(microscope: Any, lab: Lab, token: str) -> Any:
    microscope("login", lab.site.url, "--token", token, "--project", "Laboratory")
    return microscope


def test_sign_in_is_kept_for_its_owner_alone(microscope: Any, home: Path, lab: Lab, token: str) -> None:
    assert "microscope remote login" in microscope("jobs", status=3)
    assert "(token_invalid)" in microscope("login", lab.site.url, "--token", "iw_wrong", status=3)
    microscope("login", lab.site.url, "--token", token)
    file = home / "microscope" / "remote.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    names = [row["name"] for row in microscope("list", "projects")]
    assert "Laboratory" in names
    microscope("logout")
    assert not file.exists()
    found = microscope("list", "projects", MICROSCOPE_URL=lab.site.url, MICROSCOPE_TOKEN=token)
    assert [row["name"] for row in found] == names


def test_train_evaluate_export_and_bring_back(signed_in: Any, lab: Lab, tmp_path: Path) -> None:
    options = ["--layer", "2", "--width", "96", "--k", "8", "--tokens", "20k", "--batch-size", "200"]
    trained = signed_in("train", "--recording", "Blocks 1 and 2", "--name", "From afar", *options)
    assert trained["state"] == "succeeded"
    assert lab.alice.get(f"/saes/{trained['subject']}")["params"]["tokens"] == TRAIN["tokens"]

    measured = signed_in("eval", "From afar")
    assert measured["result"]["metrics"]["fvu"] < 1

    out = tmp_path / "saelens"
    signed_in("export-sae", "From afar", "--format", "saelens", "--out", str(out))
    assert {"cfg.json", "sae_weights.safetensors"} <= {file.name for file in out.iterdir()}

    back = signed_in(
        "import-sae", str(out), "--model", "tiny", "--recording", "Blocks 1 and 2", "--name", "And back"
    )
    sae = lab.alice.get(f"/saes/{back['subject']}")
    assert (sae["width"], sae["k"], sae["summary"]["smoke_test"]["passed"]) == (96, 8, True)
    assert {"From afar", "And back"} <= {row["name"] for row in signed_in("list", "saes")}
    states = {job["id"]: job["state"] for job in signed_in("jobs")}
    assert states[trained["job"]] == states[back["job"]] == "succeeded"


def test_several_corpora_are_mixed(signed_in: Any, lab: Lab) -> None:
    make_corpus(lab.site.folder / "corpora" / "tales")
    tales = {"project": lab.project["id"], "name": "tales", "kind": "builtin", "reference": "tales"}
    lab.alice.post("/corpora", tales)
    command = ["trace", "--model", "tiny", "--corpus", "words", "tales", "--layers", "1"]
    assert "(bad_weights)" in signed_in(*command, "--name", "x", "--weights", "1", status=3)
    options = ["--tokens", "2000", "--context-length", "32", "--held-out", "0.2", "--dtype", "float32"]
    made = signed_in(*command, "--name", "Mixed", "--weights", "3", "1", *options)
    recording = lab.alice.get(f"/recordings/{made['subject']}")
    assert recording["state"] == "ready"
    assert [(p["name"], p["weight"]) for p in recording["mixture"]] == [("words", 3), ("tales", 1)]


def test_texts_and_recordings_travel(signed_in: Any, lab: Lab, tmp_path: Path) -> None:
    text = tmp_path / "speech.jsonl"
    text.write_text('{"id": "Four score and seven years ago"}\n{"id": "our fathers"}\n')
    refused = signed_in("import-corpus", str(text), "--name", "speech", status=3)
    assert "(no_text_field)" in refused
    sent = signed_in("import-corpus", str(text), "--name", "address", "--text-field", "id")
    assert sent["result"]["documents"] == 2
    corpora = {row["name"]: row["state"] for row in signed_in("list", "corpora")}
    assert (corpora["speech"], corpora["address"]) == ("failed", "ready")

    signed_in("export-recording", "Blocks 1 and 2", "--out", str(tmp_path / "out"))
    archive = tmp_path / "out" / "recording.zip"
    back = signed_in("import-recording", str(archive), "--model", "tiny", "--name", "From a file")
    row = lab.alice.get(f"/recordings/{back['subject']}")
    assert (row["fingerprint"], row["corpus"]) == (lab.recording["fingerprint"], None)

    opened = tmp_path / "opened"
    signed_in("download", row["artifact"], "--out", str(opened))
    shard = next(opened.glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    damaged = signed_in("import-recording", str(opened), "--model", "tiny", "--name", "Damaged", status=3)
    assert "(bad_corpus_file)" in damaged or "(bad_recording)" in damaged
    for corpus in ("speech", "address"):
        lab.alice.delete(f"/corpora/{lab.alice.find('/corpora', corpus, project=lab.project['id'])['id']}")
    for item in lab.alice.get("/recordings", project=lab.project["id"])["results"]:
        if item["name"] in ("From a file", "Damaged"):
            lab.alice.delete(f"/recordings/{item['id']}")


def test_refusals_come_in_the_portals_words(signed_in: Any) -> None:
    assert "There is no recording called 'none'" in signed_in(
        "train", "--recording", "none", "--name", "x", "--layer", "1", status=3
    )
    refused = signed_in(
        *("train", "--recording", "Blocks 1 and 2", "--name", "x", "--layer", "2"),
        *("--width", "96", "--k", "999"),
        status=3,
    )
    assert "(k_above_width)" in refused
    assert "Lower k or raise the width." in refused


def test_a_cut_download_continues_and_damage_is_noticed(lab: Lab, token: str, tmp_path: Path) -> None:
    with Workbench(lab.site.url, token) as portal:
        files = portal.artifact(lab.sae["artifact"]).files
        largest = max(files, key=lambda file: file.bytes)
        whole = portal.download(lab.sae["artifact"], tmp_path / "whole")
        assert {place.name: sha256_of(place) for place in whole} == {f.path: f.sha256 for f in files}

        content = (tmp_path / "whole" / largest.path).read_bytes()
        part = tmp_path / "cut" / f"{largest.path}.part"
        part.parent.mkdir()
        part.write_bytes(content[: len(content) // 2])
        portal.download(lab.sae["artifact"], tmp_path / "cut")
        assert (tmp_path / "cut" / largest.path).read_bytes() == content

        part.write_bytes(b"x" + content[1 : len(content) // 2])
        (tmp_path / "cut" / largest.path).unlink()
        with pytest.raises(MicroscopeError) as refused:
            portal.download(lab.sae["artifact"], tmp_path / "cut")
        assert refused.value.code == "damaged_download"
        assert not part.exists()
        portal.download(lab.sae["artifact"], tmp_path / "cut")
        assert (tmp_path / "cut" / largest.path).read_bytes() == content


def test_an_upload_survives_a_network_that_breaks(
    lab: Lab, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microscope.remote.connection.LONGEST_WAIT", 0.05)
    monkeypatch.setattr("microscope.remote.transfers.PIECE", 100_000)
    data = random.Random(1).randbytes(3_000_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.bin").write_bytes(data)
    transport = Breaking()
    with Workbench(lab.site.url, token, attempts=12, transport=transport) as portal:
        [upload] = portal.upload(tmp_path / "in")
        assert transport.lost > 5
        assert portal.upload(tmp_path / "in") == [upload], "what is there already is not sent again"
    row = lab.alice.get(f"/uploads/{upload}")
    assert (row["complete"], row["sha256"]) == (True, hashlib.sha256(data).hexdigest())


def test_a_portal_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microscope.remote.connection.LONGEST_WAIT", 0.01)
    with Workbench("http://127.0.0.1:9", "token") as portal, pytest.raises(MicroscopeError) as refused:
        portal.projects()
    assert refused.value.code == "unreachable"
    with pytest.raises(MicroscopeError, match="no address of a portal"):
        Workbench("lab.example.org", "token")
