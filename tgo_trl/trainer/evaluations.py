"""The evaluations of a run, read from its log, which every checkpoint holds."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .selection import OF_THE_REFERENCE, SAMPLES, VARIETY, Bounds, largest_drift

EVALUATIONS_NAME = "evaluations.png"
Ways: TypeAlias = Sequence[tuple[int, Mapping[str, str]]]
"""After which updates metrics of samples were measured in another way than before, and digests of the ways by name."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured after an update.

    Attributes:
        step: the update.
        metrics: of all data sets, by name, which begins with `eval_`.
    """

    step: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> dict[str, tuple[float, float]]:
        """Mean reward of the policy's samples and of the reference's, by the reward's name."""
        start = f"eval_{SAMPLES}"
        found = {}
        for name, value in self.metrics.items():
            of_the_reference = self.metrics.get(f"{name}{OF_THE_REFERENCE}")
            if name.startswith(start) and of_the_reference is not None:
                found[name.removeprefix(start)] = (value, of_the_reference)
        return found

    @property
    def variety(self) -> float | None:
        """Of the samples, as a share of the reference's; None without samples."""
        return self.metrics.get(f"eval_{VARIETY}")

    @property
    def drifts(self) -> dict[int, float]:
        """The largest drift of all data sets by quartile, from 1 to 4."""
        quartiles = {
            i: {name: value for name, value in self.metrics.items() if re.search(rf"_drift/quartile_{i}$", name)}
            for i in (1, 2, 3, 4)
        }
        return {i: max(values.values()) for i, values in quartiles.items() if values}

    def rows(self, bounds: Bounds) -> dict[str, str]:
        """Name and value of each line of the card's table."""
        rows = {
            f"{name}, mean over samples": f"{policy:.4g} (reference: {reference:.4g})"
            for name, (policy, reference) in self.rewards.items()
        }
        if self.variety is not None:
            bound = "" if bounds.min_variety is None else f" (bound: {bounds.min_variety:g})"
            rows["variety of samples, as a share of the reference's"] = f"{self.variety:.4g}{bound}"
        drift = largest_drift(self.metrics)
        if drift is not None:
            bound = "" if bounds.max_drift is None else f" (bound: {bounds.max_drift:g})"
            rows["largest drift of a quartile of time"] = f"{drift[1]:.4g}{bound}"
        return rows


def read_evaluations(history: Sequence[Mapping[str, float]]) -> list[Evaluation]:
    """The evaluations of a log, in the order of their updates.

    Of what is measured twice after the same update the first counts: what is evaluated when a run is over may be of the
    best weights instead of the last.
    """
    by_step: dict[int, Evaluation] = {}
    for entry in history:
        metrics = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if metrics:
            evaluation = by_step.setdefault(int(entry["step"]), Evaluation(int(entry["step"])))
            for name, value in metrics.items():
                evaluation.metrics.setdefault(name, value)
    return [by_step[step] for step in sorted(by_step)]


def evaluation_after(step: int, history: Sequence[Mapping[str, float]]) -> Evaluation:
    """What was measured after an update; without metrics if it was not evaluated."""
    return next((it for it in read_evaluations(history) if it.step == step), Evaluation(step))


def comparable_evaluations(history: Sequence[Mapping[str, float]], ways: Ways) -> list[Evaluation]:
    """The evaluations of a log, without metrics of samples that were measured in another way than now."""
    found = []
    for evaluation in read_evaluations(history):
        then = next((way for after, way in reversed(ways) if after < evaluation.step), None)
        others = set() if then is None else {f"eval_{name}" for name in then if then[name] != ways[-1][1].get(name)}
        metrics = {
            name: value
            for name, value in evaluation.metrics.items()
            if name.removesuffix(OF_THE_REFERENCE) not in others
        }
        found.append(Evaluation(evaluation.step, metrics))
    return found


@dataclass(frozen=True)
class Choice:
    """Which evaluation is the best one, and how many came after it.

    Attributes:
        metric: of the best; infinite if none had a finite one, None if none was inside the bounds.
        step: of the best; None if there is none.
        num_since: evaluations in a row, up to the last, that were no better.
    """

    metric: float | None = None
    step: int | None = None
    num_since: int = 0


def choose(
    evaluations: Sequence[Evaluation], metric: str, greater_is_better: bool, bounds: Bounds, kept: Sequence[int]
) -> Choice:
    """What a run would have chosen, had it been evaluated under these bounds and by this metric.

    Args:
        evaluations: in the order of their updates; those without the metric do not count.
        metric: `metric_for_best_model`, with `eval_` or without.
        greater_is_better: for this metric.
        bounds: of the best.
        kept: updates whose checkpoints are still there; others are not chosen.
    """
    name, sign = f"eval_{metric.removeprefix('eval_')}", 1 if greater_is_better else -1
    choice = Choice()
    for evaluation in evaluations:
        if name not in evaluation.metrics or evaluation.step == 0:  # not up for the best before the first update
            continue
        value, best = evaluation.metrics[name], choice.metric
        is_inside = bounds.covered(evaluation.metrics) and not bounds.broken(evaluation.metrics)
        if is_inside and evaluation.step in kept and sign * value > (-math.inf if best is None else sign * best):
            choice = Choice(value, evaluation.step)
        else:
            lowest = -sign * math.inf if is_inside and best is None else best
            choice = Choice(lowest, choice.step, 0 if best is None else choice.num_since + 1)
    return choice
