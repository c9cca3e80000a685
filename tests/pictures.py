"""Pictures that nobody looks at."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def save_empty(figure: Figure, path: Path, dpi: int) -> None:
    """Writes an empty PNG, as large as the figure: to draw one takes longer than an update of a tiny pipeline.

    Instead of `Figure.savefig`, as the package calls it.
    """
    width, height = figure.get_size_inches() * dpi
    Image.new("RGB", (int(width), int(height))).save(path)
