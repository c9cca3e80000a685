"""Pictures to the reporters that a run logs to."""

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler


class LoggingTrainer(Protocol):
    """What tells where a run reports to; every `Trainer` does."""

    callback_handler: CallbackHandler

    @property
    def args(self) -> TrainingArguments:
        """Its settings."""


def log_picture(trainer: LoggingTrainer, name: str, path: Path, step: int) -> None:
    """Sends a PNG to tensorboard, wandb and trackio, as far as the run reports to them.

    Args:
        trainer: of the run.
        name: under which the picture is shown.
        path: of the PNG.
        step: the update it belongs to.
    """
    for callback in trainer.callback_handler.callbacks:
        writer: Any = getattr(callback, "tb_writer", None)
        if isinstance(callback, TensorBoardCallback) and writer is not None:
            writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
    for module_name in ("wandb", "trackio"):
        if module_name in (trainer.args.report_to or []):
            reporter: Any = importlib.import_module(module_name)
            # as transformers' own callbacks do: a step of its own would clash with theirs
            reporter.log({name: reporter.Image(str(path)), "train/global_step": step})
