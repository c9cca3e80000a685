"""Stacked bars of wins, ties and losses, one bar for each opponent or category."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...plots import NEGATIVE, POSITIVE, plain_text, save_figure
from .report import JudgeReport, PairResult

NEUTRAL = "#c9c9c9"
DOTS_PER_INCH = 150
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
    _plot_bars(bars, title, f"judged by {_short(report.judge)}", folder / "judge.png")
    names = ["judge.png"]
    for number, pair in enumerate(report.pairs, 1):
        if pair.categories:
            name = "categories.png" if len(report.pairs) == 1 else f"categories-{number}.png"
            shown = sorted(pair.categories.items(), key=lambda item: -item[1].win_rate.value)[:MOST_CATEGORIES]
            rows = [(_short(category), result) for category, result in shown]
            title = f"{_short(pair.first)} against {_short(pair.second)}, by category"
            _plot_bars(rows, title, f"judged by {_short(report.judge)}", folder / name)
            names.append(name)
    return names


def _plot_bars(bars: Sequence[tuple[str, PairResult]], title: str, note: str, path: Path) -> None:
    figure = Figure(figsize=(7.2, 1.35 + 0.46 * len(bars)), layout="constrained")
    axes: Any = figure.subplots()
    places = list(range(len(bars)))
    start = [0.0] * len(bars)
    kinds = (
        ("wins", "win", POSITIVE, "white"),
        ("ties", "tie", NEUTRAL, "#333333"),
        ("losses", "loss", NEGATIVE, "white"),
    )
    for attribute, label, colour, ink in kinds:
        values = [getattr(result, attribute).value for _, result in bars]
        axes.barh(places, values, 0.68, left=start, color=colour, edgecolor="white", linewidth=0.8, label=label)
        for place, value, left in zip(places, values, start, strict=True):
            if value >= NARROWEST:
                style = {"ha": "center", "va": "center", "color": ink, "fontsize": 10 if value >= NARROW else 8}
                axes.text(left + value / 2, place, f"{100 * value:.0f}", **style)
        start = [left + value for left, value in zip(start, values, strict=True)]
    sure = [(place, result.wins.value, *result.wins.interval) for place, (_, result) in zip(places, bars, strict=True)
            if result.wins.interval is not None]  # fmt: skip
    if sure:
        heights, wins, lows, highs = map(np.array, zip(*sure, strict=True))
        whiskers = {"color": "black", "elinewidth": 1, "capsize": 2.5, "fmt": "none"}
        error, label = (wins - lows, highs - wins), "95 % interval of the wins"
        axes.errorbar(wins, heights + 0.22, xerr=error, label=label, **whiskers)
    axes.set(yticks=places, yticklabels=[name for name, _ in bars], xlim=(0, 1), xlabel="share of verdicts (%)")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_title(note, loc="right", fontsize=8, color="#666666")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path, DOTS_PER_INCH)


def _short(name: str) -> str:
    return plain_text(name, LONGEST_NAME)
