"""What was measured at each scale, and the rule that suggests one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...measures.bootstrap import interval


@dataclass(frozen=True)
class ScaleRow:
    """What was measured at one scale.

    Attributes:
        scale: weight of the adapter; 0 is the base.
        reward: mean of the first reward, over prompts.
        interval: 95 % interval of that mean, over prompts.
        other_rewards: means of the other rewards, by name.
        variety: mean distance of two samples of a prompt over the base's.
        drift: denoising error over the base's, by quartile of the time.
    """

    scale: float
    reward: float
    interval: tuple[float, float]
    other_rewards: dict[str, float]
    variety: float
    drift: list[float]

    def is_within(self, min_variety: float, max_drift: float) -> bool:
        """Whether it keeps both bounds; not if something is NaN."""
        return self.variety >= min_variety and all(value <= max_drift for value in self.drift)


@dataclass(frozen=True)
class Suggestion:
    """What to do with the adapter.

    Attributes:
        scale: to apply it at; None if it should not be used as it is.
        reason: in a sentence or two.
        within_bounds: the scales that were chosen from.
    """

    scale: float | None
    reason: str
    within_bounds: list[float]


@dataclass(frozen=True)
class StrengthReport:
    """The curve of an adapter, and what is suggested.

    Attributes:
        model, adapter: their Hub ids, or names of their folders.
        reward: the name of the reward that decides.
        num_prompts, num_images_per_prompt: that were sampled at each scale.
        drift_rows: what drift was measured on, in words.
        min_variety, max_drift: bounds of the suggestion.
        rows: by scale, the base first.
        suggestion: of one of them.
        code: what applies it, as Python with the variable `pipeline`; None if none is suggested.
    """

    model: str
    adapter: str
    reward: str
    num_prompts: int
    num_images_per_prompt: int
    drift_rows: str
    min_variety: float
    max_drift: float
    rows: list[ScaleRow]
    suggestion: Suggestion
    code: str | None


def suggest_scale(rows: Sequence[ScaleRow], means: Tensor, min_variety: float, max_drift: float) -> Suggestion:
    """The smallest scale within the bounds whose reward is as good as that of the best one within them.

    As good is a scale if the 95 % interval of its difference from the best one, prompt by prompt, reaches 0. The base
    is within all bounds; where it is as good as any other, the adapter has nothing to offer.

    Args:
        rows: what was measured, by scale, the base first.
        means: `[S, R]`, of [`resampled_means`].
        min_variety: as a share of the base's.
        max_drift: as a multiple of the base's error, in every quartile.
    """
    kept = [i for i, row in enumerate(rows) if row.is_within(min_variety, max_drift)]
    within = [rows[i].scale for i in kept]
    best = max(kept, key=lambda i: (rows[i].reward, -rows[i].scale))
    as_good = [i for i in kept if i == best or interval(means[i] - means[best])[1] >= 0]
    chosen = rows[min(as_good, key=lambda i: rows[i].scale)]
    if within == [0.0]:
        return Suggestion(None, _why_none_is_within(rows, min_variety, max_drift), within)
    if chosen.scale == 0:
        return Suggestion(None, _why_the_base_is_as_good(rows, rows[best]), within)
    return Suggestion(chosen.scale, _why(chosen, rows, rows[best], within), within)


def _why_none_is_within(rows: Sequence[ScaleRow], min_variety: float, max_drift: float) -> str:
    first = next(row for row in rows if row.scale > 0)
    faults = []
    if not first.variety >= min_variety:
        faults.append(f"variety is {first.variety:.3g} times the base's (at least {min_variety:g} is asked for)")
    if not all(value <= max_drift for value in first.drift):
        faults.append(f"drift is {max(first.drift):.3g} (at most {max_drift:g})")
    return (
        f"The adapter should not be used as it is: no scale keeps within the bounds. At {first.scale:g}, the smallest, "
        f"{' and '.join(faults)}. Measure smaller scales (`--scales {first.scale / 4:g} {first.scale / 2:g}`); train "
        "again with `recipe='robust'`, a higher `beta` or fewer updates; or look at the samples, and widen the bounds "
        "if they are what you want."
    )


def _why_the_base_is_as_good(rows: Sequence[ScaleRow], best: ScaleRow) -> str:
    base = rows[0]
    text = (
        "The adapter should not be used as it is: no scale within the bounds has a reward that is measurably higher "
        f"than the base's {base.reward:.4g}"
    )
    text += "." if best is base else f", the best, {best.scale:g}, having {best.reward:.4g}."
    highest = max(rows, key=lambda row: row.reward)
    if highest.scale not in (best.scale, base.scale):
        return (
            f"{text} Outside them, {highest.scale:g} has {highest.reward:.4g}: train again with a higher `beta` or "
            "`recipe='robust'`, or look at its samples and widen the bounds."
        )
    return f"{text} Train longer or at a higher learning rate; or measure more prompts, which tell smaller gains apart."


def _why(chosen: ScaleRow, rows: Sequence[ScaleRow], best: ScaleRow, within: Sequence[float]) -> str:
    text = f"At {chosen.scale:g} the reward is {chosen.reward:.4g}, the base's is {rows[0].reward:.4g}; "
    if chosen is best:
        text += "no other scale within the bounds has a higher one."
    else:
        text += (
            f"{best.scale:g} has {best.reward:.4g}, the highest within the bounds, which is not measurably more: the "
            "smaller change is enough."
        )
    if chosen.scale == rows[-1].scale:
        text += " It is the largest scale that was measured: larger ones may be better still."
    outside = [row for row in rows if row.scale not in within]
    if outside:
        text += f" Outside the bounds: {', '.join(f'{row.scale:g}' for row in outside)}."
    return text
