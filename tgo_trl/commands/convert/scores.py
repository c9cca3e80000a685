"""The scores and the columns beside them that tallies become."""

import math
from dataclasses import dataclass
from typing import Any

from .annotations import Annotations
from .layouts import SCORE_TYPES, Layout
from .tallies import Comparisons, Ratings, Tally


@dataclass(frozen=True)
class ScoreRule:
    """How what was said becomes a score.

    Attributes:
        kind: of the layout.
        score_type: of [`SCORE_TYPES`], for that kind.
        ties: `"half"`, `"drop"` or `"zero"`, in win rates.
        prior: of the smoothed scores.
        names: of the columns of ratings.
        prior_mean: mean of all ratings in the first column.
        scale: of pairs with a number for each image.
    """

    kind: str
    score_type: str
    ties: str
    prior: float
    names: tuple[str, ...] = ()
    prior_mean: float = 0.0
    scale: str = "outcomes"

    @property
    def columns(self) -> dict[str, str]:
        """The columns beside prompt and image, with their types; the wins of shares are fractions."""
        if self.kind != "ratings":
            rates = {"win_rate": "float64", "smoothed_win_rate": "float64"}
            wins = "float64" if self.scale == "shares" else "int64"
            return {"score": "float64", "wins": wins, "ties": "int64", "comparisons": "int64", **rates}
        means = {f"mean_{name}": "float64" for name in self.names}
        return {"score": "float64", "ratings": "int64", **means, "bayesian": "float64"}

    def values(self, tally: Tally) -> dict[str, Any] | None:
        """The values of these columns; None for an image that nothing was said about."""
        if isinstance(tally, Comparisons):
            scores = {
                "wins": tally.wins,
                "win_rate": tally.win_rate(self.ties),
                "smoothed_win_rate": tally.win_rate(self.ties, self.prior),
            }
            columns = {**scores, "ties": tally.ties, "comparisons": tally.total}
            has_score = scores["win_rate"] is not None
        else:
            scores = {"mean": tally.mean(), "bayesian": tally.mean(0, self.prior, self.prior_mean)}
            means = {f"mean_{name}": tally.mean(i) for i, name in enumerate(self.names)}
            columns = {**means, "bayesian": scores["bayesian"], "ratings": tally.counts[0] if tally.counts else 0}
            has_score = scores["mean"] is not None
        return {"score": float(scores[self.score_type]), **columns} if has_score else None  # type: ignore[arg-type]


def fit_score_rule(found: Annotations, layout: Layout, score_type: str | None, ties: str, prior: float) -> ScoreRule:
    """How to score; takes the mean of all ratings from what was found.

    Raises:
        ValueError: for a score that the kind does not have.
    """
    choices = SCORE_TYPES[layout.kind]
    if score_type is not None and score_type not in choices:
        raise ValueError(
            f"`score_type` is {score_type!r}, but {layout.kind} can become {', '.join(map(repr, choices))}."
        )
    ratings = [image.tally for image in found.images if isinstance(image.tally, Ratings) and image.tally.counts]
    count = sum(tally.counts[0] for tally in ratings)
    prior_mean = math.fsum(tally.sums[0] for tally in ratings) / count if count else 0.0
    names = layout.annotations if layout.kind == "ratings" else ()
    return ScoreRule(layout.kind, score_type or choices[0], ties, prior, names, prior_mean, found.scale)
