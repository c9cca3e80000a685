"""The pictures of a comparison, sized for a page: win-rate bars, score distributions, and samples side by side."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from ...plots import LOSS, TIE, WIN, legend_of_outcomes, plain_text, plot_outcomes, save_figure
from .report import EvaluationReport

DOTS_PER_INCH = 300
PAGE = 7.0
"""Width of a page's text, in inches."""
COLOURS = ("#4d4d4d", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Of the models: those of Okabe and Ito, which colour-blind readers tell apart."""
MOST_PAIRED = 5
"""Models of which all pairs are shown; of more, those with the baseline."""
PANELS_IN_A_ROW = 3
PROMPTS_IN_A_ROW = 6
FEWEST_BINS, MOST_BINS = 10, 40
ALIKE = 1e-9
"""Of scores, the difference over their size below which they are one number."""
LONGEST_NAME = 28
HEIGHT, FOOT = 0.86, 0.44
"""Of a histogram, in rows: that of the fullest bin, and how far below its row's middle it stands."""
MEDIAN: dict[str, Any] = {"color": "black", "linewidth": 1.2}
BASELINE: dict[str, Any] = {"color": "grey", "linewidth": 0.8, "linestyle": ":"}
"""Of the lines at the median of a model, and of the baseline's in the rows of all."""
SMALL = 7.5
"""Points of what stands beside axes."""


def plot_win_rates(report: EvaluationReport, path: Path) -> None:
    """A bar for each two models: wins, ties and losses of the first, and its win rate with its interval.

    Args:
        report: with two models or more.
        path: of the PNG.
    """
    pairs = _pairs(report)
    names = [f"{_short(ours)} vs. {_short(theirs)}" for ours, theirs in pairs]
    figure, panels = _panels(list(report.rewards), names, 0.24, "% of samples")
    has_ties = False
    for axes, results in zip(panels, report.overall.rewards.values(), strict=False):
        outcomes = [(results.ties[ours][theirs], results.win_rates[ours][theirs]) for ours, theirs in pairs]
        plot_outcomes(axes, outcomes)
        for row, (tie, rate) in enumerate(outcomes):
            has_ties |= tie > 0
            text = f"{100 * rate.value:.0f} %"
            axes.annotate(text, (100, row), (5, 0), textcoords="offset points", va="center", fontsize=SMALL)
    parts = {"wins": WIN, **({"ties": TIE} if has_ties else {}), "losses": LOSS}
    dot = f"win rate{' (ties count half)' if has_ties else ''}, 95 % interval"
    legend_of_outcomes(figure, parts, dot, SMALL)
    save_figure(figure, path, DOTS_PER_INCH)


def plot_distributions(report: EvaluationReport, scores: Mapping[str, Tensor], path: Path) -> None:
    """Histograms of the scores, a row for each model and a panel for each reward, with a line at each median.

    Args:
        report: with the medians.
        scores: by reward, `[M, P, K]`.
        path: of the PNG.
    """
    labels = report.labels
    figure, panels = _panels(list(scores), list(map(_short, labels)), 0.42, "score")
    for axes, (name, values) in zip(panels, scores.items(), strict=False):
        flat, medians = values.flatten(1).numpy(), report.overall.rewards[name].medians
        edges = _bin_edges(flat)
        counts = np.stack([np.histogram(row, edges)[0] for row in flat])
        heights = HEIGHT * counts / counts.max()
        for i, label in enumerate(labels):
            colour, median = COLOURS[i % len(COLOURS)], medians[label].value
            axes.stairs(i + FOOT - heights[i], edges, baseline=i + FOOT, fill=True, color=colour, alpha=0.75)
            axes.plot([median, median], [i + FOOT, i + FOOT - HEIGHT], **MEDIAN)
        axes.axvline(medians[report.baseline].value, zorder=0, **BASELINE)
    handles = [Line2D([], [], **style) for style in (MEDIAN, BASELINE)]
    names = ["median", f"median of {_short(report.baseline)}"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


def _bin_edges(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Edges of bins of all scores `[M, N]`; around them, where they are one number but for rounding."""
    low, high = scores.min(), scores.max()
    size = max(abs(low), abs(high))
    if high - low <= ALIKE * size:  # of which numpy makes no bins
        low, high = low - max(0.5, size / 10), high + max(0.5, size / 10)
    return np.linspace(low, high, 1 + min(MOST_BINS, max(FEWEST_BINS, int(math.sqrt(scores.shape[1])))))


def plot_grid(
    labels: Sequence[str], prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], path: Path
) -> None:
    """Samples side by side: a row for each model, a column for each prompt, with the prompt above.

    Args:
        labels: of the models.
        prompts: up to [`PROMPTS_IN_A_ROW`].
        pictures: of each model, one for each prompt.
        path: of the PNG.
    """
    columns, names = len(prompts), [_wrapped(label, 13, 3) for label in labels]
    margin = 0.12 + 0.063 * max(len(line) for name in names for line in name.split("\n"))
    side = (PAGE - margin) / max(columns, 3)
    heads = [_wrapped(prompt, max(10, int(side * 15)), 4) for prompt in prompts]
    top = 0.1 + 0.12 * max(head.count("\n") + 1 for head in heads)
    ratio = max(picture.height / picture.width for line in pictures for picture in line)
    figure = Figure(figsize=(margin + side * columns, top + side * ratio * len(labels)))
    width, height = figure.get_size_inches()
    grid = figure.subplots(len(labels), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []},
                           gridspec_kw={"left": margin / width, "right": 0.998, "bottom": 0.004,
                                        "top": 1 - top / height, "wspace": 0.03, "hspace": 0.03})  # fmt: skip
    for line, name, row in zip(grid, names, pictures, strict=True):
        for axes, picture in zip(line, row, strict=True):
            axes.imshow(picture, interpolation="nearest" if picture.width < 128 else None)
            for spine in axes.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=4)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=7, pad=3)
    save_figure(figure, path, DOTS_PER_INCH)


def _pairs(report: EvaluationReport) -> list[tuple[str, str]]:
    """Each two models, the later one first; with many, each of the others and the baseline."""
    labels = report.labels
    if len(labels) > MOST_PAIRED:
        return [(label, report.baseline) for label in report.others]
    return [(labels[i], labels[j]) for i in reversed(range(len(labels))) for j in range(i)]


def _panels(titles: Sequence[str], rows: Sequence[str], row_height: float, unit: str) -> tuple[Figure, list[Any]]:
    """A figure as wide as a page, with a panel for each title, up to three side by side, that share their rows.

    Args:
        titles: of the panels.
        rows: names of the rows of each panel, from above; row `i` is at the height `i`.
        row_height: in inches.
        unit: of the x axis.
    """
    columns = min(len(titles), PANELS_IN_A_ROW)
    lines = math.ceil(len(titles) / columns)
    width = PAGE if columns > 1 else 0.7 * PAGE
    figure = Figure(figsize=(width, lines * (row_height * len(rows) + 0.68) + 0.3), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(unit, fontsize=SMALL)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.tick_params(labelsize=SMALL, length=2)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    for unused in axes[len(titles) :]:
        unused.set_visible(False)
    return figure, axes


def _short(text: str) -> str:
    return plain_text(text, LONGEST_NAME)


def _wrapped(text: str, width: int, most_lines: int) -> str:
    lines = textwrap.wrap(text, width, max_lines=most_lines, placeholder="…")
    return "\n".join(plain_text(line, width) for line in lines)
