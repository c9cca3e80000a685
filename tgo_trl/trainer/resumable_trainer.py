"""[`ResumableTrainer`]: a run that is saved, goes on where it stopped, and ends well."""

import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from ..data.encoded import EncodedDataset
from ..data.pairs import Pairs
from ..data.prompts import PromptDataset
from ..data.sampler import UNSAMPLED_EPOCH, WITHOUT_SAMPLER, RowSampler
from ..data.stream import StreamDataset
from ..families import Family
from ..labels.rule import LabelRule
from ..media.types import Size
from ..messages.failures import writing
from ..policy.alterations import check_networks, unwrap_networks
from ..policy.compilation import RepeatedBlocks
from ..policy.deepspeed_config import whole_when_loaded
from ..policy.distributed import build_strategy, full_tensor
from ..policy.policy import Policy
from ..policy.reference import Reference
from ..policy.replication import Replication
from ..storage.locks import sole_writer
from . import checkpoints
from .course import Course
from .interruption import Interruption, Terminated
from .lomo import look_for_lomo_once
from .measured_speed import Speed, UpdateClock
from .nonfinite import UpdateGuard, check_finite_tensors
from .optimizer_modes import OptimizerMode
from .preparation import training_block
from .progress import Progress
from .resuming import (
    OF_WHOLE_STREAMS,
    accepted_changes,
    find_checkpoint,
    lanes_of,
    load_changed_optimizer,
    load_optimizer,
)
from .tgo_config import TGOConfig
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Checkpoints, resumes and signals, in terms of rows instead of batches.

    A subclass calls [`_prepare_run`] before `Trainer.__init__`, and sets the attributes below, `_own_class`, `_course`,
    `_guard` and, if its rows have an order, `_row_sampler`.

    Attributes:
        pipeline: whose networks are trained.
        family: how they are called.
        reference: what the policy is compared with; None without one.
        label_rule: fitted on the training set; None without scores.
        pair_rule: that images of its pairs are compared by, of several columns of scores.
        pairs: of the training set; None if it has none.
        temperature: `T`, resolved; None without a likelihood.
        size, sizes: that images are brought to, in pixels.
        changes: what was set otherwise on the way, a sentence each.
        repeated_blocks: that are compiled while it trains and evaluates; None where nothing is.
        levers: the settings that make its steps smaller, for messages.
        clock: of a run.
        speed: of the run that has ended; None if there was none, or it was of one update.
    """

    args: TGOConfig
    model: nn.Module
    pipeline: DiffusionPipeline
    family: Family
    reference: Reference | None
    label_rule: LabelRule | None = None
    pair_rule: LabelRule | None = None
    pairs: Pairs | None = None
    temperature: float | None = None
    size: Size
    sizes: Sequence[Size]
    repeated_blocks: RepeatedBlocks | None = None
    levers = "`learning_rate`"
    clock: UpdateClock
    speed: Speed | None = None
    _own_class: str | None
    _course: Course
    _guard: UpdateGuard

    def _prepare_run(self, args: TGOConfig) -> None:
        self._row_sampler: RowSampler | None = None
        self.clock = UpdateClock()
        self.optimizer_mode = OptimizerMode(self)
        self._interruption = Interruption()
        self._progress = Progress(block=training_block(args, len(self.sizes)))
        self._resumed: Progress | None = None
        self._random_state: str | None = None  # a checkpoint whose random state is still to be loaded
        self._is_over = False  # a run that goes on, and has nothing left to do
        self._changes: list[str] = []  # of the run that goes on, now
        self.changes: list[str] = []  # of the whole run, for its record
        self._last_saved = 0

    @cached_property
    def strategy(self) -> Replication:
        """How weights are spread over processes."""
        return build_strategy(self.accelerator, bool(self.args.compile_repeated_blocks))

    @property
    def policy(self) -> Policy:
        """What is trained, without the wrappers of distributed training."""
        return self.strategy.unwrap(self.model)

    @property
    def _moving_reference(self) -> Reference | None:
        """The reference, if it has weights that a checkpoint has to hold."""
        return self.reference if self.args.sync_ref_model else None

    # ---- Saving and loading ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what was trained, to the output directory unless told otherwise; called by every process."""
        self.policy.check_owner()
        with self.optimizer_mode.averaged():
            with self.strategy.whole(self.policy, self._moving_reference):
                self._save(output_dir)  # of shards, `Trainer` would gather the whole base
            self._save_raw_weights(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_path)
        trained = ((name, weight) for name, weight in self.policy.named_parameters() if weight.requires_grad)
        check_finite_tensors(trained, f"The model, which is therefore not saved in {str(folder)!r},")
        is_checkpoint = checkpoints.is_checkpoint_of(folder, self.args.output_path)
        checkpoints.check_names(self.pipeline, self.policy)
        with writing(folder), checkpoints.replacing(folder, is_checkpoint) as temporary:
            checkpoints.save_weights(self.pipeline, self.policy, temporary, whole_pipeline=not is_checkpoint)
            if is_checkpoint and self._moving_reference is not None:
                checkpoints.save_reference(self._moving_reference, temporary)
            self._record().write(temporary)

    def _save_raw_weights(self, output_dir: str | None) -> None:
        """Saves beside an average what steps are taken from, where a run may go on from it; in every process."""
        folder, average = Path(output_dir or self.args.output_path), self.optimizer_mode.average
        is_checkpoint = checkpoints.is_checkpoint_of(folder, self.args.output_path)
        if average is None or not is_checkpoint or self.args.save_only_model:
            return
        with average.raw(), self.strategy.whole(self.policy):
            if self.args.should_save:
                with writing(folder), checkpoints.replacing(folder, is_checkpoint) as temporary:
                    raw_folder = temporary / checkpoints.RAW_WEIGHTS_NAME
                    checkpoints.save_weights(self.pipeline, self.policy, raw_folder, whole_pipeline=False)

    def _record(self) -> checkpoints.RunRecord:
        progress = self._progress
        sampler = self._row_sampler
        if sampler is not None and (progress.rows >= len(sampler) or self.control.should_epoch_stop):
            progress = Progress(progress.epoch + 1, 0, progress.block)
        average = self.optimizer_mode.average
        return checkpoints.RunRecord(
            config=checkpoints.public_config(self.args.to_dict()),
            rule=self.label_rule or self.pair_rule,
            temperature=self.temperature,
            size=self.size,
            course=self._course,
            progress=progress,
            updates=self.state.global_step,
            changes=self.changes,
            averaged_updates=None if average is None else average.num_updates,
            pipeline_class=self._own_class,
            lanes=list(self.train_dataset.lanes) if isinstance(self.train_dataset, StreamDataset) else [],
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._guard.settle()
        self.create_model_card()
        args, folder = self.args, Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        # Not before it is whole does a checkpoint take the place of older ones, or is it uploaded.
        limit, push = args.save_total_limit, args.push_to_hub
        args.save_total_limit, args.push_to_hub = None, False
        try:
            with self.optimizer_mode.averaged(), writing(folder):
                super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit, args.push_to_hub = limit, push
        self.accelerator.wait_for_everyone()  # each process saves its random state
        if args.should_save:
            checkpoints.seal_checkpoint(folder)
        self._last_saved = self.state.global_step
        if push:
            self._push_from_checkpoint(str(folder))
        if args.should_save:
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # As one process saves it, so that any number of them goes on from it; `Trainer` would save the base beside it.
        state, scheduler = self.strategy.optimizer_state(self.optimizer), self.lr_scheduler
        assert scheduler is not None
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # ---- Going on ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains; `resume_from_checkpoint=True` goes on from the newest checkpoint that is whole.

        SIGTERM and SIGHUP end it, after the update that is under way, with a checkpoint and a `SystemExit`; so does
        Ctrl-C, with a `KeyboardInterrupt`, and a second one at once.

        Raises:
            ValueError: if there is no whole checkpoint, it is of a run with other settings or data and
                `resume_with_changes` is not set, or another process writes to `output_dir`.
            NonFiniteError: if losses, gradients or weights are NaN or infinite.
        """
        is_main = self.is_world_process_zero()
        lock = sole_writer(self.args.output_path) if is_main else nullcontext()
        with lock, self._interruption, self._compiled(), self._rows_with_epochs():
            checkpoint = self._find_checkpoint(resume_from_checkpoint)
            self._begin(checkpoint)
            try:
                output = super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._describe_end("Interrupted")) from None
            finally:
                self.strategy.end_run(self.policy)
            self._guard.settle()
            self._guard.check_share(self.state.global_step - self._initial_global_step)
            self.optimizer_mode.settle()
            self.end_if_interrupted()
        return output

    def _compiled(self) -> AbstractContextManager[None]:
        """Within, what is to be compiled is."""
        return nullcontext() if self.repeated_blocks is None else self.repeated_blocks.compiled()

    def _use_sampler(self, sampler: RowSampler) -> RowSampler:
        """The sampler, which tells the rows of the run from now on, unless there is one already: of a run's own."""
        if not self.policy.is_in_run:
            self._row_sampler = sampler
        return sampler

    @contextmanager
    def _rows_with_epochs(self) -> Iterator[None]:
        """Within, rows are marked that come from a data loader without this trainer's sampler."""
        rows = self.train_dataset
        if not isinstance(rows, EncodedDataset | PromptDataset):
            yield
            return
        usual_epoch, rows.usual_epoch = rows.usual_epoch, UNSAMPLED_EPOCH
        try:
            yield
        finally:
            rows.usual_epoch = usual_epoch

    def create_accelerator_and_postprocess(self) -> None:
        """As [`Trainer`], without the backend of the repeated blocks, by which accelerate would compile the whole.

        Nor does `Trainer` know of DeepSpeed, of which accelerate makes an engine when training begins: it would cast
        the rows of a batch to the engine's dtype, refuse to evaluate before training, and save the frozen base.
        """
        args, backend = self.args, self.args.torch_compile_backend
        if args.compile_repeated_blocks:
            args.torch_compile_backend = None
        if args.deepspeed_plugin is not None:
            AcceleratorState._reset_state()  # of an earlier trainer's engine, beside which there would be no other
        try:
            super().create_accelerator_and_postprocess()
        finally:
            args.torch_compile_backend = backend
        self.is_deepspeed_enabled = False
        look_for_lomo_once()
        whole_when_loaded(args)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.strategy.shards:  # which puts parts of it there
            super()._move_model_to_device(model, device)

    def _find_checkpoint(self, wanted: str | bool | None) -> Path | None:
        folder = self.args.output_path
        if not wanted:
            if checkpoints.checkpoints(folder):
                logger.warning(
                    "%s holds checkpoints of an earlier run, and the new run begins at its start. If it is resumed "
                    "later, the newest of all of them is taken: delete those, or set another `output_dir`.",
                    folder,
                )
            return None
        return find_checkpoint(self.args, wanted)

    def _begin(self, checkpoint: Path | None) -> None:
        self._guard = UpdateGuard(self.accelerator, self.args.on_bad_row == "skip", self._count_update, self.levers)
        self._progress = Progress(block=training_block(self.args, len(self.sizes)))
        self.policy.check_owner()
        self.policy.put_adapter_on()
        self.clock.begin()
        self.speed = None
        self._resumed, self._changes, self.changes, self._last_saved, self._is_over = None, [], [], 0, False
        self.optimizer_mode.average = None
        stream = self.train_dataset if isinstance(self.train_dataset, StreamDataset) else None
        if stream is not None:
            stream.skip, stream.num_lanes = 0, stream.own_lanes
        if checkpoint is not None:
            saved = checkpoints.RunRecord.read(checkpoint)
            if stream is not None:
                stream.num_lanes = lanes_of(saved, stream, self.args)
            hint = OF_WHOLE_STREAMS if stream is not None and stream.shards and not saved.lanes else ""
            self._changes = accepted_changes(checkpoint, self._record(), self.args.resume_with_changes, hint)
            self.changes = saved.changes + [f"from update {saved.updates + 1} on: {change}" for change in self._changes]
            self._resumed, self._last_saved = saved.progress, saved.updates
            self._progress = Progress(saved.progress.epoch, saved.progress.rows, self._progress.block)
        if self.is_world_process_zero():
            for folder in (self.args.output_path, *checkpoints.checkpoints(self.args.output_path)):
                checkpoints.remove_left_over(folder)
        if self.model_wrapped is self.model:
            self.strategy.prepare_again(self.model)
        unwrap_networks(self.pipeline, self.family.network_names)  # what was done to them since
        if not self.strategy.shards:  # which is an alteration
            check_networks(self.pipeline, self.family, self.args.use_peft)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Epoch to begin with, and batches of it to pass over: none, since what is done is not read again."""
        first_epoch, _ = super()._init_training_state(max_steps, *args, **kwargs)
        if self._resumed is None:
            return first_epoch, 0
        self._restore_choice()
        over = self._why_over(max_steps)
        if over is not None:
            self._is_over = True
            reason, remedy = over
            if self._changes:
                raise ValueError(
                    f"The run {reason}, so that other settings ({'; '.join(self._changes)}) would change nothing. "
                    f"{remedy} to go on with them, or another `output_dir`."
                )
            if self.is_world_process_zero():
                print(f"Nothing to do: the run {reason}.")
        self._pass_over(self._resumed)
        return self._resumed.epoch, 0

    def _restore_choice(self) -> None:
        """Takes up which checkpoint is the best, of a run that goes on."""

    def _why_over(self, max_steps: int) -> tuple[str, str] | None:
        """Why a run that goes on has nothing left to do, a clause, and how it would have; None if it has."""
        if self.state.global_step >= max_steps:
            return f"has made all its {self.state.global_step} updates", "Set `max_steps` or `num_train_epochs` higher"
        return None

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[no-untyped-call]
        self._begin_average(None if resume_from_checkpoint is None else Path(resume_from_checkpoint))
        self.strategy.begin_run(self.model_wrapped, self.optimizer)
        return prepared

    def _begin_average(self, checkpoint: Path | None) -> None:
        """Begins the average with the weights as they were saved, and loads the raw ones that were saved beside it."""
        counted = None if checkpoint is None else checkpoints.RunRecord.read(checkpoint).averaged_updates
        if self.args.ema_decay is not None:
            self.optimizer_mode.average = WeightAverage(
                self.strategy.own_parts(self.policy), self.args.ema_decay, finish=self._guard.settle,
                num_updates=counted or 0, release=partial(self.strategy.release, self.policy),
            )  # fmt: skip
        # What an earlier run left in a folder of the same name is not of this one.
        if checkpoint is not None and counted is not None and (checkpoint / checkpoints.RAW_WEIGHTS_NAME).is_dir():
            with self.strategy.whole(self.policy, loading=True):
                checkpoints.load_weights(self.policy, checkpoint / checkpoints.RAW_WEIGHTS_NAME)

    def _count_update(self) -> None:
        average = self.optimizer_mode.average
        if average is not None and not self.accelerator.optimizer_step_was_skipped:  # by the gradient scaler
            average.update()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.clock.tick(self.state.global_step)
        is_more = self.control.should_evaluate or self.control.should_save
        with self.clock.aside() if is_more else nullcontext():
            super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.control.should_training_stop:  # what follows the last update, as loading the best, is none of its time
            self.speed = self.clock.read(self.state.global_step)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, whose gradient is taken at the weights that steps are taken from."""
        self.optimizer_mode.unsettle()
        return super().training_step(*args, **kwargs)

    def _pass_over(self, done: Progress) -> None:
        """Takes out of the data what is trained on already."""
        if self._row_sampler is None:
            if done.block != self._progress.block and len(self.sizes) > 1:
                raise ValueError(
                    "A stream in buckets of aspect ratios cannot go on with updates of another size. Keep rows per "
                    "update, or load the data set without `streaming=True`."
                )
            self.train_dataset.skip = done.rows  # type: ignore[union-attr]
            return
        sampler = self._row_sampler
        sampler.done = {done.epoch: sampler.in_blocks(done.block).first(done.epoch, done.rows)}

    def _run_epoch(  # type: ignore[override]
        self, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **kwargs: Any
    ) -> None:
        if self._is_over:
            self.control.should_training_stop = True
            return
        if self._resumed is not None and epoch == self._resumed.epoch:  # what is left of it
            accumulated = self.args.gradient_accumulation_steps
            if self._row_sampler is None:
                num_update_steps_per_epoch -= self.state.global_step
                steps_in_epoch = num_update_steps_per_epoch * accumulated
            else:
                batch = self._train_batch_size * self.args.world_size
                steps_in_epoch = math.ceil(self._row_sampler.num_left(epoch) / batch)
                num_update_steps_per_epoch = math.ceil(steps_in_epoch / accumulated)
            if self._resumed.rows:  # to be loaded once more, after the data loader has drawn from it
                self._random_state = kwargs["resume_from_checkpoint"]
        super()._run_epoch(  # type: ignore[no-untyped-call]
            epoch=epoch, steps_in_epoch=steps_in_epoch, num_update_steps_per_epoch=num_update_steps_per_epoch, **kwargs
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """The batches of one update, and how many rows they hold over all processes; None at the end of an epoch."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._random_state is not None:
            self._load_rng_state(self._random_state)
            self._random_state = None
        if not batches:
            return batches, None
        for batch in batches:
            if UNSAMPLED_EPOCH in batch["epoch"]:
                raise ValueError(WITHOUT_SAMPLER)
        self._progress = self._progress.after(batches, self.accelerator.num_processes, self._row_sampler is None)
        valid = [batch["valid"] for batch in batches]
        num_rows = (torch.cat(valid) if len(valid) > 1 else valid[0]).sum().to(device)
        return batches, num_rows if self.accelerator.num_processes == 1 else self.accelerator.reduce(num_rows, "sum")

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return self.strategy.clip_gradient(self.policy, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # between the backward passes of an update and the optimizer's step
        if grad_norm is None:
            grad_norm = self.strategy.clip_gradient(self.policy, math.inf)
        norm = full_tensor(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]
        is_asked = self._interruption.signum is not None
        self._guard.before_step(self.state.global_step + 1, norm, self.optimizer, is_asked)
        return norm

    @property
    def epoch(self) -> float:
        """How many times the training set has been gone through; of a stream, the share of all updates."""
        if self._row_sampler is None:
            return self.state.global_step / self.state.max_steps
        return self._progress.epoch + self._progress.rows / len(self._row_sampler)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with self.strategy.whole(self.policy, self._moving_reference, loading=True):
            checkpoints.load_weights(self.policy, folder)
            if self._moving_reference is not None:
                checkpoints.load_reference(self._moving_reference, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._is_over:
            return
        folder = Path(checkpoint)
        if not (folder / OPTIMIZER_NAME).is_file():
            raise ValueError(
                f"{checkpoint} holds no state of the optimizer (`save_only_model=True`), so that a run that goes on "
                "from it would be another one. Load its adapter into the pipeline, and begin a new run in another "
                "`output_dir`."
            )
        if self._changes:
            keep = checkpoints.RunRecord.read(folder).course.keeps_optimizer(self._course)
            load_changed_optimizer(folder, self.optimizer, self.lr_scheduler, keep, self.strategy)
        else:
            load_optimizer(folder, self.optimizer, self.lr_scheduler, self.strategy)

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        damage = checkpoints.checkpoint_damage(folder)
        if damage is not None:
            raise ValueError(f"The best checkpoint, {folder}, cannot be loaded: {damage}. Load another one by hand.")
        self.optimizer_mode.settle()
        self.model.eval()  # no step comes after this one
        with self.strategy.whole(self.policy, loading=True):
            checkpoints.load_weights(self.policy, folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the training metrics since the last log."""
        if "train_loss" in logs and self.state.global_step == self._initial_global_step:
            return  # the run was at its end already: its loss is not 0
        if "loss" in logs:
            logs.update(self._training_metrics())
        super().log(logs, start_time)

    def _training_metrics(self) -> dict[str, float]:
        """Those since this was last asked, as means over all rows of all processes, which ask together."""
        return {}

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal has asked the run to end; processes agree on it."""
        if self.accelerator.num_processes > 1:
            return self._guard.asked_to_stop
        return self._interruption.signum is not None

    def end_if_interrupted(self) -> None:
        """Ends a run that a signal has asked to, once its last update is saved."""
        if not self.is_interrupted:
            return
        if self._last_saved != self.state.global_step:
            self._save_checkpoint(self.model, None)
        if self._interruption.signum == signal.SIGINT:
            raise KeyboardInterrupt(self._describe_end("Interrupted"))  # as Python programs expect of Ctrl-C
        if self.is_world_process_zero():
            print(self._describe_end(self._interruption.name), file=sys.stderr, flush=True)
        raise Terminated(self._interruption.signum or signal.SIGTERM)

    def _describe_end(self, cause: str) -> str:
        step, saved = self.state.global_step, self._last_saved
        where = f"checkpoint-{saved} is the last one" if saved else "there is no checkpoint"
        lost = f"{step - saved} update{'s' * (step - saved > 1)} lost" if step > saved else "no update lost"
        following = "goes on there" if saved else "begins anew"
        return f"{cause} at update {step} of {self.state.max_steps}: {where}, {lost}. The same command {following}."
