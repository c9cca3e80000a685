"""Which checkpoint is kept: settings of the samples that evaluations draw and score, and bounds that end a run."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..losses import LOSSES
from ..messages.values import did_you_mean
from ..rewards import REWARDS
from ..settings import files_of, shown

SAMPLES = "samples/"
"""How the names of metrics of samples begin."""
VARIETY = f"{SAMPLES}variety"
OF_THE_REFERENCE = "_reference"
"""How the names of those end that are the reference's."""
SAMPLES_PER_PROMPT = 4

_DRIFT = re.compile(r"(^|_)drift/quartile_[1-4]$")


class OutsideBoundsError(ValueError):
    """No evaluation of a run was inside its bounds."""


@dataclass(frozen=True)
class Bounds:
    """What an evaluation has to keep to, so that its checkpoint may be kept and the run goes on.

    Attributes:
        max_drift: of the largest of all `drift/quartile_*`; None for no bound.
        min_variety: of the samples' variety over the reference's; None for no bound.
    """

    max_drift: float | None = None
    min_variety: float | None = None

    def __bool__(self) -> bool:
        return self.max_drift is not None or self.min_variety is not None

    def covered(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation has measured all that is bounded."""
        has_drift = self.max_drift is None or largest_drift(metrics) is not None
        return has_drift and (self.min_variety is None or f"eval_{VARIETY}" in metrics)

    def broken(self, metrics: Mapping[str, float]) -> list[str]:
        """A clause for each bound that an evaluation is outside of.

        Args:
            metrics: of the evaluation, those of all of its data sets.

        Raises:
            ValueError: if they have not what is bounded.
        """
        clauses = []
        if self.max_drift is not None:
            drift = largest_drift(metrics)
            if drift is None:
                raise ValueError(
                    f"`max_drift` is {self.max_drift}, and the evaluation has no `drift/quartile_*`, which are of "
                    "positive rows. Add such rows to `eval_dataset`, or leave `max_drift` out."
                )
            name, value = drift
            if not value <= self.max_drift:
                clauses.append(f"the largest drift is {value:.4g} ({name}), above `max_drift` ({self.max_drift:g})")
        if self.min_variety is not None:
            value = metrics[f"eval_{VARIETY}"]
            if not value >= self.min_variety:
                clauses.append(
                    f"the variety of samples is {value:.4g} of the reference's (eval_{VARIETY}), below `min_variety` "
                    f"({self.min_variety:g})"
                )
        return clauses


def largest_drift(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """Name and value of the largest `drift/quartile_*`, of all data sets; None if there is none."""
    drifts = [(name, value) for name, value in metrics.items() if _DRIFT.search(name)]
    return max(drifts, key=lambda drift: (math.isnan(drift[1]), drift[1]), default=None)


def reward_names(specs: list[str] | None) -> list[str]:
    """What the rewards of `eval_rewards` are called in metrics: their name, or their function's."""
    return [spec.rpartition(":")[2] for spec in specs or ()]


def sample_metrics(settings: Mapping[str, Any]) -> list[str]:
    """Names of the metrics of samples by which a checkpoint can be the best, without the prefix `eval_`.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
    """
    has_variety = draws_samples(settings) and settings["eval_samples_per_prompt"] > 1
    return [f"{SAMPLES}{name}" for name in reward_names(settings["eval_rewards"])] + [VARIETY] * has_variety


def draws_samples(settings: Mapping[str, Any]) -> bool:
    """Whether evaluations draw samples."""
    return any(settings[name] is not None for name in ("eval_rewards", "eval_prompts", "min_variety"))


def prompts_of(settings: Mapping[str, Any]) -> list[str]:
    """What evaluations draw samples of."""
    return list(settings["eval_prompts"] or settings["sample_prompts"] or ())


def check_rewards(specs: object) -> None:
    """Raises a ValueError for an `eval_rewards` that cannot be one, as far as that is known without loading any."""
    if specs is None:
        return
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, str) for spec in specs):
        raise ValueError(
            f"`eval_rewards` is {shown(specs)}; it must be a list of rewards, such as ['hpsv2.1'] or "
            "['my_reward.py:function']. Leave it out for none."
        )
    for spec in specs:
        source, colon, name = spec.rpartition(":")
        if spec not in REWARDS and not (colon and source and name):
            raise ValueError(
                f"`eval_rewards` has {shown(spec)}, which is none of {', '.join(REWARDS)}."
                f"{did_you_mean(spec, REWARDS)} For a function of your own write 'path/to/file.py:function' or "
                "'package.module:function'."
            )
    names = reward_names(specs)
    taken = [f"{name}{OF_THE_REFERENCE}" for name in names] + ["variety"]
    clash = next((name for i, name in enumerate(names) if name in names[:i] or name in taken), None)
    if clash is not None:
        raise ValueError(
            f"`eval_rewards` has {shown(clash)}, and metrics of samples have that name already. Give the function "
            "another name."
        )


def check_prompts(prompts: object) -> None:
    """Raises a ValueError for an `eval_prompts` that cannot be one."""
    is_list = isinstance(prompts, list) and prompts
    if prompts is not None and not (is_list and all(isinstance(it, str) and it.strip() for it in prompts)):  # type: ignore[attr-defined]
        raise ValueError(
            f"`eval_prompts` is {shown(prompts)}; it must be a list of prompts. Leave it out for `sample_prompts`."
        )


def check_selection(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings of samples and bounds that are out of range, or mean nothing together.

    Args:
        settings: by name, those of [`~tgo_trl.TGOConfig`].
    """
    _check_samples(settings)
    max_drift, min_variety = settings["max_drift"], settings["min_variety"]
    if max_drift is not None and not 1 < max_drift < math.inf:
        raise ValueError(
            f"`max_drift` is {max_drift}; it must be above 1, which the drift is at the start. 1.2 is usual."
        )
    if min_variety is not None and not 0 < min_variety <= 1:
        raise ValueError(
            f"`min_variety` is {min_variety}, a share of the reference's variety; it must be above 0, up to 1."
        )
    if max_drift is not None and not LOSSES[settings["loss_type"]].needs_reference:
        raise ValueError(
            f"`max_drift` is {max_drift}, and `loss_type={settings['loss_type']!r}` has no reference to drift from. "
            "Leave it out; `min_variety` works."
        )
    for name in ("max_drift", "min_variety", "early_stopping_patience"):
        if settings[name] is not None:
            _check_choice_of_the_best(name, settings)


def _check_samples(settings: Mapping[str, Any]) -> None:
    per_prompt = settings["eval_samples_per_prompt"]
    if not draws_samples(settings):
        if per_prompt != SAMPLES_PER_PROMPT:
            raise ValueError(
                f"`eval_samples_per_prompt` is {per_prompt}, and evaluations draw no samples. Set `eval_rewards` or "
                "`eval_prompts` too, or leave it out."
            )
        return
    name = next(name for name in ("eval_rewards", "min_variety", "eval_prompts") if settings[name] is not None)
    prompts = prompts_of(settings)
    if not prompts:
        raise ValueError(
            f"`{name}` is {shown(settings[name])}, which is of samples, and there are no prompts to draw. Set "
            "`eval_prompts`, or `sample_prompts`."
        )
    repeated = next((prompt for i, prompt in enumerate(prompts) if prompt in prompts[:i]), None)
    if repeated is not None:
        source = "eval_prompts" if settings["eval_prompts"] else "sample_prompts"
        raise ValueError(
            f"`{source}` has {shown(repeated)} twice, whose samples would be the same. Set `eval_prompts` to prompts "
            "that differ, and `eval_samples_per_prompt` to how many samples each has."
        )
    _check_evaluates(name, settings)
    if name == "eval_prompts" and per_prompt == 1:
        raise ValueError(
            f"`eval_prompts` is {shown(settings[name])}, `eval_samples_per_prompt` is 1, and there are no "
            "`eval_rewards`: nothing would be measured. Set `eval_samples_per_prompt` to 2 or more for the variety, or "
            "`eval_rewards`."
        )
    if per_prompt < 2 and settings["min_variety"] is not None:
        raise ValueError(
            f"`min_variety` is {settings['min_variety']}, and `eval_samples_per_prompt` is {per_prompt}: variety is "
            "the distance of two samples of a prompt. Set it to 2 or more."
        )


def _check_evaluates(name: str, settings: Mapping[str, Any]) -> None:
    if settings["eval_strategy"] == "no":
        raise ValueError(
            f"`{name}` is {shown(settings[name])}, and nothing is evaluated. Set `eval_strategy='steps'` and "
            "`eval_steps`, and pass an `eval_dataset`."
        )


def _check_choice_of_the_best(name: str, settings: Mapping[str, Any]) -> None:
    _check_evaluates(name, settings)
    if not settings["load_best_model_at_end"]:
        raise ValueError(
            f"`{name}` is {settings[name]}, and `load_best_model_at_end` is False: a run that it ends would keep its "
            "last weights, not its best. Set `load_best_model_at_end=True`, and `save_strategy` and `save_steps` like "
            "`eval_strategy` and `eval_steps`."
        )
    if settings["save_strategy"] == "steps" and settings["save_steps"] != settings["eval_steps"]:
        raise ValueError(
            f"`{name}` is {settings[name]}, `save_steps` is {settings['save_steps']} and `eval_steps` "
            f"{settings['eval_steps']}: the best evaluation may have no checkpoint. Set both to the same, or "
            "`save_strategy='best'`."
        )


def check_source_files(name: str, files: object, prompts_name: str, prompts: object) -> None:
    """Raises a ValueError if there is not a source image's file, or a list of them, for each prompt, where any are."""
    if files is None:
        return
    entries = list(files) if isinstance(files, (list, tuple)) else [None]
    for entry in entries:
        of_prompt = files_of(entry)
        if not of_prompt or not all(isinstance(it, str) and it.strip() for it in of_prompt):
            raise ValueError(
                f"`{name}` is {shown(files)}; it must be a list with a file for each prompt, its source image, or, of "
                """a pipeline that takes several, a list of files; on a command line, '["first.png", "second.png"]'."""
            )
    number = len(prompts) if isinstance(prompts, (list, tuple)) else 0
    if len(entries) != number:
        raise ValueError(
            f"`{name}` has {len(entries)} files, and `{prompts_name}` has {number} prompts. Give one for each prompt, "
            """or of several, a list: '["first.png", "second.png"]' on a command line."""
        )
