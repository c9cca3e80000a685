"""Several columns of scores as training takes them together: the threshold of each, and how often they disagree."""

from dataclasses import dataclass, replace

import torch

from ...data.score_columns import by_name, has_several, usual_normalization
from ...labels.fitting import fit_combined_rule
from .config import InspectConfig
from .rows import Rows


@dataclass(frozen=True)
class ColumnRow:
    """One of several columns of scores.

    Attributes:
        name: of the column.
        weight: what it counts.
        threshold: in its score units.
        scale: what its distances are divided by, in its score units.
        positive_share: of the rows that score at least the threshold.
        overruled_share: of the rows that all columns together label otherwise than this one does.
    """

    name: str
    weight: float
    threshold: float
    scale: float
    positive_share: float
    overruled_share: float


@dataclass(frozen=True)
class ColumnSummary:
    """Several columns of scores.

    Attributes:
        combination: `"sum"` or `"vote"`.
        columns: in the order of their names.
        disagreeing_share: of the rows that are positive by one column and negative by another.
    """

    combination: str
    columns: list[ColumnRow]
    disagreeing_share: float


def combine_columns(rows: Rows, config: InspectConfig) -> tuple[Rows, ColumnSummary | None]:
    """The rows with their signed scores, whose threshold is 0, and what was found; as they are, of a single column.

    Raises:
        ValueError: if a column, or all of them together, label all rows alike.
    """
    settings = vars(config)
    if not has_several(settings) or not rows.prompts:
        return rows, None
    values = by_name(settings, "threshold_values")
    try:
        rule = fit_combined_rule(
            rows.by_column, rows.prompts, combination=config.score_combination, values=values,
            weights=by_name(settings, "score_weights"), normalization=usual_normalization(settings),
            threshold_type="percentile" if values is None else "value",
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{error} With `score_column`, one column is looked at alone.") from error
    by_column = list(zip(*(rows.by_column[name] for name in rule.columns), strict=True))
    labels = rule.apply(by_column, rows.prompts)
    found = []
    for name, own in rule.columns.items():
        is_positive = torch.tensor(rows.by_column[name], dtype=torch.float64) >= own.threshold
        overruled = (is_positive != labels.is_positive).double().mean().item()
        share = own.num_positive / own.num_rows
        found.append(ColumnRow(name, rule.column_weights[name], own.threshold, own.scale, share, overruled))
    summary = ColumnSummary(rule.combination, found, rule.num_disagreeing / rule.num_rows)
    return replace(rows, scores=labels.scores.tolist()), summary
