"""Text as people have it: every usual form is read as the same documents, and what is not is refused with its place."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microscope.activations.corpus import open_corpus
from microscope.errors import MicroscopeError
from microscope.params.files import ImportCorpusParams
from microscope.quarantine.corpora import import_corpus
from microscope.texts import TextFile
from microscope.texts import json_values as reading

DOCUMENTS = [
    f"Document {i}, of “roads” and\nschools.\n\nÜber {i} 道路 \U0001f600 " + "x" * i for i in range(40)
]


def lines(rows: list[object], end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


def table(**columns: object) -> pa.Table:
    return pa.table(columns)


def parquet(made: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(made, out, **options)
    return out.getvalue()


def arrow(made: pa.Table, *, stream: bool, **options: object) -> bytes:
    out = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(out, made.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(made, max_chunksize=7)
    return out.getvalue()


def spreadsheet(delimiter: str = ",", header: tuple[str, ...] = ("id", "text")) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(header)
    writer.writerows((i, d) for i, d in enumerate(DOCUMENTS))
    return out.getvalue().encode()


ROWS = [{"id": i, "text": d, "meta": {"n": None}} for i, d in enumerate(DOCUMENTS)]
FORMS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "JSON lines": lambda: ("a.jsonl", lines(ROWS)),
    "under .ndjson": lambda: ("a.ndjson", lines(ROWS)),
    "under .jl": lambda: ("a.jl", lines(ROWS)),
    "lines under .json": lambda: ("a.json", lines(ROWS)),
    "lines under .txt": lambda: ("a.txt", lines(ROWS)),
    "lines without a suffix": lambda: ("a", lines(ROWS)),
    "suffix in capitals": lambda: ("A.JSONL", lines(ROWS)),
    "lines with CRLF": lambda: ("a.jsonl", lines(ROWS, "\r\n")),
    "empty lines between": lambda: ("a.jsonl", b"\n \n" + lines(ROWS, "\n\n\n")),
    "no line end at the end": lambda: ("a.jsonl", lines(ROWS).rstrip()),
    "one after another": lambda: ("a.json", lines(ROWS, "")),
    "record separators": lambda: ("a.json", b"\x1e" + lines(ROWS, "\n\x1e")),
    "a list": lambda: ("a.json", json.dumps(ROWS).encode()),
    "an indented list": lambda: ("a.json", json.dumps(ROWS, indent=2).encode()),
    "a list under .jsonl": lambda: ("a.jsonl", json.dumps(ROWS).encode()),
    "a list under .txt": lambda: ("a.txt", json.dumps(ROWS, indent=2).encode()),
    "indented objects": lambda: ("a.json", "\n".join(json.dumps(r, indent=1) for r in ROWS).encode()),
    "characters as they are": lambda: ("a.json", json.dumps(ROWS, ensure_ascii=False).encode()),
    "with a byte order mark": lambda: ("a.jsonl", lines(ROWS).decode().encode("utf-8-sig")),
    "UTF-16": lambda: ("a.json", json.dumps(ROWS, ensure_ascii=False).encode("utf-16")),
    "UTF-16 the other way": lambda: ("a.jsonl", b"\xfe\xff" + lines(ROWS).decode().encode("utf-16-be")),
    "UTF-32": lambda: ("a.jsonl", lines(ROWS).decode().encode("utf-32")),
    "texts alone": lambda: ("a.jsonl", lines(list(DOCUMENTS))),
    "a list of texts": lambda: ("a.json", json.dumps(DOCUMENTS).encode()),
    "nulls among them": lambda: ("a.jsonl", lines([None, *ROWS, {"text": None}, None])),
    "columns": lambda: ("a.json", json.dumps({"id": [1] * 40, "text": DOCUMENTS}).encode()),
    "columns of pandas": lambda: ("a.json", pd.DataFrame(ROWS)[["id", "text"]].to_json().encode()),
    "records of pandas": lambda: (
        "a.json",
        pd.DataFrame(ROWS)[["text"]].to_json(orient="records").encode(),
    ),
    "wrapped": lambda: ("a.json", json.dumps({"version": "1", "data": ROWS}).encode()),
    "rows of a server": lambda: (
        "a.json",
        json.dumps({"features": [], "rows": [{"row_idx": i, "row": r} for i, r in enumerate(ROWS)]}).encode(),
    ),
    "another usual name": lambda: ("a.jsonl", lines([{"url": "u", "content": d} for d in DOCUMENTS])),
    "a name in capitals": lambda: ("a.jsonl", lines([{"Title": "t", "Text": d} for d in DOCUMENTS])),
    "nested": lambda: ("a.jsonl", lines([{"id": 1, "document": {"text": d, "n": 1}} for d in DOCUMENTS])),
    "Parquet": lambda: ("a.parquet", parquet(table(n=list(range(40)), text=DOCUMENTS), row_group_size=9)),
    "Parquet under another name": lambda: ("a.txt", parquet(table(text=DOCUMENTS))),
    "Parquet with nulls": lambda: ("a.parquet", parquet(table(text=[None, *DOCUMENTS, None]))),
    "Parquet, large strings": lambda: (
        "a.parquet",
        parquet(table(text=pa.array(DOCUMENTS, pa.large_string()))),
    ),
    "Parquet, views": lambda: ("a.parquet", parquet(table(text=pa.array(DOCUMENTS, pa.string_view())))),
    "Parquet, bytes": lambda: (
        "a.parquet",
        parquet(table(text=pa.array([d.encode() for d in DOCUMENTS], pa.binary()))),
    ),
    "Parquet, dictionary": lambda: (
        "a.parquet",
        parquet(table(text=pa.array(DOCUMENTS).dictionary_encode())),
    ),
    "Parquet, delta": lambda: (
        "a.parquet",
        parquet(table(text=DOCUMENTS), use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}),
    ),
    "Parquet, nested": lambda: (
        "a.parquet",
        parquet(table(n=[1] * 41, document=[*({"text": d, "x": 1} for d in DOCUMENTS), None])),
    ),
    "Parquet, another usual name": lambda: ("a.parquet", parquet(table(url=["u"] * 40, body=DOCUMENTS))),
    "Parquet, lists beside it": lambda: ("a.parquet", parquet(table(ids=[[1, 2]] * 40, text=DOCUMENTS))),
    "Arrow file": lambda: ("a.arrow", arrow(table(text=DOCUMENTS), stream=False)),
    "Arrow stream": lambda: ("data-00000-of-00001.arrow", arrow(table(text=DOCUMENTS), stream=True)),
    "Feather": lambda: ("a.feather", arrow(table(text=DOCUMENTS), stream=False, compression="zstd")),
    "CSV": lambda: ("a.csv", spreadsheet()),
    "CSV with semicolons": lambda: ("a.csv", spreadsheet(";")),
    "TSV": lambda: ("a.tsv", spreadsheet("\t")),
    "CSV of Excel": lambda: ("a.csv", spreadsheet().decode().encode("utf-8-sig")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_documents_for_import_and_recording(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form]()
    file = tmp_path / name
    file.write_bytes(content)
    # A text in a row keeps its characters; in a table of CSV, line ends are those of the file.
    assert list(TextFile(file)) == DOCUMENTS
    result = import_corpus(ImportCorpusParams(path=str(file), out=str(tmp_path / "in")))
    assert result["documents"] == len(DOCUMENTS)
    taken = tmp_path / "in" / result["file"]
    assert taken.read_bytes() == content
    assert sorted(d.text for d in open_corpus(text=(str(taken.parent),), held_out=0.1)) == sorted(DOCUMENTS)


def test_rows_keep_the_line_ends_inside_their_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "one\r\ntwo\rthree"}]))
    assert list(TextFile(tmp_path / "a.jsonl")) == ["one\r\ntwo\rthree"]
    pq.write_table(table(text=["one\r\ntwo"]), tmp_path / "a.parquet")
    assert list(TextFile(tmp_path / "a.parquet")) == ["one\r\ntwo"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_plain_text_in_every_marked_encoding(tmp_path: Path, encoding: str) -> None:
    text = "Grüße 道路 \U0001f600\r\nzwei\rdrei\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert list(TextFile(tmp_path / "a.txt")) == ["Grüße 道路 \U0001f600\nzwei\ndrei\n"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "[1] A footnote.\n[2] Another."),
        ("a.txt", '{"one": "object alone may be a text"}'),
        ("a.md", "[[wiki]] link\n"),
        ("a.txt", '["Hello," he said.] And left.'),
        ("a.html", "{% extends 'base' %}\n<p>text</p>"),
        ("a.py", "{x for x in y}\n"),
        ("notes", "plain words"),
    ],
)
def test_prose_that_begins_with_a_bracket_stays_prose(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert list(TextFile(tmp_path / name)) == [text]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "river \\ud83d stone"}\n{"text": "\\ude00\\ud83d\\ude00 \\uDBFF"}\n'
    )
    assert list(TextFile(tmp_path / "a.jsonl")) == ["river \ufffd stone", "\ufffd\U0001f600 \ufffd"]


def test_numbers_of_any_length_are_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"id": ' + b"9" * 5_000_000 + b', "text": "river"}\n{"id": -1.5e400, "text": "stone"}\n'
    )
    began = time.monotonic()
    assert list(TextFile(tmp_path / "a.jsonl")) == ["river", "stone"]
    assert time.monotonic() - began < 20


REFUSED: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("a.jsonl", b"", "corpus_empty", "a.jsonl"),
    "latin-1": ("a.txt", "one\ntwo\ndéjà vu".encode("latin-1"), "wrong_file_type", "line 3"),
    "cp1252 in JSON": ("a.jsonl", b'{"text": "a"}\n{"text": "\x93b\x94"}\n', "wrong_file_type", "line 2"),
    "cut in a character": ("a.txt", "one\nüü".encode()[:-1], "wrong_file_type", "line 2"),
    "a zero byte": ("a.txt", b"one\ntwo\nth\0ree", "wrong_file_type", "line 3"),
    "UTF-16 without its mark": (
        "a.txt",
        "one\ntwo".encode("utf-16-le"),
        "wrong_file_type",
        "byte order mark",
    ),
    "gzip": ("a.json.gz", gzip.compress(lines(ROWS)), "wrong_file_type", "compressed"),
    "gzip under another name": ("a.jsonl", gzip.compress(lines(ROWS)), "wrong_file_type", "compressed"),
    "pickle": ("a.txt", b"\x80\x04\x95\0\0\0", "pickle_refused", "a.txt"),
    "broken line": ("a.jsonl", lines(ROWS[:9]) + b"{oops}\n" + lines(ROWS), "bad_corpus_file", "line 10"),
    "cut line": ("a.jsonl", lines(ROWS)[:-9], "bad_corpus_file", "line 40"),
    "unfinished text in a line": ("a.jsonl", b'{"text": "a\n{"text": "b"}\n', "bad_corpus_file", "line 1"),
    "commas after objects": ("a.json", b'{"text": "a"},\n{"text": "b"}', "bad_corpus_file", "line 1"),
    "list without end": ("a.json", b'[\n{"text": "a"},\n{"text": "b"}\n', "bad_corpus_file", "line"),
    "list without comma": ("a.json", b'[{"text": "a"}\n{"text": "b"}]', "bad_corpus_file", "line 2"),
    "deep": ("a.jsonl", b'{"text": "a"}\n{"x": ' + b"[" * 100_000 + b"}\n", "bad_corpus_file", "line 2"),
    "no text": ("a.jsonl", lines([{"id": 1, "title": "t"}]), "no_text_field", "found: id, title"),
    "text missing later": ("a.jsonl", lines([*ROWS[:4], {"id": 1}]), "no_text_field", "line 5"),
    "a number": ("a.jsonl", lines([*ROWS[:4], {"text": 7}]), "no_text_field", "line 5"),
    "a list": ("a.jsonl", lines([*ROWS[:4], {"text": ["a"]}]), "no_text_field", "a list"),
    "numbers": ("a.jsonl", b"1\n2\n", "no_text_field", "line 1"),
    "lists": ("a.jsonl", b'["a"]\n[["b"]]', "no_text_field", "line 2"),
    "which of two": (
        "a.jsonl",
        lines([{"content": "a", "body": "b"}]),
        "no_text_field",
        "'content' and 'body'",
    ),
    "an object of numbers": ("a.json", b'{"text": [1, 2]}', "no_text_field", "cell 1"),
    "Parquet without text": ("a.parquet", parquet(table(n=[1], m=["a"])), "no_text_field", "found: m, n"),
    "Parquet of lists": ("a.parquet", parquet(table(text=[["a"]])), "no_text_field", "list"),
    "Parquet of bytes": (
        "a.parquet",
        parquet(table(text=pa.array([b"a", b"\xff"], pa.binary()))),
        "wrong_file_type",
        "row 2",
    ),
    "Parquet cut": ("a.parquet", parquet(table(text=["a"]))[:-5], "bad_corpus_file", "a.parquet"),
    "no Parquet": ("a.parquet", b"text", "wrong_file_type", "a.parquet"),
    "Arrow cut": ("a.arrow", arrow(table(text=DOCUMENTS), stream=False)[:-300], "bad_corpus_file", "a.arrow"),
    "no Arrow": ("a.arrow", b"some words that are no table", "bad_corpus_file", "a.arrow"),
    "CSV without a text": ("a.csv", b"a,b\n1,2\n", "no_text_field", "found: a, b"),
    "CSV of uneven rows": ("a.csv", b"id,text\n1,one\n2,two, and more\n", "bad_corpus_file", "line 3"),
    "CSV, open quote": ("a.csv", b'id,text\n1,"one\n', "bad_corpus_file", "line"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_file_place_and_remedy(tmp_path: Path, case: str) -> None:
    """By import and by recording, with the same words."""
    name, content, code, place = REFUSED[case]
    file = tmp_path / name
    file.write_bytes(content)
    said = []
    for read in (
        lambda: import_corpus(ImportCorpusParams(path=str(file), out=str(tmp_path / "in"))),
        lambda: list(open_corpus(text=(str(file),), held_out=0.1)),
    ):
        with pytest.raises(MicroscopeError) as caught:
            read()
        assert caught.value.code == code, caught.value
        assert place in str(caught.value)
        assert name in caught.value.message
        assert caught.value.hint
        said.append(caught.value.message)
    assert said[0] == said[1]
    assert not (tmp_path / "in").exists()


def test_a_field_that_was_asked_for_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = [{"text": "no", "a.b": "dotted", "a": {"b": "nested", "c": {"d": "deep"}}}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet"):
        assert list(TextFile(tmp_path / file, "a.c.d")) == ["deep"]
        with pytest.raises(MicroscopeError, match=r"'body' \(found: a, a\.b, text\)"):
            list(TextFile(tmp_path / file, "body"))
    assert list(TextFile(tmp_path / "a.jsonl", "a.b")) == ["dotted"]


def test_json_cut_anywhere_between_reads_gives_the_same_values(monkeypatch) -> None:
    """Chunks of every size, among them single characters, against the standard library's own reading."""
    rows = [{"text": 'a\\"[{,\\ud83d\\ude00', "n": [1, -2.5e3, True, None, {}], "é": []}, "s", None, {}]
    text = (
        json.dumps(rows, indent=1)
        + "\n"
        + "".join(json.dumps(r) + "\n" for r in rows)
        + "[]"
        + json.dumps(rows[0])
    )
    expected = [*rows, *rows, rows[0]]
    for size in (1, 2, 3, 7, 50, 10_000):
        chunks = (text[i : i + size] for i in range(0, len(text), size))
        assert [value for _, value in reading.json_values(chunks, "x")] == expected


def test_lines_are_counted_wherever_the_chunks_end() -> None:
    text = '[\n{"text":\n"a"},\n\n{"text": "b"}]\n{"text": "c"}\n\n{"text": oops}'
    for size in (1, 5, 1000):
        values = reading.json_values((text[i : i + size] for i in range(0, len(text), size)), "x")
        assert [line for line, _ in itertools.islice(values, 3)] == [2, 5, 6]
        with pytest.raises(MicroscopeError, match="x, line 8 is not JSON"):
            next(values)


def test_a_value_without_end_takes_bounded_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MAX_VALUE", 2**20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * 30_000_000)
    tracemalloc.start()
    with pytest.raises(MicroscopeError, match="line 1 begins a value of more than 1 MB"):
        list(TextFile(tmp_path / "a.jsonl"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e7


def test_a_long_list_and_a_long_line_take_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join('{"text": "' + "word " * 2000 + '"}' for _ in range(4000)) + "]")  # 40 MB
    (tmp_path / "line.txt").write_text("word " * 10_000_000)  # 50 MB
    for name, longest in (("a.json", 10_000), ("line.txt", 200_000)):
        tracemalloc.start()
        began = time.monotonic()
        sizes = [len(text) for text in TextFile(tmp_path / name)]
        assert time.monotonic() - began < 60
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(sizes) in (40_000_000, 50_000_000)
        assert max(sizes) <= longest
        assert peak < 3e7


def test_a_dictionary_of_one_large_text_is_in_memory_once(tmp_path: Path) -> None:
    large = "word " * 2_000_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([large]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    peak = 0
    for text in TextFile(tmp_path / "a.parquet"):
        assert text == large
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 10 * len(large)
