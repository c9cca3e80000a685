"""Builds the documentation as a site: `python -m docs.site.build`, from the folder of the repository.

The pages are those of docs/, as they are read on GitHub, beside the settings of every command, from its parser, and the
API, from the docstrings. Nothing is fetched, by the build or by the reader's browser.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from .command_line import command_pages
from .equations import render_equations
from .navigation import navigation
from .pages import gallery, place, read_repository
from .reference import api_pages

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OUTPUT = ROOT / "outputs" / "docs"


def write_source() -> Path:
    """Writes what Zensical reads: pages, pictures and configuration; returns the file of the last."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    pages, copied = read_repository(ROOT)
    pages = {path: render_equations(text) for path, text in pages.items()}
    pages |= {"gallery.md": gallery(pages), **command_pages(ROOT / "docs"), **api_pages()}
    for path, text in pages.items():
        page = OUTPUT / "pages" / path
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for path in copied:
        copy = OUTPUT / "pages" / place(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy)
    shutil.copyfile(HERE / "style.css", OUTPUT / "pages" / "style.css")
    settings = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
    settings["nav"] = navigation(ROOT / "docs" / "index.md")
    config = OUTPUT / "mkdocs.yml"
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")  # JSON is YAML too
    return config


def main() -> None:
    """Builds the site in outputs/docs; a link that leads nowhere ends it."""
    if find_spec("zensical") is None:
        sys.exit("The site is built by Zensical, which needs Python 3.11 or newer: `pip install -e '.[docs]'`.")
    config = write_source()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", config]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit("There is no site; see above.")
    print(f"The site is {OUTPUT / 'html' / 'index.html'}.")


if __name__ == "__main__":
    main()
