"""The report of an inspection in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .report import Report

NOTABLE_SHARE = 0.02


def print_report(report: Report, files: Sequence[str], folder: str) -> None:
    """Prints tables of all that was found, and the suggested settings with reasons."""
    console = Console(highlight=False, markup=False, emoji=False)  # a path or a reason may hold `[/x]`
    tables = (_data_table, _column_table, _threshold_table, _weight_table, _prompt_table)
    for table in (make(report) for make in tables):
        if table.row_count:
            console.print(table)
    for suggestion in report.suggestions:
        shown = "  ".join(_setting(name, value) for name, value in suggestion.settings.items())
        console.print(shown or "Note", style="bold")
        console.print(f"  {suggestion.reason}")
    if not report.settings:
        console.print("Nothing speaks against training with the defaults.")
    console.print(f"Written to {folder}: {', '.join(files)}")


def _data_table(report: Report) -> Table:
    table = Table(title=f"Data: {report.dataset}", show_header=False)
    table.add_row("rows", f"{report.num_rows:,}")
    for kind, number in report.problems.items():
        table.add_row(f"rows with a {kind}", f"{number:,} ({report.first_reasons[kind]})")
    table.add_row("prompts", f"{report.num_prompts:,}")
    if report.num_tasks is not None:
        table.add_row("prompts with their sources", f"{report.num_tasks:,}, each compared by itself")
    if report.duplicates is not None:
        found = report.duplicates
        table.add_row("repeated images", f"{found.images:,}, {found.rows:,} of them with the same prompt")
        if found.contradictions:
            table.add_row("the same prompt and image with other scores", f"{found.contradictions:,}")
    scores = report.scores
    table.add_row("scores", f"{scores.minimum:.4g} to {scores.maximum:.4g}, {scores.num_distinct:,} different")
    table.add_row("mean and standard deviation", f"{scores.mean:.4g}, {scores.std:.4g}")
    if scores.most_common_share >= NOTABLE_SHARE:
        share = _percent(scores.most_common_share)
        table.add_row("most frequent score", f"{scores.most_common:.4g} ({share} of the rows)")
    lengths = report.lengths
    low, middle, high, top = lengths.words
    table.add_row("words of a prompt", f"{low} to {top}, median {middle}, 90 % up to {high}")
    if report.images is not None:
        images = report.images
        sizes = ", ".join(f"{size} ({count:,})" for size, count in images.sizes.items())
        more = f" and {images.num_sizes - len(images.sizes)} more" if images.num_sizes > len(images.sizes) else ""
        table.add_row("image sizes, width x height", sizes + more)
        tall, usual, wide = images.aspect_ratio
        table.add_row("aspect ratios", f"{tall:.2f} to {wide:.2f}, median {usual:.2f}")
        table.add_row("cut off by a square crop", _percent(images.square_loss))
    return table


def _column_table(report: Report) -> Table:
    found = report.columns
    if found is None:
        return Table()
    table = Table(
        "column", "counts", "threshold", "its unit", "positive rows", "overruled",
        title=f"The {found.combination} of {len(found.columns)} columns, which disagree on "
        f"{_percent(found.disagreeing_share)} of the rows",
    )  # fmt: skip
    for row in found.columns:
        numbers = (f"{row.weight:g}", f"{row.threshold:.5g}", f"{row.scale:.4g}")
        table.add_row(row.name, *numbers, _percent(row.positive_share), _percent(row.overruled_share))
    return table


def _threshold_table(report: Report) -> Table:
    table = Table("threshold", "score", "positive rows", title="Thresholds")
    for row in report.thresholds:
        note = (
            "  all rows: refused" if row.positive_share == 1 else "  no rows: refused" if not row.positive_share else ""
        )
        table.add_row(row.name, f"{row.threshold:.5g}", _percent(row.positive_share) + note)
    if report.prompts is not None:
        percentiles = report.prompts.baseline_percentiles
        table.add_row(
            "prompt baseline",
            f"{percentiles[10]:.5g} to {percentiles[90]:.5g}",
            _percent(report.prompts.baseline_positive_share),
        )
    return table


def _weight_table(report: Report) -> Table:
    table = Table(
        "scores", "c", "min  25 %  50 %  75 %  max", "effective\nrows", "weight of\nlargest 1 %",
        "weight of\npositives",
        title=f"Weights 1 + c |score - threshold|, threshold {report.threshold:.5g}",
    )  # fmt: skip
    for row in report.weights:
        table.add_row(
            row.normalization if report.columns is None else "signed",
            f"{row.coefficient:g}",
            "  ".join(f"{value:.3g}" for value in row.quartiles),
            _percent(row.effective_share),
            _percent(row.top_share),
            _percent(row.positive_share),
            end_section=row.coefficient == report.weights[-1].coefficient,
        )
    return table


def _prompt_table(report: Report) -> Table:
    table = Table(title="Is one threshold enough for all prompts?", show_header=False)
    found = report.prompts
    if found is None:
        return table
    low, middle, high = found.images
    single = f"{found.num_single:,} of {found.num_prompts:,} prompts have a single one"
    table.add_row("images of a prompt", f"{low} to {high}, median {middle:g}; {single}")
    baselines, means = found.baseline_percentiles, found.mean_percentiles
    for name, values in (("beta log mean exp(s / beta)", baselines), ("mean of a prompt", means)):
        table.add_row(f"{name}: 10 / 50 / 90 %", " / ".join(f"{values[p]:.4g}" for p in (10, 50, 90)))
    table.add_row("standard deviation within a prompt", f"{found.within_std:.4g}")
    table.add_row("variance between prompts", _percent(found.between_share))
    table.add_row("labels that each prompt's baseline would flip", _percent(found.flipped_by_baseline))
    table.add_row("labels that each prompt's mean would flip", _percent(found.flipped_by_mean))
    table.add_row("the same, if scores did not depend on prompts", _percent(found.flipped_by_chance))
    return table


def _setting(name: str, value: Any) -> str:
    return f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
