"""[`AlignPropConfig`]: every setting of a run that climbs a reward by its gradient."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from ..settings import shown
from .selection import draws_samples
from .tgo_config import TGOConfig

TAKEN = frozenset({
    "learning_rate", "logging_steps", "gradient_checkpointing", "bf16", "bf16_autocast", "logging_nan_inf_filter",
    "ddp_find_unused_parameters", "model_init_kwargs", "pipeline_class", "use_peft", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "disable_dropout", "prompt_column", "resolution", "height", "width",
    "on_bad_row", "encode_batch_size", "encoding_cache_dir", "ema_decay", "resume_with_changes", "max_sequence_length",
    "train_guidance_scale", "sample_prompts", "sample_steps", "sample_guidance_scale", "eval_rewards", "eval_prompts",
    "eval_samples_per_prompt", "min_variety", "early_stopping_patience", "compile_repeated_blocks",
    "attention_backend",
})  # fmt: skip
"""The settings of [`TGOConfig`] that mean the same here; all others are of scores and losses, and are refused."""


@dataclass
class AlignPropConfig(TGOConfig):
    r"""
    Configuration class for the [`AlignPropTrainer`].

    Names are those of TRL's `AlignPropConfig` where they mean the same. What concerns model, adapter, samples, grids,
    evaluations and checkpoints is as in [`TGOConfig`], and so is all of [`~transformers.TrainingArguments`]; what
    concerns scores, thresholds and losses is refused.

    Parameters
    ----------
        sample_num_steps (`int`, *optional*, defaults to `50`):
            Denoising steps of each sample, in training as in grids and evaluations.
        sample_guidance_scale (`float`, *optional*):
            Classifier-free guidance, likewise: the policy is trained under it, and should be called with it. Defaults
            to the pipeline's. 1 switches it off, and halves the work of a step. Refused where the network takes its
            guidance as an input, which is `train_guidance_scale`.
        sample_eta (`float`, *optional*, defaults to `0.0`):
            Share of the noise that DDIM adds at each step, from 0 to 1; of other schedulers, 0. TRL's default is 1.
        truncated_backprop_rand (`bool`, *optional*, defaults to `True`):
            Each sample's gradient begins at a step of its own, drawn evenly from `truncated_rand_backprop_minmax`, and
            goes on to the last. TRL draws anew at every step, for a whole batch.
        truncated_rand_backprop_minmax (`list[int]`, *optional*):
            The steps, counted from noise, between which it may begin: from the first to the one before the second.
            Defaults to `[0, sample_num_steps]`.
        truncated_backprop_timestep (`int`, *optional*):
            With `truncated_backprop_rand=False`, the step at which the gradient begins. Defaults to
            `sample_num_steps - 1`: through the last step only (`K = 1`), which is the cheapest.

    > [!NOTE]
    > These parameters have default values different from [`TGOConfig`]:
    > - `learning_rate`: Defaults to `1e-3`, as in TRL.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "The initial learning rate for AdamW."})
    sample_num_steps: int = field(default=50, metadata={"help": "Denoising steps of each sample."})
    sample_eta: float = field(default=0.0, metadata={"help": "Share of the noise that DDIM adds at each step."})
    truncated_backprop_rand: bool = field(
        default=True, metadata={"help": "Draw the step at which each sample's gradient begins."}
    )
    truncated_rand_backprop_minmax: list[int] | None = field(
        default=None, metadata={"help": "Steps between which it is drawn, the second one left out."}
    )
    truncated_backprop_timestep: int | None = field(
        default=None, metadata={"help": "The step at which every gradient begins, if it is not drawn."}
    )

    def __post_init__(self) -> None:
        for name, default in _not_taken().items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is {shown(getattr(self, name))}, which `AlignPropTrainer` has no use for"
                    f"{_REMEDIES.get(name, '')}. Leave it out."
                )
        if isinstance(self.truncated_rand_backprop_minmax, tuple):  # as TRL has it
            self.truncated_rand_backprop_minmax = list(self.truncated_rand_backprop_minmax)
        super().__post_init__()
        for name, default in _not_taken().items():  # which became what they are for another trainer
            setattr(self, name, default)
        self._check_sampling()
        self._check_truncation()
        self._check_evaluation()

    def to_dict(self) -> dict[str, Any]:
        """As of [`TGOConfig`], without the settings that are not taken."""
        left_out = _not_taken()
        return {name: value for name, value in super().to_dict().items() if name not in left_out}

    @property
    def last_steps(self) -> tuple[int, int]:
        """The fewest and the most of the last steps that a gradient goes back through, `K`."""
        num_steps = self.sample_num_steps
        if self.truncated_backprop_rand:
            first, end = self.truncated_rand_backprop_minmax or (0, num_steps)
            return num_steps - end + 1, num_steps - first
        start = num_steps - 1 if self.truncated_backprop_timestep is None else self.truncated_backprop_timestep
        return num_steps - start, num_steps - start

    def _check_sampling(self) -> None:
        if self.sample_num_steps < 1:
            raise ValueError(f"`sample_num_steps` is {shown(self.sample_num_steps)}; it must be at least 1.")
        if not 0 <= self.sample_eta <= 1:
            raise ValueError(f"`sample_eta` is {self.sample_eta}; it must be from 0 to 1.")

    def _check_truncation(self) -> None:
        start, minmax, num_steps = (
            self.truncated_backprop_timestep, self.truncated_rand_backprop_minmax, self.sample_num_steps
        )  # fmt: skip
        used, unused = "truncated_rand_backprop_minmax", "truncated_backprop_timestep"
        if not self.truncated_backprop_rand:
            used, unused = unused, used
        if getattr(self, unused) is not None:
            raise ValueError(
                f"`{unused}` is {shown(getattr(self, unused))}, which `truncated_backprop_rand="
                f"{self.truncated_backprop_rand}` does not use. Set `{used}`, or `truncated_backprop_rand="
                f"{not self.truncated_backprop_rand}`."
            )
        if start is not None and not 0 <= start < num_steps:
            raise ValueError(
                f"`truncated_backprop_timestep` is {shown(start)}, the first of {num_steps} steps "
                f"(`sample_num_steps`) that has a gradient; it must be from 0 to {num_steps - 1}."
            )
        if minmax is None:
            return
        are_whole = isinstance(minmax, list) and [type(it) for it in minmax] == [int, int]
        if not are_whole or not 0 <= minmax[0] < minmax[1] <= num_steps:
            raise ValueError(
                f"`truncated_rand_backprop_minmax` is {shown(minmax)}; it must be two whole numbers, the second above "
                f"the first, from 0 to `sample_num_steps` ({num_steps}), such as [0, {num_steps}]."
            )

    def _check_evaluation(self) -> None:
        if self.eval_strategy != "no" and not draws_samples(vars(self)):
            raise ValueError(
                f"`eval_strategy` is {shown(getattr(self.eval_strategy, 'value', self.eval_strategy))}, and an "
                "evaluation draws samples: set `eval_rewards` or `eval_prompts`, or `eval_strategy='no'`."
            )


_REMEDIES = {
    "sample_num_inference_steps": ": samples, grids and evaluations have `sample_num_steps`",
    "sync_ref_model": ": it is compared with no reference",
    "max_drift": ": there is no reference to drift from, while `min_variety` works",
}


def _not_taken() -> Mapping[str, Any]:
    """The defaults of the settings that are not taken, by name."""
    inherited = {item.name for item in fields(TrainingArguments)}
    return {
        item.name: item.default_factory() if item.default_factory is not MISSING else item.default
        for item in fields(TGOConfig)
        if item.name not in inherited and item.name not in TAKEN
    }
