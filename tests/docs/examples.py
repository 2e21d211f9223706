"""What people are told to type: every command and Python block of the documents and of ``--help``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
# Written by the code they describe.
GENERATED = ("docs/cli.md", "docs/settings.md", "docs/benchmarks.md", "docs/models.md")
_STARTS = ("microscope ", "make ", "python ", ".venv/bin/", "docker ", "npm ")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}.*|)\n)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Command:
    """One command line as a document shows it, comments and line breaks taken away."""

    document: str
    text: str

    @property
    def argv(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def name(self) -> str:
        """A name for a test."""
        return f"{self.document}: {self.text}"


def commands() -> list[Command]:
    """Every command of every document, in order, each once per document."""
    found = []
    for document in DOCUMENTS:
        if document not in GENERATED:
            text = (ROOT / document).read_text(encoding="utf-8")
            found += [Command(document, line) for line in [*_in_blocks(text), *_in_spans(document)]]
    found += [Command("--help", line) for line in _in_help()]
    return list(dict.fromkeys(found))


def spans(document: str) -> list[str]:
    """Whatever a document's sentences set as code."""
    text = _FENCED.sub("\n", (ROOT / document).read_text(encoding="utf-8"))
    return _SPAN.findall(text.replace("\n", " "))


def python_blocks() -> dict[str, str]:
    """Document → its Python example."""
    found = {}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for language, block in _FENCED.findall(text):
            if language == "python":
                found[document] = block
        for block in _indented(text):
            if re.search(r"^(from|import) ", block, re.MULTILINE):
                found[document] = block
    return found


def _in_blocks(text: str) -> Iterator[str]:
    fenced = [block for language, block in _FENCED.findall(text) if language in ("", "sh")]
    for block in [*fenced, *_indented(_FENCED.sub("\n", text))]:
        for line in block.replace("\\\n", " ").splitlines():
            if re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.strip()).startswith(_STARTS):
                yield _plain(line)


def _indented(text: str) -> Iterator[str]:
    for block in _INDENTED.findall(_FENCED.sub("\n", text)):
        if block.strip():
            yield re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def _in_spans(document: str) -> Iterator[str]:
    """Commands within sentences that are whole: with an option, and without a gap to fill."""
    for span in spans(document):
        whole = " --" in span and "…" not in span and "COMMAND" not in span
        if whole and span.startswith(("microscope ", "python ")) and "python -m benchmarks" not in span:
            yield _plain(span)


def _in_help() -> Iterator[str]:
    from microscope.cli import main

    def walk(command: click.Command) -> Iterator[str]:
        text = (command.help or "").replace("\\\n", " ")
        for line in text.splitlines():
            if line.strip().startswith("microscope "):
                yield _plain(line)
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from walk(inner)

    yield from walk(main)


def _plain(line: str) -> str:
    return " ".join(re.sub(r"\s+#.*$", "", line).split())
