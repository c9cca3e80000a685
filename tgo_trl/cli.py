"""The program `tgo-trl`: from prompts to a scored data set, and from there to an adapter.

Loads nothing heavy until a command runs, so that `--help` is quick.
"""

import argparse
import importlib.resources
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .commands.table import COMMANDS, LAUNCH_OPTIONS, PROFILES, load, settings_parser
from .messages.failures import explain
from .messages.foreign import leave_out_notes
from .messages.public import public_text
from .messages.values import did_you_mean

if TYPE_CHECKING:
    from .settings import Setting


TRAINING = ("plan", "train", "rounds")
"""Commands whose processes share weights; those of others only share work."""
SHARDING = ("FSDP", "DEEPSPEED")
"""What accelerate calls the ways of spreading weights over GPUs; without these it replicates all, and never says so."""
REPLICATING = "MULTI_GPU"
"""The way of whole weights on each GPU: without these, each process would take itself for the only one."""
LAUNCHED = "TGO_TRL_LAUNCHED"
"""Set in the processes that accelerate has launched, which must not launch others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 1 if the user has to change something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="tgo-trl",
        description=__doc__.splitlines()[0],
        epilog="`tgo-trl <command> --help` shows the settings of one. To see what it does, begin with `tgo-trl demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tgo_trl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, entry in COMMANDS.items():
        commands.add_parser(name, help=entry.purpose, add_help=False)
    meant = did_you_mean(arguments[0], COMMANDS) if arguments and arguments[0] not in COMMANDS else ""
    if meant:  # which argparse would answer with all that there are
        parser.error(f"there is no command {arguments[0][:80]!r}.{meant}")
    command = parser.parse_known_args(arguments[:1] or ["--help"])[0].command
    rest = _split_own_options(arguments[1:])
    debug = _take_debug(rest)
    try:
        return run_command(command, rest, debug)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        line = explain(error)
        if debug or line is None:
            raise
        print(f"tgo-trl {command}: error: {public_text(line)}", file=sys.stderr)
        return 1


def run_command(command: str, arguments: list[str], debug: bool = False) -> int:
    """Parses a command's arguments and its `--config` file, and runs it, through accelerate if that is asked for."""
    from .commands.config_file import config_text
    from .settings import apply_settings, environment

    shows_all = "--help-all" in arguments
    if shows_all or {"-h", "--help"} & set(arguments):
        arguments = ["--help"]  # whatever else is there, it is neither read nor launched
    typed = [] if LAUNCHED in os.environ else list(arguments)  # what is left there has no options of launching
    path, config = _read_config(arguments)
    # before anything is imported that reads them
    variables = environment(path, config.pop("env", None))
    os.environ.update(variables)
    leave_out_notes()
    parser = settings_parser(command, shows_all)
    classes = parser.dataclass_types
    # only the names that are the launcher's own; the parser has the others
    launch: dict[str, Any] = {name: config.pop(name).value for name in LAUNCH_OPTIONS if name in config}
    launch |= _take_launch_options(arguments)
    printed = _take_print_config(arguments)
    if launch and printed is None and not {LAUNCHED, "LOCAL_RANK"} & os.environ.keys():
        launch["use_cpu"] = _is_on("use_cpu", arguments, config)
        return _launch(command, [*arguments, *(["--debug"] if debug else [])], launch)
    defaults = parser.defaults()
    apply_settings(parser, classes, config, path, f"tgo-trl {command}")
    parser.error = _refuse
    arguments = _without_config(arguments)
    *settings, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    _check_known(unknown, parser)
    if printed is not None:
        given = parser.parse_known_args(arguments)[0]
        print(config_text(command, classes, given, None if printed == "all" else defaults, launch, variables))
        return 0
    settings = settings[: len(classes)]  # what follows is the launcher's
    result = load(COMMANDS[command].function)(*settings)
    _say_what_is_next(command, settings, result, typed)
    return 0


def _say_what_is_next(command: str, settings: Sequence[Any], result: Any, typed: Sequence[str]) -> None:
    from .commands.ending import ending
    from .storage.processes import process_state

    lines = ending(command, settings, result, typed)
    if lines and process_state().is_main_process:
        print("\n".join(lines), flush=True)


def _refuse(message: str) -> NoReturn:
    """In place of argparse's, which would print the usage of some hundred settings before it."""
    raise ValueError(f"{message} See --help." if message.endswith((".", "?")) else f"{message}; see --help.")


def _check_known(unknown: Sequence[str], parser: Any) -> None:
    if unknown:
        name = next((text for text in unknown if text.startswith("-")), unknown[0])
        meant = did_you_mean(name, parser._option_string_actions, "`") or " See --help."
        raise ValueError(f"`{name[:80]}` is no setting of `{parser.prog}`.{meant}")


def _split_own_options(arguments: Sequence[str]) -> list[str]:
    """`--config=x` as `--config x`, and so for the launcher's; the others are argparse's own business."""
    own = {"--config", "--print_config", *(f"--{name}" for name in LAUNCH_OPTIONS)}
    split = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        split += [name, value] if equals and name in own else [argument]
    return split


def _take_debug(arguments: list[str]) -> bool:
    """Whether there is a `--debug` without a value, which is taken out; with one, it is `TrainingArguments`'s."""
    for position, argument in enumerate(arguments):
        if argument == "--debug" and (position + 1 == len(arguments) or arguments[position + 1].startswith("-")):
            del arguments[position]
            return True
    return False


def _read_config(arguments: Sequence[str]) -> tuple[Path, dict[str, "Setting"]]:
    """The file that `--config` names, and what is in it."""
    if "--config" not in arguments:
        return Path(), {}
    from .settings import read_settings  # not at the top: slow to load

    if list(arguments).count("--config") > 1:
        raise ValueError("`--config` comes twice. Put the settings into one file, or set some on the command line.")

    position = list(arguments).index("--config") + 1
    if position == len(arguments):
        raise ValueError("`--config` needs the path of a YAML file.")
    path = Path(arguments[position])
    return path, read_settings(path)


def _without_config(arguments: Sequence[str]) -> list[str]:
    kept = list(arguments)
    if "--config" in kept:
        position = kept.index("--config")
        del kept[position : position + 2]
    return kept


def _take_launch_options(arguments: list[str]) -> dict[str, str]:
    found = {}
    for name in LAUNCH_OPTIONS:
        if f"--{name}" in arguments:
            position = arguments.index(f"--{name}")
            if position + 1 == len(arguments):
                raise ValueError(f"`--{name}` needs a value.")
            found[name] = arguments[position + 1]
            del arguments[position : position + 2]
    return found


def _take_print_config(arguments: list[str]) -> str | None:
    """What `--print_config` asks for, which is taken out: `changed` or `all`; None if it is not there.

    Raises:
        ValueError: if it asks for something else.
    """
    option = "--print_config"
    if option not in arguments:
        return None
    position = arguments.index(option)
    following = arguments[position + 1 : position + 2]
    value = following[0] if following and not following[0].startswith("-") else "changed"
    if value not in ("all", "changed"):
        raise ValueError(f"`{option} {value[:80]}` is not known. Write `{option}`, or `{option} all`.")
    del arguments[position : position + (1 if value == "changed" and following != ["changed"] else 2)]
    return value


def _is_on(name: str, arguments: Sequence[str], config: dict[str, "Setting"]) -> bool:
    """Whether a switch is on, before the parser of all settings is asked, which is slow to load."""
    value = str(config[name].value) if name in config else "false"
    for position, argument in enumerate(arguments):
        option, equals, given = argument.partition("=")
        if option == f"--{name}":
            following = arguments[position + 1] if position + 1 < len(arguments) else "--"
            value = given if equals else "true" if following.startswith("-") else following
    return value.lower() in ("true", "t", "yes", "y", "1")


def _launch(command: str, arguments: Sequence[str], options: dict[str, Any]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launch: list[str] = []
    named = options.get("accelerate_config")
    path = _accelerate_config(str(named)) if named is not None else None
    num_processes = _num_processes(path, options.get("num_processes"), command in TRAINING, options["use_cpu"])
    if path is not None:
        launch += ["--config_file", str(path)]
    if num_processes is not None:
        launch += ["--num_processes", str(num_processes)]
    os.environ[LAUNCHED] = "1"
    options_and_command = [*launch, "--module", "tgo_trl.cli", command, *arguments]
    try:
        launch_command(launch_command_parser().parse_args(options_and_command))
    except (subprocess.CalledProcessError, ChildFailedError):
        return 1  # the process has said why; these would repeat its arguments, a token among them
    return 0


def _accelerate_config(name: str) -> Path:
    """A file, or one of our configurations or TRL's by name.

    Raises:
        ValueError: if there is neither.
    """
    folders = [Path(str(importlib.resources.files(package).joinpath("accelerate_configs"))) for package in PROFILES]
    named = [folder / f"{name}.yaml" for folder, names in zip(folders, PROFILES.values(), strict=True) if name in names]
    for path in (Path(name), *named):
        if path.is_file():
            return path
    known = sorted(name for names in PROFILES.values() for name in names)
    meant = did_you_mean(name, known, "`")
    raise ValueError(f"`--accelerate_config {name}` is no file, and none of {', '.join(known)}.{meant}")


def _num_processes(path: Path | None, given: Any, is_training: bool, use_cpu: bool) -> Any:
    """How many processes are started, as given or one for each GPU; None if accelerate's configuration says it.

    Raises:
        ValueError: if there are too few GPUs for them, they would not train together, or DeepSpeed is not there.
    """
    import yaml
    from accelerate.commands.config import default_config_file
    from torch.accelerator import device_count  # slow to load

    source = path or Path(default_config_file)
    try:
        config = yaml.safe_load(source.read_text()) if path or source.is_file() else {}  # JSON is YAML too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`--accelerate_config {source}` is no YAML file: {error}") from error
    config = config if isinstance(config, dict) else {}
    if config.get("num_machines", 1) != 1:  # of which this is one
        return given
    way = str(config.get("distributed_type", "NO"))
    _check_installed(way, source)
    wanted: Any = given or config.get("num_processes")
    is_several = str(wanted).isdecimal() and int(wanted) > 1
    if way == "NO":
        takes_gpus = is_several
    else:
        takes_gpus = is_training and (way in SHARDING or (way == REPLICATING and not use_cpu))
    if not takes_gpus:
        return given
    if way == "NO" and path is not None:
        raise ValueError(
            f"`--num_processes {wanted}` starts {wanted} processes, and `--accelerate_config {path.stem}` a single "
            "one. Set `--accelerate_config multi_gpu`, or leave the number out."
        )
    found = device_count()
    if found > 1 and not (is_several and int(wanted) > found):
        return wanted or found
    asked = f"`--accelerate_config {path.stem}`" if path else f"`--num_processes {wanted}`"
    starts = "takes several GPUs" if wanted is None else f"starts {wanted} processes, one for a GPU"
    few = f"there {'is' if found == 1 else 'are'} {found or 'no'} GPU{'s' * (found != 1)} here"
    remedy = f"Set `--num_processes {found}`, or less" if found > 1 else "Leave it out, for one process"
    if way not in SHARDING:
        remedy += f"; on the CPU, `--accelerate_config multi_gpu{' --use_cpu' * is_training}`"
    raise ValueError(f"{asked} {starts}, and {few}. {remedy}.")


def _check_installed(way: str, source: Path) -> None:
    if way == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"`--accelerate_config {source.stem}` needs DeepSpeed, which is not installed. Install "
            "`tgo_trl[deepspeed]`, or shard with FSDP2 (`--accelerate_config fsdp2`)."
        )


if __name__ == "__main__":
    sys.exit(main())
