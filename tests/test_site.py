"""The documentation as a site: where pages and links lead, and what is generated."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import tgo_trl
from docs.site.command_line import command_pages
from docs.site.navigation import navigation
from docs.site.pages import free_bars, gallery, mark_sentences, place, read_repository, rewrite_links, source_page
from docs.site.reference import API, api_pages, as_markdown
from tgo_trl.commands.table import COMMANDS, settings_parser

ROOT = Path(__file__).parents[1]
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def pages():
    return read_repository(ROOT)[0]


# ---- Pages and links ----


def test_links_lead_to_where_pages_lie_in_the_site():
    text = (
        "[a](data.md#images) [b](../README.md) ![c](inspect/weights.png) [d](https://x.y/z.md) [e](#here) `[f](no.md)`"
    )
    text += "\n```python\nx = y[0](../no.md)\n```\n[`g`](../tgo_trl/cli.py) [h](../CHANGELOG.md)"
    rewritten, targets = rewrite_links(text, "docs/losses.md", ROOT)
    expected = (
        "[a](data.md#images) [b](index.md) ![c](inspect/weights.png) [d](https://x.y/z.md) [e](#here) `[f](no.md)`"
    )
    expected += "\n```python\nx = y[0](../no.md)\n```\n[`g`](files/tgo_trl/cli.py.md) [h](changes.md)"
    assert rewritten == expected
    assert targets == [
        "docs/data.md", "README.md", "docs/inspect/weights.png", "tgo_trl/cli.py", "CHANGELOG.md"
    ]  # fmt: skip
    assert rewrite_links("[a](docs/data.md)", "README.md", ROOT)[0] == "[a](data.md)"


@pytest.mark.parametrize("link", ["../tgo_trl", "no.md", "../../elsewhere.md"])
def test_a_link_to_no_file_of_the_repository_is_refused(link):
    with pytest.raises(ValueError, match=rf"docs/data\.md links to {re.escape(link)}, which is no file"):
        rewrite_links(f"[a]({link})", "docs/data.md", ROOT)


def test_all_that_is_linked_is_there(pages):
    _, copied = read_repository(ROOT)
    there = pages.keys() | {place(path) for path in copied}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} < there
    assert "files/tgo_trl/policy/distributed.py.md" in there
    for path, text in pages.items():
        for link in re.findall(
            r"\]\(([^):#\s]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)
        ):
            target = (ROOT / path).parent.joinpath(link).resolve().relative_to(ROOT).as_posix()
            assert target in there, (path, link)


def test_every_page_is_in_the_navigation(pages):
    listed = re.findall(r"'([\w/]+\.md)'", str(navigation(ROOT / "docs" / "index.md")))
    written = {*pages, *command_pages(ROOT / "docs"), *api_pages(), "gallery.md"}
    assert len(set(listed)) == len(listed)
    assert set(listed) == {path for path in written if not path.startswith("files/")}


def test_bars_of_tables_are_shown_as_on_github():
    assert free_bars("| `a \\| b` | c \\| d |\n`e \\| f`") == "| `a | b` | c \\| d |\n`e \\| f`"


def test_columns_of_sentences_are_marked_in_tables_of_many_columns(pages):
    long, link = "x" * 61, f"[x](https://{'x' * 60})"
    table = f"| a | b | c | d | e | f |\n|---|---|---|---|---|---|\n| {long} | `\\|` | {long} | d | {link} | {long} |\n"
    marked = f'<div class="sentences-3 sentences-6"></div>\n\n{table}'
    fenced = f"```text\n{table}```\n"
    assert mark_sentences(f"A\n\n{table}\nB\n\n{fenced}") == f"A\n\n{marked}\nB\n\n{fenced}"
    few = f"| a | b |\n|---|---|\n| a | {long} |\n"
    assert mark_sentences(few) == few
    css = (ROOT / "docs" / "site" / "style.css").read_text()
    classes = {name for text in pages.values() for name in re.findall(r"sentences-\d", text)}
    assert classes
    assert classes <= {name for name, column in re.findall(r"\.(sentences-(\d)) \+ \* tr > :nth-child\(\2\)", css)}


def test_a_file_with_fences_is_shown_whole():
    assert source_page("a/b.py", "'''\n```\n'''\n") == "# a/b.py\n\n````python\n'''\n```\n'''\n````\n"


def test_a_notebook_is_shown_by_cells(pages):
    page = pages["files/examples/quick_start.ipynb.md"]
    assert page.startswith("# Align Stable Diffusion 1.5 with ratings of people\n\nOn one GPU")
    assert "\n\n```python\n%pip install --quiet tgo_trl\n```\n\nEverything" in page
    assert "[What the metrics mean](../../metrics.md)" in page


def test_the_gallery_has_each_picture_once():
    text = gallery(
        {"index.md": "# A\n![one](x.png)", "b.md": "# B\n![one](x.png) ![two](y.png)", "c.md": "# C\n![](y.png)"}
    )
    assert re.findall(r"!\[(\w+)\]\((\w\.png)\)\]\((\w\.md)\)\n\n\1: \[B\]", text) == [
        ("one", "x.png", "b.md"),
        ("two", "y.png", "b.md"),
    ]


# ---- What is generated ----


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_every_setting(command):
    pages = command_pages(ROOT / "docs")
    page = pages[f"command_line/{command}.md"]
    shown = {"[`tgo-trl train`](train.md)" in page and pages["command_line/train.md"], page}
    for action in settings_parser(command)._actions:
        if action.dest != "help":
            assert any(f"`{action.option_strings[0]}`" in text for text in shown if text), action.dest


def test_a_setting_has_its_type_default_and_choices():
    page = command_pages(ROOT / "docs")["command_line/score.md"]
    assert (
        "#### `--batch_size` { #batch_size }\n\ninteger, default `32`\n{ .facts }\n\nRows per call of a reward.\n"
        in page
    )
    assert "one of `none`, `zscore`, `robust`, default `zscore`" in page
    assert "## Required\n\n#### `--dataset_name`" in page
    assert "#### `--print_config` { #print_config }\n\nswitch, or `all`\n" in page


def test_the_api_has_the_public_names_and_what_extensions_import():
    names = {name for page in API.values() for name in page}
    assert set(tgo_trl.__all__) - {"__version__"} == {name for name in names if "." not in name}
    for name in names:
        module, _, attribute = f"tgo_trl.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)
    known = {name.rpartition(".")[2] for name in names}
    for code in re.findall(r"^```python\n# tgo_trl/(.*?)^```$", EXTENDING, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code.partition("\n")[2])):
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                assert {alias.name for alias in node.names} <= known


def test_docstrings_become_links_and_lists():
    known = {"TGOConfig": "tgo_trl.TGOConfig"}
    text = "As [`~tgo_trl.TGOConfig`] of [`~transformers.Trainer`].\n\n"
    text += "Args:\n    args ([`TGOConfig`], *optional*):\n        What."
    assert as_markdown(text, known) == (
        "As [`TGOConfig`][tgo_trl.TGOConfig] of `Trainer`.\n\nArgs:\n    args:\n        What."
    )
    text = "Settings.\n\nParameters\n----------\n    > Parameters that control the model\n\n"
    text += "    a, b (`int`, *optional*):\n        One\n        two.\n\n> [!NOTE]\n> Three."
    assert as_markdown(text, known) == (
        "Settings.\n\n**Parameters that control the model**\n\n- **`a, b`** (`int`, *optional*): One\n    two.\n\n"
        "> **Note**\n>\n> Three."
    )


def test_settings_are_shown_without_what_is_made_of_them():
    commands, trainers = (api_pages()[f"api/{name}.md"] for name in ("commands", "trainers"))
    assert "::: tgo_trl.ScoreConfig\n    options:\n      members: false\n" in commands
    assert "::: tgo_trl.TGOConfig\n    options:\n      show_signature: false\n      members: false\n" in trainers
    assert "::: tgo_trl.TGOTrainer\n\n" in trainers


def test_names_that_share_a_line_of_a_docstring_are_listed_each():
    text = "What.\n\nAttributes:\n    {}    c: one.\n\nRaises:\n    D, E: no."
    entries = "a: of\n        them.\n    b: of\n        them.\n"
    assert as_markdown(text.format("a, b: of\n        them.\n"), {}) == text.format(entries)


def test_equations_are_mathml(pages):
    pytest.importorskip("latex2mathml")
    from docs.site.equations import render_equations

    text = render_equations("Where $s \\ge 1$, `$x$`:\n\n```math\nL = \\log x\n```\n")
    math = '<math xmlns="http://www.w3.org/1998/Math/MathML" display="{}"><mrow>{}</mrow></math>'
    inline = math.format("inline", "<mi>s</mi><mo>&#x02265;</mo><mn>1</mn>")
    block = math.format("block", '<mi>L</mi><mo>&#x0003D;</mo><mi>log</mi><mspace width="0.167em" /><mi>x</mi>')
    assert text == f'Where <span>{inline}</span>, `$x$`:\n\n<div class="equation">{block}</div>\n\n'
    rendered = render_equations(pages["losses.md"])
    assert rendered.count('display="block"') == pages["losses.md"].count("```math")
    assert "$" not in rendered
    with pytest.raises(ValueError, match="does not know"):
        render_equations("$\\nosuch{x}$")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_page_has_what_the_command_requires_and_where_it_is_explained(name):
    page = command_pages(ROOT / "docs")[f"command_line/{name}.md"]
    required = [action.option_strings[0] for action in settings_parser(name)._actions if action.required]
    before, found, after = page.partition("## Required\n")
    assert bool(found) == bool(required)
    assert re.findall(r"^#### `(--\w+)`", after.partition("\n## ")[0], re.MULTILINE) == required
    assert "[More about it](" in before
