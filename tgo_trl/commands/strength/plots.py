"""The picture of an adapter's strength: samples over scales, and reward, variety and drift below them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from ...plots import legend_below, plain_text, save_figure
from .report import StrengthReport

CURVES_HEIGHT = 3.8
DOTS_PER_INCH = 120
COLOUR, SUGGESTED, BOUND = "#4c72b0", "#1b7837", "#c44e52"
QUARTILE_COLOURS = ("#a6bddb", "#67a9cf", "#1c7fb0", "#014636")
LONGEST_PROMPT = 30
MOST_COLUMNS = 9


@dataclass(frozen=True)
class Shown:
    """Samples of one prompt.

    Attributes:
        prompt: of them.
        sources: the images that they were made from, as many of all prompts that are shown together.
        pictures: a sample at each scale.
    """

    prompt: str
    sources: Sequence[Image.Image]
    pictures: Mapping[float, Image.Image]


def plot_strength(report: StrengthReport, shown: Sequence[Shown], path: Path) -> None:
    """Samples of some prompts over the scales, from the same seed each, and the three curves.

    Args:
        report: what was measured.
        shown: samples of some prompts.
        path: of the PNG.
    """
    scales = _shown_scales([row.scale for row in report.rows], report.suggestion.scale)
    strip_height = 11 / (len(shown[0].sources) + len(scales)) * len(shown) * 0.92 + 0.5
    figure = Figure(figsize=(11, strip_height + CURVES_HEIGHT), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(strip_height, CURVES_HEIGHT))
    strip, curves = parts
    _plot_samples(strip, scales, shown, report.suggestion.scale)
    panels = curves.subplots(1, 3)
    _plot_reward(panels[0], report)
    _plot_variety(panels[1], report)
    _plot_drift(panels[2], report)
    for axes in panels:
        if report.suggestion.scale is not None:
            axes.axvline(report.suggestion.scale, color=SUGGESTED, linewidth=6, alpha=0.25, zorder=0)
        axes.set(xlabel="scale of the adapter")
        axes.grid(axis="y", color="#e5e5e5")
        axes.set_axisbelow(True)
    save_figure(figure, path, DOTS_PER_INCH)


def _plot_samples(figure: Any, scales: Sequence[float], shown: Sequence[Shown], suggested: float | None) -> None:
    num_sources = len(shown[0].sources)
    grid = figure.subplots(
        len(shown), num_sources + len(scales), squeeze=False, subplot_kw={"xticks": [], "yticks": []}
    )
    for line, of_prompt in zip(grid, shown, strict=True):
        for axes, picture in zip(line, [*of_prompt.sources, *map(of_prompt.pictures.get, scales)], strict=True):
            axes.imshow(picture)
        for axes, scale in zip(line[num_sources:], scales, strict=True):
            if scale == suggested:
                for spine in axes.spines.values():
                    spine.set(color=SUGGESTED, linewidth=3)
        line[0].set_ylabel(plain_text(of_prompt.prompt, LONGEST_PROMPT), fontsize=8)
    for axes in grid[0][:num_sources]:
        axes.set_title("source", fontsize=10)
    for axes, scale in zip(grid[0][num_sources:], scales, strict=True):
        name = "base" if scale == 0 else f"{scale:g}"
        axes.set_title(f"{name}, suggested" if scale == suggested else name, fontsize=10)


def _plot_reward(axes: Any, report: StrengthReport) -> None:
    scales = [row.scale for row in report.rows]
    lows, highs = zip(*(row.interval for row in report.rows), strict=True)
    axes.fill_between(scales, lows, highs, color=COLOUR, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(scales, [row.reward for row in report.rows], "o-", color=COLOUR)
    axes.set(title=f"reward: {report.reward}")
    legend_below(axes)


def _plot_variety(axes: Any, report: StrengthReport) -> None:
    axes.plot([row.scale for row in report.rows], [row.variety for row in report.rows], "o-", color=COLOUR)
    axes.axhline(report.min_variety, color=BOUND, linestyle="--", label=f"at least {report.min_variety:g}")
    axes.set(title="variety of a prompt (base: 1)", ylim=(0, None))
    legend_below(axes)


def _plot_drift(axes: Any, report: StrengthReport) -> None:
    scales = [row.scale for row in report.rows]
    for i, colour in enumerate(QUARTILE_COLOURS):
        noise = {0: ", least noise", 3: ", most noise"}.get(i, "")
        values = [row.drift[i] for row in report.rows]
        axes.plot(scales, values, "o-", color=colour, markersize=4, label=f"quartile {i + 1}{noise}")
    axes.axhline(report.max_drift, color=BOUND, linestyle="--", label=f"at most {report.max_drift:g}")
    axes.set(title="drift: error over the base's")
    largest = max(max(row.drift) for row in report.rows)
    if largest > 5:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    legend_below(axes)


def _shown_scales(scales: Sequence[float], suggested: float | None) -> list[float]:
    """All scales, or as many as are still seen, spread evenly, with base, largest and suggestion among them."""
    if len(scales) <= MOST_COLUMNS:
        return list(scales)
    chosen = {scales[round(i * (len(scales) - 1) / (MOST_COLUMNS - 2))] for i in range(MOST_COLUMNS - 1)}
    return sorted(chosen | ({suggested} if suggested is not None else set()))
