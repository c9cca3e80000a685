"""The file that `--print_config` prints: a run's settings, as `--config` reads them."""

import argparse
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from .. import __version__
from ..messages.public import is_secret_name, without_secrets
from ..settings import yaml_text


def config_text(
    command: str,
    classes: Sequence[type],
    given: argparse.Namespace,
    defaults: Mapping[str, Any] | None,
    launch: Mapping[str, Any],
    variables: Mapping[str, str],
) -> str:
    """The file: settings that are not as by default, or all of them, and no secrets.

    Settings are those that were given, before a class makes others of them: what depends on the machine, such as the
    precision, is left to the machine of the next run.

    Args:
        command: its name.
        classes: the dataclasses of its settings.
        given: the settings by name, from the command line and the file of `--config`.
        defaults: of the settings; None for all settings.
        launch: options of launching.
        variables: of the environment, which a file has under `env`.
    """
    values = {name: value for name, value in _values(classes, given) if defaults is None or value != defaults[name]}
    shown = {name: value for name, value in {**launch, **values}.items() if not _is_secret(name, value)}
    public = {name: value for name, value in variables.items() if not _is_secret(name, value)}
    hidden = [name for name in values if name not in shown]
    hidden += [f"env: {name}" for name in variables if name not in public]
    if public:
        shown["env"] = public
    extent = "settings that are not as by default" if defaults is not None else "all settings"
    lines = [f"# {extent[0].upper()}{extent[1:]}, for `tgo-trl {command} --config FILE` of tgo_trl {__version__}."]
    lines += [f"# `{name}` is left out, as there is a secret in it. Set it on the command line." for name in hidden]
    return "\n".join([*lines, yaml_text(shown).rstrip("\n")])


def _is_secret(name: str, value: Any) -> bool:
    return value is not None and (is_secret_name(name) or without_secrets(value) != value)


def _values(classes: Sequence[type], given: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Names and values; JSON that stands for a mapping as that mapping."""
    for config in classes:
        hints = typing.get_type_hints(config)
        for item in fields(config):
            if item.init and hasattr(given, item.name):
                value = getattr(given, item.name)
                takes_mapping = "dict" in str(hints[item.name])
                yield item.name, _mapping(value) if takes_mapping and isinstance(value, str) else value


def _mapping(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
