"""What `--help` prints: a line or two for each setting, required ones first, and of long lists the usual ones only."""

import argparse
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from trl import TrlParser

from ..messages.values import did_you_mean

WIDTH, INDENT = 110, 36
"""Columns, and where the text of a setting begins."""


class SettingsParser(TrlParser):  # type: ignore[misc]
    """TRL's parser, with a shorter help.

    Args:
        dataclasses: of the settings.
        usual: names of those that the help shows, in this order, behind required ones; all if there are none.
        kwargs: of TRL's parser.
    """

    def __init__(self, dataclasses: Sequence[type], usual: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(dataclasses, **kwargs)
        self.usual = usual

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does, and with what might have been meant."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            message = f"{error.message}.{did_you_mean(value, action.choices or ())}"
            raise argparse.ArgumentError(action, message) from None

    def defaults(self) -> dict[str, Any]:
        """What each setting is if nobody sets it, as argparse hands it on."""
        first = {action.dest: action for action in reversed(self._actions)}  # not that of `--no_...`
        return {
            name: self._get_value(action, action.default) if isinstance(action.default, str) else action.default
            for name, action in first.items()
            if action.default is not argparse.SUPPRESS
        }

    def own_first(self, actions: Iterable[argparse.Action]) -> list[argparse.Action]:
        """Required settings, then those of the command alone, those that it shares, and those of every command."""
        places: dict[str, int] = {}
        for config in self.dataclass_types:
            for place, base in enumerate(config.__mro__):
                for name in inspect.get_annotations(base):
                    places.setdefault(name, place)
        last = len(self._actions)
        return sorted(actions, key=lambda action: -1 if action.required else places.get(action.dest, last))

    def format_help(self) -> str:
        """Usage, purpose, and the settings in groups."""
        settings = [action for action in self._actions if action.nargs != 0]
        required = [action for action in settings if action.required]
        optional = [action for action in settings if not action.required]
        switches = [action for action in self._actions if action.nargs == 0]
        hidden: list[argparse.Action] = []
        if self.usual:
            by_name = {action.dest: action for action in optional}
            hidden = [action for action in optional if action.dest not in self.usual]
            optional = [by_name[name] for name in self.usual if name in by_name]
            switches = [action for action in switches if action.dest not in {it.dest for it in settings}]
        else:
            optional = self.own_first(optional)
        formatter = _SettingsFormatter(self.prog)
        formatter.add_usage(f"{self.prog} [--config FILE] [settings]", [], [])
        formatter.add_text(self.description)
        for title, actions in (("required", required), ("settings", optional), ("options", switches)):
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        if hidden:
            formatter.add_text(
                f"`{self.prog} --help-all` shows the other {len(hidden)} settings too, and `--debug` without a value "
                "where an error comes from."
            )
        return formatter.format_help()


class _SettingsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One name for each setting, where argparse lists all spellings, and what it calls the value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=INDENT, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(action.option_strings) if action.nargs == 0 else action.option_strings[0]

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        choices = ", ".join(map(str, action.choices or ()))
        if choices and action.nargs != "?":  # of which the text has the one that may follow
            text += f" One of {choices}." if "," in choices else f" It takes {choices}."
        if action.default in (None, argparse.SUPPRESS, [], "") or action.nargs == 0 or "Defaults to" in text:
            return text
        return f"{text} (default: %(default)s)"
