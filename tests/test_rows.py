"""Columns and rows are checked, and what is wrong is said."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from tgo_trl.data.columns import Columns, undecoded
from tgo_trl.data.rows import BadRowError, BadRows, check_prompt, check_score, iterate_rows, read_row
from tgo_trl.media.origin import OWN

from .tiny import PROMPTS, picture, scored_rows


def rows(scores, prompts=None):
    prompts = prompts or ["a red cat"] * len(scores)
    return Dataset.from_dict({"prompt": prompts, "image": ["image.png"] * len(scores), "score": scores})


def read(dataset, skip=False, columns=None):
    bad = BadRows(skip=skip)
    return list(iterate_rows(dataset, columns or Columns(), bad, OWN)), bad


# ---- Columns ----


@pytest.mark.parametrize("missing", ["prompt", "image", "score"])
def test_a_missing_column_is_named_with_the_setting_that_renames_it(missing):
    present = [name for name in ("prompt", "image", "score") if name != missing]
    dataset = scored_rows(2).remove_columns(missing)
    message = (
        f"The training data set has no column '{missing}'; it has '{present[0]}', '{present[1]}'. Rename the column, "
        f"or set `{missing}_column`."
    )
    for kind in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"no column") as caught:
            Columns().check(kind, "training")
        assert str(caught.value) == message


def test_renamed_columns_are_read_under_their_names():
    renamed = scored_rows(3).rename_columns({"prompt": "caption", "image": "picture", "score": "hpsv2"})
    columns = Columns("caption", "picture", "hpsv2")
    columns.check(renamed, "training")
    (read_rows, _), (plain, _) = read(renamed, columns=columns), read(scored_rows(3))
    assert read_rows == plain
    assert [(row, prompt) for row, prompt, _, _ in plain] == [(0, PROMPTS[0]), (1, PROMPTS[1]), (2, PROMPTS[2])]


def test_columns_that_only_a_transform_makes_are_found_in_the_rows():
    dataset = scored_rows(2).remove_columns("score")
    dataset.set_transform(lambda batch: {**batch, "score": [len(prompt) for prompt in batch["prompt"]]})
    Columns().check(dataset, "training")
    assert [score for _, _, _, score in read(dataset)[0]] == [9.0, 10.0]  # "a red cat", "a blue dog"


def test_columns_of_a_stream_of_unknown_columns_are_checked_row_by_row():
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "a red cat", "score": 1.0}]))
    assert stream.column_names is None
    Columns().check(stream, "training")
    reason = "the column is missing; the row has 'prompt', 'score'"
    with pytest.raises(BadRowError, match=f"Row 0, column 'image': {reason}"):
        read(stream)
    with pytest.raises(BadRowError, match=f"Row 0, column 'hpsv2': {reason}"):
        read(stream, columns=Columns(score="hpsv2"))
    kept, bad = read(stream, skip=True)
    assert (kept, bad.reasons) == ([], [f"Row 0, column 'image': {reason}."])


# ---- Formats ----


def test_images_come_as_files_and_not_as_pixels():
    dataset = scored_rows(1)
    value = read(dataset)[0][0][2]
    assert value["bytes"].startswith(b"\x89PNG")
    assert dataset[0]["image"].size == (16, 16)  # the user's data set is as it was


@pytest.mark.parametrize("format_", ["torch", "numpy", "arrow", "pandas"])
@pytest.mark.parametrize("streamed", [False, True], ids=["map", "stream"])
def test_the_output_format_makes_no_difference(format_, streamed):
    plain, formatted = scored_rows(3), scored_rows(3).with_format(format_)
    if streamed:
        plain, formatted = plain.to_iterable_dataset(), plain.to_iterable_dataset().with_format(format_)
    assert read(formatted)[0] == read(plain)[0]


def test_columns_hidden_by_a_format_are_read():
    hidden = scored_rows(2).with_format("numpy", columns=["score"])
    assert read(hidden)[0] == read(scored_rows(2))[0]


def test_a_transform_is_left_in_place():
    dataset = scored_rows(2)
    dataset.set_transform(lambda batch: {**batch, "image": [image.transpose(0) for image in batch["image"]]})
    assert undecoded(dataset, "image") is dataset
    assert read(dataset)[0][1][2].tobytes() == picture(1).transpose(0).tobytes()


# ---- Prompts and scores ----


def test_prompts_are_kept_as_they_are():
    assert check_prompt("  a red cat ") == "  a red cat "


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the prompt is empty"),
        (" \t\n", "the prompt is empty"),
        (None, r"the prompt is missing \(None\)"),
        (3, "the prompt is a `int`, not a string"),
        (["a", "b"], "the prompt is a `list`, not a string"),
    ],
)
def test_prompts_that_are_none(value, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        check_prompt(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (-1.5, -1.5),
        (True, 1.0),
        (False, 0.0),
        (np.float32(0.25), 0.25),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(2.5), 2.5),
        (torch.tensor(2.5), 2.5),
    ],
    ids=repr,
)
def test_scores_are_anything_that_is_a_number(value, expected):
    score = check_score(value)
    assert (type(score), score) == (float, expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, r"the score is missing \(None\)"),
        ("0.5", "the score is the text '0.5', not a number"),
        (b"1", "the score is a `bytes`, not a number"),
        ([1.0], "the score is a `list`, not a number"),
        (float("nan"), "the score is nan, not a finite number"),
        (np.float32("nan"), "the score is nan, not a finite number"),
        (float("inf"), "the score is inf, not a finite number"),
        (-float("inf"), "the score is -inf, not a finite number"),
        (np.array([1.0, 2.0]), "the score is no single number"),
        (torch.tensor([1.0, 2.0]), "the score is no single number"),
        (10**400, "the score is no single number"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_scores_that_are_none(value, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        check_score(value)


# ---- Bad rows ----


def test_a_bad_row_is_named_with_its_column_and_what_to_do():
    with pytest.raises(BadRowError) as caught:
        read(rows([1.0, 2.0, float("nan")]))
    assert str(caught.value) == (
        "Row 2, column 'score': the score is nan, not a finite number. Mend or drop the row, or set "
        "`on_bad_row='skip'` to leave such rows out."
    )
    with pytest.raises(BadRowError, match="Row 1, column 'caption': the prompt is empty"):
        read(rows([1.0, 2.0], ["a", " "]).rename_column("prompt", "caption"), columns=Columns(prompt="caption"))
    assert issubclass(BadRowError, ValueError)


def test_skipped_rows_are_left_out_and_the_others_keep_their_numbers():
    kept, bad = read(rows([1.0, None, 3.0, 4.0], ["a", "b", "", "d"]), skip=True)
    assert [(row, prompt, score) for row, prompt, _, score in kept] == [(0, "a", 1.0), (3, "d", 4.0)]
    assert bad.rows == [1, 2]
    assert bad.reasons == [
        "Row 1, column 'score': the score is missing (None).",
        "Row 2, column 'prompt': the prompt is empty.",
    ]


def test_a_row_with_two_faults_counts_once():
    bad = BadRows(skip=True)
    assert read_row({"prompt": "", "image": None, "score": None}, Columns(), 5, bad, OWN) is None
    assert bad.rows == [5]


def test_what_was_skipped_is_reported(caplog):
    _, bad = read(rows([1.0, None, 3.0]), skip=True)
    bad.warn("training", 3)
    assert caplog.messages == [
        "Skipped 1 of 3 rows of the training data set. Row 1, column 'score': the score is missing (None)."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_the_report_gives_the_first_five_reasons(caplog):
    _, bad = read(rows([None] * 7), skip=True)
    bad.warn("training", 7)
    (message,) = caplog.messages
    assert message.startswith("Skipped 7 of 7 rows")
    assert [f"Row {row}," in message for row in range(7)] == [True] * 5 + [False] * 2
    assert message.endswith(" ...")


def test_nothing_skipped_is_nothing_reported(caplog):
    _, bad = read(rows([1.0, 2.0]), skip=True)
    bad.warn("training", 2)
    assert caplog.messages == []
