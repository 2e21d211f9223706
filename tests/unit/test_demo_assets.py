"""What the demo fetches is what it reads: a model file, and a folder of nothing but speeches."""

from __future__ import annotations

from pathlib import Path

import pytest

from microscope.activations.corpus import open_corpus
from workbench.demo.assets import fetch

pytestmark = pytest.mark.model


def test_a_fresh_data_folder_gets_a_text_that_can_be_read(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / demo_model.name).symlink_to(demo_model)
    _, corpus = fetch(tmp_path)
    files = [path for path in corpus.rglob("*") if path.is_file()]
    assert len(files) > 200
    assert {path.suffix for path in files} == {".txt"}
    documents = list(open_corpus(text=(str(corpus),), held_out=0.05))
    assert len(documents) == len(files)
