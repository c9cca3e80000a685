"""Pictures, as PNG with matplotlib: score histograms, grids of samples, and evaluations over a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from ..labels.rule import LabelRule, Labels
from ..plots import NEGATIVE, POSITIVE, legend_below, plain_text, save_figure
from .evaluations import Evaluation
from .selection import Bounds

SCORE_HISTOGRAM_NAME = "score_histogram.png"
DOTS_PER_INCH = 120
LONGEST_NAME = 24
DRIFT_COLOURS = ("#9ecae1", "#6baed6", "#3182bd", "#08306b")
"""Of the quartiles of time, darker with more noise."""
MOST_DRIFT_IN_EVEN_STEPS = 4
"""The drift, or its bound, from which on the axis is logarithmic."""


def plot_scores(labels: Labels, rule: LabelRule, path: Path, are_weighed: bool = True) -> None:
    """Histogram of the scores, negatives and positives apart, with the threshold and the weight of each score.

    Args:
        labels: of the training rows.
        rule: that made them.
        path: of the PNG.
        are_weighed: whether the loss reads the weights; they are not shown otherwise.
    """
    scores = labels.scores
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sides = [scores[~labels.is_positive].numpy(), scores[labels.is_positive].numpy()]
    names = [f"negative ({len(sides[0])})", f"positive ({len(sides[1])})"]
    axes.hist(sides, bins=40, stacked=True, label=names, color=[NEGATIVE, POSITIVE])
    axes.axvline(rule.threshold, color="black", linestyle="--", label=f"threshold {rule.threshold:.4g}")
    axes.set(xlabel="score", ylabel="rows")
    if are_weighed:
        in_front = axes.twinx()
        order = scores.argsort()
        in_front.plot(scores[order].numpy(), labels.weights[order].numpy(), color="grey", linewidth=1)
        in_front.set(ylabel="weight (line)", ylim=(0, None))
    # above, where it covers no bar, and no line crosses it
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path, DOTS_PER_INCH)


def plot_grid(
    rows: Sequence[Sequence[Image.Image]], row_names: Sequence[str], column_names: Sequence[str], path: Path
) -> None:
    """A grid of images with a name beside each row and above each column.

    Args:
        rows: images, as many in each row.
        row_names: shown beside the rows; long ones are cut.
        column_names: shown above the columns; long ones are cut.
        path: of the PNG.
    """
    height, width = len(rows), len(rows[0])
    figure = Figure(figsize=(1.6 * width + 1.2, 1.6 * height + 0.4), layout="constrained")
    for row, (images, row_name) in enumerate(zip(rows, row_names, strict=True)):
        for column, (image, column_name) in enumerate(zip(images, column_names, strict=True)):
            axes = figure.add_subplot(height, width, row * width + column + 1, xticks=[], yticks=[])
            axes.imshow(image)
            if row == 0:
                axes.set_title(plain_text(column_name, LONGEST_NAME), fontsize=8)
            if column == 0:
                axes.set_ylabel(plain_text(row_name, LONGEST_NAME), fontsize=9)
    save_figure(figure, path, DOTS_PER_INCH)


def plot_evaluations(evaluations: Sequence[Evaluation], bounds: Bounds, best: int | None, path: Path) -> None:
    """Rewards, variety and drift over the updates of a run, a panel each, with bounds and the best checkpoint.

    Args:
        evaluations: of the run, at least one; a panel is left out if none of them has its metric.
        bounds: drawn as lines, beyond which it is shaded.
        best: the update of the best checkpoint; None as long as there is none.
        path: of the PNG.
    """
    last = evaluations[-1]
    names = list(last.rewards)
    panels = [*names, *(["variety"] if last.variety is not None else []), *(["drift"] if last.drifts else [])]
    figure = Figure(figsize=(max(1, len(panels)) * 3.4 + 0.4, 3.7), layout="constrained")
    for axes, panel in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("update")
        if panel in names:
            _plot_curve(axes, {it.step: it.rewards.get(panel, (None,))[0] for it in evaluations}, POSITIVE, "samples")
            axes.axhline(last.rewards[panel][1], color="grey", linestyle="--", linewidth=1, label="reference")
            axes.set_title(f"{plain_text(panel, LONGEST_NAME)}: mean reward", fontsize=10)
        elif panel == "variety":
            _plot_curve(axes, {it.step: it.variety for it in evaluations}, POSITIVE, "samples")
            axes.axhline(1, color="grey", linestyle="--", linewidth=1, label="reference")
            axes.set_ylim(0, max(1.1, *axes.get_ylim()))
            _shade(axes, bounds.min_variety, "min_variety", upwards=False)
            axes.set_title("variety, over the reference's", fontsize=10)
        else:
            _plot_drift(axes, evaluations, bounds)
        if best is not None:
            axes.axvline(best, color="black", linestyle=":", linewidth=1.2, label=f"best: checkpoint-{best}")
        legend_below(axes, fontsize=7)
        axes.tick_params(labelsize=8)
    save_figure(figure, path, DOTS_PER_INCH)


def _plot_drift(axes: Axes, evaluations: Sequence[Evaluation], bounds: Bounds) -> None:
    largest = max(bounds.max_drift or 1, *(value for it in evaluations for value in it.drifts.values()))
    if largest >= MOST_DRIFT_IN_EVEN_STEPS:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    for i in sorted(evaluations[-1].drifts):
        points = {it.step: it.drifts.get(i) for it in evaluations}
        _plot_curve(axes, points, DRIFT_COLOURS[i - 1], f"quartile {i}")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.95), max(high, 1.1 * (bounds.max_drift or 1)))
    axes.axhline(1, color="grey", linestyle="--", linewidth=1)
    _shade(axes, bounds.max_drift, "max_drift", upwards=True)
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_title("drift by quartile of time", fontsize=10)


def _shade(axes: Axes, bound: float | None, name: str, upwards: bool) -> None:
    """The side of a bound on which no checkpoint is kept, within the limits that the axes have."""
    if bound is None:
        return
    low, high = axes.get_ylim()
    axes.axhline(bound, color=NEGATIVE, linewidth=1.5, label=name)
    axes.axhspan(bound, high if upwards else low, color=NEGATIVE, alpha=0.12, linewidth=0)
    axes.set_ylim(low, high)


def _plot_curve(axes: Axes, points: Mapping[int, float | None], colour: str, label: str) -> None:
    """A line through the values by update, of those that there are."""
    measured = {step: value for step, value in points.items() if value is not None}
    axes.plot(list(measured), list(measured.values()), color=colour, marker="o", markersize=3, label=label)


def film_strip(frames: Sequence[Image.Image], num_shown: int = 4) -> Image.Image:
    """Some frames of a video side by side, from the first to the last."""
    count = min(num_shown, len(frames))
    shown = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    strip = Image.new("RGB", (sum(frame.width for frame in shown), shown[0].height))
    for i, frame in enumerate(shown):
        strip.paste(frame, (i * frame.width, 0))
    return strip
