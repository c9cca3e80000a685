"""The commands of `tgo-trl`, and the parsers of their settings. Loads nothing heavy until a parser is asked for."""

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .help import SettingsParser


class Command(NamedTuple):
    """A command: what it is for, and where its parts are, which are loaded when it runs.

    Attributes:
        purpose: in a few words, for `--help`.
        configs: its dataclasses of settings, each as `module:class`.
        function: what takes objects of them, as `module:function`.
        usual: names of the settings that `--help` shows, as `module:tuple`; all if None.
    """

    purpose: str
    configs: tuple[str, ...]
    function: str
    usual: str | None = None


COMMANDS = {
    "demo": Command(
        "run the next commands on a small model that comes with this package",
        ("commands.demo.config:DemoConfig",),
        "commands.demo.run:demo",
    ),
    "generate": Command(
        "draw images for prompts", ("commands.generate.config:GenerateConfig",), "commands.generate.run:generate"
    ),
    "score": Command("add scores to a data set", ("commands.score.config:ScoreConfig",), "commands.score.run:score"),
    "convert": Command(
        "turn pairs, ratings or labels into scores",
        ("commands.convert.config:ConvertConfig",),
        "commands.convert.run:convert",
    ),
    "inspect": Command(
        "report on a scored data set before training on it",
        ("commands.inspect.config:InspectConfig",),
        "commands.inspect.run:inspect",
    ),
    "plan": Command(
        "tell what training would take, and what it would be refused for",
        ("commands.train.config:TrainArguments", "trainer.tgo_config:TGOConfig"),
        "commands.plan.run:plan",
        "commands.train.config:USUAL",
    ),
    "train": Command(
        "train an adapter on a scored data set",
        ("commands.train.config:TrainArguments", "trainer.tgo_config:TGOConfig"),
        "commands.train.run:train",
        "commands.train.config:USUAL",
    ),
    "rounds": Command(
        "generate, score and train several times, each time from the policy of the time before",
        ("commands.rounds.config:RoundsConfig", "trainer.tgo_config:TGOConfig"),
        "commands.rounds.run:rounds",
        "commands.train.config:USUAL",
    ),
    "strength": Command(
        "find the scale at which a trained adapter is best applied",
        ("commands.strength.config:StrengthConfig",),
        "commands.strength.run:strength",
    ),
    "export": Command(
        "write an adapter for ComfyUI, or merged into its base",
        ("commands.export.config:ExportConfig",),
        "commands.export.run:export",
    ),
    "evaluate": Command(
        "compare models on the same prompts and seeds, by several rewards",
        ("commands.evaluate.config:EvaluateConfig",),
        "commands.evaluate.run:evaluate",
    ),
    "judge": Command(
        "let a model that sees images say whose are better",
        ("commands.judge.config:JudgeConfig",),
        "commands.judge.run:judge",
    ),
    "completion": Command(
        "print a script that completes commands and settings in bash, zsh or fish",
        ("commands.completion.config:CompletionConfig",),
        "commands.completion.run:completion",
    ),
    "env": Command("print versions and devices, for a report of a fault", (), "commands.env.run:env"),
}

LAUNCH_OPTIONS = ("accelerate_config", "num_processes")
PROFILES = {"tgo_trl": ("fsdp2", "zero2", "zero3"), "trl": ("multi_gpu", "single_gpu")}
"""Configurations of accelerate's that packages bring along, and that training can be launched with."""


def settings_parser(command: str, shows_all: bool = False) -> "SettingsParser":
    """The parser of a command's settings; its help has the usual ones only, if the command says so, or all."""
    from .help import SettingsParser  # slow to load

    entry = COMMANDS[command]
    classes = [load(name) for name in entry.configs]
    usual = () if entry.usual is None or shows_all else load(entry.usual)
    parser = SettingsParser(classes, usual, allow_abbrev=False, prog=f"tgo-trl {command}", description=entry.purpose)
    _describe_launching(parser)
    return parser


def load(name: str) -> Any:
    """What a `module:name` of this package stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"tgo_trl.{module}"), attribute)


def _describe_launching(parser: Any) -> None:
    group = parser.add_argument_group("running")
    for name, text in (
        ("--config", "YAML file of settings, which the command line overrides."),
        (
            "--accelerate_config",
            "Run on several processes: `multi_gpu`, `fsdp2` or `zero3` (weights sharded), `zero2` (moments sharded), "
            "or a file of accelerate's.",
        ),
        ("--num_processes", "How many processes accelerate starts, in place of the number in that file."),
        (
            "--print_config",
            "Print a `--config` file of this run's settings that are not as by default, or of `all`, and run nothing.",
        ),
    ):
        nargs = {"nargs": "?", "choices": ["all"]} if name == "--print_config" else {}
        group.add_argument(name, help=text, **nargs)
    if "--debug" not in parser._option_string_actions:
        group.add_argument("--debug", action="store_true", help="Show where an error comes from.")
