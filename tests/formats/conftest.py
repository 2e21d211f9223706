"""The peers' own environment: built by ``make peers`` into ``.venv-peers``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engine_fixtures import *  # noqa: F403 (fixtures)

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".venv-peers" / "bin" / "python"


def run_peer(script: str, folder: Path) -> None:
    """Run a script of this folder with the peers' Python."""
    done = subprocess.run([PEERS, HERE / script, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def peer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs written by SAELens, sparsify and dictionary_learning themselves."""
    assert PEERS.exists(), "the peers' environment is missing: run `make peers`"
    folder = tmp_path_factory.mktemp("peers")
    run_peer("peer_write.py", folder)
    return folder
