"""What all pictures have in common: colours of labels and outcomes, names that hold any text, and PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .measures import Estimate

NEGATIVE, POSITIVE = "#c44e52", "#4c72b0"
WIN, TIE, LOSS = "#0072b2", "#d9d9d9", "#f0c58a"


def plot_outcomes(axes: Any, outcomes: Sequence[tuple[float, Estimate]]) -> None:
    """Draws a bar for each outcome of a comparison: wins, ties and losses, and the win rate with its interval on top.

    Args:
        axes: empty; bar `i` is at the height `i`.
        outcomes: of each bar the share of ties, and the win rate, in which ties count half.
    """
    for row, (tie, rate) in enumerate(outcomes):
        won = rate.value - tie / 2
        for left, share, colour in ((0, won, WIN), (won, tie, TIE), (won + tie, 1 - won - tie, LOSS)):
            axes.barh(row, 100 * share, left=100 * left, color=colour, height=0.72)
        if rate.interval is not None:
            low, high = rate.interval
            axes.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1.4, clip_on=False)
        axes.plot([100 * rate.value], [row], "o", color="black", markersize=3, clip_on=False)
    axes.axvline(50, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 100), xticks=[0, 25, 50, 75, 100])


def legend_of_outcomes(figure: Figure, colours: Mapping[str, str], rate: str, fontsize: float) -> None:
    """A legend below all axes: the parts of the bars, by name, and what the dot with its line is called."""
    handles: list[Any] = [Patch(color=colour) for colour in colours.values()]
    handles.append(Line2D([], [], color="black", marker="o", markersize=3, linewidth=1.4))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles), "frameon": False}
    figure.legend(handles, [*colours, rate], fontsize=fontsize, **place)


def legend_below(axes: Any, fontsize: int = 8, title: str | None = None) -> None:
    """A legend in two columns below the axes and the name of their x axis, where it hides no curve and no bar."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19), "ncols": 2, "frameon": False}
    axes.legend(fontsize=fontsize, title=title, **place)


def plain_text(text: str, longest: int) -> str:
    """What a picture shows of a text: its beginning, in one line, with `$` as a letter.

    matplotlib would read `$...$` as a formula, and fail at one that is wrong: a label or a prompt may be anything.
    """
    line = " ".join(text.split())
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return line.replace("$", r"\$")


def save_figure(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Writes a PNG, in a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dots_per_inch)
