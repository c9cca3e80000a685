"""What people said, in columns of any names and with any values: counted such that the sums are right, or refused."""

import io
import math

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tgo_trl.commands.convert.layouts import LAYOUTS, Layout, find_layout
from tgo_trl.commands.convert.run import convert_dataset
from tgo_trl.commands.convert.tallies import TIES, Comparisons, Ratings, compare_all

NAMES = sorted({name for layout in LAYOUTS.values() for name in (*layout.columns, *layout.told_by)} | {
    "votes_image1", "votes_image2", "image_a", "image_b", "choice", "share_a", "share_b", "", "Bild", "label\n"
})  # fmt: skip
CELLS = {
    "float64": st.none() | st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.75, -1.0, 3.0, 26.0, math.nan, math.inf, 1e39]),
    "int64": st.none() | st.sampled_from([0, 1, 2, 3, 26, -1, 2**62]),
    "bool": st.none() | st.booleans(),
    "string": st.none()
    | st.sampled_from(["", "a", "A", "image_0", "image_1", "tie", "good", "bad", "0", "1", "5 stars", "ü"]),
}


def png(seed):
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (seed, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


PICTURES = [png(i) for i in range(4)]


@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_any_columns_have_a_layout_or_none(columns):
    try:
        name, layout = find_layout(columns)
    except ValueError as error:
        assert "layout" in str(error)  # noqa: PT017 (either may come)
        return
    assert isinstance(layout, Layout)
    assert name in LAYOUTS
    assert layout.required <= set(columns)


@st.composite
def tables(draw):
    """A data set of one of the plain layouts, with annotations of one type, and the layout."""
    kind = draw(st.sampled_from(["pairs", "ranking", "labels", "ratings"]))
    layout = LAYOUTS[kind]
    num_rows = draw(st.integers(1, 6))

    def column(cells):
        return draw(st.lists(cells, min_size=num_rows, max_size=num_rows))

    features, columns = {"prompt": Value("string")}, {"prompt": column(st.sampled_from(["a", "b"]))}
    for name in layout.images:
        features[name], columns[name] = ImageFeature(), column(st.sampled_from(PICTURES))
    for name in layout.annotations:
        cell_type = draw(st.sampled_from(sorted(CELLS)))
        features[name], columns[name] = Value(cell_type), column(CELLS[cell_type])
    return kind, Dataset.from_dict(columns, features=Features(features)), draw(st.sampled_from(TIES))


@settings(max_examples=120)
@given(tables(), st.sampled_from(["error", "skip"]))
def test_any_table_becomes_scores_or_is_refused(table, on_bad_row):
    kind, dataset, ties = table
    try:
        scored = convert_dataset(dataset, kind, ties=ties, on_bad_row=on_bad_row)
    except ValueError:
        return
    assert all(map(math.isfinite, scored["score"]))
    assert set(scored["prompt"]) <= set(dataset["prompt"])
    if kind == "ratings":
        assert min(scored["ratings"]) >= 1
        return
    assert all(0 <= rate <= 1 for name in ("win_rate", "smoothed_win_rate") for rate in scored[name])
    assert all(0 <= w + t <= n for w, t, n in zip(scored["wins"], scored["ties"], scored["comparisons"], strict=True))
    if kind in ("pairs", "ranking") and ties != "drop":  # else images that only tied have no score, and no row
        won, tied, total = (sum(scored[name]) for name in ("wins", "ties", "comparisons"))
        assert 2 * won + tied == pytest.approx(total)


@given(st.lists(st.integers(0, 3), max_size=8), st.booleans(), st.sampled_from(TIES), st.floats(0, 8))
def test_what_one_wins_another_loses(values, lower_is_better, ties, prior):
    said = [Comparisons() for _ in values]
    for i, outcome in compare_all(values, lower_is_better):
        said[i].add(outcome)
    assert sum(2 * one.wins + one.ties for one in said) == sum(one.total for one in said)
    rates = [one.win_rate(ties, prior) for one in said]
    assert all(rate is None or 0 <= rate <= 1 for rate in rates)
    best = (min if lower_is_better else max)(values, default=None)
    for value, rate in zip(values, rates, strict=True):
        if ties != "drop" and value == best and rate is not None:
            assert rate == max(rates)


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 3), min_size=1, max_size=6), st.sampled_from(TIES))
def test_tallies_of_parts_are_the_tally_of_all(counts, ties):
    merged = Comparisons()
    for wins, tied, losses in counts:
        merged.merge(Comparisons(wins, tied, wins + tied + losses))
    wins, tied, losses = map(sum, zip(*counts, strict=True))
    assert merged == Comparisons(wins, tied, wins + tied + losses)
    rate = merged.win_rate(ties)
    assert rate is None or 0 <= rate <= 1


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=4), min_size=1, max_size=6), st.floats(0, 8))
def test_means_lie_among_the_ratings(values, prior):
    ratings = Ratings()
    for given_values in values:
        ratings.add([given_values])
    everything = [value for column in values for value in column]
    mean = ratings.mean(0, prior, 0.0)
    assert (mean is None) == (not everything)
    if everything:
        assert mean == pytest.approx(sum(everything) / (len(everything) + prior), abs=1e-3)
        assert min(*everything, 0) - 1e-3 <= mean <= max(*everything, 0) + 1e-3
