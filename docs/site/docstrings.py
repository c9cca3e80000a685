"""Docstrings in the manner of TRL, as mkdocstrings reads them: an extension of griffe."""

import re
from typing import Any

import griffe

from .reference import documented


class Docstrings(griffe.Extension):
    """Names in brackets become links, if they are on a page, and groups of parameters lists."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of whatever has been read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value, documented())


def as_markdown(text: str, known: dict[str, str]) -> str:
    """A docstring with links to known names, whose groups of parameters are lists.

    Args:
        text: the docstring.
        known: the full names that have a place of their own, by the last part.
    """

    def link(found: re.Match[str]) -> str:
        name = found[1].rpartition(".")[2]
        return f"[`{name}`][{known[name]}]" if name in known else f"`{name}`"

    text = re.sub(r"\[`~?([\w.]+)`\](?![(\[])", link, text)
    head, heading, groups = text.partition("Parameters\n----------\n")
    if not heading:
        return re.sub(r"^( +\w+) \(.*\):$", r"\1:", text, flags=re.MULTILINE)  # for types, the signature is read
    groups = re.sub(r"^    ", "", groups, flags=re.MULTILINE)
    groups = re.sub(r"^> Parameters that control (.*)$", r"**Parameters that control \1**", groups, flags=re.MULTILINE)
    groups = re.sub(r"^((?:\w+, )*\w+) (\(.*\)):\n    ", r"- **`\1`** \2: ", groups, flags=re.MULTILINE)
    return head + re.sub(r"^> \[!(\w)(\w+)\]", lambda note: f"> **{note[1]}{note[2].lower()}**\n>", groups, flags=re.MULTILINE)
