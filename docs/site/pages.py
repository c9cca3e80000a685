"""The pages of the repository as pages of the site: where each of them comes to lie, and what their links become.

What a page links to is part of the site too: another page, a picture, or a page that shows the file. So the site needs no
repository beside it, and shows the files as they were when it was built.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

RENAMED = {
    "README.md": "index.md",
    "docs/index.md": "contents.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages that are named otherwise in the site, by their path in the repository."""
PICTURES = (".png", ".gif", ".jpg", ".svg", ".webp")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}
CODE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
"""Fenced blocks, and code within a line."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Markdown in which everything but code is changed."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def place(path: str) -> str:
    """Where a file of the repository lies in the site; both paths are relative, with slashes."""
    if path in RENAMED:
        return RENAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith((".md", *PICTURES)) else f"files/{path}.md"


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


def source_page(path: str, text: str) -> str:
    """The page of a file that is no page by itself."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"^`+", text, re.MULTILINE)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(PurePosixPath(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def first_pages(root: Path) -> list[str]:
    """The pages that others lead from: paths in the repository."""
    return [*(name for name in RENAMED), *(f"docs/{page.name}" for page in sorted((root / "docs").glob("*.md")))]


def repository_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Path in the repository and Markdown of each page, those of the files that others link to included."""
    waiting = list(dict.fromkeys(first_pages(root)))
    known = set(waiting)
    while waiting:
        path = waiting.pop(0)
        text = (root / path).read_text(encoding="utf-8")
        if not path.endswith(".md"):
            yield path, source_page(path, text)
            continue
        text, targets = rewrite_links(text, path, root)
        yield path, text
        new = [target for target in dict.fromkeys(targets) if target not in known and not target.endswith(PICTURES)]
        known.update(new)
        waiting += new


def copy_pictures(root: Path, folder: Path) -> None:
    """The pictures of the pages, under the same names."""
    for picture in (root / "docs").rglob("*"):
        if picture.suffix in PICTURES:
            target = folder / place(picture.relative_to(root).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)


def sections(index: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title of each section of docs/index.md, and the names and files of its pages, in order."""
    for title, body in re.findall(r"^\*\*(.+?)\.\*\*(.*?)(?:\n\n|\Z)", index, re.MULTILINE | re.DOTALL):
        pages = re.findall(r"\[([^]]+)\]\((\w+\.md)\)", body)
        yield title, [(name[0].upper() + name[1:], file) for name, file in pages]
