"""What rounds brought: of each, the scores it was trained on and what was measured of its policy; and which is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...measures import Estimate


@dataclass(frozen=True)
class Measurement:
    """What was measured of a policy, on the same prompts and seeds as of the base.

    Attributes:
        rewards: mean of each reward, by its name, in its own units.
        base_rewards: those of the base.
        variety: mean distance of two samples of a prompt over the base's; None with one sample of each, or of a base
            that draws some prompts without any.
        drift: error in denoising samples of the base over the base's own, by quartile of the time.
    """

    rewards: dict[str, Estimate]
    base_rewards: dict[str, Estimate]
    variety: float | None
    drift: list[float]


@dataclass(frozen=True)
class Round:
    """A round that is done.

    Attributes:
        number: from 1 on.
        seed: of its samples and its training.
        num_rows: that were scored.
        score: mean of the scores, of samples of the policy of the round before.
        threshold: that was fitted to them, in their units; None where there is none, as of pairs.
        measurement: of the policy after the round; None if nothing is measured.
    """

    number: int
    seed: int
    num_rows: int
    score: float
    threshold: float | None
    measurement: Measurement | None = None


@dataclass(frozen=True)
class RoundsReport:
    """All rounds, as they stand in `rounds.json`.

    Attributes:
        model: Hub id or folder of the base.
        reference: of each round: `"previous"` or `"base"`.
        num_rounds: that were asked for.
        rounds: that are done, in order.
        kept: number of the round whose adapter is in `output_dir/adapter`.
        reason: why that one, and why there are fewer than asked for; sentences.
    """

    model: str
    reference: str
    num_rounds: int
    rounds: list[Round]
    kept: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a round has to keep to.

    Attributes:
        most_drift: in every quartile; None for no bound.
        least_variety: None for no bound.
    """

    most_drift: float | None
    least_variety: float | None

    def __bool__(self) -> bool:
        return self.most_drift is not None or self.least_variety is not None

    def broken(self, measurement: Measurement) -> list[str]:
        """A clause for each bound that a policy is outside of.

        Raises:
            ValueError: if there is no variety to compare with.
        """
        clauses = []
        if self.most_drift is not None:
            quartile, value = max(enumerate(measurement.drift, 1), key=lambda it: (math.isnan(it[1]), it[1]))
            if not value <= self.most_drift:
                clauses.append(
                    f"the drift is {value:.4g} in quartile {quartile}, above `stop_above_drift` ({self.most_drift:g})"
                )
        if self.least_variety is not None:
            if measurement.variety is None:
                raise ValueError(
                    "The base draws the same picture from every seed of some prompts, so that no policy has a share "
                    "of its variety. Leave `stop_below_variety` out, or sample in another way."
                )
            if not measurement.variety >= self.least_variety:
                clauses.append(
                    f"the variety is {measurement.variety:.4g} of the base's, below `stop_below_variety` "
                    f"({self.least_variety:g})"
                )
        return clauses


def best_round(rounds: Sequence[Round], limits: Limits) -> Round | None:
    """The round whose policy has the highest first reward of those within the limits, or the last if none is measured.

    None if all are outside.
    """
    if rounds[-1].measurement is None:
        return rounds[-1]
    inside = [it for it in rounds if it.measurement is not None and not limits.broken(it.measurement)]
    return max(inside, key=_first_reward, default=None)


def _first_reward(entry: Round) -> float:
    assert entry.measurement is not None
    return next(iter(entry.measurement.rewards.values())).value
