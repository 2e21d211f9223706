"""The command line as Markdown, generated from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click


def reference(command: click.Command, name: str = "microscope") -> str:
    """All commands below ``command``, each with its help and a table of its options."""
    lines = [
        "# Command line",
        "",
        "Generated from the code by `make schema`. `microscope COMMAND --help` says the same.",
    ]
    lines += _section(command, click.Context(command, info_name=name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    path = context.command_path
    yield from ("", f"## `{path}`", "")
    yield from _prose(command.help or "")
    rows = [record for p in command.params if (record := p.get_help_record(context)) and _is_own(p)]
    if rows:
        yield from ("", "| option | meaning |", "|---|---|")
        for option, meaning in rows:
            yield f"| `{_cell(option)}` | {_cell(meaning)} |"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _section(below, click.Context(below, info_name=name, parent=context))


def _is_own(parameter: click.Parameter) -> bool:
    """Options that do the same everywhere are said once, in the introduction of the command line."""
    return parameter.name not in ("help", "version")


def _prose(text: str) -> Iterator[str]:
    """Docstring paragraphs; an example of a command becomes a code line."""
    for paragraph in text.strip().split("\n\n"):
        joined = " ".join(line.strip() for line in paragraph.splitlines())
        yield f"    {joined}" if joined.startswith("microscope ") else joined
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    from microscope.cli import main

    print(reference(main), end="")
