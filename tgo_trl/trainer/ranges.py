"""Between what the numbers of a configuration have to be, also those that it inherits; told before all else."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        low: the least.
        high: the most.
        has_low: whether it may be the least.
        has_high: whether it may be the most.
        hint: behind what is said of it.
    """

    low: float
    high: float = math.inf
    has_low: bool = True
    has_high: bool = True
    hint: str = "."

    def __contains__(self, value: Any) -> bool:
        above = value >= self.low if self.has_low else value > self.low
        return bool(above and (value <= self.high if self.has_high else value < self.high)) and math.isfinite(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'at least' if self.has_low else 'greater than'} {self.low:g} and finite"
        if self.has_low:
            return f"from {self.low:g} to {'' if self.has_high else 'below '}{self.high:.10g}"
        first, then = ("above", ", up to") if self.has_high else ("between", " and")
        return f"{first} {self.low:g}{then} {self.high:g}"


SHARE = Range(0, 1, has_high=False)
RANGES = {
    "confidence_coef": Range(0),
    "lora_dropout": SHARE,
    "threshold_percentile": Range(0, 100),
    "ema_decay": Range(
        0, 1, False, False, ", such as 0.99 for a run of some hundred updates. Leave it out for no average."
    ),
    "ref_model_mixup_alpha": Range(0, 1, has_low=False),
    "max_aspect_ratio": Range(1),
    "pair_margin": Range(0),
    "train_guidance_scale": Range(0),
    "mode_scale": Range(-1, 1.75, hint=", or some times are lost."),
    # what transformers leaves to the optimizer and the loop to find
    "learning_rate": Range(0),
    "weight_decay": Range(0),
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": Range(0),
    "max_grad_norm": Range(0),
    "warmup_steps": Range(0),
    "per_device_train_batch_size": Range(1),
    "per_device_eval_batch_size": Range(1),
    "gradient_accumulation_steps": Range(1),
    "dataloader_num_workers": Range(0),
    "dataloader_prefetch_factor": Range(1),
    "seed": Range(0, 2**32 - 1),
    "data_seed": Range(0, 2**32 - 1),
}
"""By setting; None is not set, and goes."""


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for a number that is out of its range.

    Args:
        settings: by name.
    """
    for name, allowed in RANGES.items():
        value = settings[name]
        if value is not None and value not in allowed:
            raise ValueError(f"`{name}` is {value}; it must be {allowed}{allowed.hint}")
