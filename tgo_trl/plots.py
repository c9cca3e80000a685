"""What all pictures have in common: the colours of labels, and PNG files from matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure

NEGATIVE, POSITIVE = "#c44e52", "#4c72b0"


def save_figure(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Writes a PNG, in a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dots_per_inch)
