"""What all pictures have in common: the colours of labels, and PNG files from matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure

NEGATIVE, POSITIVE = "#c44e52", "#4c72b0"


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
