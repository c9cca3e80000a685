"""Callbacks that every run has: they move the epoch and the reference, and end a run that is asked to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..labels.rule import LabelRule, Labels
from ..policy.compilation import RepeatedBlocks
from .plots import SCORE_HISTOGRAM_NAME, plot_scores
from .tgo_config import TGOConfig
from .trackers import log_picture


class EpochCallback(TrainerCallback):
    """Tells the trainer's sampler which epoch begins, also after a resume or an epoch that was cut short.

    Args:
        set_epoch: tells it.
        epoch: how many times the training set has been gone through.
    """

    def __init__(self, set_epoch: Callable[[int], None], epoch: Callable[[], float]) -> None:
        self._set_epoch = set_epoch
        self._epoch = epoch
        self._next_epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts at the epoch that the run is in."""
        self._next_epoch = int(self._epoch())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hands the epoch on, before the first batch is drawn."""
        self._set_epoch(self._next_epoch)
        self._next_epoch += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts the epoch in rows: `Trainer` counts batches, and of a resumed one those that were left."""
        state.epoch = self._epoch()


class InterruptionCallback(TrainerCallback):
    """Ends a run that a signal has asked to, when the update is made and a checkpoint is saved.

    Args:
        is_interrupted: whether one has.
        end: ends it.
    """

    def __init__(self, is_interrupted: Callable[[], bool], end: Callable[[], None]) -> None:
        self._is_interrupted = is_interrupted
        self._end = end

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Has a checkpoint saved at once; the evaluation that picks the best one still comes first."""
        if self._is_interrupted():
            control.should_save = True
            control.should_evaluate = control.should_evaluate and args.load_best_model_at_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the run."""
        self._end()


class CompilationCallback(TrainerCallback):
    """Says what is compiled, and warns of what could not be.

    Args:
        blocks: of the run.
    """

    def __init__(self, blocks: RepeatedBlocks) -> None:
        self._blocks = blocks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says why the first update takes long."""
        if state.is_world_process_zero:
            print(f"Compiled in the first update, which takes longer for it: {self._blocks.description}.")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Warns."""
        self._blocks.warn_of_eager_code()


class SyncReferenceCallback(TrainerCallback):
    """Moves the reference towards the policy, every so many updates or at the start of each epoch but the first.

    The paper replaces the reference at the end of an epoch. That is the same moment; at the start of the next one, a
    run that resumes from the checkpoint in between does it too.

    Args:
        sync: moves it, by a share of the way.
    """

    def __init__(self, sync: Callable[[float], None]) -> None:
        self._sync = sync

    def on_step_end(  # type: ignore[override]
        self, args: TGOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Synchronises by updates."""
        if args.ref_model_sync_strategy == "steps" and state.global_step % args.ref_model_sync_steps == 0:
            self._sync(args.ref_model_mixup_alpha)

    def on_epoch_begin(  # type: ignore[override]
        self, args: TGOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Synchronises by epochs; not where a run resumes in the middle of one."""
        at_boundary = state.global_step > 0 and float(state.epoch or 0).is_integer()
        if args.ref_model_sync_strategy == "epoch" and at_boundary:
            self._sync(args.ref_model_mixup_alpha)


class EarlyStopping(EarlyStoppingCallback):
    """As transformers', counting on where a run was resumed, and passing over data sets that have not the metric."""

    _first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes up the count."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Counts on from where the run of a checkpoint was, or anew where a run begins."""
        saved: Any = state.stateful_callbacks  # a dictionary, whatever its annotation says
        own = (saved or {}).get(type(self).__name__) if state.global_step > 0 else None
        self.early_stopping_patience_counter = own["attributes"]["early_stopping_patience_counter"] if own else 0
        self._first_step = state.global_step

    def count_from(self, state: TrainerState, num: int) -> None:
        """Sets the count of a run that goes on, also for [`restore`]."""
        self.early_stopping_patience_counter = num
        saved: Any = state.stateful_callbacks  # a dictionary, whatever its annotation says
        own: Any = {**(saved or {}), type(self).__name__: self.state()}
        state.stateful_callbacks = own

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_evaluate(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Counts an evaluation; not the one before the first update (`eval_on_start`), which is not up for the best."""
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        if f"eval_{metric}" in metrics and state.global_step > self._first_step:
            super().on_evaluate(args, state, control, metrics, **kwargs)  # type: ignore[no-untyped-call]


def check_callbacks(args: TGOConfig, callbacks: Sequence[Any] | None) -> None:
    """Raises a TypeError if they are no list, a ValueError if a run would stop early in two ways."""
    if callbacks is not None and not isinstance(callbacks, list):
        raise TypeError(f"`callbacks` must be a list, got `{type(callbacks).__name__}`. Write `callbacks=[callback]`.")
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks or ()]
    if args.early_stopping_patience is not None and any(issubclass(kind, EarlyStoppingCallback) for kind in kinds):
        raise ValueError(
            f"`early_stopping_patience` is {args.early_stopping_patience}, and `callbacks` has an "
            "`EarlyStoppingCallback` too. Leave one of them out."
        )


class ScoreLogCallback(TrainerCallback):
    """Reports threshold and share of positive rows, with a histogram of the scores, when training begins.

    Args:
        trainer: that logs.
        rule: fitted on the training set.
        labels: of the training set; None of a stream.
        are_weighed: whether the loss reads the weights.
    """

    def __init__(self, trainer: Trainer, rule: LabelRule, labels: Labels | None, are_weighed: bool) -> None:
        self.trainer = trainer
        self.rule = rule
        self.labels = labels
        self.are_weighed = are_weighed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the numbers, and writes the PNG."""
        if state.global_step > 0:  # resumed: it stands in the log already
            return
        self.trainer.log(
            {"threshold": self.rule.threshold, "positive_share": self.rule.num_positive / self.rule.num_rows}
        )
        if state.is_world_process_zero and self.labels is not None:
            path = Path(str(args.output_dir)) / SCORE_HISTOGRAM_NAME
            plot_scores(self.labels, self.rule, path, self.are_weighed)
            log_picture(self.trainer, "score_histogram", path, state.global_step)
