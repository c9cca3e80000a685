"""Settings of [`TGOConfig`] that a data set's numbers speak for, each with the reason.

They are rules of thumb. Where nothing speaks against a default, none is given.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...labels.thresholds import mean_threshold
from ..generate.config import SOURCE_COLUMN
from .config import InspectConfig
from .images import ImageSummary
from .rows import LONG_PROMPT, Rows, find_duplicates, prompt_lengths
from .scores import PromptSummary, ScoreSummary, ThresholdRow, WeightRow, even_threshold, weight_rows

DEFAULT_COEFFICIENT = 5.0
EVEN = 0.1
"""How far the positive share may lie from a half before another threshold is looked for."""
FEW_EFFECTIVE = 0.5
"""Below this effective share of rows, a few rows outweigh the rest; of a normal distribution it is 0.73 for c = 5."""
ENOUGH_EFFECTIVE = 0.6
EXCESS_FLIPS = 0.1
LOPSIDED = 0.4
"""Below this share of all weight on positive rows, negatives win: at a half, chance would say so of any data set."""
UNITS = {"none": "score unit", "zscore": "standard deviation", "robust": "interquartile range"}
"""What `confidence_coef` is for each of, by normalisation."""
COEFFICIENTS = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
"""Values of `confidence_coef` that are tried."""
MIN_IMAGES = 4
"""Of each prompt, for a baseline of its own."""
SQUARE_LOSS = 0.1


@dataclass(frozen=True)
class Suggestion:
    """Settings that belong together.

    Attributes:
        settings: of [`TGOConfig`], by name; none if it is something else that should change.
        reason: why, in a sentence or two.
    """

    settings: dict[str, Any]
    reason: str


def suggest_mending(rows: Rows, config: InspectConfig) -> Iterator[Suggestion]:
    """What is wrong with rows, prompts and columns."""
    num_bad = len(set().union(*rows.problems.values()))
    if num_bad:
        yield Suggestion(
            {"on_bad_row": "skip"},
            f"{num_bad} of {rows.num_rows} rows cannot be trained on. Mend them, or leave them out with this setting.",
        )
    defaults = {
        "prompt_column": "prompt", "image_column": "image", "score_column": "score", "score_columns": None,
        "score_combination": "sum", "score_weights": None, "threshold_values": None,
    }  # fmt: skip
    if any(rows.sources):
        defaults["source_column"] = SOURCE_COLUMN
    names = {name: getattr(config, name) for name in defaults}
    changed = {name: value for name, value in names.items() if value != defaults[name]}
    if config.threshold_values is not None:
        changed["threshold_type"] = "value"
    if changed:
        yield Suggestion(changed, "The columns that were looked at.")
    numbers = sorted(set(map(len, rows.sources)))
    if len(numbers) > 1:
        yield Suggestion(
            {},
            f"Rows have {' or '.join(map(str, numbers))} source images, and those of a batch must have as many: train "
            "on the rows of one number at a time.",
        )
    if len(set(rows.scores)) == 1:
        yield Suggestion({}, f"All scores equal {rows.scores[0]:.6g}: there is nothing to learn. Check the scorer.")
    if rows.files and find_duplicates(rows).contradictions:
        yield Suggestion(
            {},
            "Some images of a prompt come again with another score. To average them: `tgo-trl convert` with `layout: "
            "ratings` and the score's column among `annotation_columns`.",
        )
    num_long = prompt_lengths(rows.prompts).num_long
    if num_long:
        yield Suggestion(
            {},
            f"{num_long} prompts have more than {LONG_PROMPT} words. CLIP text encoders (Stable Diffusion 1.5, SDXL) "
            "read 77 tokens, and nothing of the rest.",
        )


def suggest_threshold(scores: Tensor, rows: list[ThresholdRow]) -> Suggestion | None:
    """The given threshold, or one between two scores, if the median leaves one side empty or much smaller."""
    given = [row for row in rows if row.name == "given"]
    if given:
        settings = {"threshold_type": "value", "threshold_value": given[0].threshold}
        return Suggestion(settings, f"As given; it makes {_percent(given[0].positive_share)} of the rows positive.")
    median = next(row for row in rows if row.name == "median")
    even = even_threshold(scores)
    share = (scores >= even).double().mean().item()
    if abs(median.positive_share - 0.5) <= max(EVEN, abs(share - 0.5)):
        return None
    if median.positive_share in (0.0, 1.0):
        reason = (
            f"The median, {median.threshold:.6g}, makes every row {'positive' if median.positive_share else 'negative'}"
            ", which training refuses"
        )
    else:
        reason = f"Many scores equal the median, {median.threshold:.6g}: {_percent(median.positive_share)} are positive"
    return Suggestion(
        {"threshold_type": "value", "threshold_value": even},
        f"{reason}. A threshold of {even:.6g} makes {_percent(share)} positive.",
    )


def suggest_prompt_mean(summary: PromptSummary | None) -> Suggestion | None:
    """A threshold for each prompt, if labels depend on it by more than chance, and every prompt allows it."""
    if summary is None or summary.excess_flips < EXCESS_FLIPS:
        return None
    reason = (
        f"Scores depend on the prompt ({_percent(summary.between_share)} of their variance): a threshold for each "
        f"changes {_percent(summary.flipped_by_mean)} of the labels, where chance would change "
        f"{_percent(summary.flipped_by_chance)}. With one for all, training mostly learns which prompts score well"
    )
    if summary.num_single or summary.images[0] < MIN_IMAGES:
        return Suggestion(
            {},
            f"{reason}. It would need several images of every prompt, better {MIN_IMAGES} or more: "
            f"{summary.num_single} of {summary.num_prompts} have one, the fewest is {summary.images[0]}. Draw more of "
            "them, or drop those prompts, and set `threshold_type='prompt_mean'`.",
        )
    return Suggestion({"threshold_type": "prompt_mean"}, f"{reason}.")


def suggest_weights(scores: Tensor, summary: ScoreSummary, threshold: float) -> Suggestion | None:
    """Units for `confidence_coef`, if 5 for each score unit is next to nothing or far too much, or tails are long."""
    plain, standard = (weight_rows(scores, threshold, [DEFAULT_COEFFICIENT], [kind])[0] for kind in ("none", "zscore"))
    if standard.effective_share < FEW_EFFECTIVE:
        return _suggest_lighter_tail(scores, threshold, standard)
    middle, equal = plain.quartiles[2], DEFAULT_COEFFICIENT / summary.std
    if middle < 1.5:
        reason = (
            f"`confidence_coef` acts in score units, of which these scores span few: half of the weights lie between 1 "
            f"and {middle:.3g}, as if they were all equal"
        )
    elif middle > 15:
        reason = (
            f"`confidence_coef` acts in score units, of which these scores span many: weights up to "
            f"{plain.quartiles[4]:.3g}, {middle:.3g} in the middle, multiply the loss"
        )
    else:
        return None
    return Suggestion(
        {"score_normalization": "zscore"},
        f"{reason}. Standardised, half lie between {standard.quartiles[1]:.3g} and {standard.quartiles[3]:.3g}. "
        f"`confidence_coef={equal:.3g}` without normalisation gives the same weights.",
    )


def _suggest_lighter_tail(scores: Tensor, threshold: float, standard: WeightRow) -> Suggestion:
    reason = (
        f"A few scores lie far from the threshold: with `confidence_coef=5` for each standard deviation, 1 % of the "
        f"rows have {_percent(standard.top_share)} of the weight, and all count as much as "
        f"{_percent(standard.effective_share)} of them would with equal weights"
    )
    rows = weight_rows(scores, threshold, COEFFICIENTS, ["robust"]) or weight_rows(
        scores, threshold, COEFFICIENTS, ["zscore"]
    )
    enough = [row for row in rows if row.effective_share >= ENOUGH_EFFECTIVE] or rows[-1:]
    even = [row for row in enough if row.positive_share >= LOPSIDED]
    row = (even or enough)[0]
    left = _percent(row.effective_share)
    if even and min(standard.positive_share, enough[0].positive_share) < LOPSIDED:
        reason += f". {_negatives_win(standard).capitalize()}"
        left += f" of the rows, and negative ones {_percent(1 - row.positive_share)} of the weight"
    return Suggestion(
        {"score_normalization": row.normalization, "confidence_coef": row.coefficient},
        f"{reason}. {row.coefficient:g} for each {UNITS[row.normalization]} leaves {left}. Better still, bound the "
        "scores where they come from.",
    )


def suggest_balance(
    scores: Tensor, threshold: float, settings: Mapping[str, Any], are_leads: bool = False
) -> Suggestion | None:
    """A smaller `confidence_coef`, or balanced negative rows, if these have far more of the weight than positive ones.

    Near the reference, the curvature of the loss is about `beta / T` times the positives' weight less the negatives'.

    Args:
        scores: float64 `[N]`, not all equal.
        threshold: in score units, with rows on both sides.
        settings: what is suggested already, by name.
        are_leads: whether the scores are leads of votes, which do not tell what thresholds at the means would change.
    """
    kind = settings.get("score_normalization", "none")
    coefficient = settings.get("confidence_coef", DEFAULT_COEFFICIENT)
    (row,) = weight_rows(scores, threshold, [coefficient], [kind])
    if row.positive_share >= LOPSIDED:
        return None
    reason = f"With `confidence_coef={coefficient:g}` for each {UNITS[kind]}, {_negatives_win(row)}"
    smaller = [] if "confidence_coef" in settings else [c for c in COEFFICIENTS if c < coefficient]
    even = [tried for tried in weight_rows(scores, threshold, smaller, [kind]) if tried.positive_share >= LOPSIDED]
    if even:
        found, share = even[0].coefficient, _percent(1 - even[0].positive_share)
        return Suggestion({"confidence_coef": found}, f"{reason}. {found:g} leaves them {share}.")
    share = _percent((scores >= threshold).double().mean().item())
    times = row.positive_share / (1 - row.positive_share)
    reason = (
        f"{reason}. With {share} of the rows positive, no `confidence_coef` mends that. Balanced, a negative row "
        f"counts {times:.2g} times, and both sides weigh the same; `recipe='robust'` does that too"
    )
    mean = mean_threshold(scores).item()
    around = weight_rows(scores, mean, [coefficient], [kind])  # distances to the mean sum to the same on both sides
    if not are_leads and around and around[0].positive_share >= LOPSIDED:
        left = _percent(1 - around[0].positive_share)
        reason += f". A threshold at the mean, `threshold_type='mean'`, would leave them {left} without"
    return Suggestion({"negative_weight": "balanced"}, f"{reason}.")


def _negatives_win(row: WeightRow) -> str:
    return (
        f"negative rows have {_percent(1 - row.positive_share)} of the weight, and win at the start: the loss begins "
        "on a hill, and falls wherever the policy leaves the reference, toward good images or not"
    )


def suggest_image_size(images: ImageSummary | None) -> list[Suggestion]:
    """Settings for images that are not squares of the pipeline's size."""
    if images is None:
        return []
    if images.single_size is not None:
        width, height = images.single_size
        if width == height:
            return [Suggestion({"resolution": width}, f"All images are {width} x {height}; the pipeline's own size, if "
                               "that is what they were drawn with, need not be set.")]  # fmt: skip
        return [Suggestion({"height": height, "width": width}, f"All images are {width} x {height}. Without these "
                           f"settings, a square crop cuts off {_percent(images.square_loss)} of each.")]  # fmt: skip
    if images.square_loss < SQUARE_LOSS:
        return []
    settings: dict[str, Any] = {"aspect_ratio_buckets": True}
    if images.elongation > 2:
        settings["max_aspect_ratio"] = min(4.0, math.ceil(4 * images.elongation) / 4)
    return [
        Suggestion(
            settings,
            f"Images have {images.num_sizes} sizes, with aspect ratios from {images.aspect_ratio[0]:.2f} to "
            f"{images.aspect_ratio[2]:.2f}: a square crop cuts off {_percent(images.square_loss)} of them on average.",
        )
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
