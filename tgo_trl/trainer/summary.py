"""The table that is printed before training: what the data were turned into."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.pairs import Pairs
from ..labels.rule import LabelRule, Labels
from ..labels.thresholds import percentile_threshold


def score_rows(rule: LabelRule, labels: Labels | None) -> list[tuple[str, str]]:
    """Name and value of each line about scored rows.

    Args:
        rule: fitted on the training set.
        labels: of the training rows; None for a stream, whose rows are labelled as they come.
    """
    lines = [
        ("rows", f"{rule.num_rows:,}"),
        ("prompts", f"{rule.num_prompts:,}"),
        ("threshold", rule.describe()),
        ("positive rows", f"{rule.num_positive:,} ({100 * rule.num_positive / rule.num_rows:.1f} %)"),
    ]
    if labels is not None:
        quantiles = [percentile_threshold(labels.weights, p).item() for p in (0, 25, 50, 75, 100)]
        lines.append(("weight min / 25 % / 50 % / 75 % / max", " / ".join(f"{q:.3g}" for q in quantiles)))
    return lines


def pair_rows(pairs: Pairs) -> list[tuple[str, str]]:
    """Name and value of each line about pairs, those of the training set."""
    lines = [("pairs", pairs.describe()), ("prompts", f"{pairs.num_prompts:,}")]
    return [*lines, ("left out", pairs.describe_left_out())] if pairs.left_out else lines


def loss_rows(beta: float, temperature: float, objective: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each line about the loss.

    Args:
        beta: of the loss.
        temperature: `T`.
        objective: settings of the loss that are not the paper's, by name.
    """
    scale = f"{beta / temperature:.4g} (beta {beta:g}, T {temperature:.4g})"
    return [("effective scale beta / T", scale), *((name, str(value)) for name, value in objective.items())]


def print_summary(lines: list[tuple[str, str]]) -> None:
    """Prints the table to the terminal."""
    table = Table(title="TGO training data", show_header=False)
    for name, value in lines:
        table.add_row(name, value)
    Console().print(table)
