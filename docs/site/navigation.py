"""What stands beside every page: all pages, in the order of docs/index.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgo_trl.commands.table import COMMANDS

from .reference import API, api_pages

PROJECT = {
    "All pages": "contents.md",
    "Gallery": "gallery.md",
    "Changes": "changes.md",
    "Contributing": "contributing.md",
}


def navigation(index: Path) -> list[Any]:
    """Titles and pages, as MkDocs has them: those of docs/index.md, and those that are generated.

    Args:
        index: docs/index.md, whose paragraphs become sections.
    """
    commands = [{f"tgo-trl {name}": f"command_line/{name}.md"} for name in COMMANDS]
    return [
        {"Home": "index.md"},
        *({title: [{name: page} for name, page in found]} for title, found in sections(index.read_text("utf-8"))),
        {"Settings of the commands": ["command_line/index.md", *commands]},
        {"Python API": [{title: page} for title, page in zip(API, api_pages(), strict=True)]},
        {"Project": [{title: page} for title, page in PROJECT.items()]},
    ]


def sections(index: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title of each section of docs/index.md, and the names and files of its pages, in order."""
    for title, body in re.findall(r"^\*\*(.+?)\.\*\*(.*?)(?:\n\n|\Z)", index, re.MULTILINE | re.DOTALL):
        pages = re.findall(r"\[([^]]+)\]\((\w+\.md)\)", body)
        yield title, [(name[0].upper() + name[1:], file) for name, file in pages]
