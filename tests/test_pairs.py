"""Pairs that many people judged, or one did in a single column: votes, shares and choices, counted by hand."""

import json
import math
import re
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset

from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.convert.layouts import LAYOUTS, Layout, find_layout
from tgo_trl.commands.convert.pairs import find_pair_reader
from tgo_trl.commands.convert.run import convert, convert_dataset
from tgo_trl.commands.convert.tallies import Comparisons
from tgo_trl.commands.convert.words import UnknownWordError
from tgo_trl.data.rows import BadRowError

from .tiny import picture

NUMBERS = Layout("pairs", images=("x", "y"), annotations=("a", "b"))
CHOICE = Layout("pairs", images=("image1", "image2"), annotations=("choice",))


def compared(first, second, layout=NUMBERS):
    """Scale and tallies of pairs of two numbers each."""
    rows = [{"a": a, "b": b} for a, b in zip(first, second, strict=True)]
    reader = find_pair_reader(layout, rows)
    return reader.scale, [reader.read(row) for row in rows]


def chosen(*values, layout=CHOICE, names=()):
    """1 and 0 for each pair: which image was better; a half for a tie, None where nothing was said."""
    rows = [{"choice": value} for value in values]
    reader = find_pair_reader(layout, rows)
    outcomes = [reader.read(row, names) for row in rows]
    return [
        None if outcome is None else (outcome[0].win_rate("half"), outcome[1].win_rate("half")) for outcome in outcomes
    ]


def pairs(count=2, **columns):
    """Rows of two pictures each; the first image of a row is the second of the row before."""
    images = {"image1": [picture(i + 1) for i in range(count)], "image2": [picture(i) for i in range(count)]}
    features = Features({"prompt": Value("string"), "image1": Image(), "image2": Image()})
    rows = Dataset.from_dict({"prompt": ["a"] * count, **images}, features=features)
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def tallied(scored, *columns):
    return list(zip(*(scored[name][:] for name in columns), strict=True))


# ---- Numbers for each image ----


def test_votes_are_comparisons():
    scale, tallies = compared([11, 3, 1, 0, 0], [15, 23, 1, 2, 0])
    assert scale == "votes"
    assert tallies == [
        (Comparisons(11, 0, 26), Comparisons(15, 0, 26)),
        (Comparisons(3, 0, 26), Comparisons(23, 0, 26)),
        (Comparisons(1, 0, 2), Comparisons(1, 0, 2)),  # one each, and no tie
        (Comparisons(0, 0, 2), Comparisons(2, 0, 2)),
        None,  # nobody was asked
    ]


def test_shares_are_parts_of_a_comparison():
    scale, tallies = compared([0.5, 0.42, 1.0], [0.5, 0.58, 0.0])
    assert scale == "shares"
    # half of the votes is half a win, beside 0.49 and 0.51; no tie
    assert tallies == [
        (Comparisons(0.5, 0, 1), Comparisons(0.5, 0, 1)),
        (Comparisons(0.42, 0, 1), Comparisons(0.58, 0, 1)),
        (Comparisons(1, 0, 1), Comparisons(0, 0, 1)),
    ]
    _, [rounded] = compared([0.33], [0.66])  # two digits, cut off
    assert rounded[0].wins == pytest.approx(1 / 3)
    assert rounded[0].total == rounded[1].total == 1


def test_outcomes_of_one_judge():
    scale, tallies = compared([1, 0.5, 0, None], [0, 0.5, 1, None])
    assert scale == "outcomes"
    assert tallies[:2] == [(Comparisons(1, 0, 1), Comparisons(0, 0, 1)), (Comparisons(0, 1, 1), Comparisons(0, 1, 1))]
    assert tallies[3] is None
    words = compared(["win", "lost", "tie", "1"], ["lose", "won", "tie", "0"])[1]
    assert [first.wins for first, _ in words] == [1, 0, 0, 1]
    assert [first.ties for first, _ in words] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("scale", "first", "second", "message"),
    [
        ("auto", 1, 1, r"the outcomes are 1 and 1, not 1 and 0, .*set `annotation_scale` to 'votes' or 'shares'"),
        ("auto", 0, 0, "the outcomes are 0 and 0"),
        ("auto", 0.4, 0.5, r"the outcomes are 0\.4 and 0\.5"),
        ("auto", 42.5, 57.5, r"the outcomes are 42\.5 and 57\.5"),
        ("auto", -1, 1, "the outcomes are -1 and 1"),
        ("auto", 1, None, r"the outcomes are 1\.0 and None, so that one is missing"),
        ("auto", math.nan, 1, "the score is nan, not a finite number"),
        ("votes", -1, 5, "the votes are -1 and 5, but -1 is no number of votes"),
        ("votes", 0.42, 0.58, r"the votes are 0\.42 and 0\.58, but 0\.42 is no number of votes"),
        ("votes", math.inf, 5, "the score is inf"),
        ("votes", None, 5, r"the outcomes are None and 5\.0, so that one is missing"),
        ("shares", 0.42, 0.48, r"the shares are 0\.42 and 0\.48, which are not two parts of 1: their sum is 0\.9"),
        ("shares", 42, 58, "the shares are 42 and 58, which are not two parts of 1: their sum is 100"),
        ("shares", -0.2, 1.2, r"the shares are -0\.2 and 1\.2, which are not two parts of 1"),
        ("shares", 0, 0, "the shares are 0 and 0, which are not two parts of 1: their sum is 0"),
        ("shares", math.nan, 0.5, "the score is nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_row(scale, first, second, message):
    layout = Layout("pairs", images=("image1", "image2"), annotations=("a", "b"), scale=scale)
    good = {"auto": (1, 0), "votes": (11, 15), "shares": (0.42, 0.58)}[scale]
    rows = pairs(3, a=[float(good[0])] * 3, b=[float(good[1])] * 3).to_list()
    rows[1].update(a=first, b=second)
    with pytest.raises(BadRowError, match=f"^Row 1, column '.*': {message}"):
        convert_dataset(Dataset.from_list(rows), layout)
    skipped = convert_dataset(Dataset.from_list(rows), layout, on_bad_row="skip")
    assert len(skipped) == 4  # of the first and the third row


def test_a_scale_is_never_mixed():
    for first, second in (([11, 0.42], [15, 0.58]), ([0.42, 11], [0.58, 15])):
        with pytest.raises(BadRowError, match=r"Row 1, .*(no number of votes|not two parts of 1)"):
            convert_dataset(
                pairs(2, a=[float(value) for value in first], b=[float(value) for value in second]),
                Layout("pairs", images=("image1", "image2"), annotations=("a", "b")),
            )


def test_names_of_columns_tell_the_scale():
    votes = Layout("pairs", images=("x", "y"), annotations=("votes_x", "votes_y"))
    assert find_pair_reader(votes, []).scale == "votes"
    assert find_pair_reader(votes, []).read({"votes_x": 1, "votes_y": 1})[0] == Comparisons(1, 0, 2)
    shares = Layout("pairs", images=("x", "y"), annotations=("Share_x", "Share_y"))
    assert find_pair_reader(shares, []).scale == "shares"
    both = Layout("pairs", images=("x", "y"), annotations=("vote_share_x", "vote_share_y"))
    assert find_pair_reader(both, [{"vote_share_x": 0.1, "vote_share_y": 0.9}]).scale == "shares"


def test_only_as_many_rows_are_read_as_leave_a_doubt():
    read = []

    def rows():
        for pair in ((1, 0), (None, None), (3, 4), (5, 6)):
            read.append(pair)
            yield {"a": pair[0], "b": pair[1]}

    assert find_pair_reader(NUMBERS, rows()).scale == "votes"
    assert read == [(1, 0), (None, None), (3, 4)]


# ---- A choice ----


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("image1", "image2"), ("Image_1", "image 2"), ("A", "B"), ("image_a", "image_b"), ("model_a", "model_b"),
        ("left", "right"), ("first", "second"), ("Left image", "right"), (0, 1), ("0", "1"), (1, 2), ("1", "2"),
        (1.0, 2.0), ("option 1", "option 2"),
    ],
)  # fmt: skip
def test_choices(first, second):
    first = first.replace(" image", "") if isinstance(first, str) else first
    assert chosen(first, second, None, "", "tie") == [(1.0, 0.0), (0.0, 1.0), None, None, (0.5, 0.5)]
    assert chosen("Tie (both bad)", "neither_one", "both") == [(0.5, 0.5)] * 3


def test_a_column_that_is_named_counts_before_its_number():
    # `image_1` is the second of the two
    layout = Layout("pairs", images=("image_0", "image_1"), annotations=("choice",))
    assert chosen("image_1", "image_0", layout=layout) == [(0.0, 1.0), (1.0, 0.0)]
    assert chosen("IMAGE1", layout=layout) == [(0.0, 1.0)]


def test_names_of_the_images_are_choices():
    assert chosen("u7", "u8", "tie", names=("u8", "u7")) == [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)]


@pytest.mark.parametrize(
    "values", [(1, 1), (0, 1, 2), (2, 1, 0), (-1, 1), (True, False), ("good", "bad"), (3,), (0.5,), ("1", "0", "2")]
)
def test_choices_in_doubt_are_asked_for(values):
    # 1 may be the first or the second image, and True as well
    with pytest.raises(UnknownWordError, match=r"which image that is cannot be told\. Set `choice_labels`"):
        chosen(*values)


@pytest.mark.parametrize("value", [math.nan, b"image1"])
def test_choices_that_are_none(value):
    with pytest.raises(ValueError, match="the score is"):
        chosen("image1", value)


def test_choices_may_be_named():
    layout = Layout("pairs", images=("x", "y"), annotations=("choice",), choices=("1", "-1", "0"))
    assert chosen(1, -1, 0, 1.0, None, layout=layout) == [(1, 0), (0, 1), (0.5, 0.5), (1, 0), None]
    layout = Layout("pairs", images=("x", "y"), annotations=("choice",), choices=("True", "False"))
    assert chosen(True, False, layout=layout) == [(1, 0), (0, 1)]
    with pytest.raises(UnknownWordError, match="the choice is 'x', and none of `choice_labels`, True, False"):
        chosen("x", layout=layout)


def test_choices_as_classes():
    rows = pairs(3)
    rows = rows.add_column("choice", [0, 1, 2])
    for names, wins, ties in (  # of images 1, 0, 2 and 3, as they appear
        (["image2", "tie", "image1"], [0, 1, 0, 1], [1, 0, 1, 0]),
        (["left", "right", "both"], [2, 0, 0, 0], [0, 0, 1, 1]),
    ):
        scored = convert_dataset(rows.cast_column("choice", ClassLabel(names=names)))
        assert scored["wins"][:] == wins
        assert scored["ties"][:] == ties
    unknown = rows.cast_column("choice", ClassLabel(names=["image1", "image2", "unsure"]))
    with pytest.raises(ValueError, match=r"'choice' holds the classes .*the choice is 'unsure'.*`choice_labels`"):
        convert_dataset(unknown, on_bad_row="skip")
    numbers = rows.cast_column("choice", ClassLabel(names=["2", "1", "tie"]))  # codes 0 and 1 are no numbers here
    assert convert_dataset(numbers)["wins"][:] == [0, 1, 1, 0]


# ---- Whole data sets ----


def test_votes_by_hand():
    # image 1: 11 of 26 against image 0, and 23 of 26 against image 2; image 0: 15 of 26; image 2: 3 of 26
    rows = pairs(2, votes_image1=[11, 3], votes_image2=[15, 23])
    scored = convert_dataset(rows)
    columns = ("score", "wins", "ties", "comparisons", "win_rate", "smoothed_win_rate")
    assert tallied(scored, *columns) == [
        (34.0, 34, 0, 52, 34 / 52, 35 / 54),
        (15.0, 15, 0, 26, 15 / 26, 16 / 28),
        (3.0, 3, 0, 26, 3 / 26, 4 / 28),
    ]
    assert scored.features["wins"] == scored.features["comparisons"] == Value("int64")
    for ties in ("drop", "zero"):
        assert convert_dataset(rows, ties=ties)["win_rate"][:] == [34 / 52, 15 / 26, 3 / 26]


def test_shares_by_hand():
    scored = convert_dataset(pairs(2, share_1=[0.42, 0.5], share_2=[0.58, 0.5]))
    assert scored.features["wins"] == Value("float64")
    expected = [(0.92, 0, 2, 0.46, 1.92 / 4), (0.58, 0, 1, 0.58, 1.58 / 3), (0.5, 0, 1, 0.5, 1.5 / 3)]
    for row, values in zip(
        tallied(scored, "score", "ties", "comparisons", "win_rate", "smoothed_win_rate"), expected, strict=True
    ):
        assert row == pytest.approx(values)
    assert scored["wins"][:] == scored["score"][:]


def test_per_cent_are_not_taken_for_votes():
    rows = pairs(2, image1_rate=[60, 100], image2_rate=[40, 0])
    layout = Layout("pairs", images=("image1", "image2"), annotations=("image1_rate", "image2_rate"))
    with pytest.raises(BadRowError, match=r"the outcomes are 60 and 40, .* per cent are shares once they are divided"):
        convert_dataset(rows, layout)
    votes = pairs(2, image1_rate=[60, 12], image2_rate=[40, 14])  # the second row leaves no doubt
    assert tallied(convert_dataset(votes, layout), "wins", "comparisons") == [(74, 126), (40, 100), (12, 26)]


def test_votes_in_a_list():
    # in one column; without `first_is_better`, in the order of the images
    rows = pairs(2).add_column("votes", [[3, 4], None])
    layout = Layout("pairs", images=("image1", "image2"), annotations=("votes",), scale="votes")
    assert tallied(convert_dataset(rows, layout), "wins", "comparisons") == [(3, 7), (4, 7)]
    rows = pairs(1).add_column("votes", [[3, 4, 5]])
    with pytest.raises(BadRowError, match="there are 3 numbers for two images"):
        convert_dataset(rows, layout)


def test_rapidata_is_told_by_its_columns(tmp_path):
    features = Features(
        {"prompt": Value("string"), "image1": Image(), "image2": Image(), "votes_image1": Value("int64"),
         "votes_image2": Value("int64"), "model1": Value("string"), "model2": Value("string"),
         "detailed_results": Value("string"), "image1_path": Value("string"), "image2_path": Value("string")}
    )  # fmt: skip
    rows = Dataset.from_dict(
        {
            "prompt": ["a", "a"], "image1": [picture(0), picture(0)], "image2": [picture(1), picture(2)],
            "votes_image1": [20, 6], "votes_image2": [6, 20], "model1": ["flux"] * 2, "model2": ["sd3", "dalle-3"],
            "detailed_results": ["[]"] * 2, "image1_path": ["flux/0_0.jpg"] * 2,
            "image2_path": ["sd3/0_0.jpg", "dalle-3/0_0.jpg"],
        },
        features=features,
    )  # fmt: skip
    assert find_layout(rows.column_names)[0] == "rapidata"
    rows.to_parquet(tmp_path / "rows.parquet")
    output = convert(ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), disable_tqdm=True))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert tallied(scored, "image_uid", "wins", "comparisons") == [
        ("flux/0_0.jpg", 26, 52), ("sd3/0_0.jpg", 6, 26), ("dalle-3/0_0.jpg", 20, 26),
    ]  # fmt: skip
    record = json.loads((output / "conversion.json").read_text())
    assert (record["settings"]["layout"], record["settings"]["scale"]) == ("rapidata", "votes")
    assert record["found"]["images_with_votes"] == 3
    card = (output / "README.md").read_text()
    assert "`score` is the number of votes that the image got in all of its pairs" in card
    assert "`wins` and `comparisons` count votes." in card
    assert "a tie is" not in card


@pytest.mark.parametrize("question", ["preference", "alignment", "coherence"])
def test_rapidatas_weighted_sets(tmp_path, question, capsys):
    numbers = {
        f"weighted_results_image{i}_{name}": values
        for name, shares in (("preference", (0.75, 0.5)), ("alignment", (0.25, None)), ("coherence", (1.0, 0.0)))
        for i, values in ((1, shares), (2, [None if share is None else 1 - share for share in shares]))
    }
    rows = pairs(2)
    for name, values in numbers.items():
        rows = rows.add_column(name, list(values), feature=Value("float32"))
    assert find_layout(rows.column_names)[0] == "rapidata_preference"
    rows.to_parquet(tmp_path / "rows.parquet")
    layout = "auto" if question == "preference" else f"rapidata_{question}"
    settings = {"layout": layout, "score_type": "win_rate", "disable_tqdm": True}
    output = convert(ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), **settings))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert scored["score"][:] == {
        "preference": [(0.75 + 0.5) / 2, 0.25, 0.5], "alignment": [0.25, 0.75], "coherence": [1.0, 0.0, 0.0],
    }[question]  # fmt: skip
    assert "`score` is the mean share of the votes that the image got" in (output / "README.md").read_text()
    printed = capsys.readouterr().out
    assert f"Layout: rapidata_{question}, from prompt, image1, image2, weighted_results_image1_{question}," in printed
    assert f"; weighted_results_image1_{question} and" in printed


def test_hpdv3(tmp_path):
    # As its readme has it: the first is preferred; of Midjourney and HPDv2, no votes are known.
    (tmp_path / "images").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "images" / f"{i}.png")
    paths = [("0", "1", [12, 7]), ("2", "0", [3, 9]), ("3", "0", None)]
    rows = [
        {
            "prompt": "a", "choice_dist": votes, "confidence": votes and 0.99, "path1": f"images/{first}.png",
            "path2": f"images/{second}.png", "model1": "flux", "model2": "infinity",
        }
        for first, second, votes in paths
    ]  # fmt: skip
    (tmp_path / "all.json").write_text(json.dumps(rows))
    settings = {"score_type": "win_rate", "disable_tqdm": True}
    output = convert(ConvertConfig(str(tmp_path / "all.json"), str(tmp_path / "out"), **settings))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    # image 2 is the preferred one of its pair, whatever order the votes are in
    assert tallied(scored, "image_uid", "wins", "comparisons") == [
        ("images/0.png", 12 + 3, 19 + 12 + 1), ("images/1.png", 7, 19), ("images/2.png", 9, 12), ("images/3.png", 1, 1),
    ]  # fmt: skip
    # its test set has no votes at all, and is not taken for HPDv3 unasked
    test = [{name: row[name] for name in ("prompt", "path1", "path2", "model1", "model2")} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(test))
    with pytest.raises(ValueError, match="has no layout that is known here"):
        convert(ConvertConfig(str(tmp_path / "test.json"), str(tmp_path / "test"), **settings))
    output = convert(ConvertConfig(str(tmp_path / "test.json"), str(tmp_path / "test"), layout="hpdv3", **settings))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert tallied(scored, "wins", "comparisons") == [(1, 3), (0, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        (["prompt", "image1", "image2", "choice"], CHOICE),
        (["caption", "image_a", "image_b", "preference"],
         Layout("pairs", "caption", ("image_a", "image_b"), ("preference",))),
        (["prompt", "image_0", "image_1", "votes_0", "votes_1"],
         Layout("pairs", images=("image_0", "image_1"), annotations=("votes_0", "votes_1"), scale="votes")),
        (["prompt", "left_image", "right_image", "left_votes", "right_votes"],
         Layout("pairs", images=("left_image", "right_image"), annotations=("left_votes", "right_votes"),
                scale="votes")),
        (["prompt", "image1", "image2", "image1_share", "image2_share"],
         Layout("pairs", images=("image1", "image2"), annotations=("image1_share", "image2_share"), scale="shares")),
        (["prompt", "image1", "image2", "share1", "share2", "choice"],
         Layout("pairs", images=("image1", "image2"), annotations=("share1", "share2"), scale="shares")),
    ],
)  # fmt: skip
def test_layouts_that_are_told_by_the_columns(columns, layout):
    assert find_layout(columns) == ("pairs", layout)


def test_pairs_without_an_annotation_are_not_guessed():
    for columns in (["prompt", "image1", "image2"], ["prompt", "path1", "path2", "winner_is_left"]):
        with pytest.raises(ValueError, match="has no layout that is known here"):
            find_layout(columns)


@pytest.mark.parametrize("streaming", [False, True])
def test_options_of_the_command(tmp_path, streaming):
    rows = pairs(2, better=[1, -1], a=[0.9, 0.1], b=[0.1, 0.9])
    rows.to_parquet(tmp_path / "rows.parquet")
    shared = {
        "layout": "pairs", "image_columns": ["image1", "image2"], "dataset_streaming": streaming, "disable_tqdm": True,
    }  # fmt: skip
    source = str(tmp_path / "rows.parquet")
    with pytest.raises(UnknownWordError, match=r"Row 0, .*Set `choice_labels` to what stands for 'image1'"):
        convert(ConvertConfig(source, str(tmp_path / "no"), annotation_columns="better", on_bad_row="skip", **shared))
    choice = ConvertConfig(
        source, str(tmp_path / "choice"), annotation_columns="better", choice_labels=[1, -1], **shared
    )
    scored = load_dataset(str(convert(choice)), split="train", cache_dir=str(tmp_path / "cache"))
    assert tallied(scored, "wins", "comparisons") == [(2, 2), (0, 1), (0, 1)]
    shares = ConvertConfig(
        source, str(tmp_path / "shares"), annotation_columns=["a", "b"], annotation_scale="shares", **shared
    )
    scored = load_dataset(str(convert(shares)), split="train", cache_dir=str(tmp_path / "cache"))
    assert scored["win_rate"][:] == [(0.9 + 0.9) / 2, 0.1, 0.1]


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("labels", {"annotation_scale": "votes"}, "`annotation_scale` is 'votes', but only pairs have one, not labels"),
        ("pairs", {"annotation_scale": "stars"}, "`annotation_scale` is 'stars'; it must be one of 'auto', 'outcomes'"),
        ("pairs", {"choice_labels": ["a", "b"]}, "`choice_labels` are a, b. They are for pairs with one column"),
        ("pairs", {"choice_labels": ["a", "a"], "annotation_columns": ["c"]}, "`choice_labels` are a, a"),
        ("pairs", {"choice_labels": list("abcd"), "annotation_columns": ["c"]}, "`choice_labels` are a, b, c, d"),
        ("pairs", {"word_values": {"good": 1}}, "`word_values` is set, but only ratings and ranks have numbers"),
        ("ratings", {"word_values": "good"}, "`word_values` is no JSON"),
        ("ratings", {"word_values": '{"good": "2"}'}, "`word_values` has '2' for 'good', which is no number"),
        ("pairs", {"positive_label": "x"}, "`positive_label` is 'x', but only labels have one, not pairs"),
        ("pairs", {"lower_is_better": True}, "`lower_is_better` is set, but only rankings have ranks"),
        ("pairs", {"annotation_columns": list("abc")}, "`annotation_columns` are a, b, c, but pairs have 0 or 1 or 2"),
    ],
)
def test_settings_of_another_kind_are_refused(layout, settings, message):
    with pytest.raises(ValueError, match=message):
        ConvertConfig("rows", "out", layout=layout, **settings).adapt(LAYOUTS[layout])


def test_other_columns_do_not_inherit_what_a_layouts_own_mean():
    config = ConvertConfig("rows", "out", layout="hpdv3", annotation_columns=["winner"])
    adapted = config.adapt(LAYOUTS["hpdv3"])
    assert (adapted.scale, adapted.first_is_better) == ("auto", False)


def test_outcomes_as_classes():
    outcome = ClassLabel(names=["lost", "won", "tie"])
    rows = pairs(3)
    beside = rows.add_column("a", [1, 0, 2]).add_column("b", [0, 1, 2])
    beside = beside.cast_column("a", outcome).cast_column("b", outcome)
    layout = Layout("pairs", images=("image1", "image2"), annotations=("a", "b"))
    expected = [(2, 0, 2), (0, 0, 1), (0, 1, 2), (0, 1, 1)]  # images 1, 0, 2 and 3
    assert tallied(convert_dataset(beside, layout), "wins", "ties", "comparisons") == expected
    in_list = rows.add_column("outcome", [[1, 0], [0, 1], [2, 2]]).cast_column("outcome", List(outcome))
    layout = Layout("pairs", images=("image1", "image2"), annotations=("outcome",))
    assert tallied(convert_dataset(in_list, layout), "wins", "ties", "comparisons") == expected


def test_a_layout_that_does_not_exist_is_told():
    with pytest.raises(ValueError, match="`layout` is 'stars'; it must be one of 'auto', 'pickapic_v2'"):
        convert_dataset(pairs(1), "stars")


def test_lists_of_two_images_have_no_pair(tmp_path):
    rows = Dataset.from_dict(
        {"prompt": ["a"], "images": [[picture(0), picture(1)]], "choice": ["A"]},
        features=Features({"prompt": Value("string"), "images": List(Image()), "choice": Value("string")}),
    )
    with pytest.raises(ValueError, match="`image_columns` are images, but pairs have 2"):
        convert_dataset(rows, Layout("pairs", images=("images",), annotations=("choice",)))


# ---- The docs ----

EXAMPLES = re.findall(r"```json\n(.*?)```", (Path(__file__).parents[1] / "docs" / "convert.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("example", "layout", "scores"),
    [
        (0, "pairs", {"a": 1, "b": 0}),
        (1, "rapidata", {"a": 11, "b": 15}),
        (2, "pairs", {"a": 0.42, "b": 0.58}),
        (3, "pairs", {"a": 0, "b": 1, "c": 0}),
        (4, "preference", {"a": 1, "b": 0}),
        (5, "imagerewarddb_rank", {"a": 0.5, "b": 1, "c": 0}),
        (6, "labels", {"a": 1, "b": 0}),
        (7, "ratings", {"a": 4.5, "b": 1}),
        (8, "pairs", {"a": 1, "b": 0}),
    ],
)
def test_the_rows_of_the_docs(tmp_path, capsys, example, layout, scores):
    for i, name in enumerate(("a", "b", "c", "fox")):
        picture(i).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.jsonl").write_text(EXAMPLES[example])
    output = convert(ConvertConfig(str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), disable_tqdm=True))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert dict(zip([name[0] for name in scored["image_uid"]], scored["score"], strict=True)) == scores
    assert f"Layout: {layout}" in capsys.readouterr().out
    assert len(EXAMPLES) == 9
