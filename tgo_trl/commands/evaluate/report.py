"""What the scores say: means, medians, win rates and varieties of the models, with intervals over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...measures import Estimate, interval, resampled_means, resampled_medians, wins


@dataclass(frozen=True)
class RewardResults:
    """What one reward says, by the labels of the models.

    Attributes:
        means, medians: over all samples.
        differences: of the mean from the baseline's, prompt by prompt; the baseline itself has none.
        win_rates: of each model (outer) against each other (inner), on the same prompts and seeds; ties count half.
        ties: the share of samples that score the same, likewise.
    """

    means: dict[str, Estimate]
    medians: dict[str, Estimate]
    differences: dict[str, Estimate]
    win_rates: dict[str, dict[str, Estimate]]
    ties: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Results:
    """What was found on some prompts.

    Attributes:
        num_prompts: that were sampled.
        rewards: by the name of the reward.
        varieties: mean distance of two samples of a prompt, by label; empty with one sample of each prompt.
        relative_varieties: likewise, over the baseline's; empty too if the baseline draws some prompts without any.
    """

    num_prompts: int
    rewards: dict[str, RewardResults]
    varieties: dict[str, Estimate]
    relative_varieties: dict[str, Estimate]


@dataclass(frozen=True)
class EvaluationReport:
    """The comparison, as it stands in `evaluation.json`.

    Attributes:
        models: by label, in order, how each was sampled: settings, digests of its weights, versions of libraries.
        baseline: the label of the model that others are compared with.
        rewards: by name, what is recorded of each.
        prompts: source, number and fingerprint of the prompts, and the number of each category.
        num_images_per_prompt, seed, num_resamples: as set.
        overall: on all prompts.
        categories: on those of each category.
    """

    models: dict[str, dict[str, Any]]
    baseline: str
    rewards: dict[str, dict[str, Any]]
    prompts: dict[str, Any]
    num_images_per_prompt: int
    seed: int
    num_resamples: int
    overall: Results
    categories: dict[str, Results]

    @property
    def labels(self) -> list[str]:
        """Of the models, in order."""
        return list(self.models)

    @property
    def others(self) -> list[str]:
        """The labels without the baseline's."""
        return [label for label in self.models if label != self.baseline]


@dataclass(frozen=True)
class Measured:
    """What was measured of each sample or prompt.

    Attributes:
        labels: of the models, `M`.
        scores: by reward, float64 `[M, P, K]`.
        varieties: float64 `[M, P]`; None with one sample of each prompt.
    """

    labels: Sequence[str]
    scores: Mapping[str, Tensor]
    varieties: Tensor | None

    def of(self, prompts: Sequence[int]) -> "Measured":
        """The same of some prompts."""
        chosen = list(prompts)
        varieties = None if self.varieties is None else self.varieties[:, chosen]
        return Measured(self.labels, {name: values[:, chosen] for name, values in self.scores.items()}, varieties)


def find_results(measured: Measured, baseline: str, num_resamples: int, seed: int) -> Results:
    """What the measurements say of the prompts that they are of.

    Args:
        measured: of all models, on the same prompts and seeds.
        baseline: a label.
        num_resamples: of the prompts; a single one is not drawn anew.
        seed: of the resampling, which is the same for all that is estimated.
    """
    if next(iter(measured.scores.values())).shape[1] == 1:
        num_resamples = 1
    labels, base = measured.labels, list(measured.labels).index(baseline)
    varieties: dict[str, Estimate] = {}
    relative: dict[str, Estimate] = {}
    if measured.varieties is not None:
        found = measured.varieties
        resampled = resampled_means(found, num_resamples, seed)
        varieties = dict(zip(labels, _estimates(found.mean(1), resampled, found.shape[1]), strict=True))
        if resampled[base].min() > 0:
            ratios, resampled_ratios = found.mean(1) / found.mean(1)[base], resampled / resampled[base]
            relative = dict(zip(labels, _estimates(ratios, resampled_ratios, found.shape[1]), strict=True))
    return Results(
        num_prompts=next(iter(measured.scores.values())).shape[1],
        rewards={
            name: _reward_results(values, labels, base, num_resamples, seed) for name, values in measured.scores.items()
        },
        varieties=varieties,
        relative_varieties=relative,
    )


def _reward_results(scores: Tensor, labels: Sequence[str], base: int, num_resamples: int, seed: int) -> RewardResults:
    num_models, num_prompts, _ = scores.shape
    pairs = [(i, j) for i in range(num_models) for j in range(i)]
    means = scores.mean(-1)
    won = [wins(scores[i], scores[j]).mean(-1) for i, j in pairs]
    by_prompt = torch.cat([means, means - means[base], *(values[None] for values in won)])
    found = _estimates(by_prompt.mean(1), resampled_means(by_prompt, num_resamples, seed), num_prompts)
    medians = torch.from_numpy(np.median(scores.flatten(1).numpy(), axis=1))
    resampled = resampled_medians(scores, num_resamples, seed)

    win_rates: dict[str, dict[str, Estimate]] = {label: {} for label in labels}
    ties: dict[str, dict[str, float]] = {label: {} for label in labels}
    for (i, j), rate in zip(pairs, found[2 * num_models :], strict=True):
        win_rates[labels[i]][labels[j]], win_rates[labels[j]][labels[i]] = rate, _other_side(rate)
        share = (scores[i] == scores[j]).double().mean().item()
        ties[labels[i]][labels[j]] = ties[labels[j]][labels[i]] = share
    differences = zip(labels, found[num_models : 2 * num_models], strict=True)
    return RewardResults(
        means=dict(zip(labels, found[:num_models], strict=True)),
        medians=dict(zip(labels, _estimates(medians, resampled, num_prompts), strict=True)),
        differences={label: value for label, value in differences if label != labels[base]},
        win_rates=win_rates,
        ties=ties,
    )


def _estimates(values: Tensor, resampled: Tensor, num_prompts: int) -> list[Estimate]:
    """Each value `[S]` with the interval of its resampled statistic, a row of `[S, R]`."""
    return [
        Estimate(value, interval(row) if num_prompts > 1 else None)
        for value, row in zip(values.tolist(), resampled, strict=True)
    ]


def _other_side(rate: Estimate) -> Estimate:
    turned = None if rate.interval is None else (1 - rate.interval[1], 1 - rate.interval[0])
    return Estimate(1 - rate.value, turned)
