"""The script of a shell's, made once from the parsers of all commands: at a Tab, no Python runs."""

import argparse
from collections.abc import Sequence
from typing import Any

import shtab

from ...rewards import REWARDS
from ..convert.layouts import KINDS, LAYOUTS
from ..evaluate.config import PROMPT_SETS
from ..export.config import DTYPES, FORMATS
from ..table import COMMANDS, PROFILES, settings_parser
from .config import CompletionConfig

FOLDERS = ("output_dir", "image_dir", "encoding_cache_dir")
"""Settings that are paths of folders."""
PATHS = (
    "config", "accelerate_config", "model_name_or_path", "adapter_name_or_path", "dataset_name", "drift_dataset_name",
    "datasets", "prompts", "held_out_prompts", "rewards", "eval_rewards", "held_out_rewards", "sample_sources",
    "eval_sources", "resume_from_checkpoint", "agreement_with", "criteria",
)  # fmt: skip
"""Settings that are, or may be, paths of files or folders."""
CHOICES = {
    "accelerate_config": tuple(sorted(name for names in PROFILES.values() for name in names)),
    "dtype": DTYPES,
    "export.format": FORMATS,
    "convert.layout": ("auto", *KINDS, *LAYOUTS),
    "evaluate.prompts": PROMPT_SETS,
    **dict.fromkeys(("rewards", "eval_rewards", "held_out_rewards"), tuple(REWARDS)),
}
"""Words that a setting of this name, or that of a command, takes, where its parser takes others too."""


def completion(config: CompletionConfig) -> None:
    """Prints the script, for a file that the shell reads.

    Args:
        config: which shell.
    """
    print(shtab.complete(program(), config.shell))


def program() -> argparse.ArgumentParser:
    """A parser of the whole program, with one spelling of each setting, to be read and not to parse with."""
    parser = argparse.ArgumentParser(prog="tgo-trl", allow_abbrev=False)
    parser.add_argument("--version", action="version", version="", help="Print the version.")
    commands = parser.add_subparsers()
    for name, entry in COMMANDS.items():
        command = commands.add_parser(name, help=entry.purpose, description=entry.purpose, add_help=False)
        source = settings_parser(name)
        command.add_argument("--help", action="store_true", help="Show the settings.")
        if source.usual:
            command.add_argument("--help-all", action="store_true", help="Show all settings.")
        for action in source._actions:
            if action.dest != "help":
                _add(command, action, name)
    return parser


def _add(parser: argparse.ArgumentParser, action: argparse.Action, command: str) -> None:
    """Adds a setting as the shells should offer it."""
    option, text = action.option_strings[0], (action.help or "").replace("%(default)s", str(action.default))
    if action.nargs == 0:
        parser.add_argument(option, action="store_true", dest=option, help=_line(text))
        return
    choices = CHOICES.get(f"{command}.{action.dest}", CHOICES.get(action.dest, tuple(action.choices or ())))
    if not choices and getattr(action.type, "__name__", "") == "string_to_bool":
        choices = ("true", "false")
    nargs = action.nargs if action.nargs in ("+", "?") else None
    added: Any = parser.add_argument(option, nargs=nargs, choices=choices or None, help=_line(text))
    if action.dest in FOLDERS:
        added.complete = shtab.DIRECTORY
    elif action.dest in PATHS:
        added.complete = _words_or_paths(f"{command}_{action.dest}", choices) if choices else shtab.FILE


def _words_or_paths(name: str, words: Sequence[str]) -> dict[str, Any]:
    """What shtab puts into a script for a setting that takes words of a list, and paths."""
    function, listed = f"_tgo_trl_{name}_or_file", " ".join(words)  # by `_file` shtab knows paths among its answers
    bash = f'{function}() {{ compgen -W "{listed}" -- "$1"; compgen -f -- "$1"; }}'
    zsh = f"{function}() {{ compadd -- {listed}; _files }}"
    fish = f"{listed} (__fish_complete_path (commandline -ct))"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": {"bash": bash, "zsh": zsh}}


def _line(text: str) -> str:
    """The first sentence, as help goes into one line; without what means something to a shell."""
    words = " ".join(text.replace("`", "'").split())
    return words.partition(". ")[0].rstrip(".").replace("%", "%%")
