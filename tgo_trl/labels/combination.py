"""Several columns of scores as one: each has a threshold and units of its own, and what they say of a row is added up.

A row then has one signed score, whose threshold is 0. Columns are taken in the order of their names, and a row's score
is computed from that row alone, so that neither the order in which columns are named nor the batch changes a bit of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rule import LabelRule, Labels

TIE = 2.0**-40
"""The signed score of a tied vote: too small to weigh anything, and large enough to have a sign in float32."""


@dataclass(frozen=True, kw_only=True)
class CombinedRule(LabelRule):
    """A rule for rows with a score in each of several columns: a [`LabelRule`] of their signed scores.

    What it inherits is of the signed scores, with the threshold 0; they are not normalised again.

    Attributes:
        combination: `"sum"` or `"vote"`.
        columns: the rule of each column by its name, in the order of names; of which the threshold and the
            normalisation count.
        column_weights: what each counts, greater than 0, by the same names.
        num_disagreeing: rows, of those it was fitted on, that are positive by one column and negative by another.
    """

    combination: str
    columns: dict[str, LabelRule]
    column_weights: dict[str, float]
    num_disagreeing: int

    @property
    def is_per_prompt(self) -> bool:
        """Whether the columns have a threshold for each prompt."""
        return any(rule.is_per_prompt for rule in self.columns.values())

    def apply(self, scores: Sequence[Any] | Tensor, prompts: Sequence[str]) -> Labels:
        """Labels of rows, as [`LabelRule.apply`]; the scores in them are the signed ones.

        Args:
            scores: `[N, C]`, of each row those of all columns in the order of their names, in score units, finite.
            prompts: `N` prompts.

        Raises:
            ValueError: as [`LabelRule.apply`].
        """
        by_column = torch.as_tensor(scores, dtype=torch.float64).unbind(1)
        distances = column_distances(self.columns.values(), by_column, prompts)
        return super().apply(combine(self.combination, distances, self.column_weights.values()), prompts)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CombinedRule":
        """The inverse of [`to_dict`]."""
        columns = {name: LabelRule.from_dict(rule) for name, rule in values["columns"].items()}
        return cls(**{**values, "columns": columns})

    def describe(self) -> str:
        """One phrase for tables and cards."""
        return f"0 (of the {self.combination} of {len(self.columns)} columns)"

    def details(self) -> dict[str, str]:
        """The threshold of each column with what it makes positive, and how often they disagree."""
        lines = {}
        for name, rule in self.columns.items():
            weight = self.column_weights[name]
            times = "" if weight == 1 else f", counts {weight:g} times"
            share = 100 * rule.num_positive / rule.num_rows
            lines[f"threshold of {name}"] = f"{rule.describe()}, {share:.1f} % positive{times}"
        share = 100 * self.num_disagreeing / self.num_rows
        lines["rows that columns disagree on"] = f"{self.num_disagreeing:,} ({share:.1f} %)"
        return lines


def rule_from_dict(values: Mapping[str, Any]) -> LabelRule:
    """The inverse of `to_dict` of either rule."""
    return CombinedRule.from_dict(values) if "columns" in values else LabelRule.from_dict(values)


def column_distances(
    rules: Iterable[LabelRule], scores: Iterable[Sequence[float] | Tensor], prompts: Sequence[str]
) -> Tensor:
    """How far each score lies above the threshold of its column, float64 `[N, C]` in normalised score units.

    Args:
        rules: of the `C` columns.
        scores: of each column `[N]`, in score units, finite.
        prompts: `N` prompts.

    Raises:
        ValueError: as [`LabelRule.distances`].
    """
    return torch.stack([rule.distances(column, prompts) for rule, column in zip(rules, scores, strict=True)], 1)


def combine(combination: str, distances: Tensor, weights: Iterable[float]) -> Tensor:
    """The signed score of each row, float64 `[N]`.

    `"sum"` is `sum_k w_k d_k`. `"vote"` is the lead of one side as a share of all votes, `sum_k w_k v_k / sum_k w_k`
    with `v_k` 1 where `d_k >= 0` and -1 elsewhere; a tie is on the side of the sum, with a score next to 0.

    Args:
        combination: one of [`COMBINATIONS`](`tgo_trl.labels.COMBINATIONS`).
        distances: float64 `[N, C]`, as [`column_distances`] has them.
        weights: `w`, one for each column, greater than 0.
    """
    weights = list(weights)
    total = _weighted_sum(distances, weights)
    if combination == "sum":
        return total
    votes = torch.ones_like(distances).where(distances >= 0, -1.0)
    lead = _weighted_sum(votes, weights) / sum(weights)
    tie = torch.full_like(lead, TIE).where(total >= 0, -TIE)
    return lead.where(lead.abs() > TIE, tie)


def num_disagreeing(distances: Tensor) -> int:
    """Rows that are positive by one column and negative by another.

    Args:
        distances: float64 `[N, C]`, as [`column_distances`] has them.
    """
    is_positive = distances >= 0
    return int((is_positive.any(1) & ~is_positive.all(1)).sum())


def _weighted_sum(values: Tensor, weights: Sequence[float]) -> Tensor:
    """`[N]`, one column after the other: a reduction might add in another order for another number of rows."""
    total = torch.zeros(len(values), dtype=values.dtype)
    for column, weight in zip(values.unbind(1), weights, strict=True):
        total = total + weight * column
    return total
