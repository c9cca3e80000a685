"""Stacked bars of wins, ties and losses, one bar for each opponent or category."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...plots import LOSS, TIE, WIN, legend_of_outcomes, plain_text, plot_outcomes, save_figure
from .report import JudgeReport, PairResult

DOTS_PER_INCH = 150
PICTURES = ("judge.png", "categories*.png")
LONGEST_NAME = 28
NARROW, NARROWEST = 0.045, 0.015
"""Shares of a bar that have room for a number, and for a small one."""
MOST_CATEGORIES = 30


def plot_judgement(report: JudgeReport, folder: Path) -> list[str]:
    """Plots the pairs of models, and the categories of each if there are any; returns the names of the pictures."""
    firsts = {pair.first for pair in report.pairs}
    is_one = len(firsts) == 1
    bars = [(_short(pair.second) if is_one else f"{_short(pair.first)} / {_short(pair.second)}", pair)
            for pair in report.pairs]  # fmt: skip
    title = f"{_short(next(iter(firsts)))} against …" if is_one else "the first against the second"
    _plot_bars(bars, title, _short(report.judge), folder / "judge.png")
    names = ["judge.png"]
    for number, pair in enumerate(report.pairs, 1):
        if pair.categories:
            name = "categories.png" if len(report.pairs) == 1 else f"categories-{number}.png"
            shown = sorted(pair.categories.items(), key=lambda item: -item[1].win_rate.value)[:MOST_CATEGORIES]
            rows = [(_short(category), result) for category, result in shown]
            title = f"{_short(pair.first)} against {_short(pair.second)}, by category"
            _plot_bars(rows, title, _short(report.judge), folder / name)
            names.append(name)
    return names


def _plot_bars(bars: Sequence[tuple[str, PairResult]], title: str, judge: str, path: Path) -> None:
    figure = Figure(figsize=(7.2, 1.35 + 0.46 * len(bars)), layout="constrained")
    axes: Any = figure.subplots()
    plot_outcomes(axes, [(result.ties.value, result.win_rate) for _, result in bars])
    for place, (_, result) in enumerate(bars):
        left = 0.0
        for share, ink in ((result.wins, "white"), (result.ties, "#333333"), (result.losses, "#333333")):
            if share.value >= NARROWEST:
                _write(axes, share.value, left, place, ink)
            left += share.value
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set(ylim=(len(bars) - 0.5, -0.5), xlabel=f"% of verdicts by {judge}")
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    rate = "win rate (ties count half), 95 % interval"
    legend_of_outcomes(figure, {"win": WIN, "tie": TIE, "loss": LOSS}, rate, fontsize=9)
    save_figure(figure, path, DOTS_PER_INCH)


def _write(axes: Any, share: float, left: float, place: int, ink: str) -> None:
    """The share in %, in the upper half of its part of the bar, since dot and line are in the middle."""
    size = 9 if share >= NARROW else 7
    axes.text(
        100 * (left + share / 2), place - 0.2, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=size
    )


def _short(name: str) -> str:
    return plain_text(name, LONGEST_NAME)
