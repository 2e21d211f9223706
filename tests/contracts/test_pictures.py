"""The pictures of README and docs: all there, small, and taken with the present style sheets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from workbench.demo import pictures

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
AGAIN = "run `make pictures`, look at them, and commit them"


def test_the_style_sheets_are_those_of_the_pictures() -> None:
    stored = json.loads(pictures.SHOWN.read_text(encoding="utf-8"))["styles"]
    assert stored == pictures.styles(), f"the style sheets changed since the pictures were taken: {AGAIN}"


def test_every_picture_is_there_in_light_and_dark_and_small() -> None:
    wanted = {f"{name}-{scheme}.webp" for name in pictures.PICTURES for scheme in pictures.SCHEMES}
    found = {path.name: path.stat().st_size for path in pictures.FOLDER.glob("*.webp")}
    assert found.keys() == wanted, AGAIN
    assert [name for name, size in found.items() if size > pictures.MAX_BYTES] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_in_documents_exist_and_have_both_schemes(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    shown = re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', text)
    places = {source or target for source, target in shown}
    assert [place for place in places if not (folder / place).is_file()] == []
    pictured = {place for place in places if place.endswith(".webp")}
    assert {place.replace("-light.", "-dark.") for place in pictured if "-light." in place} == {
        place for place in pictured if "-dark." in place
    }


def test_every_picture_is_in_a_document() -> None:
    text = "".join((ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [name for name in pictures.PICTURES if f"pictures/{name}-light.webp" not in text] == []
