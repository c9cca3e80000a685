"""The table of an adapter's strength, in the terminal and in the model card."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...messages.markdown import markdown_table
from .report import ScaleRow, StrengthReport

RULE = (
    "of the scales with a variety of at least {min_variety:g} and a drift of at most {max_drift:g} in every quartile, "
    "the smallest whose reward is not measurably below the highest among them (95 % interval of the difference, prompt "
    "by prompt)"
)


def print_strength(report: StrengthReport, written: Sequence[str], next_step: str) -> None:
    """Prints the table, the rule and its suggestion, what was written, and what comes next."""
    console = Console(highlight=False, markup=False, emoji=False)  # a path or a reason may hold `[/x]`
    table = Table(*_head(report), title=f"Strength of {report.adapter} on {report.model}")
    for row in report.rows:
        is_suggested = row.scale == report.suggestion.scale
        table.add_row(*_cells(row, report), style="bold" if is_suggested else None)
    console.print(table)
    console.print(
        f"{report.num_prompts:,} prompts, {report.num_images_per_prompt} samples each; drift in the worst quartile of "
        f"the time, on {report.drift_rows}."
    )
    console.print(f"Suggested is, {_rule(report)}.")
    console.print(report.code or "No scale is suggested", style="bold")
    console.print(f"  {report.suggestion.reason}")
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True)  # to be copied
    console.print(next_step)


def card_section(report: StrengthReport, picture: str) -> str:
    """The section of the model card, in Markdown.

    Args:
        report: what was measured.
        picture: its path, relative to the card.
    """
    lines = [
        "## Strength",
        "",
        f"![Samples, reward, variety and drift over the scale of the adapter]({picture})",
        "",
        report.suggestion.reason,
        "",
        *(["```python", report.code, "```", ""] if report.code else []),
        markdown_table(_head(report, " "), [_cells(row, report) for row in report.rows]),
        "",
        f"{report.num_prompts:,} prompts with {report.num_images_per_prompt} samples each, the same seeds at every "
        "scale; 95 % intervals of the mean over prompts (bootstrap). Variety is the mean distance between two samples "
        "of a prompt; drift is the error of the network in denoising, in the worst quartile of the time, on "
        f"{report.drift_rows}; the base has 1 in both. Suggested is, {_rule(report)}.",
    ]
    return "\n".join(lines)


def _rule(report: StrengthReport) -> str:
    return RULE.format(min_variety=report.min_variety, max_drift=report.max_drift)


def _head(report: StrengthReport, newline: str = "\n") -> list[str]:
    return [
        "scale",
        f"reward:{newline}{report.reward}",
        f"95 %{newline}interval",
        *report.rows[0].other_rewards,
        f"variety{newline}(base: 1)",
        f"drift{newline}(base: 1)",
        "",
    ]


def _cells(row: ScaleRow, report: StrengthReport) -> list[str]:
    note = "base" if row.scale == 0 else "suggested" if row.scale == report.suggestion.scale else ""
    if not row.is_within(report.min_variety, report.max_drift):
        note = "outside"
    low, high = row.interval
    return [f"{row.scale:g}", f"{row.reward:.4g}", f"{low:.4g} to {high:.4g}",
            *(f"{value:.4g}" for value in row.other_rewards.values()),
            f"{row.variety:.3f}", f"{max(row.drift):.3f}", note]  # fmt: skip
