"""The evaluations of a run, read from its log, which every checkpoint holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .selection import OF_THE_REFERENCE, SAMPLES, VARIETY, Bounds, largest_drift

EVALUATIONS_NAME = "evaluations.png"


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
