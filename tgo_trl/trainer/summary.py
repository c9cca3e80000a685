"""The table that is printed before training: what the data were turned into."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.pairs import Pairs
from ..labels.rule import LabelRule, Labels
from ..labels.thresholds import percentile_threshold


def summary_rows(
    rule: LabelRule, labels: Labels | None, beta: float | None, temperature: float,
    objective: Mapping[str, Any] | None = None, reading: str | None = None,
) -> list[tuple[str, str]]:  # fmt: skip
    """Name and value of each line.

    Args:
        rule: fitted on the training set.
        labels: of the training rows, if the loss weighs them; None for a stream, whose rows are labelled as they come.
        beta: of the loss; None where it has none.
        temperature: `T`.
        objective: settings of the loss that are not the paper's, by name.
        reading: how a stream's shards are read; None where there is nothing to say.
    """
    lines = rule_rows(rule)
    if reading is not None:
        lines.insert(1, ("read", reading))
    if labels is not None:
        quantiles = [percentile_threshold(labels.weights, p).item() for p in (0, 25, 50, 75, 100)]
        lines.append(("weight min / 25 % / 50 % / 75 % / max", " / ".join(f"{q:.3g}" for q in quantiles)))
    return [*lines, *_loss_rows(beta, temperature, objective or {})]


def pair_rows(
    pairs: Pairs, beta: float | None, temperature: float, objective: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """As [`summary_rows`], of the pairs of the training set."""
    return [*found_rows(pairs), *_loss_rows(beta, temperature, objective)]


def rule_rows(rule: LabelRule) -> list[tuple[str, str]]:
    """Those of a rule: rows, prompts, threshold and sides."""
    return [
        ("rows", f"{rule.num_rows:,}"),
        ("prompts", f"{rule.num_prompts:,}"),
        ("threshold", rule.describe()),
        *rule.details().items(),
        ("positive rows", f"{rule.num_positive:,} ({100 * rule.num_positive / rule.num_rows:.1f} %)"),
    ]


def found_rows(pairs: Pairs) -> list[tuple[str, str]]:
    """Those of pairs: how many, of what, compared by what, and what was left out."""
    lines = [("pairs", pairs.describe()), ("prompts", f"{pairs.num_prompts:,}"), *pairs.compared.items()]
    return [*lines, ("left out", pairs.describe_left_out())] if pairs.left_out else lines


def _loss_rows(beta: float | None, temperature: float, objective: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [(name, str(value)) for name, value in objective.items()]
    if beta is None:
        return lines
    return [("effective scale beta / T", f"{beta / temperature:.4g} (beta {beta:g}, T {temperature:.4g})"), *lines]


def print_summary(lines: list[tuple[str, str]], title: str = "TGO training data") -> None:
    """Prints the table to the terminal."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # folders too are there as a whole
    for name, value in lines:
        table.add_row(name, value)
    Console().print(table)
