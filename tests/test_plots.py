"""Pictures: where their colours lie tells what was drawn."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.measures import Estimate
from tgo_trl.plots import LOSS, WIN, legend_of_outcomes, plain_text, plot_outcomes
from tgo_trl.trainer.evaluations import Evaluation
from tgo_trl.trainer.plots import plot_evaluations, plot_grid, plot_scores
from tgo_trl.trainer.selection import Bounds

NEGATIVE, POSITIVE = (196, 78, 82), (76, 114, 176)
COLOURS = ("red", "lime", "blue", "cyan", "magenta", "yellow")
DOTS_PER_INCH = 120


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def where(picture, colour):
    """Rows and columns of the pixels of exactly one colour."""
    rows, columns = np.nonzero((picture == np.array(colour, dtype=np.uint8)).all(-1))
    assert len(rows) > 0, f"no pixel is {colour}"
    return rows, columns


def histogram(path, scores, **kwargs):
    """Draws the histogram of `scores`; returns its pixels."""
    prompts = [str(i) for i in range(len(scores))]
    rule = fit_label_rule(scores, prompts, **kwargs)
    plot_scores(rule.apply(scores, prompts), rule, path)
    return pixels(path)


def below_the_legend(picture, colour):
    rows, columns = where(picture, colour)
    inside = rows > picture.shape[0] // 2
    return rows[inside], columns[inside]


def upper_edge(picture):
    """The row of the axes' upper edge."""
    return int(((picture < 60).all(-1).sum(1) > picture.shape[1] // 2).argmax())


# ---- Score histograms ----


def test_histogram_is_a_png_of_the_right_size(tmp_path):
    path = tmp_path / "new folder" / "scores.png"
    picture = histogram(path, [0.0, 1.0, 2.0, 3.0])
    assert Image.open(path).format == "PNG"
    assert picture.shape == (4 * DOTS_PER_INCH, 7 * DOTS_PER_INCH, 3)


def test_weights_that_no_loss_reads_are_not_shown(tmp_path):
    scores, prompts = [0.0, 1.0, 2.0, 3.0], list("abcd")
    rule = fit_label_rule(scores, prompts)
    greys = []
    for are_weighed in (True, False):
        plot_scores(rule.apply(scores, prompts), rule, tmp_path / "scores.png", are_weighed)
        greys.append((pixels(tmp_path / "scores.png") == 128).all(-1).sum())  # the line's
    assert greys[0] > 100
    assert greys[1] < 20


def test_histogram_separates_the_sides_at_the_threshold(tmp_path):
    scores = torch.linspace(0, 1, 41).tolist()
    picture = histogram(tmp_path / "scores.png", scores, threshold_type="value", value=0.7)
    _, negatives = below_the_legend(picture, NEGATIVE)
    _, positives = below_the_legend(picture, POSITIVE)
    # The dashed line is the column with the most black between the axes' own vertical edges.
    black = (picture == 0).all(-1).sum(0)
    left, right = negatives.min(), positives.max()
    line = left + 5 + black[left + 5 : right - 5].argmax()
    assert negatives.max() <= line + 2
    assert positives.min() >= line - 2
    # The threshold lies 0.7 of the way from the least score to the greatest.
    assert (line - left) / (right - left) == pytest.approx(0.7, abs=0.02)


def test_histogram_areas_are_the_numbers_of_rows(tmp_path):
    # Equal spacing, one row per bar or none: 30 of 40 rows are negative, so is three quarters of the coloured area.
    scores = [float(i) for i in range(40)]
    picture = histogram(tmp_path / "scores.png", scores, threshold_type="value", value=30.0, confidence_coef=0.0)
    negatives, positives = (len(below_the_legend(picture, colour)[0]) for colour in (NEGATIVE, POSITIVE))
    assert negatives / (negatives + positives) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("coefficient", [0.0, 5.0])
def test_histogram_draws_the_weights(coefficient, tmp_path):
    # tau = 0. From s = 0.5 to s = 1, where the positive bars begin and end, w = 1 + c s is a straight line; both axes
    # start at 0, at the foot of the bars.
    picture = histogram(tmp_path / "scores.png", [0.5, -1.0, 1.0, -0.5], confidence_coef=coefficient)
    rows, columns = below_the_legend(picture, POSITIVE)
    top, foot = upper_edge(picture) + 4, rows.max() + 1
    grey = (np.ptp(picture, axis=-1) < 10) & (picture.max(-1) < 220)

    def height(share):
        column = round(columns.min() + share * np.ptp(columns))
        return foot - np.nonzero(grey[top : foot - 3, column])[0].mean() - top

    expected = (1 + coefficient * 0.6) / (1 + coefficient * 0.9)
    assert height(0.2) / height(0.8) == pytest.approx(expected, abs=0.01)


def test_the_legend_covers_no_bar_and_nothing_crosses_it(tmp_path):
    # All negative scores are equal, the least, and the most frequent: their bar reaches the axes' upper left corner.
    picture = histogram(tmp_path / "scores.png", [0.0] * 9 + [1.0] * 9 + [2.0], threshold_type="value", value=0.5)
    top = upper_edge(picture)
    rows, columns = where(picture[: top - 2], NEGATIVE)
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) > 50  # the legend's patch, a full rectangle
    rows, columns = where(picture[top + 2 :], NEGATIVE)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == pytest.approx(height * width, rel=0.03)  # the bar is whole, but for the line of the weights


def test_histogram_of_positive_rows_only(tmp_path):
    # What `loss_type="sft"` keeps.
    scores = [0.0, 1.0, 2.0, 3.0]
    rule = fit_label_rule(scores, list("abcd"))
    plot_scores(rule.apply(scores[2:], list("cd")), rule, tmp_path / "scores.png")
    picture = pixels(tmp_path / "scores.png")
    assert len(below_the_legend(picture, POSITIVE)[0]) > 1000
    assert not (picture[picture.shape[0] // 2 :] == NEGATIVE).all(-1).any()


# ---- Outcomes ----


def test_bars_of_outcomes_are_as_long_as_wins_ties_and_losses():
    figure = Figure()
    axes = figure.subplots()
    # half won, a fifth tied, three tenths lost; and all lost, of one prompt
    plot_outcomes(axes, [(0.2, Estimate(0.6, (0.5, 0.7))), (0.0, Estimate(0.0, None))])
    spans = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert np.allclose(spans, [(0, 50), (50, 20), (70, 30), (0, 0), (0, 0), (0, 100)])
    lines = [line.get_xydata().tolist() for line in axes.lines[:3]]
    assert np.allclose(lines[0], [(50, 0), (70, 0)])
    assert (lines[1], lines[2]) == ([[60, 0]], [[0, 1]])


def test_the_legend_of_outcomes_names_the_colours_of_the_bars_and_the_line():
    figure = Figure(layout="constrained")
    figure.subplots()
    legend_of_outcomes(figure, {"win": WIN, "loss": LOSS}, "win rate", 8)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["win", "loss", "win rate"]
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == [WIN, LOSS]
    assert [(line.get_color(), line.get_marker()) for line in legend.get_lines()] == [("black", "o")]


# ---- Grids ----


def grid(path, rows=2, columns=3, row_names=None, column_names=None):
    """Draws a grid of pictures in one colour each, in the order of `COLOURS`; returns its pixels."""
    images = [
        [Image.new("RGB", (16, 16), COLOURS[row * columns + column]) for column in range(columns)]
        for row in range(rows)
    ]
    plot_grid(images, row_names or ["row"] * rows, column_names or ["column"] * columns, path)
    return pixels(path)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 2)])
def test_grid_puts_images_where_they_belong(rows, columns, tmp_path):
    path = tmp_path / "new folder" / "grid.png"
    picture = grid(path, rows, columns)
    assert Image.open(path).format == "PNG"
    # 1.6 inches per image, and room for names
    assert picture.shape == (
        int((1.6 * rows + 0.4) * DOTS_PER_INCH),
        int((1.6 * columns + 1.2) * DOTS_PER_INCH),
        3,
    )
    boxes = {}
    for i in range(rows * columns):
        ys, xs = where(picture, ImageColor.getrgb(COLOURS[i]))
        assert len(ys) == pytest.approx((np.ptp(ys) + 1) * (np.ptp(xs) + 1))  # a full rectangle ...
        assert np.ptp(ys) == pytest.approx(np.ptp(xs), abs=2)  # ... and a square
        assert np.ptp(ys) > DOTS_PER_INCH  # of more than an inch
        boxes[divmod(i, columns)] = (ys.min(), ys.max(), xs.min(), xs.max())
    for (row, column), (top, _, left, _) in boxes.items():
        if row:
            assert top > boxes[row - 1, column][1]  # below the one above
        if column:
            assert left > boxes[row, column - 1][3]  # to the right of the one before


def test_names_may_hold_what_matplotlib_takes_for_formulas(tmp_path):
    assert grid(tmp_path / "grid.png", 1, 2, ["a $\\frac$"], ["$5 and $6", "\\$ $\n$"]).shape[2] == 3
    assert plain_text("two\nlines  of $1", 40) == r"two lines of \$1"
    assert plain_text("a longer text", 5) == "a lo…"


def test_grid_shows_the_images_pixels(tmp_path):
    # Left half black, right half white: half of the square is each.
    image = Image.new("L", (2, 1))
    image.putpixel((1, 0), 255)
    plot_grid([[image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB")]], ["r"], ["c"], tmp_path / "grid.png")
    centre = pixels(tmp_path / "grid.png")[100:180]
    dark = np.nonzero((centre == 0).all((0, 2)))[0]
    assert len(dark) > DOTS_PER_INCH / 2
    assert (centre[:, dark.max() + 5 : dark.max() + DOTS_PER_INCH // 2] == 255).all()


def test_grid_shows_names_and_cuts_long_ones(tmp_path):
    long = "a watercolour of a lighthouse"

    def drawn(**names):
        return grid(tmp_path / "grid.png", 1, 2, **names)

    plain = drawn(row_names=["reference"], column_names=["a cat", "a dog"])
    assert not np.array_equal(plain, drawn(row_names=["step 100"], column_names=["a cat", "a dog"]))
    assert not np.array_equal(plain, drawn(row_names=["reference"], column_names=["a cat", "a cow"]))
    # 24 letters are shown, the last of which becomes an ellipsis: what follows changes nothing.
    assert np.array_equal(drawn(column_names=[long, "b"]), drawn(column_names=[f"{long[:23]} and ships", "b"]))
    assert not np.array_equal(drawn(column_names=[long[:24], "b"]), drawn(column_names=[long, "b"]))


@pytest.mark.parametrize("wrong", [{"row_names": ["one"]}, {"column_names": ["one", "two"]}])
def test_grid_needs_a_name_per_row_and_column(wrong, tmp_path):
    with pytest.raises(ValueError, match="zip"):
        grid(tmp_path / "grid.png", **wrong)


# ---- Evaluations ----


def test_evaluations_are_drawn_a_panel_each_with_bounds_where_they_lie(tmp_path):
    metrics = [
        {"eval_samples/r": 0.1 * i, "eval_samples/r_reference": 0.0, "eval_samples/variety": 1 - 0.1 * i,
         "eval_drift/quartile_1": 1.0, "eval_a_drift/quartile_4": 1 + i} for i in range(4)
    ]  # fmt: skip
    evaluations = [Evaluation(10 * i, values) for i, values in enumerate(metrics)]
    for name, bounds in (("free", Bounds()), ("bound", Bounds(2.0, 0.75))):
        plot_evaluations(evaluations, bounds, 20, tmp_path / f"{name}.png")
    free, bound = pixels(tmp_path / "free.png"), pixels(tmp_path / "bound.png")
    assert free.shape[1] == bound.shape[1] == round((3 * 3.4 + 0.4) * DOTS_PER_INCH)
    assert not (free == np.array(NEGATIVE, dtype=np.uint8)).all(-1).any()
    rows, columns = where(bound, NEGATIVE)
    assert not (columns < bound.shape[1] // 3).any(), "rewards have no bound"
    variety = rows[(columns > bound.shape[1] // 3) & (columns < 2 * bound.shape[1] // 3)]
    line = np.bincount(variety).argmax() / bound.shape[0]
    assert 0.2 < line < 0.4, "0.75 of an axis that ends at 1.1, in the upper three quarters"
    plot_evaluations([Evaluation(1, {"eval_loss": 1.0})], Bounds(), None, tmp_path / "none.png")  # patience alone
    assert pixels(tmp_path / "none.png").size


@pytest.mark.parametrize(
    ("drift", "bound", "middle"), [(1.4, 1.2, 1.2), (1.4, None, 1.2), (9.0, 1.2, 3.0), (1.44, 5, 1.2)]
)
def test_drift_is_in_even_steps_unless_it_or_its_bound_is_large(tmp_path, monkeypatch, drift, bound, middle):
    # what lies halfway between 1 and the drift: the mean in even steps, else the geometric mean
    drawn = []
    monkeypatch.setattr("tgo_trl.trainer.plots.save_figure", lambda figure, *_: drawn.append(figure))
    evaluations = [Evaluation(step, {"eval_drift/quartile_4": value}) for step, value in ((10, 1.0), (20, drift))]
    plot_evaluations(evaluations, Bounds(max_drift=bound), None, tmp_path / "evaluations.png")
    (axes,) = drawn[0].axes
    heights = axes.transData.transform([(10, value) for value in (1.0, middle, drift)])[:, 1]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2)
    assert axes.get_ylim()[1] >= 1.1 * (bound or 1)
