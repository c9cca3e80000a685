"""[`SelectingTrainer`]: which checkpoint is kept, by evaluations, bounds and patience."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..policy.reference import Reference
from . import checkpoints
from .callbacks import EarlyStopping
from .eval_samples import EvalSamples
from .evaluations import EVALUATIONS_NAME, choose, comparable_evaluations, read_evaluations
from .plots import plot_evaluations
from .resumable_trainer import ResumableTrainer
from .resuming import resume_setting
from .selection import SAMPLES, VARIETY, OutsideBoundsError
from .trackers import log_picture

logger = logging.getLogger(__name__)


class SelectingTrainer(ResumableTrainer):
    """Chooses the checkpoint that is kept, and ends a run whose evaluations leave its bounds.

    Attributes:
        sampled_reference: what samples are compared with, also where the loss has no reference; None if that would take
            a copy of the network.
        kept_step: of the best checkpoint, once it is loaded.
    """

    sampled_reference: Reference | None
    kept_step: int | None = None
    _eval_samples: EvalSamples | None = None
    _sample_ways: Sequence[tuple[int, dict[str, str]]] = ()  # see `RunRecord`
    _gone_on_from: Path | None = None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As [`ResumableTrainer.train`]; says which checkpoint is kept, where evaluations choose one.

        Where `resume_from_checkpoint` is None, that of the settings counts.

        Raises:
            OutsideBoundsError: if there are bounds, and no evaluation was inside them.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = resume_setting(self.args)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.args.bounds and self.kept_step is None:
            raise OutsideBoundsError(self._describe_failure())
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and self.kept_step is None and best:
            logger.warning(
                "The best evaluation was after update %s, of which no checkpoint was saved: the weights are those of "
                "the last update. Set `save_steps` to `eval_steps`.",
                best,
            )
        if self._is_watched and self.is_world_process_zero():
            print("\n".join(self._describe_choice()))
        return output

    @property
    def _is_watched(self) -> bool:
        """Whether evaluations draw samples, or may end the run."""
        return self._eval_samples is not None or self._is_bounded

    def _begin(self, checkpoint: Path | None) -> None:
        super()._begin(checkpoint)
        self.kept_step, self._gone_on_from = None, checkpoint
        saved = None if checkpoint is None else checkpoints.RunRecord.read(checkpoint)
        ways = {} if self._eval_samples is None else self._eval_samples.ways
        self._sample_ways = [] if saved is None else saved.sample_ways
        if ways != (self._sample_ways[-1][1] if self._sample_ways else {}):
            self._sample_ways = [*self._sample_ways, (0 if saved is None else saved.updates, ways)]
        # Before a checkpoint is loaded: the reference may be what it moves, or what the policy is until then. And
        # before hours of training, so that a reward that does not work says so.
        is_now = checkpoint is None or self.args.sync_ref_model or self.sampled_reference is None
        if self._eval_samples is not None and is_now:
            self._eval_samples.measure_reference()

    def _broken_bounds(self) -> list[str]:
        """A clause for each bound that the evaluation after the last update, if there was one, is outside of."""
        step, bounds = self.state.global_step, self.args.bounds
        evaluations = comparable_evaluations(self.state.log_history, self._sample_ways)
        metrics = next((it.metrics for it in evaluations if it.step == step), {})
        return bounds.broken(metrics) if bounds.covered(metrics) else []

    def _why_stopped(self) -> tuple[str, str] | None:
        """Why the last evaluation ends the run, a clause, and what would let it go on."""
        step, broken = self.state.global_step, self._broken_bounds()
        if broken:
            return f"was ended after update {step}: {', and '.join(broken)}", "Set other bounds"
        stopping = self._early_stopping
        if stopping is not None and stopping.is_over:
            num = stopping.early_stopping_patience_counter
            better = f"{num} evaluation{'s' * (num > 1)} in a row had no better {self.args.metric_for_best_model!r}"
            return f"was ended after update {step}: {better}", "Set a higher `early_stopping_patience`"
        return None

    def _record(self) -> checkpoints.RunRecord:
        return replace(super()._record(), sample_ways=list(self._sample_ways))

    def _restore_choice(self) -> None:
        """Takes up the best checkpoint and the count of evaluations since, or finds them anew in the log.

        They are what the run chose, unless it would have chosen otherwise under the bounds, by the metric and of the
        samples of now, or the best checkpoint is gone.
        """
        args, state, stopping = self.args, self.state, self._early_stopping
        if stopping is not None:
            stopping.restore(state)
        assert self._gone_on_from is not None
        saved, now = checkpoints.RunRecord.read(self._gone_on_from), self._record()
        bounds = ("max_drift", "min_variety", "early_stopping_patience")
        is_used = bool(now.sample_ways) or any(name in it.config for it in (saved, now) for name in bounds)
        if not is_used or args.metric_for_best_model is None:
            return
        metric = args.metric_for_best_model.removeprefix("eval_")
        is_of_others = self._is_measured_otherwise(saved, metric)
        criteria = ("metric_for_best_model", "greater_is_better", *bounds)
        is_gone = bool(state.best_global_step) and state.best_model_checkpoint is None and self._is_bounded
        if not is_of_others and not is_gone and all(saved.config.get(it) == now.config.get(it) for it in criteria):
            return
        folders = self._kept_checkpoints(self._gone_on_from)
        evaluations = comparable_evaluations(state.log_history, self._sample_ways)
        choice = choose(evaluations, metric, bool(args.greater_is_better), args.bounds, list(folders))
        state.best_metric, state.best_global_step = choice.metric, choice.step
        state.best_model_checkpoint = None if choice.step is None else str(folders[choice.step])
        if stopping is not None:
            stopping.count_from(state, choice.num_since)
        if is_of_others and self.is_world_process_zero():
            print(
                f"Samples are drawn or scored otherwise than before update {state.global_step + 1}: the best "
                "checkpoint is chosen anew, of the evaluations from there on."
            )

    def _is_measured_otherwise(self, saved: checkpoints.RunRecord, metric: str) -> bool:
        """Whether the checkpoint's run measured other samples than those by which the best is chosen now."""
        then, now = ({} if not ways else ways[-1][1] for ways in (saved.sample_ways, self._sample_ways))
        used = [metric] if metric.startswith(SAMPLES) else []
        used += [VARIETY] if self.args.min_variety is not None else []
        return any(name in then and then[name] != now.get(name) for name in used)

    def _kept_checkpoints(self, newest: Path) -> dict[int, Path]:
        """The checkpoints of the run up to one that it goes on from, by their update."""
        best = self.state.best_model_checkpoint
        parents = [self.args.output_path, newest.parent, *([] if best is None else [Path(best).parent])]
        found = {checkpoints.checkpoint_step(it): it for parent in parents for it in checkpoints.checkpoints(parent)}
        return {step: path for step, path in found.items() if step <= self.state.global_step}

    @property
    def _is_bounded(self) -> bool:
        """Whether evaluations may end the run; each then has its checkpoint, if it is the best."""
        return bool(self.args.bounds) or self.args.early_stopping_patience is not None

    @property
    def _early_stopping(self) -> EarlyStopping | None:
        return next((it for it in self.callback_handler.callbacks if isinstance(it, EarlyStopping)), None)

    def _why_over(self, max_steps: int) -> tuple[str, str] | None:
        return super()._why_over(max_steps) or self._why_stopped()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = False
        if self.args.bounds.broken(metrics):  # never the best, whatever its metric
            self.control.should_training_stop = True
        else:
            try:
                is_best = super()._determine_best_metric(metrics, trial)
            except KeyError as error:  # of a stream, or of `compute_metrics`: the others were checked
                raise ValueError(str(error.args[0])) from error
        self._show_evaluations()
        return is_best

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.kept_step = checkpoints.checkpoint_step(Path(str(self.state.best_model_checkpoint)))

    def _show_evaluations(self) -> None:
        """Draws what was measured until now, in the folder of the run."""
        if self._is_watched and self.is_world_process_zero():
            path, step = self.args.output_path / EVALUATIONS_NAME, self.state.global_step
            best = self.state.best_global_step or None
            plot_evaluations(read_evaluations(self.state.log_history), self.args.bounds, best, path)
            log_picture(self, "evaluations", path, step)

    def _describe_choice(self) -> list[str]:
        args, state, stopped = self.args, self.state, self._why_stopped()
        lines = [] if stopped is None else [f"The run {stopped[0]}."]
        if self.kept_step is not None:
            best = f"{args.metric_for_best_model!r} is {state.best_metric:.4g}"
            lines.append(f"Kept is checkpoint-{self.kept_step}, whose {best}, of {state.global_step} updates.")
        picture = args.output_path / EVALUATIONS_NAME
        return [*lines, f"The evaluations over the run: {picture}"] if picture.is_file() else lines

    def _describe_failure(self) -> str:
        """Why a run with bounds has no checkpoint to keep, and what to do."""
        args, step, broken = self.args, self.state.global_step, self._broken_bounds()
        if self.state.best_global_step:
            return (
                f"The best checkpoint, checkpoint-{self.state.best_global_step}, is no longer in "
                f"{str(args.output_path)!r}. Bring it back, or begin anew in another `output_dir`."
            )
        if not broken and len(self._sample_ways) > 1:
            return (
                f"No evaluation was inside the bounds since samples are drawn and scored as now, from update "
                f"{self._sample_ways[-1][0] + 1} on, so that there is no model to keep after update {step}. Set "
                "`max_steps` higher, or go on with the samples and rewards of before."
            )
        if not broken:
            return (
                f"`{'max_drift' if args.max_drift is not None else 'min_variety'}` is set, and in {step} updates there "
                f"was no evaluation with a finite {args.metric_for_best_model!r}. Set `eval_steps` lower, and "
                "`eval_delay` to 0."
            )
        return (
            f"No evaluation was inside the bounds, so that there is no model to keep: after update {step}, "
            f"{', and '.join(broken)}. The checkpoints are still in {str(args.output_path)!r}. Train with "
            f"`recipe='robust'` or a lower `learning_rate` (it is {args.learning_rate:g}), bound the scores (`tgo-trl "
            "inspect` shows them), or evaluate sooner (`eval_steps`)."
        )
