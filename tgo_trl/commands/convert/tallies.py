"""Counts of what people said about each image, and the scores that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

TIES = ("half", "drop", "zero")


@dataclass(slots=True)
class Comparisons:
    """How an image fared against others; a label is a comparison with the bar it passed or failed.

    Of pairs that many people judged, each vote counts as a comparison. Where only their shares are known, a pair is one
    comparison, and its wins are a fraction.

    Attributes:
        wins: it was preferred; never a tie.
        ties: neither was.
        total: all of them.
    """

    wins: float = 0
    ties: float = 0
    total: float = 0

    def add(self, outcome: float) -> None:
        """Counts 1, a win; 0.5, a tie; or 0, a loss."""
        self.wins += outcome == 1
        self.ties += outcome == 0.5
        self.total += 1

    def merge(self, other: "Comparisons") -> None:
        """Counts those of another, too."""
        self.wins += other.wins
        self.ties += other.ties
        self.total += other.total

    def win_rate(self, ties: str, prior: float = 0.0) -> float | None:
        """`(w + a) / (n + 2 a)` of `w` wins in `n` comparisons; None where there is nothing to go by.

        Args:
            ties: `"half"`: a tie is half a win. `"drop"`: it is no comparison. `"zero"`: it is a loss.
            prior: `a`, wins and losses that every image is given beforehand; 0 for the plain share.
        """
        wins = self.wins + (0.5 * self.ties if ties == "half" else 0)
        total = self.total - (self.ties if ties == "drop" else 0)
        return (wins + prior) / (total + 2 * prior) if total else None


@dataclass(slots=True)
class Ratings:
    """The numbers an image was given.

    Attributes:
        sums, counts: of each column of ratings.
    """

    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, values: Sequence[Sequence[float]]) -> None:
        """Adds one or several ratings in each column."""
        if not self.sums:
            self.sums, self.counts = [0.0] * len(values), [0] * len(values)
        for i, column in enumerate(values):
            self.sums[i] += sum(column)
            self.counts[i] += len(column)

    def mean(self, column: int = 0, prior: float = 0.0, prior_mean: float = 0.0) -> float | None:
        """`(sum + m G) / (n + m)`, the mean drawn towards `G`; None where there is no rating.

        Args:
            column: of the ratings.
            prior: `m`, how many ratings `G` counts for; 0 for the plain mean.
            prior_mean: `G`, the mean of all ratings of all images.
        """
        if not self.counts or not self.counts[column]:
            return None
        return (self.sums[column] + prior * prior_mean) / (self.counts[column] + prior)


Tally = Comparisons | Ratings
"""What was said about one image, counted."""


def compare_all(
    values: Sequence[float], lower_is_better: bool = False, images: Sequence[object] | None = None
) -> list[tuple[int, float]]:
    """The outcomes of comparing each with each, `(index, 1, 0.5 or 0)`: `K (K - 1)` of `K` values.

    Args:
        values: one for each image.
        lower_is_better: a smaller value wins.
        images: what each value is of, as many: an image is not compared with itself. If not given, they all differ.
    """
    sign = -1 if lower_is_better else 1
    return [
        (i, 1.0 if sign * mine > sign * other else 0.5 if mine == other else 0.0)
        for i, mine in enumerate(values)
        for j, other in enumerate(values)
        if (i != j if images is None else images[i] != images[j])
    ]
