"""The pictures of a comparison, sized for a page: win-rate bars, score distributions, and samples side by side."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from ...plots import save_figure
from .report import EvaluationReport

DOTS_PER_INCH = 200
PAGE = 7.0
"""Width of a page's text, in inches."""
COLOURS = ("#4d4d4d", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Of the models: those of Okabe and Ito, which colour-blind readers tell apart."""
WIN, TIE, LOSS = "#0072b2", "#d9d9d9", "#f0c58a"
MOST_PAIRED = 5
"""Models of which all pairs are shown; of more, those with the baseline."""
PANELS_IN_A_ROW = 3
PROMPTS_IN_A_ROW = 6
NUM_BINS = 40


def plot_win_rates(report: EvaluationReport, path: Path) -> None:
    """A bar for each two models: wins, ties and losses of the first, and its win rate with its interval.

    Args:
        report: with two models or more.
        path: of the PNG.
    """
    pairs = _pairs(report)
    height = 0.34 * len(pairs) + 0.75
    figure, panels = _panels(len(report.rewards), height)
    for axes, (name, results) in zip(panels, report.overall.rewards.items(), strict=False):
        for row, (ours, theirs) in enumerate(pairs):
            rate, tie = results.win_rates[ours][theirs], results.ties[ours][theirs]
            won = rate.value - tie / 2
            left = 0.0
            for share, colour in ((won, WIN), (tie, TIE), (1 - won - tie, LOSS)):
                axes.barh(row, 100 * share, left=100 * left, color=colour, height=0.66)
                left += share
            if rate.interval is not None:
                low, high = rate.interval
                axes.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1.4, solid_capstyle="butt")
            axes.plot([100 * rate.value], [row], "o", color="black", markersize=3.2)
            axes.text(102, row, f"{100 * rate.value:.0f} %", va="center", fontsize=7.5)
        axes.axvline(50, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 100), ylim=(len(pairs) - 0.5, -0.5), xticks=[0, 25, 50, 75, 100])
        axes.set_yticks(range(len(pairs)), [f"{_short(ours)} vs. {_short(theirs)}" for ours, theirs in pairs])
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7.5, length=2)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    patches = [Patch(color=colour) for colour in (WIN, TIE, LOSS)]
    names = ["wins", "ties", "losses, in % of samples"]
    figure.legend(patches, names, loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


def plot_distributions(report: EvaluationReport, scores: Mapping[str, Tensor], path: Path) -> None:
    """Histograms of the scores of all models, a panel for each reward, with a line at each median.

    Args:
        report: with the medians.
        scores: by reward, `[M, P, K]`.
        path: of the PNG.
    """
    figure, panels = _panels(len(scores), 2.0)
    lines: list[Any] = []
    for axes, (name, values) in zip(panels, scores.items(), strict=False):
        flat = values.flatten(1).numpy()
        edges = np.histogram_bin_edges(flat, bins=min(NUM_BINS, max(10, int(math.sqrt(flat.shape[1])))))
        lines = []
        for i, label in enumerate(report.labels):
            counts = 100 * np.histogram(flat[i], edges)[0] / flat.shape[1]
            colour = COLOURS[i % len(COLOURS)]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.12)
            style = "-" if i < len(COLOURS) else "--"
            lines.append(axes.stairs(counts, edges, color=colour, linewidth=1.3, linestyle=style))
            median = report.overall.rewards[name].medians[label].value
            axes.axvline(median, color=colour, linewidth=1, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_ylim(0, None)
        axes.tick_params(labelsize=7.5, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("% of samples", fontsize=8)
    names = [_short(label) for label in report.labels]
    figure.legend(lines, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=7.5, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


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
    columns, names = len(prompts), [_wrapped(_short(label), 13, 3) for label in labels]
    margin = 0.16 + 0.085 * max(len(line) for name in names for line in name.split("\n")) * 0.8
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


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure as wide as a page, and `count` axes of a height in inches, up to three in a row."""
    columns = min(count, PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    width = PAGE if columns > 1 else PAGE * 0.6
    figure = Figure(figsize=(width, rows * height + 0.35), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes


def _short(text: str, length: int = 28) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _wrapped(text: str, width: int, most_lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=most_lines, placeholder="…") or [""])
