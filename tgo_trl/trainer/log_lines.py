"""Log entries as a line each in the terminal, of what tells how training goes; trackers are given every number."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

COLUMNS = {
    "loss": ("loss", ".4f"),
    "train_loss": ("mean loss", ".4f"),
    "reward": ("reward", ".4g"),
    "rewards/margins": ("margin", "+.4f"),
    "rewards/accuracies": ("accuracy", ".2f"),
    "learning_rate": ("lr", ".2e"),
    "drift/quartile_4": ("drift", ".3f"),
    "train_runtime": ("seconds", ".0f"),
}
"""Name in the line and format of each metric that has a place of its own, in order."""
LEFT_OUT = re.compile(
    r"(saturation|logps|error_difference|weights|rewards|drift)/.*|prediction_difference|reward_std|grad_norm|epoch"
    r"|num_input_tokens_seen|total_flos|train_\w+_per_second|train_tokens\w*|(model_preparation|jit_compilation)_time"
    r"|\w*runtime|\w+_per_second"
)
"""Of the others, what a line does without; the rest, such as a metric of the user's, follows under its whole name."""
WIDEST = 200


def log_line(logs: Mapping[str, Any], step: int, max_steps: int) -> str:
    """What a line says of a log entry, with columns that stay where they are; empty if there is nothing to say.

    Args:
        logs: as callbacks are given them.
        step: updates that are made.
        max_steps: updates of the whole run.
    """
    prefix = _prefix(logs)
    values = {name.removeprefix(prefix): value for name, value in logs.items()}
    cells = []
    for name, (label, style) in COLUMNS.items():
        if isinstance(values.get(name), int | float):
            cells.append(f"{label} {format(values[name], style)}")
    for name, value in values.items():
        if name not in COLUMNS and not LEFT_OUT.fullmatch(name):
            cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    if not cells:
        return ""
    place = f"step {step:>{len(str(max_steps))}}/{max_steps}"
    line = "  ".join([place, *([prefix.rstrip("_")] if prefix else []), *cells])
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 1]}…"


def _prefix(logs: Mapping[str, Any]) -> str:
    """`"eval_"`, or `"eval_<name>_"` of one data set among several; empty of an entry that is of no evaluation."""
    if not any(name.startswith("eval_") for name in logs):
        return ""
    ends = ("_loss", "_runtime", "_rewards/accuracies")
    named = [name[: -len(end) + 1] for end in ends for name in logs if name.startswith("eval_") and name.endswith(end)]
    return named[0] if named else "eval_"


class LinePrinter(PrinterCallback):
    """Prints the lines, where there is no progress bar (`disable_tqdm`)."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Prints one, in the main process."""
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and line:
            print(line, flush=True)


class LineProgress(ProgressCallback):
    """The progress bar of transformers, with the lines above it."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Writes one, in the main process, while there is a bar."""
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(line)


def in_lines(callback: TrainerCallback) -> TrainerCallback:
    """What takes the place of a callback: [`LineProgress`] and [`LinePrinter`] that of those of transformers.

    The table of a notebook stays, and so does a user's subclass.
    """
    if type(callback) is ProgressCallback:
        return LineProgress(callback.max_str_len)
    return LinePrinter() if type(callback) is PrinterCallback else callback
