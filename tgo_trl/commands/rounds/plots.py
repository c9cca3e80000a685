"""The picture of rounds: the scores that were trained on, and rewards, variety and drift of each policy."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...plots import NEGATIVE, POSITIVE, legend_below, save_figure
from .report import Limits, RoundsReport

DOTS_PER_INCH = 120
KEPT = "#1b7837"
PANELS_IN_A_ROW = 3


def plot_rounds(report: RoundsReport, limits: Limits, path: Path) -> None:
    """A panel each for the scores of what was drawn, every reward, variety and drift, over the rounds; 0 is the base.

    Args:
        report: of all rounds.
        limits: drawn as lines.
        path: of the PNG.
    """
    found = [(entry.number, entry.measurement) for entry in report.rounds if entry.measurement is not None]
    names = list(found[0][1].rewards) if found else []
    num_panels = 1 + len(names) + 2 * bool(found)
    num_columns = min(num_panels, PANELS_IN_A_ROW)
    num_rows = math.ceil(num_panels / num_columns)
    figure = Figure(figsize=(4.0 * num_columns + 0.6, 3.4 * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    _plot_scores(panels[0], report)
    for axes, name in zip(panels[1:], names, strict=False):
        estimates = [found[0][1].base_rewards[name], *(measurement.rewards[name] for _, measurement in found)]
        numbers = [0, *(number for number, _ in found)]
        axes.plot(numbers, [it.value for it in estimates], "o-", color=POSITIVE)
        if all(it.interval is not None for it in estimates):
            lows, highs = zip(*(it.interval for it in estimates if it.interval), strict=True)
            axes.fill_between(numbers, lows, highs, color=POSITIVE, alpha=0.2, linewidth=0, label="95 % interval")
            legend_below(axes)
        axes.set(title=f"after the round: {name}")
    if found:
        numbers = [0, *(number for number, _ in found)]
        variety, drift = panels[1 + len(names) : num_panels]
        varieties = [1.0, *(math.nan if it.variety is None else it.variety for _, it in found)]
        _plot_share(variety, numbers, varieties, limits.least_variety, (0, 1.05))
        variety.set(title="variety of a prompt (base: 1)")
        _plot_share(drift, numbers, [1.0, *(max(it.drift) for _, it in found)], limits.most_drift, (1, 1.1))
        drift.set(title="drift, worst quartile (base: 1)")
    for axes in panels[num_panels:]:
        axes.remove()
    label, first = ("round (0: base; green: kept)", -0.3) if found else ("round (green: kept)", 0.7)
    for axes in panels[:num_panels]:
        axes.set(xlabel=label, xlim=(first, len(report.rounds) + 0.3))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axvline(report.kept, color=KEPT, linewidth=6, alpha=0.25, zorder=0)
        axes.grid(axis="y", color="#e5e5e5")
        axes.set_axisbelow(True)
    save_figure(figure, path, DOTS_PER_INCH)


def _plot_scores(axes: Any, report: RoundsReport) -> None:
    numbers = [entry.number for entry in report.rounds]
    axes.plot(numbers, [entry.score for entry in report.rounds], "o-", color=POSITIVE, label="mean score")
    thresholds = [math.nan if entry.threshold is None else entry.threshold for entry in report.rounds]
    if not all(map(math.isnan, thresholds)):
        axes.plot(numbers, thresholds, "s--", color="black", markersize=4, label="threshold")
    axes.set(title="what the round trained on")
    legend_below(axes)


def _plot_share(
    axes: Any, numbers: list[int], values: list[float], bound: float | None, least: tuple[float, float]
) -> None:
    """Plots multiples of the base's on an axis that reaches over `least` at least, so that little looks like little."""
    axes.plot(numbers, values, "o-", color=POSITIVE)
    if bound is not None:
        axes.axhline(bound, color=NEGATIVE, linestyle="--", label=f"bound {bound:g}")
        legend_below(axes)
    low, high = axes.get_ylim()
    axes.set(ylim=(min(low, least[0]), max(high, least[1])))
