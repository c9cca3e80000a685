"""Pictures, as PNG with matplotlib: score histograms and grids of samples."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..labels.rule import LabelRule, Labels
from ..plots import NEGATIVE, POSITIVE, save_figure

SCORE_HISTOGRAM_NAME = "score_histogram.png"
DOTS_PER_INCH = 120


def plot_scores(labels: Labels, rule: LabelRule, path: Path) -> None:
    """Histogram of the scores, negatives and positives apart, with the threshold and the weight of each score.

    Args:
        labels: of the training rows.
        rule: that made them.
        path: of the PNG.
    """
    scores = labels.scores
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sides = [scores[~labels.is_positive].numpy(), scores[labels.is_positive].numpy()]
    names = [f"negative ({len(sides[0])})", f"positive ({len(sides[1])})"]
    axes.hist(sides, bins=40, stacked=True, label=names, color=[NEGATIVE, POSITIVE])
    axes.axvline(rule.threshold, color="black", linestyle="--", label=f"threshold {rule.threshold:.4g}")
    axes.set(xlabel="score", ylabel="rows")
    weight_axes = axes.twinx()
    order = scores.argsort()
    weight_axes.plot(scores[order].numpy(), labels.weights[order].numpy(), color="grey", linewidth=1)
    weight_axes.set(ylabel="weight (line)", ylim=(0, None))
    # on the axes in front, or the line would cross it
    weight_axes.legend(*axes.get_legend_handles_labels(), loc="upper left")
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
                axes.set_title(_shorten(column_name), fontsize=8)
            if column == 0:
                axes.set_ylabel(_shorten(row_name), fontsize=9)
    save_figure(figure, path, DOTS_PER_INCH)


def film_strip(frames: Sequence[Image.Image], num_shown: int = 4) -> Image.Image:
    """Some frames of a video side by side, from the first to the last."""
    count = min(num_shown, len(frames))
    shown = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    strip = Image.new("RGB", (sum(frame.width for frame in shown), shown[0].height))
    for i, frame in enumerate(shown):
        strip.paste(frame, (i * frame.width, 0))
    return strip


def _shorten(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
