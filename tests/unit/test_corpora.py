"""Corpora: few documents are cut for both sides, folders are read with all their kinds, datasets are those of the Hub."""

from __future__ import annotations

import os
import pkgutil
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope.activations.corpus import Corpus, open_corpus
from microscope.errors import MicroscopeError
from microscope.params.datasets import READERS, check_dataset_id
from microscope.texts import TextFile, text_files

DOCUMENTS = [
    f"Document {i}, of “roads” and\nschools.\n\nÜber {i} 道路 \U0001f600 " + "x" * i for i in range(40)
]


# --- cutting few documents ------------------------------------------------------------------------------


def paragraphs(text: str) -> list[str]:
    return [d.text for d in Corpus([text], description="x", held_out=0.05)]


WORDS = [" ".join(random.Random(i).choices(["road", "school", "river"], k=60)) for i in range(60)]
SINGLE = {
    "two newlines": "\n\n".join(WORDS),
    "WikiText": "".join(f" \n = Title {i} = \n \n {w} \n" for i, w in enumerate(WORDS)),
    "CRLF": "\r\n\r\n".join(WORDS),
    "one newline": "\n".join(WORDS),
    "old Mac": "\n".join(WORDS).replace("\n", "\r"),
    "one line": " ".join(WORDS),
    "sentences": ". ".join(WORDS),
    "no space at all": "".join(WORDS).replace(" ", ""),
    "Chinese": "。".join(["道路學校河流" * 40] * 60),
    "200,000 empty lines": WORDS[0] + "\n" * 200_000 + "\n\n".join(WORDS[1:]),
    "200,000 lines with a space": WORDS[0] + " \n" * 200_000 + "\n\n".join(WORDS[1:]),
    "a short one": "The state of the union is strong. Congress may ask for roads, and schools, and peace.",
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_text_is_cut_into_parts_for_both_sides(name: str) -> None:
    began = time.monotonic()
    corpus = Corpus([SINGLE[name]], description="x", held_out=0.05)
    found = list(corpus)
    assert time.monotonic() - began < 10
    assert corpus.segmentation == "paragraphs"
    assert {d.split for d in found} == {"train", "held_out"}
    together = "".join("".join(d.text for d in found).split())
    assert together == "".join(SINGLE[name].split()), "nothing is lost or twice"
    if name != "a short one":
        assert len(found) >= 10
        assert sum(d.split == "held_out" for d in found) < len(found) / 2


def test_paragraphs_are_cut_where_they_always_were() -> None:
    text = "\n\n".join(f"paragraph {i} " + "roads and schools " * 130 for i in range(40))
    assert paragraphs(text) == text.split("\n\n")


@pytest.mark.parametrize("documents", [20, 21, 40, 100])
def test_small_corpora_have_documents_on_both_sides(documents: int) -> None:
    """At the smallest and the largest share, whatever the hashes say."""
    for seed in range(30):
        texts = [f"document {seed} {i}" for i in range(documents)]
        for share in (0.001, 0.05, 0.5):
            corpus = list(Corpus(texts, description="x", held_out=share))
            assert [d.text for d in corpus] == texts
            assert {d.split for d in corpus} == {"train", "held_out"}


def test_copies_of_one_document_are_refused() -> None:
    with pytest.raises(MicroscopeError) as caught:
        Corpus(["the same"] * 50, description="x", held_out=0.05)
    assert caught.value.code == "corpus_too_small"


# --- folders --------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_all_its_kinds_and_nothing_hidden(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for name in ("data/en.txt", "more.d/x.JSON"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "data/en.txt").write_text("english")
    (folder / "more.d/x.JSON").write_text('[{"text": "listed"}]')
    (folder / "named.txt").mkdir()
    (folder / "named.txt/inside.jsonl").write_text('{"text": "inside"}')
    (folder / "README.md").write_text("about the data")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".git").mkdir()
    (folder / ".git/x.txt").write_text("hidden")
    (folder / ".hidden.txt").write_text("hidden")
    (tmp_path / "elsewhere.txt").write_text("linked")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/b.txt").write_text("linked folder")
    (folder / "linked").symlink_to(tmp_path / "blobs")
    (folder / "circle").symlink_to(folder)
    found = sorted(text for file in text_files([str(folder)]) for text in TextFile(file))
    assert found == ["english", "inside", "linked", "linked folder", "listed"]


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda f: (f / "a.png").write_bytes(b"x"), "corpus_empty", "found: .png"),
        (lambda f: None, "corpus_empty", "no files of text"),
        (
            lambda f: (f / "a.txt").write_text("x") and (f / "b.jsonl.gz").write_bytes(b"x"),
            "wrong_file_type",
            "b.jsonl.gz",
        ),
        (lambda f: (f / "a.txt").symlink_to(f / "nowhere"), "no_such_file", "link to nothing"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, make: Callable[[Path], object], code: str, said: str
) -> None:
    make(tmp_path)
    with pytest.raises(MicroscopeError, match=said) as caught:
        list(text_files([str(tmp_path)]))
    assert caught.value.code == code


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "x" * 300, "a\0b", str(tmp_path / "pipe")):
        with pytest.raises(MicroscopeError) as caught:
            list(text_files([name]))
        assert caught.value.code == "no_such_file"


# --- datasets -------------------------------------------------------------------------------------------


def test_the_readers_of_the_datasets_library_are_no_datasets() -> None:
    """Against the list of the installed library, so that a new reader is noticed."""
    from datasets import packaged_modules

    readers = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}
    assert {"json", "text"} < readers <= READERS


@pytest.mark.parametrize(
    "name",
    ["text", "json", "pandas", "JSON", "parquet", ".", "..", "./data", "/etc", "a/b/c", "hf://x", "../x", ""],
)
def test_no_name_reads_the_working_folder(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("the job's own folder")
    if name:
        with pytest.raises(MicroscopeError) as caught:
            open_corpus(dataset=name, held_out=0.1)
        assert caught.value.code == "bad_dataset"
    with pytest.raises(MicroscopeError):
        check_dataset_id(name)


def test_a_folder_of_the_datasets_name_is_not_read_in_its_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "a.txt").write_text("\n".join(WORDS))
    with pytest.raises(MicroscopeError, match="a file or folder 'owner/name' here"):
        open_corpus(dataset="owner/name", held_out=0.1)


def test_names_of_the_hub() -> None:
    for name in ("wikitext", "roneneldan/TinyStories", "allenai/c4", "HuggingFaceFW/fineweb-edu"):
        assert check_dataset_id(name) == name


def test_rows_of_the_hub_are_read_like_rows_of_files(monkeypatch) -> None:
    import datasets

    rows = [{"content": None}, *({"content": d} for d in DOCUMENTS), {"content": "half \ud83d"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter(rows))
    found = [d.text for d in open_corpus(dataset="owner/name", held_out=0.1)]
    assert found == [*DOCUMENTS, "half \ufffd"]
    rows[3] = {"content": 3}
    with pytest.raises(MicroscopeError, match="owner/name, row 4 has no text in 'content'"):
        list(open_corpus(dataset="owner/name", held_out=0.1))
