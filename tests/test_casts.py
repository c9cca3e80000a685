"""Files of other types than the first: what is the same value is read, and what would be another is refused."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value, load_dataset

from tgo_trl.storage.sources import open_dataset

from .tiny import picture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Nothing stays behind in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(folder, kind, first, second):
    for name, scores in (("a", first), ("b", second)):
        path = folder / f"{name}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps({"prompt": name, "score": score}) + "\n" for score in scores))
        else:
            pq.write_table(pa.table({"prompt": [name] * len(scores), "score": scores}), path)
    return str(folder / f"*.{kind}")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("first", "second", "types"),
    [
        ([True, False], [0.25, 7.0], "bool in the first rows and double"),  # `datasets` makes True of both
        ([True], [2], "bool in the first rows and int64"),
        ([True], ["no"], "bool in the first rows and string"),
        ([0.5], [2**60 + 1], "double in the first rows and int64"),
        ([1.5], ["x"], "double in the first rows and string"),
    ],
)
def test_values_that_would_be_others_are_refused(tmp_path, kind, first, second, types, streaming):
    message = rf"The column 'score' is {types} in others\. Write all of them alike, numbers such as 1\.0 for true"
    with pytest.raises(ValueError, match=message):
        list(open_dataset(write(tmp_path, kind, first, second), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("first", "second", "read"),
    [
        ([0.5], [1, 2], [0.5, 1.0, 2.0]),
        ([0, 2], [True], [0, 2, 1]),
        ([True, False], [True], [True, False, True]),
        ([True], [None], [True, None]),
        ([1, 2], [0.5], [1.0, 2.0, 0.5]),
        ([1, 2], [None], [1, 2, None]),
        ([2**60 + 1], [None], [2**60 + 1, None]),
        ([None], [0.5], [None, 0.5]),
        ([None], [3], [None, 3]),
        ([None], ["no"], [None, "no"]),
    ],
)
def test_values_that_stay_what_they_are_are_read(tmp_path, kind, first, second, read, streaming):
    rows = open_dataset(write(tmp_path, kind, first, second), streaming=streaming)
    assert [row["score"] for row in rows] == read


def test_types_that_hold_all_stay_as_they_are(tmp_path):
    score = pa.array([1, None], pa.int16())
    pq.write_table(
        pa.table({"prompt": ["a", "b"], "score": score, "note": pa.array([None, None])}), tmp_path / "a.parquet"
    )
    opened = open_dataset(str(tmp_path / "a.parquet"))
    assert opened.features == Features({"prompt": Value("string"), "score": Value("int16"), "note": Value("null")})
    (tmp_path / "a.jsonl").write_text('{"a": [1], "b": null, "c": null}\n{"a": [2], "b": {"x": 1}, "c": null}\n')
    assert list(open_dataset(str(tmp_path / "a.jsonl"))) == [
        {"a": [1], "b": None, "c": None},
        {"a": [2], "b": {"x": 1}, "c": None},
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_whole_numbers_may_be_the_first_ten_megabytes(tmp_path, streaming):
    rows = [{"prompt": "a" * 2000, "score": i} for i in range(6000)] + [{"prompt": "b", "score": 0.25}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = open_dataset(str(tmp_path / "a.jsonl"), streaming=streaming)
    assert [row["score"] for row in opened] == [*range(6000), 0.25]


def test_what_was_read_by_other_programs_is_read_anew(tmp_path):
    name = write(tmp_path, "jsonl", [True], [0.25])
    assert load_dataset("json", data_files=name, split="train")["score"] == [True, True]
    with pytest.raises(ValueError, match="The column 'score' is bool in the first rows and double in others"):
        open_dataset(name)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_later_part_of_one_file_is_looked_at_too(tmp_path, streaming):
    """JSON lines are read in parts of 10 MB, of which the first tells the types."""
    long = "a" * 2000
    rows = [{"prompt": long, "score": True}] * 6000 + [{"prompt": "b", "score": 0.25}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="The column 'score' is bool in the first rows and"):
        list(open_dataset(str(tmp_path / "a.jsonl"), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_beside_images_is_read_as_other_tables_are(tmp_path, monkeypatch, streaming):
    monkeypatch.chdir(tmp_path.parent)
    rows = {"train": [("NA", "1"), ("007", "2")], "test": [("None", "0.5"), ("12", "")]}
    for split, cells in rows.items():
        (tmp_path / split).mkdir()
        lines = [f"{i}.png,{prompt},{score},True" for i, (prompt, score) in enumerate(cells)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,prompt,score,seen", *lines]))
        for i in range(2):
            picture(i).save(tmp_path / split / f"{i}.png")
    open_dataset(tmp_path.name)  # what `datasets` remembers of a data set is no reason to read it otherwise
    for split, expected in (("train", [("NA", 1.0), ("007", 2.0)]), ("test", [("None", 0.5), ("12", None)])):
        opened = open_dataset(tmp_path.name, split=split, streaming=streaming)
        assert [(row["prompt"], row["score"]) for row in opened] == expected
        assert [row["seen"] for row in opened] == [True, True]
        assert [row["image"].getpixel((0, 0)) for row in opened] == [picture(i).getpixel((0, 0)) for i in range(2)]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_of_another_separator_beside_images_is_told(tmp_path, streaming):
    (tmp_path / "metadata.csv").write_text("file_name;prompt;score\n0.png;a fox;1\n")
    picture(0).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"'metadata\.csv' has one column, .* divided by ';', and those of a \.csv by"):
        list(open_dataset(str(tmp_path), streaming=streaming))
