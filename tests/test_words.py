"""Names count, codes do not: words for good and bad, numbers in words, and columns of classes."""

import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset

from tgo_trl import TGOConfig
from tgo_trl.cli import main
from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.convert.layouts import Layout
from tgo_trl.commands.convert.run import convert, convert_dataset
from tgo_trl.commands.convert.words import (
    OPPOSITES,
    UnknownWordError,
    as_number,
    is_good,
    is_set,
    plain,
    spelt,
)
from tgo_trl.commands.generate.prompts import read_prompts
from tgo_trl.commands.inspect.config import InspectConfig
from tgo_trl.commands.inspect.run import inspect
from tgo_trl.commands.score.run import score_dataset
from tgo_trl.data.classes import ClassNames, check_no_classes, class_names
from tgo_trl.data.columns import Columns
from tgo_trl.data.rows import BadRowError

from .tiny import picture


def labelled(feature, labels, **columns):
    """Rows of one prompt, each with a picture and a label."""
    columns = {"prompt": ["a"] * len(labels), "image": [picture(i) for i in range(len(labels))], **columns}
    features = {"prompt": Value("string"), "image": Image(), "label": feature}
    given = {name: columns[name] for name in columns if name not in features}
    features |= Dataset.from_dict(given).features if given else {}
    return Dataset.from_dict({**columns, "label": labels}, features=Features(features))


# ---- Words ----


def test_words_are_compared_without_their_spelling():
    assert [plain(word) for word in (" Thumbs_Up ", "thumbs-up", "THUMBS  UP", "-1")] == ["thumbs up"] * 3 + ["-1"]
    assert [spelt(value) for value in (1, 1.0, 1.5, True, "a")] == ["1", "1", "1.5", "True", "a"]


def test_every_pair_of_opposites_decides():
    for good, bad in OPPOSITES:
        assert is_good(good)
        assert is_good(good.upper())
        assert not is_good(bad)
    assert not {good for good, _ in OPPOSITES} & {bad for _, bad in OPPOSITES}


@pytest.mark.parametrize("value", ["fine", "2", 2, 0.5, "unsure", "good bad"])
def test_other_labels_are_asked_for(value):
    with pytest.raises(UnknownWordError, match="`positive_label` to the good one"):
        is_good(value)
    assert is_good(value, str(value))
    assert not is_good(value, "x")


@pytest.mark.parametrize("positive", [None, "1"])
@pytest.mark.parametrize("value", [math.nan, b"1", [1]])
def test_labels_that_are_none(value, positive):
    with pytest.raises(ValueError, match="the score is"):
        is_good(value, positive)


def test_flags_are_read_however_they_are_written():
    assert [is_set(value) for value in (True, 1, 1.0, "true", "Yes", "1")] == [True] * 6
    assert [is_set(value) for value in (False, 0, "False", "no", "0", None, "")] == [False] * 7
    with pytest.raises(ValueError, match="the flag is 'maybe', neither true nor false"):
        is_set("maybe")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (4, 4.0), (True, 1.0), ("4", 4.0), ("4 stars", 4.0), ("1 Star", 1.0), (" 3.5 points ", 3.5), ("-2", -2.0),
        ("1st", 1.0), ("2nd", 2.0), (None, None), (" ", None),
    ],
)  # fmt: skip
def test_numbers_in_words(value, number):
    assert as_number(value) == number


@pytest.mark.parametrize("value", ["good", "4 of 5", "1-2", "nan", "inf", "four"])
def test_words_without_a_number_are_asked_for(value):
    with pytest.raises(UnknownWordError, match=f"the value is '{value}', and no number.*`word_values`"):
        as_number(value)
    assert as_number(value, {value: 2}) == 2.0
    assert as_number(value, {value: None}) is None
    with pytest.raises(ValueError, match="not a finite number"):
        as_number(value, {value: math.inf})


# ---- Codes ----


def test_codes_become_names():
    classes = ClassLabel(names=["no", "yes"])
    names = ClassNames(Features({"a": classes, "b": List(classes), "c": List(List(classes)), "d": Value("int64")}))
    row = {"a": 1, "b": [0, -1, None], "c": [[1], []], "d": 1}
    assert names.resolve(row) == {"a": "yes", "b": ["no", None, None], "c": [["yes"], []], "d": 1}
    assert names.resolve({"a": None, "d": 0}) == {"a": None, "d": 0}
    assert names.resolve({"a": "yes"}) == {"a": "yes"}  # of a transform
    with pytest.raises(ValueError, match="the class 2 has no name; there are 2, 'no', 'yes'"):
        names.resolve({"a": 2})
    assert ClassNames(None).resolve({"a": 1}) == {"a": 1}
    assert class_names(List(List(classes))) == ["no", "yes"]
    assert class_names(Value("int64")) is None


@pytest.mark.parametrize("names", [["accepted", "rejected"], ["rejected", "accepted"]])
@pytest.mark.parametrize("streaming", [False, True])
def test_thumbs_in_folders(tmp_path, names, streaming):
    # `imagefolder` sorts the names: accepted is 0, rejected is 1
    for i, label in enumerate(names):
        (tmp_path / "thumbs" / label).mkdir(parents=True)
        picture(i).save(tmp_path / "thumbs" / label / "x.png")
    rows = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "thumbs"), split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = rows.add_column("prompt", ["a red cat"] * 2)
    where = ""
    if streaming:  # which forgets that its loader has listed the files
        rows, where = rows.to_iterable_dataset(), str(tmp_path)
    assert convert_dataset(rows, image_dir=where)["score"][:] == [1.0, 0.0]
    layout = Layout("labels", annotations=("label",), positive="rejected")
    assert convert_dataset(rows, layout, image_dir=where)["score"][:] == [0.0, 1.0]


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_command_resolves_codes_in_both_passes(tmp_path, kind, streaming):
    # prompt, label, the flag and even the path of the image are codes
    for name in ("x.png", "y.png"):
        picture(ord(name[0])).save(tmp_path / name)
    codes = {"caption": 1, "label": 0, "file": 1, "checked": 0}
    names = {"caption": ["-", "a cat"], "label": ["good", "bad"], "file": ["x.png", "y.png"], "checked": ["yes", "no"]}
    rows = Dataset.from_list(
        [codes, {**codes, "label": 1, "file": 0}, {**codes, "checked": 1}, {**codes, "label": -1}],
        features=Features({name: ClassLabel(names=values) for name, values in names.items()}),
    )
    source = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    rows.to_parquet(source) if kind == "parquet" else rows.save_to_disk(source)
    settings = {"layout": "labels", "prompt_column": "caption", "image_columns": "file", "disable_tqdm": True}
    output = convert(
        ConvertConfig(
            str(source), str(tmp_path / "out"), image_dir=str(tmp_path), dataset_streaming=streaming, **settings
        )
    )
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    by_name = [(row["prompt"], row["image_uid"], row["score"]) for row in scored]
    assert by_name == [("a cat", "y.png", 1.0), ("a cat", "x.png", 0.0)]
    assert np.array_equal(scored[0]["image"], picture(ord("y")))


@pytest.mark.parametrize("values", [["True", "False"], ["yes", "no"], ["1", "0"], ["1", "-1"], ["Liked", "disliked"]])
def test_labels_in_words(values):
    rows = labelled(Value("string"), [*values, None, ""])
    assert convert_dataset(rows)["score"][:] == [1.0, 0.0]


def test_integers_as_classes_are_their_names():
    # as `class_encode_column` makes them: "0" and "1", in whatever order they come
    rows = labelled(ClassLabel(names=["1", "0"]), [0, 1, -1])
    assert convert_dataset(rows)["score"][:] == [1.0, 0.0]


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_names_that_mean_nothing_are_asked_for_before_any_row_is_read(on_bad_row):
    rows = labelled(ClassLabel(names=["accepted", "unsure"]), [0, 0])
    with pytest.raises(
        ValueError, match=r"'label' holds the classes 'accepted', 'unsure': the label is 'unsure'.*`pos"
    ):
        convert_dataset(rows, on_bad_row=on_bad_row)
    with pytest.raises(ValueError, match=r"holds the classes .*`positive_label` is '0', which is none of them"):
        convert_dataset(rows, Layout("labels", annotations=("label",), positive="0"), on_bad_row=on_bad_row)
    words = labelled(Value("string"), ["accepted", "unsure", "unsure"])
    with pytest.raises(BadRowError, match=r"Row 1, .*the label is 'unsure'"):
        convert_dataset(words, on_bad_row=on_bad_row)  # else two rows in three would be gone


def test_a_code_without_a_name_is_a_bad_row():
    features = Features(
        {"prompt": Value("string"), "image": Value("string"), "label": ClassLabel(names=["bad", "good"])}
    )
    rows = Dataset.from_dict({"prompt": ["a"], "image": ["x"], "label": [1]}, features=features)
    rows.set_transform(lambda batch: {**batch, "label": [7]})
    with pytest.raises(BadRowError, match=r"Row 0, .*the class 7 has no name"):
        convert_dataset(rows, "labels")


# ---- Ratings and ranks ----


def test_stars_as_classes():
    stars = ClassLabel(names=["5 stars", "1 star", "no rating"])
    rows = labelled(stars, [0, 1, 2, -1])
    layout = Layout("ratings", annotations=("label",))
    with pytest.raises(ValueError, match=r"'label' holds the classes .*the value is 'no rating', and no number"):
        convert_dataset(rows, layout)
    assert convert_dataset(rows, Layout("ratings", annotations=("label",), values={"no rating": None}))["score"][:] == [
        5.0, 1.0,
    ]  # fmt: skip


def test_several_raters_as_classes():
    rows = labelled(List(ClassLabel(names=["good", "poor"])), [[0, 1, -1], [1]])
    layout = Layout("ratings", annotations=("label",), values={"good": 2, "poor": 1})
    scored = convert_dataset(rows, layout)
    assert scored["score"][:] == [1.5, 1.0]
    assert scored["ratings"][:] == [2, 1]


def test_ranks_as_classes():
    # The codes are the other way round: "2" is 0
    rows = labelled(ClassLabel(names=["2nd", "1st"]), [0, 1])
    layout = Layout("ranking", annotations=("label",), lower_is_better=True)
    assert convert_dataset(rows, layout)["score"][:] == [0.0, 1.0]
    in_lists = Dataset.from_dict(
        {"prompt": ["a"], "image": [[picture(0), picture(1)]], "label": [[0, 1]]},
        features=Features(
            {"prompt": Value("string"), "image": List(Image()), "label": List(ClassLabel(names=["2", "1"]))}
        ),
    )
    assert convert_dataset(in_lists, layout)["score"][:] == [0.0, 1.0]


def test_ratings_in_words_from_the_command_line(tmp_path):
    rows = labelled(Value("string"), ["poor", "4", "skip"])
    rows.to_parquet(tmp_path / "rows.parquet")
    arguments = ["--dataset_name", str(tmp_path / "rows.parquet"), "--output_dir", str(tmp_path / "out")]
    layout = ["--layout", "ratings", "--annotation_columns", "label", "--disable_tqdm", "true"]
    assert main(["convert", *arguments, *layout]) == 1
    assert main(["convert", *arguments, *layout, "--word_values", '{"poor": 1, "skip": null}']) == 0
    assert load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c"))["score"][:] == [1.0, 4.0]


# ---- Scores and prompts ----


def test_classes_are_no_scores_and_no_prompts(tmp_path):
    rows = labelled(ClassLabel(names=["accepted", "rejected"]), [0, 1]).rename_column("label", "score")
    message = r"`score_column` is 'score', a column of classes \('accepted', 'rejected'\): .*--layout labels"
    for kind in (rows, rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match=message):
            Columns().check(kind, "training")
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=message):
        inspect(InspectConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), disable_tqdm=True))
    prompts = rows.remove_columns("prompt").rename_column("score", "prompt")
    message = r"`prompt_column` is 'prompt', a column of classes .*: what it holds are codes, and no text"
    with pytest.raises(ValueError, match=message):
        score_dataset(prompts, lambda prompts, images: [0.0] * len(prompts))
    with pytest.raises(ValueError, match=message):
        check_no_classes(Features({"prompt": List(ClassLabel(names=["a"]))}), {"prompt_column": ["prompt"]})


def test_training_refuses_codes_before_it_encodes(tmp_path):
    from tgo_trl import TGOTrainer

    from .tiny.stable_diffusion import build

    rows = labelled(ClassLabel(names=["accepted", "rejected"]), [0, 1]).rename_column("label", "score")
    args = TGOConfig(str(tmp_path), use_cpu=True, resolution=16, report_to="none", encoding_cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="`score_column` is 'score', a column of classes"):
        TGOTrainer(build(), args, rows)


@pytest.mark.parametrize("name", ["rows.parquet", "folder"])
def test_prompts_may_be_names_of_classes(tmp_path, name):
    features = Features({"prompt": ClassLabel(names=["a dog", "a cat"])})
    rows = Dataset.from_dict({"prompt": [1, 0]}, features=features)
    (tmp_path / "folder").mkdir()
    rows.to_parquet(tmp_path / name / "x.parquet" if name == "folder" else tmp_path / name)
    assert read_prompts(str(tmp_path / name)) == ["a cat", "a dog"]
