"""What a command says at its end on the command line: what was written, where, and what to type next."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..settings import PIPELINE_CLASS

OF_ROWS = ("prompt_column", "image_column", "image_dir", "allow_urls")
"""What each command has to be told of the rows that another one has written."""
UNKNOWN = ("MODEL", "REWARD", "PROMPTS", "ADAPTER")
"""What stands for a name that the user has to choose."""
AFTER_EVALUATION = (
    "Next: look at the grids. With more `--rewards` or `--models`, only what is missing is made. `tgo-trl strength` "
    "finds the best scale of an adapter, `tgo-trl export` writes it for other programs."
)


def ending(command: str, settings: Sequence[Any], result: Any = None, typed: Sequence[str] = ()) -> list[str]:
    """The lines, with the names of this run's folders; none of a command that prints a report of its own.

    What cannot be known here, such as which reward is wanted, stands in capitals.

    Args:
        command: its name.
        settings: objects of its dataclasses, as it was run with.
        result: what it returned.
        typed: what was typed behind its name, where all of it is known.
    """
    if not settings:
        return []
    if command == "plan":
        # not where only a part of it is known, or a secret is among it
        is_repeated = typed and not any("token" in word for word in typed)
        return [_next(["train", *typed]) if is_repeated else "Next: the same command with `train` in place of `plan`."]
    config, output = settings[0], str(getattr(settings[-1], "output_dir", None))
    written, pushed = f"Written: {output}", _pushed(settings[-1], output)
    if command == "generate":
        words = ["score", "--dataset_name", output, "--rewards", "REWARD", "--output_dir", f"{output}-scored"]
        return [f"{written}, {_num_rows(output)}", *pushed, _next(words)]
    if command == "score":
        words = ["inspect", "--dataset_name", output]
        split = config.dataset_split.partition("[")[0]  # of `train[:100]`
        names = config.new_columns() if config.ensemble_weights is None else [config.ensemble_column]
        words += _unless("train", "dataset_split", split)
        words += ["--score_columns", *names] if len(names) > 1 else _unless("score", "score_column", names[0])
        words += [*_changed(config, *OF_ROWS), *_of_videos(output)]
        return [f"{written}, {_num_rows(output)}", *pushed, _next(words)]
    if command == "convert":
        words = ["inspect", "--dataset_name", output, *_of_videos(output)]
        return [f"{written}, {_num_rows(output)}", *pushed, _next(words)]
    if command == "evaluate":
        return [AFTER_EVALUATION]
    if command == "inspect":
        return [_after_inspection(config, result)]
    if command == "train":
        base = config.model_name_or_path
        is_pipeline = (Path(output) / "model_index.json").is_file()
        trained = output if is_pipeline else f"{base}+{output}"
        words = ["evaluate", "--models", f"base={base}", f"trained={trained}", "--prompts", "PROMPTS"]
        words += ["--rewards", "REWARD", "--output_dir", f"{output}-evaluation"]
        words += _changed(settings[-1], PIPELINE_CLASS)  # of the base, which has no record of it
        what = "pipeline" if is_pipeline else "adapter"
        return [f"{written}, the trained {what} and its card", *pushed, _next(words)]
    return []


def _after_inspection(config: Any, result: Any) -> str:
    """The training that the report suggests, unless its scores tell no row from another."""
    if result is not None and result.scores.maximum == result.scores.minimum:
        return "Next: score the rows by something that tells them apart, and inspect them again."
    words = ["train", "--model_name_or_path", "MODEL", "--dataset_name", config.dataset_name]
    words += _unless("train", "dataset_train_split", config.dataset_split)
    words += _changed(config, "dataset_config", "dataset_streaming", *OF_ROWS)
    for name, value in (result.settings if result is not None else {}).items():
        if f"--{name}" not in words:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(f"{it:.6g}" if isinstance(it, float) else str(it) for it in values)]
    return _next([*words, "--output_dir", "ADAPTER"])


def _next(words: Sequence[str]) -> str:
    asked = [word for word in UNKNOWN if word in words]
    return f"Next{', with your own ' + ' and '.join(asked) if asked else ''}: tgo-trl {shlex.join(words)}"


def _pushed(config: Any, output: str) -> list[str]:
    """A line that names the repository, of a command that has pushed what it wrote."""
    if not getattr(config, "push_to_hub", False):
        return []
    name = getattr(config, "hub_dataset_id", None) or getattr(config, "hub_model_id", None)
    name = name or Path(output).resolve().name  # of `.` too, as it is uploaded
    return [f"Pushed to the Hub: {name}"]


def _num_rows(output: str) -> str:
    number = sum(pq.read_metadata(path).num_rows for path in (Path(output) / "data").glob("*.parquet"))
    return f"{number:,} row{'s' * (number != 1)}"


def _of_videos(output: str) -> list[str]:
    """What has an inspection pass over videos, if those are what was written."""
    path = next((Path(output) / "data").glob("*.parquet"), None)
    names = [] if path is None else pq.read_schema(path).names
    return ["--skip_images"] if "video" in names and "image" not in names else []


def _unless(default: str, name: str, value: str) -> list[str]:
    return [] if value == default else [f"--{name}", value]


def _changed(config: Any, *names: str) -> list[str]:
    """The options that set these fields as they are in `config`, of those that are not as by default."""
    defaults = {field.name: field.default for field in fields(config)}
    return [word for name in names for word in _unless(str(defaults[name]), name, str(getattr(config, name)))]
