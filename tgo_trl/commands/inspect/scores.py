"""What a data set's scores would do in training: thresholds, weights, and how much of them is the prompt's doing.

Everything is computed as training does it, by the same [`LabelRule`].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...labels import NORMALIZATIONS
from ...labels.normalization import center_and_scale
from ...labels.rule import LabelRule
from ...labels.thresholds import mean_threshold, percentile_threshold, prompt_baseline

PERCENTILES = (10, 25, 50, 75, 90)
COEFFICIENTS = (0.0, 1.0, 5.0, 10.0)
NUM_SHUFFLES = 5


@dataclass(frozen=True)
class ScoreSummary:
    """Of `N` scores, in score units.

    Attributes:
        minimum, maximum, mean, std: of the scores.
        percentiles: by percent.
        num_distinct: different values.
        most_common, most_common_share: the most frequent value, and its share of the rows.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: dict[int, float]
    num_distinct: int
    most_common: float
    most_common_share: float


@dataclass(frozen=True)
class ThresholdRow:
    """A threshold that training could use.

    Attributes:
        name: what it is.
        threshold: in score units.
        positive_share: of the rows that score at least as much.
    """

    name: str
    threshold: float
    positive_share: float


@dataclass(frozen=True)
class WeightRow:
    """The weights that one normalisation and one coefficient give.

    Attributes:
        normalization: of the scores.
        coefficient: `c`.
        quartiles: minimum, 25 %, 50 %, 75 % and maximum of the weights.
        effective_share: `(sum w)^2 / (N sum w^2)`, the share of the rows that equal weights would need to average as
            well; 1 for equal weights.
        top_share: share of all weight that the 1 % of the rows with the largest have.
        positive_share: share of all weight that positive rows have.
    """

    normalization: str
    coefficient: float
    quartiles: tuple[float, float, float, float, float]
    effective_share: float
    top_share: float
    positive_share: float


@dataclass(frozen=True)
class PromptSummary:
    """Scores within and between the prompts that have several images.

    Attributes:
        num_prompts, num_single: all prompts, and those with a single image.
        images: minimum, median and maximum of the images of a prompt.
        baseline_percentiles: of `beta log mean exp(s / beta)` over those prompts, by percent, in score units.
        mean_percentiles: likewise of the mean score of each.
        within_std: standard deviation of scores around their prompt's mean (pooled, unbiased), in score units.
        between_share: share of the variance of scores that lies between prompts, `v_b / (v_b + v_w)` of the one-way
            analysis of variance with random prompts; 0 if scores do not depend on the prompt, 1 if on nothing else.
        baseline_positive_share: positive rows if each prompt's baseline is its threshold.
        flipped_by_baseline, flipped_by_mean: share of rows whose label differs from the global threshold's, if the
            threshold is each prompt's baseline, or its mean.
        flipped_by_chance: what the latter would be if scores did not depend on the prompt, by shuffling them.
    """

    num_prompts: int
    num_single: int
    images: tuple[int, float, int]
    baseline_percentiles: dict[int, float]
    mean_percentiles: dict[int, float]
    within_std: float
    between_share: float
    baseline_positive_share: float
    flipped_by_baseline: float
    flipped_by_mean: float
    flipped_by_chance: float

    @property
    def excess_flips(self) -> float:
        """Labels that depend on the prompt's own threshold, beyond the noise of estimating it."""
        return self.flipped_by_mean - self.flipped_by_chance


def summarize_scores(scores: Tensor) -> ScoreSummary:
    """The summary of float64 `[N]`."""
    values, counts = distinct(scores)
    top = int(counts.argmax())
    return ScoreSummary(
        minimum=scores.min().item(),
        maximum=scores.max().item(),
        mean=scores.mean().item(),
        std=scores.std(correction=0).item(),
        percentiles=_percentiles(scores),
        num_distinct=len(values),
        most_common=values[top].item(),
        most_common_share=counts[top].item() / len(scores),
    )


def threshold_rows(scores: Tensor, value: float | None = None) -> list[ThresholdRow]:
    """The usual thresholds and what they make positive; `value` is one more."""
    named = [("median" if p == 50 else f"percentile {p}", percentile_threshold(scores, p)) for p in PERCENTILES]
    named.append(("mean", mean_threshold(scores)))
    if value is not None:
        named.append(("given", torch.tensor(value, dtype=scores.dtype)))
    return [ThresholdRow(name, tau.item(), _share(scores >= tau)) for name, tau in named]


def even_threshold(scores: Tensor) -> float:
    """The middle between two neighbouring scores that splits the rows most evenly, float64 `[N]`, not all equal."""
    values, counts = distinct(scores)
    positive = 1 - counts.cumsum(0)[:-1] / len(scores)
    best = int((positive - 0.5).abs().argmin())
    return 0.5 * (values[best].item() + values[best + 1].item())


def distinct(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The different values of float `[N]` in order, and how often each occurs, int64."""
    values, counts = torch.unique(scores, return_counts=True)
    return values, counts


def weight_rows(
    scores: Tensor,
    threshold: float,
    coefficients: Sequence[float] = COEFFICIENTS,
    normalizations: Sequence[str] = NORMALIZATIONS,
) -> list[WeightRow]:
    """The weights of each combination; a normalisation that the scores do not allow is left out.

    Args:
        scores: float64 `[N]`, not all equal.
        threshold: in score units, with rows on both sides.
        coefficients: values of `c`.
        normalizations: of [`NORMALIZATIONS`].
    """
    rows = []
    for normalization in normalizations:
        for coefficient in coefficients:
            weights = training_weights(scores, threshold, coefficient, normalization)
            if weights is not None:
                rows.append(_weight_row(weights, scores >= threshold, normalization, coefficient))
    return rows


def training_weights(scores: Tensor, threshold: float, coefficient: float, normalization: str) -> Tensor | None:
    """The weights of training, float64 `[N]`; None if the scores do not allow the normalisation."""
    center, scale = center_and_scale(scores, normalization)
    thresholds = torch.tensor(threshold, dtype=torch.float64)
    rule = LabelRule.at(thresholds, scores, confidence_coef=coefficient, center=center, scale=scale)
    if scale == 0 or rule.is_one_sided:
        return None
    return rule.apply(scores, [""] * len(scores)).weights.double()


def summarize_prompts(scores: Tensor, prompts: Sequence[str], threshold: float, beta: float) -> PromptSummary | None:
    """How scores lie within and between prompts; None if no prompt, or a single one, has several images.

    Args:
        scores: float64 `[N]`, in score units.
        prompts: `N` prompts.
        threshold: the global one, in score units.
        beta: `beta`, in score units.
    """
    counts = Counter(prompts)
    repeated = {prompt: i for i, prompt in enumerate(prompt for prompt, count in counts.items() if count > 1)}
    if len(repeated) < 2:
        return None
    kept = torch.tensor([i for i, prompt in enumerate(prompts) if prompt in repeated])
    index = torch.tensor([repeated[prompt] for prompt in prompts if prompt in repeated])
    scores = scores[kept]
    sizes = index.bincount().double()
    baselines = prompt_baseline(scores, index, beta)
    means = _group_means(scores, index, sizes)
    is_positive = scores >= threshold
    number = torch.tensor(sorted(counts.values()), dtype=torch.float64)
    within, between = _variances(scores, means, sizes)
    some_row = torch.zeros(len(sizes), dtype=torch.int64).scatter_(0, index, torch.arange(len(index)))
    return PromptSummary(
        num_prompts=len(counts),
        num_single=len(counts) - len(repeated),
        images=(int(number[0]), percentile_threshold(number, 50).item(), int(number[-1])),
        baseline_percentiles=_percentiles(baselines[some_row]),
        mean_percentiles=_percentiles(means[some_row]),
        within_std=within**0.5,
        between_share=between / (between + within) if between + within > 0 else 0.0,
        baseline_positive_share=_share(scores >= baselines),
        flipped_by_baseline=_share((scores >= baselines) != is_positive),
        flipped_by_mean=_share(_reaches(scores, means) != is_positive),
        flipped_by_chance=_flipped_by_chance(scores, index, sizes, threshold),
    )


def _group_means(scores: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
    return (scores.new_zeros(len(sizes)).index_add(0, index, scores) / sizes)[index]


def _reaches(scores: Tensor, means: Tensor) -> Tensor:
    """Whether scores are at least their mean, which rounding may have put above equal ones."""
    return scores >= means - 1e-12 * scores.abs().max()


def _variances(scores: Tensor, means: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Unbiased variance within prompts and between them, of a one-way analysis of variance with random prompts."""
    num_rows, num_prompts = len(scores), len(sizes)
    within = ((scores - means) ** 2).sum().item() / (num_rows - num_prompts)
    mean_square = ((means - scores.mean()) ** 2).sum().item() / (num_prompts - 1)
    images = (num_rows - (sizes**2).sum().item() / num_rows) / (num_prompts - 1)
    return within, max(0.0, (mean_square - within) / images)


def _flipped_by_chance(scores: Tensor, index: Tensor, sizes: Tensor, threshold: float) -> float:
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(NUM_SHUFFLES):
        shuffled = scores[torch.randperm(len(scores), generator=generator)]
        shares.append(_share(_reaches(shuffled, _group_means(shuffled, index, sizes)) != (shuffled >= threshold)))
    return sum(shares) / NUM_SHUFFLES


def _weight_row(weights: Tensor, is_positive: Tensor, normalization: str, coefficient: float) -> WeightRow:
    total = weights.sum()
    largest = weights.sort(descending=True).values[: max(1, round(0.01 * len(weights)))]
    low, first, middle, third, high = (percentile_threshold(weights, p).item() for p in (0, 25, 50, 75, 100))
    return WeightRow(
        normalization=normalization,
        coefficient=coefficient,
        quartiles=(low, first, middle, third, high),
        effective_share=(total**2 / (len(weights) * (weights**2).sum())).item(),
        top_share=(largest.sum() / total).item(),
        positive_share=(weights[is_positive].sum() / total).item(),
    )


def _percentiles(values: Tensor) -> dict[int, float]:
    return {p: percentile_threshold(values, p).item() for p in PERCENTILES}


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
