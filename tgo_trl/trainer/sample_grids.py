"""Sample grids: the same prompts and seeds, sampled from reference and policy while training goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from ..families.base_sources import shown_sources
from ..media.types import Sample
from ..policy.draws import stable_seed
from ..policy.reference import Reference
from ..policy.replication import Replication
from .measured_speed import UpdateClock
from .optimizer_modes import OptimizerMode
from .plots import film_strip, plot_grid
from .trackers import log_picture

SAMPLES_FOLDER = "samples"


class SamplingTrainer(Protocol):
    """What a grid asks of a trainer; see [`~tgo_trl.trainer.base_trainer.BaseTrainer`]."""

    sampled_reference: Reference | None
    optimizer_mode: OptimizerMode
    callback_handler: CallbackHandler
    clock: UpdateClock
    kept_step: int | None

    @property
    def args(self) -> TrainingArguments:
        """Its settings."""

    @property
    def strategy(self) -> Replication:
        """How its weights are spread over processes."""

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        from_reference: bool = False,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Sample]:
        """One image, or the frames of one video, per prompt."""


class SampleGridCallback(TrainerCallback):
    """Samples a grid every `every_steps` updates and at the end of training, as PNG and to the reporters.

    The PNGs lie in `output_dir/samples`. The first row is the reference, the second the policy; each column is a prompt
    with a seed of its own, the same in every grid. Of videos it shows some frames; above edits, their sources.

    Args:
        trainer: whose pipeline is sampled.
        prompts: one column each.
        every_steps: updates between two grids.
        seed: of the samples.
        kwargs: passed to the pipeline, such as `num_inference_steps` and `guidance_scale`.
    """

    def __init__(
        self, trainer: SamplingTrainer, prompts: Sequence[str], every_steps: int = 100, seed: int = 0, **kwargs: Any
    ) -> None:
        self.trainer = trainer
        self.prompts = list(prompts)
        self.every_steps = every_steps
        self.seed = seed
        self.kwargs = kwargs
        self._last_step: int | None = None
        # Supervised training of all weights keeps no copy of the network: it is sampled from while it is as it was.
        self._base: list[Sample] | None = None
        if trainer.sampled_reference is None and trainer.strategy.samples_here:
            self._base = self._samples()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Samples a grid when it is time, and at the last update, while the reporters still listen."""
        if state.global_step % self.every_steps == 0 or control.should_training_stop:
            self._show(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Samples the last grid of a run that was stopped between two updates."""
        if self._last_step != state.global_step:
            self._show(args, state, self.trainer.kept_step)

    def _show(self, args: TrainingArguments, state: TrainerState, kept_step: int | None = None) -> None:
        self._last_step = state.global_step
        with self.trainer.clock.aside(), self.trainer.optimizer_mode.averaged():  # in every process
            if not self.trainer.strategy.samples_here or args.output_dir is None:
                return
            rows = [self._base or self._samples(from_reference=True), self._samples()]
            if state.is_world_process_zero:
                self._plot(rows, Path(args.output_dir), state, kept_step)

    def _plot(self, rows: list[list[Sample]], output_dir: Path, state: TrainerState, kept_step: int | None) -> None:
        step = state.global_step if kept_step is None else kept_step  # whose weights these are
        path = output_dir / SAMPLES_FOLDER / f"step-{state.global_step:06d}.png"
        sources = shown_sources(self.kwargs["sources"], rows[0]) if "sources" in self.kwargs else {}
        pictures = [[film_strip(it) if isinstance(it, list) else it for it in row] for row in rows]
        names = [*sources, "reference", f"step {step}"]
        plot_grid([*sources.values(), *pictures], names, self.prompts, path)
        log_picture(self.trainer, "samples", path, state.global_step)

    def _samples(self, from_reference: bool = False) -> list[Sample]:
        seeds = [stable_seed(self.seed, i) for i in range(len(self.prompts))]
        return self.trainer.sample(self.prompts, seeds, from_reference=from_reference, **self.kwargs)


def last_grid(output_dir: Path) -> Path | None:
    """The newest sample grid of a run."""
    return max((output_dir / SAMPLES_FOLDER).glob("step-*.png"), default=None)
