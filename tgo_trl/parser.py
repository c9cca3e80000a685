"""TRL's parser, for scripts of one's own, with configuration files in YAML 1.2 as the program `tgo-trl` reads them."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl import TrlParser

from .settings import apply_settings, environment, read_settings


class SettingsParser(TrlParser):  # type: ignore[misc]
    """`TrlParser`, whose `--config` file is read as YAML 1.2, each value as it would be on the command line.

    Args:
        dataclass_types: the settings.
        kwargs: for `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Iterable[type], **kwargs: Any) -> None:
        super().__init__(dataclass_types, **kwargs)
        self._classes = tuple(dataclass_types)

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:
        """Objects of the dataclasses, from the command line and the file that `--config` names.

        Raises:
            ValueError: with the line, for a file that holds something else than settings.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        if "--config" in arguments:
            position = arguments.index("--config")
            if position + 1 == len(arguments):
                raise ValueError("`--config` needs the path of a YAML file.")
            path = Path(arguments[position + 1])
            del arguments[position : position + 2]
            settings = read_settings(path)
            os.environ.update(environment(path, settings.pop("env", None)))
            apply_settings(self, self._classes, settings, path, self.prog)
        return tuple(self.parse_args_into_dataclasses(args=arguments))
