"""Every command of the documents and of ``--help`` runs as it stands there, and does what it promises."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.docs.conftest import Ran
from tests.docs.examples import Command, commands
from tests.docs.test_portal_commands import ON_A_PORTAL

# What this test can't run, each with its reason.
ELSEWHERE = {
    "make demo": "the demonstration on the real model: minutes; its steps are tests marked model",
    "make test": "it runs this",
    "make test-fast": "it runs this",
    "make lint": "make test does what it does",
    "make dev": "runs until it is stopped; the portal commands start the same servers",
    "make pictures": "the demonstration again; tests/e2e/test_pictures.py takes the same pages of a tiny model",
    ".venv/bin/python -m tests.postgres": "make test runs it",
    "WORKBENCH_FUZZ_EXAMPLES=200 .venv/bin/pytest tests/api/test_conformance.py": "make test runs it with fewer",
    ".venv/bin/python -m tests.chaos --kills 100": "takes half an hour",
    ".venv/bin/python -m benchmarks portal --quick": "measures for minutes; tests/unit/test_benchmarks.py runs its parts",
}
# Where an option names what a command makes rather than reads.
_MADE = ("--out", "--report")
Look = Callable[[Path, Ran], None]


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def recorded(folder: Path, ran: Ran, out: str, sites: set[str]) -> None:
    manifest = json.loads((folder / out / "manifest.json").read_text())
    assert manifest["complete"]
    columns = set(pq.read_schema(next((folder / out).glob("train*.parquet"))).names)
    assert sites <= columns
    assert manifest["train"]["rows"] > 0
    assert manifest["held_out"]["rows"] > 0


def an_sae(width: int, site: str, folder: str = "sae") -> Look:
    def look(place: Path, ran: Ran) -> None:
        config = json.loads((place / folder / "sae.json").read_text())
        assert (config["n_latents"], config["site"]) == (width, site)
        assert load_file(place / folder / "sae.safetensors")["W_dec"].shape[0] == width

    return look


def a_page(name: str) -> Look:
    def look(place: Path, ran: Ran) -> None:
        page = (place / name).read_text()
        assert page.startswith("<!doctype html>")
        assert "FVU" in page

    return look


def says(*wanted: str) -> Look:
    def look(place: Path, ran: Ran) -> None:
        for text in wanted:
            assert text in ran["out"], ran["out"]

    return look


def holds(*names: str) -> Look:
    def look(place: Path, ran: Ran) -> None:
        for name in names:
            assert list(place.glob(name)), sorted(str(p.relative_to(place)) for p in place.rglob("*"))

    return look


# What each promises, beside the exit status 0.
PROMISES: dict[str, Look] = {
    "microscope trace --model Qwen/Qwen3-0.6B --layer 10 --text corpus/ --tokens 2M --out activations.parquet": (
        lambda at, ran: recorded(at, ran, "activations.parquet", {"resid_post.10"})
    ),
    "microscope trace --model Qwen/Qwen3-0.6B --layers 6 10 14 --text corpus/ --tokens 2M --out activations.parquet": (
        lambda at, ran: recorded(at, ran, "activations.parquet", {f"resid_post.{n}" for n in (6, 10, 14)})
    ),
    "microscope train --activations activations.parquet --layer 10 --width 16k --k 32 --out sae_checkpoints/": (
        an_sae(16384, "resid_post.10", "sae_checkpoints")
    ),
    "microscope eval --sae-path sae_checkpoints --activations activations.parquet --report report.html": (
        a_page("report.html")
    ),
    "microscope features --sae-path sae_checkpoints --activations activations.parquet --feature 42": says(
        "42"
    ),
    "microscope compare --sae-path one/ other/ --activations activations.parquet": says("one", "other"),
    "microscope compare --sae-path ours/ theirs/ --activations activations.parquet --out comparison/": (
        holds("comparison/*.html", "comparison/*.json")
    ),
    "microscope import --path their_sae/ --activations activations.parquet --out sae/": an_sae(
        64, "resid_post.10"
    ),
    "microscope import --path FOLDER --activations RECORDING --out sae/": an_sae(64, "resid_post.10"),
    "microscope import --path their_sae/ --model gpt2 --out sae/": an_sae(64, "resid_post.8"),
    "microscope export --sae-path sae/ --format saelens --out for_saelens/": (
        holds("for_saelens/cfg.json", "for_saelens/sae_weights.safetensors")
    ),
    'microscope provenance --model Qwen/Qwen3-0.6B --sae-path sae/ --prompt "the state of" --token " union"': says(
        "completeness", "depth", "resid_post.10:"
    ),
    "microscope provenance --model Qwen/Qwen3-0.6B --sae-path saes/6 saes/10 saes/14"
    ' --prompt "the state of the union is" --token " strong" --out graph.json': holds("graph.json"),
    "microscope patch export --help": says("--target", "peft", "merged", "bundle"),
    "microscope patch create --sae-path sae/ --feature 42 --kind ablate --out patch.json": holds(
        "patch.json"
    ),
    'microscope patch apply --patch patch.json --prompt "The capital of France is"': says("KL"),
    "microscope patch export --patch patch.json --target peft --activations activations.parquet --out adapter/": (
        holds("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    ),
    "microscope patch certify --export adapter/ --sae-path sae/ --activations activations.parquet --out certificate/": (
        holds("certificate/*.json")
    ),
    "microscope patch import --path their_adapter/ --model gpt2 --out adapter/": holds("adapter/patch.json"),
    "microscope corpus import --path speeches.jsonl --out corpora/speeches": holds("corpora/speeches/*"),
    "microscope recording pack --activations activations.parquet --out packed/": holds(
        "packed/recording.zip"
    ),
    "microscope recording import --path packed/recording.zip --model Qwen/Qwen3-0.6B --out activations.parquet": (
        lambda at, ran: recorded(at, ran, "activations.parquet", {"resid_post.10"})
    ),
    "microscope inspect --model M --load": says("run by", "resid_post"),
    "microscope inspect --model M --load-in-4bit": says("Δlogit", "nf4"),
    "microscope inspect --model Qwen/Qwen3-0.6B --load-in-4bit": says("Δlogit", "nf4"),
    "microscope doctor": says("torch", "Python"),
    ".venv/bin/microscope trace --model var/models/SmolLM2-135M-Instruct.gguf --layers 10 15 20"
    " --text var/corpora/sotu --tokens 200k --out three_sites": (
        lambda at, ran: recorded(at, ran, "three_sites", {f"resid_post.{n}" for n in (10, 15, 20)})
    ),
    ".venv/bin/microscope train --activations three_sites --layer 20 --width 4k --k 32 --out sae20": (
        an_sae(4096, "resid_post.20", "sae20")
    ),
    ".venv/bin/microscope eval --sae-path sae20 --activations three_sites --report sae20.html": (
        a_page("sae20.html")
    ),
}
# Every line runs as it stands, but for how long it trains where it does not say so: the default takes a minute here.
_BRIEFLY = ("train", "--tokens", "40k")
# Commands of one document that follow each other work in one folder.
_FOLLOWING = ("docs/tour.md",)


def shown() -> dict[str, Command]:
    """Every command line once, whichever documents show it."""
    found: dict[str, Command] = {}
    for command in commands():
        found.setdefault(command.text, command)
    return found


def test_no_command_is_left_out_and_none_is_listed_that_nobody_shows() -> None:
    assert set(shown()) == {*PROMISES, *ELSEWHERE, *ON_A_PORTAL}


@pytest.fixture(scope="session")
def ran(
    tmp_path_factory: pytest.TempPathFactory, things: dict[str, Path], run_all: Any
) -> dict[str, tuple[Path, Ran]]:
    """Each command, run in a folder with nothing but what it names."""
    places, asked = {}, []
    following = {document: tmp_path_factory.mktemp("following") for document in _FOLLOWING}
    for text, command in shown().items():
        if text not in PROMISES:
            continue
        folder = following.get(command.document) or tmp_path_factory.mktemp("example")
        _provide(folder, command.argv, things)
        places[text] = folder
        name, how_long, tokens = _BRIEFLY
        words = command.argv[1:]
        brief = [how_long, tokens] if words[0] == name and how_long not in words else []
        asked.append((folder, [*words, *brief]))
    return {text: (places[text], done) for text, done in zip(places, run_all(asked), strict=True)}


def _provide(folder: Path, argv: list[str], things: dict[str, Path]) -> None:
    """Put what the command line names as given into its folder."""
    other = "@gpt2" if "gpt2" in argv else ""
    made = {after for option, after in itertools.pairwise(argv) if option in _MADE}
    for word in argv:
        name = re.split(r"/", word)[0]
        source = things.get(f"{name}{other}") or things.get(name)
        if word in made or source is None or (folder / name).exists():
            continue
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("text", PROMISES)
def test_a_command_does_what_it_promises(text: str, ran: dict[str, tuple[Path, Ran]]) -> None:
    folder, done = ran[text]
    assert done["status"] == 0, done["err"]
    PROMISES[text](folder, done)
