"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """The lines of a table, without an end of the last one. A cell may hold any text: it stays in its line and column.

    Args:
        head: names of the columns.
        rows: below it, each with as many cells.
    """
    lines = ["| " + " | ".join(map(_cell, line)) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(value: object) -> str:
    text = " ".join(str(value).split())
    return text.replace("\\|", "\\\\|").replace("|", "\\|")  # or the backslash before would be the one that is escaped
