"""Builds the documentation as a site: `python -m docs.site.build`, from the folder of the repository.

The pages are those of docs/, as they are read on GitHub, beside the settings of every command, from its parser, and the
API, from the docstrings. Nothing is fetched, by the build or by the reader's browser.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .command_line import COMMANDS, command_pages
from .equations import render_equations
from .pages import copy_pictures, place, repository_pages, sections
from .reference import api_markdown, api_pages

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def pages() -> dict[str, str]:
    """Markdown of each page of the site, by its path there."""
    return {
        **{place(path): render_equations(text) for path, text in repository_pages(ROOT)},
        **command_pages(ROOT / "docs"),
        **{path: api_markdown(*content) for path, content in api_pages().items()},
    }


def navigation() -> list[Any]:
    """What the reader finds where, as MkDocs has it."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    return [
        {"Home": "index.md"},
        *({title: [{name: file} for name, file in found]} for title, found in sections(index)),
        {"Command line": ["command_line/index.md", *({f"tgo-trl {name}": f"command_line/{name}.md"} for name in COMMANDS)]},
        {"API": [{title: path} for path, (title, _) in api_pages().items()]},
        {"Project": [{"All pages": "contents.md"}, {"Changes": "changes.md"}, {"Contributing": "contributing.md"}]},
    ]


def write(folder: Path) -> Path:
    """Writes pages, pictures and configuration to a folder; returns the file of the configuration."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in pages().items():
        page = folder / "pages" / path
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    copy_pictures(ROOT, folder / "pages")
    shutil.copyfile(HERE / "style.css", folder / "pages" / "style.css")
    settings = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
    config = folder / "mkdocs.yml"
    config.write_text(json.dumps({**settings, "nav": navigation()}, indent=2), encoding="utf-8")  # JSON is YAML too
    return config


def main() -> None:
    """Builds the site; a link that leads nowhere ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "docs", help="Replaced, if it is there.")
    folder = parser.parse_args().output_dir
    config = write(folder)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)], check=True, cwd=ROOT)
    print(f"The site is {folder / 'html' / 'index.html'}.")


if __name__ == "__main__":
    main()
