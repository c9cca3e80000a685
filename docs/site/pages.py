"""The pages of the repository as pages of the site: where each of them comes to lie, and what their links become.

What a page links to is part of the site too: another page, a picture, or a page that shows the file. So the site needs
no repository beside it, and shows the files as they were when it was built.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

RENAMED = {
    "README.md": "index.md",
    "docs/index.md": "contents.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages that are named otherwise in the site, by their path in the repository."""
AS_THEY_ARE = (".md", ".png", ".jpg", ".svg", ".gif")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
FENCES = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
CODE = re.compile(FENCES.pattern + r"|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", FENCES.flags)
"""Fenced blocks, and code within a line."""
MANY_COLUMNS, SENTENCE = 6, 60
"""Of a table, from which on browsers squeeze columns; and of a cell, the letters from which on this hurts."""


def outside_code(text: str, change: Callable[[str], str], code: re.Pattern[str] = CODE) -> str:
    """Markdown in which everything but code, or another pattern, is changed."""
    parts, end = [], 0
    for found in code.finditer(text):
        parts += [change(text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, change(text[end:])])


def place(path: str) -> str:
    """Where a file of the repository lies in the site; both paths are relative, with slashes.

    Files outside of docs/ that a browser does not show become pages.
    """
    if path in RENAMED:
        return RENAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(AS_THEY_ARE) else f"files/{path}.md"


def rewrite_links(text: str, page: str, root: Path) -> tuple[str, list[str]]:
    """A page with its links as they are in the site, and the files of the repository that these lead to.

    Args:
        text: Markdown.
        page: its path in the repository.
        root: the folder of the repository.

    Raises:
        ValueError: for a link that leads to no file of the repository.
    """
    targets = []

    def rewritten(link: re.Match[str]) -> str:
        path, hash_, anchor = link[1].partition("#")
        if re.match(r"[\w+.-]+:", path) or not path:
            return link[0]
        target = os.path.normpath(PurePosixPath(page).parent / path)
        if target.startswith("..") or not (root / target).is_file():
            raise ValueError(f"{page} links to {link[1]}, which is no file of the repository. Link to a file of it.")
        targets.append(target)
        return f"]({os.path.relpath(place(target), PurePosixPath(place(page)).parent)}{hash_}{anchor})"

    return outside_code(text, lambda part: re.sub(r"\]\(([^)\s]+)\)", rewritten, part)), targets


def free_bars(text: str) -> str:
    r"""Markdown whose tables have `|` in code as it is: GitHub hides the backslash of `\|`, Python-Markdown not."""

    def freed(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), row[0])

    return re.sub(r"^\|.*", freed, text, flags=re.MULTILINE)


def mark_sentences(text: str) -> str:
    """Markdown in which a mark for style.css stands above each large table, and says which columns have sentences."""

    def marked(table: re.Match[str]) -> str:
        shown = re.sub(r"\]\([^)]*\)", "]", table[0])
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in shown.splitlines()]
        columns = list(zip(*rows, strict=False))
        long = [i for i, cells in enumerate(columns, 1) if i > 1 and max(map(len, cells)) > SENTENCE]
        if len(columns) < MANY_COLUMNS or not long:
            return table[0]
        return f'<div class="{" ".join(f"sentences-{i}" for i in long)}"></div>\n\n{table[0]}'

    return outside_code(text, lambda part: re.sub(r"(?:^\|.*\n)+", marked, part, flags=re.MULTILINE), FENCES)


def source_page(path: str, text: str) -> str:
    """The page that shows a file."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"^`+", text, re.MULTILINE)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(PurePosixPath(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def notebook_page(text: str) -> str:
    """The cells of a notebook as Markdown."""
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{cell}\n```" if kind == "code" else cell for cell, kind in cells) + "\n"


def read_repository(root: Path) -> tuple[dict[str, str], list[str]]:
    """Markdown of each page by its path in the site, and the paths in the repository of the files to be copied.

    These are README.md, the pages of docs/, what they link to, and what is linked to from there.
    """
    pages: dict[str, str] = {}
    copied: list[str] = []
    waiting = [*RENAMED, *(f"docs/{page.name}" for page in sorted((root / "docs").glob("*.md")))]
    known = set()
    while waiting:
        path = waiting.pop(0)
        if path in known:
            continue
        known.add(path)
        if not place(path).endswith(".md"):
            copied.append(path)
            continue
        text = (root / path).read_text(encoding="utf-8")
        if path.endswith((".md", ".ipynb")):
            text = notebook_page(text) if path.endswith(".ipynb") else text
            text, targets = rewrite_links(text, path, root)
            pages[place(path)] = free_bars(mark_sentences(text))
            waiting += targets
        else:
            pages[place(path)] = source_page(path, text)
    return pages, copied


def gallery(pages: dict[str, str]) -> str:
    """A page of the pictures of the others, each with what it shows and where it is explained.

    Args:
        pages: Markdown by path in the site.
    """
    parts = ["# Gallery", "", "Every picture of these pages, with the page that explains it."]
    shown = set()
    for path, text in pages.items():
        title = re.search(r"^# (.*)$", text, re.MULTILINE)
        for caption, picture in re.findall(r"!\[([^]]*)\]\(([^)\s]+)\)", text):
            if picture not in shown and title and path not in RENAMED.values():
                shown.add(picture)
                parts += ["", f"[![{caption}]({picture})]({path})", "", f"{caption}: [{title[1]}]({path})."]
    return "\n".join([*parts, ""])
