"""The pages of the commands and their settings, from the parsers of the program `tgo-trl`."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from tgo_trl.commands.help import SettingsParser
from tgo_trl.commands.table import COMMANDS, LAUNCH_OPTIONS, settings_parser

from .pages import outside_code

ABOUT = {
    "score": "rewards.md",
    "plan": "training.md#before-it-a-plan",
    "train": "training.md",
    "completion": "settings.md#tab",
    "env": "troubleshooting.md#anything-else",
}
"""Where a command is explained, if that is not the page of its name."""
TYPES = {"str": "text", "int": "integer", "float": "number", "dict": "JSON", "string_to_bool": "`true` or `false`"}
RUNNING = {"config", *LAUNCH_OPTIONS, "print_config", "debug"}
INHERITED = "Of every trainer of transformers"


def command_pages(docs: Path) -> dict[str, str]:
    """Markdown of each page, by its path in the site.

    Args:
        docs: the folder of the other pages, which these link to.
    """
    rows = [f"| [`{name}`]({name}.md) | {entry.purpose} |" for name, entry in COMMANDS.items()]
    pages = {
        "command_line/index.md": "\n".join(["# Commands", "", "| command | what it does |", "|---|---|", *rows, ""])
    }
    shared = settings_parser("train").dataclass_types
    for name in COMMANDS:
        pages[f"command_line/{name}.md"] = "\n".join(_page(name, docs, () if name == "train" else shared))
    return pages


def _page(name: str, docs: Path, of_train: Sequence[type]) -> Iterator[str]:
    """The parts of a command's page, but for settings that are on the page of `train`, and are seldom set."""
    parser = settings_parser(name)
    yield f"# {parser.prog}\n"
    yield f"{COMMANDS[name].purpose[0].upper()}{COMMANDS[name].purpose[1:]}.{_see(name, docs)}\n"
    yield f"```bash\n{parser.prog} [--config FILE] [settings]\n```\n"
    elsewhere = [config for config in parser.dataclass_types if config in of_train]
    left_out = {field.name for config in elsewhere for field in fields(config)} - set(parser.usual)
    for title, actions in _groups(parser).items():
        here = [action for action in actions if action.required or action.dest not in left_out]
        if here:
            yield f"## {title}\n"
            yield from (_setting(action, parser) for action in here)
    if elsewhere:
        yield f"## Others\n\nThe other settings of [`tgo-trl train`](train.md) are settings of `{parser.prog}` too.\n"


def _see(name: str, docs: Path) -> str:
    page = ABOUT.get(name, f"{name}.md")
    return f" [More about it](../{page})." if (docs / page.partition("#")[0]).is_file() else ""


def _groups(parser: SettingsParser) -> dict[str, list[argparse.Action]]:
    """The settings by the title of their group: required ones, usual ones, and then as docstrings have them."""
    titles = dict(pair for config in parser.dataclass_types for pair in _docstring_titles(config))
    if titles:
        titles = {**titles, **{it.name: INHERITED for it in fields(TrainingArguments) if it.name not in titles}}
    groups: dict[str, list[argparse.Action]]
    groups = {title: [] for title in ("Required", "Usual", "Settings", *titles.values(), "Running")}
    for action in parser._actions if titles else parser.own_first(parser._actions):
        title = titles.get(action.dest, "Settings")
        if action.required:
            title = "Required"
        elif action.dest in RUNNING:
            title = "Running"
        elif action.dest in parser.usual:
            title = "Usual"
        is_switch_of_another = action.nargs == 0 and action.dest in {other.dest for other in groups[title]}
        if action.dest != "help" and not is_switch_of_another:
            groups[title].append(action)
    groups["Usual"].sort(key=lambda action: parser.usual.index(action.dest))
    return groups


def _docstring_titles(config: type) -> Iterator[tuple[str, str]]:
    """Name and group of each setting in the docstring of a class whose docstring has groups, as TRL's have."""
    parts = re.split(r"^ *> Parameters that control (.*)$", config.__doc__ or "", flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        for names in re.findall(r"^        ([a-z]\w*(?:, \w+)*) \(", body, re.MULTILINE):
            yield from ((name, title.partition(";")[0].capitalize()) for name in names.split(", "))


def _setting(action: argparse.Action, parser: SettingsParser) -> str:
    """A heading, type and default, and what the setting does."""
    facts = [_values(action)]
    if action.default not in (None, argparse.SUPPRESS, [], "") and action.nargs != 0:
        value = str(action.default)
        facts.append(f"default `{value.lower() if isinstance(action.default, bool) else value}`")
    off = [other.option_strings[0] for other in parser._actions if other.dest == action.dest and other is not action]
    facts += [f"`{name}` turns it off" for name in off]
    text = outside_code(" ".join((action.help or "").split()), _as_text)
    return f"#### `{action.option_strings[0]}` {{ #{action.dest} }}\n\n{', '.join(facts)}\n{{ .facts }}\n\n{text}\n"


def _as_text(help_text: str) -> str:
    return re.sub(r"([*_])", r"\\\1", help_text.replace("<", "&lt;"))


def _values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "switch"
    if action.choices:
        choices = ", ".join(f"`{choice}`" for choice in action.choices)
        return f"switch, or {choices}" if action.nargs == "?" else f"one of {choices}" if "," in choices else choices
    name = getattr(action.type or str, "__name__", "str")
    kind = TYPES.get(name, f"`{name}`")
    return f"one or more of: {kind}" if action.nargs == "+" else kind
