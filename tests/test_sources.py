"""Data sets are opened by name, in one way for all commands: files, archives, patterns, folders; streamed or not."""

import gzip
import io
import json
import pickle
import re
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from tgo_trl.cli import main
from tgo_trl.commands.generate.prompts import read_prompts
from tgo_trl.media.images import load_image
from tgo_trl.media.origin import source_folder
from tgo_trl.storage.parquet import ParquetFolder
from tgo_trl.storage.sources import open_dataset

from .tiny import picture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Nothing stays behind in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(seed):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def tar(path, mode="w", members=None):
    """A WebDataset of three images, each with a `.txt` of its prompt and a `.json` of scores."""
    if members is None:
        members = {}
        for i in range(3):
            members[f"{i:03d}.png"] = png(i)
            members[f"{i:03d}.txt"] = f"prompt {i}".encode()
            members[f"{i:03d}.json"] = json.dumps({"score": i / 2, "words": {"tone": "warm"}}).encode()
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"images/{i}.png", png(i))
        rows = [{"file_name": f"{i}.png", "prompt": f"prompt {i}", "score": i / 2, **members} for i in range(3)]
        archive.writestr("images/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_are_opened_by_name(tmp_path, streaming):
    table = Dataset.from_dict({"prompt": ["a", "b"]})
    table.to_parquet(tmp_path / "rows.parquet")
    table.to_csv(tmp_path / "rows.csv")
    table.to_json(tmp_path / "rows.jsonl")
    table.save_to_disk(tmp_path / "saved")
    DatasetDict({"test": table}).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train.parquet")
    names = [("rows.parquet", "train"), ("rows.csv", "train"), ("rows.jsonl", "train"), ("saved", "train"),
             ("splits", "test"), ("folder", "train")]  # fmt: skip
    for name, split in names:
        opened = open_dataset(str(tmp_path / name), split=split, streaming=streaming)
        assert isinstance(opened, Dataset) is not streaming
        assert [row["prompt"] for row in opened] == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl"])
def test_a_part_of_a_file_is_opened(tmp_path, name):
    table = Dataset.from_dict({"prompt": list("abcde")})
    getattr(table, {"parquet": "to_parquet", "csv": "to_csv", "jsonl": "to_json"}[name.partition(".")[2]])(
        tmp_path / name
    )
    assert open_dataset(str(tmp_path / name), split="train[:3]")["prompt"] == list("abc")
    assert open_dataset(str(tmp_path / name), split="test[-1:]")["prompt"] == ["e"]
    assert len(open_dataset(str(tmp_path / name), split="test")) == 5
    with pytest.raises(ValueError, match=r"is 'train\[:3\]', but a stream is not read in parts"):
        open_dataset(str(tmp_path / name), split="train[:3]", streaming=True)


def test_a_part_of_what_was_saved_is_refused(tmp_path):
    Dataset.from_dict({"prompt": list("abcde")}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"is 'train\[:3\]', but what `save_to_disk` wrote is not read in parts"):
        open_dataset(str(tmp_path / "saved"), split="train[:3]")


@pytest.mark.parametrize("error", [FileNotFoundError, ConnectionError])
def test_a_misspelt_folder_is_told(tmp_path, monkeypatch, error):
    def unreachable(name, *args, **kwargs):
        raise error(f"no data for {name}")

    monkeypatch.setattr("tgo_trl.storage.sources.load_dataset_builder", unreachable)
    with pytest.raises(
        ValueError, match=rf"no file or folder 'outputs/typo' here.*\({error.__name__}: no data for out"
    ):
        open_dataset("outputs/typo")
    with pytest.raises(error):  # an empty folder is there
        open_dataset(str(tmp_path))


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*rows\.csv'"):
        open_dataset(str(tmp_path / "rows.csv"))
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"'rows\.xlsx' is no kind of file"):
        open_dataset(str(tmp_path / "rows.xlsx"))
    DatasetDict({"test": Dataset.from_dict({"prompt": ["a"]})}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"no split 'train'; it has 'test'"):
        open_dataset(str(tmp_path / "splits"))
    shards = ParquetFolder(tmp_path / "begun", "generation.json", "train", 2)
    shards.begin({}, PartialState())
    shards.write(0, [{"prompt": "a"}], Features({"prompt": Value("string")}))
    with pytest.raises(ValueError, match=r"is not finished: it has no README\.md"):
        open_dataset(str(tmp_path / "begun"))


# ---- Kinds of files ----


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv.gz", 'prompt,score\n"a, ""b""",1.5\nNA,2\n'),
        ("rows.tsv", '\ufeffprompt\tscore\na, "b"\t1.5\nNA\t2\n'),
        ("rows.tsv.gz", 'prompt\tscore\na, "b"\t1.5\nNA\t2\n'),
        ("rows.jsonl.gz", '{"prompt": "a, \\"b\\"", "score": 1.5}\n{"prompt": "NA", "score": 2}\n'),
        ("rows[1] {a}*.csv", 'prompt,score\n"a, ""b""",1.5\nNA,2\n'),
    ],
)
def test_tables_are_read_letter_for_letter(tmp_path, name, text, streaming):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert list(open_dataset(str(path), streaming=streaming)) == [
        {"prompt": 'a, "b"', "score": 1.5},
        {"prompt": "NA", "score": 2.0},
    ]
    assert read_prompts(str(path)) == ['a, "b"', "NA"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", 'prompt,score\na,1\n"b,2\nc,3\n', r"Line 3 of 'rows\.csv': a quote is opened and never closed"),
        ("rows.csv", "prompt,score\na,1,3\n", r"Line 2 of 'rows\.csv' has 3 cells, the header 2"),
        ("rows.tsv", "prompt\tscore\na\t1\nb\n", r"Line 3 of 'rows\.tsv' has 1 cells, the header 2"),
        ("rows.csv", "score,prompt,score\n1,a,2\n", r"Line 1 of 'rows\.csv', the header, has two columns 'score'"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"Line 2 of 'rows\.jsonl' is no JSON"),
        ("rows.jsonl", '{"score": 1, "score": 2}\n', r"Line 1 of 'rows\.jsonl' has 'score' twice"),
    ],
)
def test_tables_that_cannot_be_right_are_told_by_line(tmp_path, name, text, message, streaming):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / name, tmp_path / "folder" / name):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_dataset(str(path), streaming=streaming)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / "folder"), streaming=streaming)


def test_a_folder_of_tab_separated_files_has_no_quotes_either(tmp_path):
    (tmp_path / "p.tsv").write_text('prompt\n"HELLO" on a wall\nnull\n')
    for streaming in (False, True):
        rows = open_dataset(str(tmp_path), streaming=streaming)
        assert [row["prompt"] for row in rows] == ['"HELLO" on a wall', "null"]
    assert read_prompts(str(tmp_path)) == ['"HELLO" on a wall', "null"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "folder"])
def test_missing_numbers_are_missing_and_words_are_words(tmp_path, name, streaming):
    rows = [["prompt", "score", "note"], ["NA", "1.5", "nan"], ["null", "NA", ""], ["None", "nan", "x"], ["7", "", "y"]]
    separator = "\t" if name == "rows.tsv" else ","
    (tmp_path / "folder").mkdir()
    path = tmp_path / ("folder/rows.csv" if name == "folder" else name)
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    read = list(open_dataset(str(tmp_path / name), streaming=streaming))
    assert [row["note"] for row in read] == ["nan", None, "x", "y"]
    assert [row["score"] for row in read] == [1.5, None, None, None]
    # the only numbers of the prompts are words' neighbours
    assert [row["prompt"] for row in read] == [7.0 if row[0] == "7" else None for row in rows[1:]]
    path.write_text(path.read_text().replace("7", "a dog"))
    read = list(open_dataset(str(tmp_path / name), streaming=streaming))
    assert [row["prompt"] for row in read] == ["NA", "null", "None", "a dog"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "folder"])
def test_a_column_has_one_type_however_many_rows_it_has(tmp_path, name, streaming):
    """By itself, pandas looks for a type in every ten thousand rows anew."""
    prompts = ["a fox"] * 10_000 + [f"{i:04d}" for i in range(100)]
    scores = [*range(10_000), *(i + 0.5 for i in range(100))]
    separator = "\t" if name == "rows.tsv" else ","
    rows = [("prompt", "score"), *zip(prompts, scores, strict=True)]
    (tmp_path / "folder").mkdir()
    path = tmp_path / ("folder/rows.csv" if name == "folder" else name)
    path.write_text("".join(f"{prompt}{separator}{score}\n" for prompt, score in rows))
    opened = open_dataset(str(tmp_path / name), streaming=streaming)
    assert opened.features == Features({"prompt": Value("string"), "score": Value("float64")})
    assert [row["prompt"] for row in opened] == prompts
    assert [row["score"] for row in opened] == scores


def test_numbers_are_numbers_however_they_are_written(tmp_path):
    cells = [" 0.5", "+1", "2.", ".25", "-1e-3", "7\t"]
    (tmp_path / "rows.csv").write_text("prompt,score\n" + "".join(f"a fox,{cell}\n" for cell in cells))
    assert open_dataset(str(tmp_path / "rows.csv"))["score"] == [0.5, 1.0, 2.0, 0.25, -1e-3, 7.0]
    (tmp_path / "ids.csv").write_text(f"prompt,id\na fox, {2**64 - 1}\na cat,+0\n")
    assert open_dataset(str(tmp_path / "ids.csv"))["id"] == [2**64 - 1, 0]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_several_files_have_one_type(tmp_path, streaming):
    (tmp_path / "a.csv").write_text("prompt,score,flag\n1984,1,True\n")
    (tmp_path / "b.csv").write_text("prompt,score,flag\n007,0.5,False\n")
    opened = open_dataset(str(tmp_path / "*.csv"), streaming=streaming)
    assert list(opened) == [
        {"prompt": "1984", "score": 1.0, "flag": True},
        {"prompt": "007", "score": 0.5, "flag": False},
    ]


def test_classes_that_a_folders_card_declares_stay_classes(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,label\na fox,1\na cat,0\n")
    features = "[{name: prompt, dtype: string}, {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}]"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features: {features}\n---\n")
    opened = open_dataset(str(tmp_path))
    assert opened.features["label"] == ClassLabel(names=["bad", "good"])
    assert opened["label"] == [1, 0]


@pytest.mark.parametrize(("score", "read"), [(1, True), (7, None)])
def test_numbers_that_a_card_declares_true_or_false_are_0_or_1(tmp_path, score, read):
    (tmp_path / "train.csv").write_text(f"prompt,good\na fox,0\na cat,{score}\n")
    features = "[{name: prompt, dtype: string}, {name: good, dtype: bool}]"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features: {features}\n---\n")
    if read is None:
        with pytest.raises(ValueError, match="The column 'good' is bool"):
            open_dataset(str(tmp_path))
    else:
        assert open_dataset(str(tmp_path))["good"] == [False, read]


def test_numbers_are_read_exactly(tmp_path):
    values = [0.1 + 0.2, 1 / 3, 2.2250738585072014e-308, 123456789.123456789]
    (tmp_path / "rows.csv").write_text("score\n" + "".join(f"{value!r}\n" for value in values))
    assert open_dataset(str(tmp_path / "rows.csv"))["score"] == values


def test_a_file_that_was_mended_is_read_again(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt\n"a\n')
    with pytest.raises(ValueError, match="never closed"):
        open_dataset(str(path))
    path.write_text("prompt\na\n")
    assert open_dataset(str(path))["prompt"] == ["a"]


@pytest.mark.parametrize("streaming", [False, True])
def test_patterns_and_nested_folders(tmp_path, streaming):
    for i, folder in enumerate(("a", "a/b", "c")):
        (tmp_path / "shards" / folder).mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"prompt": [f"p{i}"], "other": [i]}).to_parquet(
            tmp_path / "shards" / folder / f"part-{i}.parquet"
        )
    names = {
        str(tmp_path / "shards" / "a" / "*.parquet"): ["p0"],
        str(tmp_path / "shards" / "**" / "*.parquet"): ["p0", "p1", "p2"],
        str(tmp_path / "shards"): ["p0", "p1", "p2"],
    }
    for name, prompts in names.items():
        assert sorted(row["prompt"] for row in open_dataset(name, streaming=streaming)) == prompts
        narrow = open_dataset(name, streaming=streaming, columns=["prompt"])
        assert sorted(narrow, key=str) == [{"prompt": prompt} for prompt in prompts]
    assert source_folder(str(tmp_path / "shards" / "a" / "*.parquet")) == tmp_path / "shards" / "a"
    assert source_folder(str(tmp_path / "shards" / "**" / "*.parquet")) == tmp_path / "shards"
    assert source_folder(str(tmp_path / "shards")) == tmp_path / "shards"
    assert source_folder("owner/name") is None


def test_images_of_a_pattern_lie_where_it_begins(tmp_path):
    picture(0).save(tmp_path / "0.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "image": "0.png", "rating": 1}))
    arguments = ["--dataset_name", str(tmp_path / "*.jsonl"), "--output_dir", str(tmp_path / "out")]
    assert main(["convert", *arguments, "--disable_tqdm", "true"]) == 0
    assert open_dataset(str(tmp_path / "out"))["prompt"] == ["a", "b"]
    record = (tmp_path / "out" / "conversion.json").read_text()
    assert str(tmp_path) not in record
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_patterns_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match=r"No file here is like '.*\*\.parquet'"):
        open_dataset(str(tmp_path / "*.parquet"))
    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "a.tsv").write_text("prompt\na\n")
    with pytest.raises(ValueError, match=r"files of several kinds, \.csv, \.tsv"):
        open_dataset(str(tmp_path / "a.*"))


@pytest.mark.parametrize("streaming", [False, True])
def test_arrow_files_keep_their_classes(tmp_path, streaming):
    features = Features({"label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"label": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    [path] = (tmp_path / "saved").glob("*.arrow")
    opened = open_dataset(str(path), streaming=streaming)
    assert opened.features == features
    assert [row["label"] for row in opened] == [1, 0]


# ---- Archives ----


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "mode"), [("rows.tar", "w"), ("rows.tar.gz", "w:gz"), ("rows.tgz", "w:gz")])
def test_tar_archives(tmp_path, name, mode, streaming):
    opened = open_dataset(tar(tmp_path / name, mode), streaming=streaming)
    rows = list(opened)
    assert [(row["txt"], row["score"], row["words"]) for row in rows] == [
        (f"prompt {i}", i / 2, {"tone": "warm"}) for i in range(3)
    ]
    assert np.array_equal(load_image(rows[1]["png"]), picture(1))
    assert "json" not in opened.column_names
    assert read_prompts(str(tmp_path / name), "txt") == ["prompt 0", "prompt 1", "prompt 2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_zip_archives_hold_their_images(tmp_path, streaming):
    opened = open_dataset(zipped(tmp_path / "rows.zip"), streaming=streaming)
    files = list(opened.cast_column("image", datasets.Image(decode=False)))
    assert [(row["prompt"], row["score"], row["image"]["bytes"]) for row in files] == [
        (f"prompt {i}", i / 2, png(i)) for i in range(3)
    ]
    (tmp_path / "folder").mkdir()
    zipped(tmp_path / "folder" / "rows.zip")
    inside = open_dataset(str(tmp_path / "folder"), streaming=streaming)
    assert [row["image"]["bytes"] for row in inside.cast_column("image", datasets.Image(decode=False))] == [
        png(i) for i in range(3)
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_zip_archives_of_tables(tmp_path, streaming):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.csv", "prompt,score\na,1\nb,2\n")
    opened = open_dataset(str(tmp_path / "rows.zip"), streaming=streaming)
    assert [(row["prompt"], row["score"]) for row in opened] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_an_archive_names_elsewhere_is_not_read(tmp_path, streaming):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(7))
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("0.png", png(0))
        archive.writestr("metadata.jsonl", json.dumps({"file_name": str(secret), "prompt": "a"}))
    try:
        opened = open_dataset(str(tmp_path / "rows.zip"), streaming=streaming)
        cells = [row["image"] for row in opened.cast_column("image", datasets.Image(decode=False))]
    except ValueError as error:  # newer versions of `datasets` refuse it themselves
        assert "must be a relative path" in str(error)  # noqa: PT017
    else:
        assert all(cell["bytes"] is None for cell in cells)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.zip", b"PK no archive", r"'rows\.zip' is no zip archive"),
        ("rows.tar", b"no archive", r"'rows\.tar' cannot be read \("),
        ("rows.parquet", b"PAR1 no table", r"'rows\.parquet' cannot be read \(ArrowInvalid"),
        ("rows.arrow", b"no table", r"'rows\.arrow' cannot be read \("),
        ("rows.json", b'{"prompt": ["a"', "JSON parse error"),
        ("rows.csv.gz", b"no archive", r"'rows\.csv\.gz' cannot be decompressed"),
        ("rows.csv", b"prompt\n\xff\xfea\n", r"'rows\.csv' is no UTF-8 text \(line 2"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(open_dataset(str(tmp_path / name), streaming=streaming))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", ""), ("a.csv", "prompt,score\n"), ("a.tsv", "prompt\tscore\n"), ("a.jsonl", ""), ("a.parquet", "")],
)
def test_a_file_without_rows_is_told(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^'{name}' has no rows\."):
        open_dataset(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", ""), ("a.tsv", ""), ("a.jsonl", ""), ("a.parquet", ""), ("a.jsonl", "\n\n")],
)
def test_a_stream_of_an_empty_file_is_told(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^'{name}' has no rows\."):
        list(open_dataset(str(tmp_path / name), streaming=True))


def test_a_slice_without_rows_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,score\n" + "a fox,0.5\n" * 8)
    assert len(open_dataset(str(tmp_path / "a.csv"), split="train[:50%]")) == 4
    for split in ("train[:1%]", "train[8:]"):
        with pytest.raises(ValueError, match=rf"'a\.csv' has no rows in '{re.escape(split)}'\. Set another split"):
            open_dataset(str(tmp_path / "a.csv"), split=split)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_among_others_is_named(tmp_path, streaming):
    (tmp_path / "a.csv").write_text("prompt,score\na fox,0.5\n")
    (tmp_path / "b.csv").touch()
    with pytest.raises(ValueError, match=r"'b\.csv' is empty\. Was it written to its end\?"):
        list(open_dataset(str(tmp_path), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_without_rows_is_named(tmp_path, streaming):
    Dataset.from_dict({"prompt": ["a fox"]}).to_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"^'b\.parquet' has no rows\."):
        list(open_dataset(str(tmp_path / "b.parquet"), streaming=streaming))
    with pytest.raises(ValueError, match=r"'b\.parquet' is empty\. Was it written to its end\?"):
        list(open_dataset(str(tmp_path / "*.parquet"), streaming=streaming))


@pytest.mark.parametrize("mark", [";", "|"])
def test_a_table_with_another_separator_is_told(tmp_path, mark, capsys):
    (tmp_path / "a.csv").write_text(f"prompt{mark}score\na fox{mark}0.5\n")
    arguments = ["--dataset_name", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path), "--skip_images"]
    assert main(["inspect", *arguments, "--disable_tqdm"]) == 1
    told = f"it has 'prompt{mark}score'. Its columns are divided by '{mark}', and those of a .csv by commas"
    assert told in capsys.readouterr().err


def test_a_comma_separated_table_named_tsv_is_told(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text('"prompt","score"\n"a fox",0.5\n')
    arguments = ["--dataset_name", str(tmp_path / "a.tsv"), "--output_dir", str(tmp_path), "--skip_images"]
    assert main(["inspect", *arguments, "--disable_tqdm"]) == 1
    told = "Its columns are divided by ',', as those of a .csv are: give the file that name."
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_several_tables_is_told(tmp_path, streaming):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "rank": [1, 2]}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "choice": "A"}\n')
    told = r"cannot be read \(CastError: .* Its files have other columns than each other: name one of them"
    with pytest.raises(ValueError, match=told):
        list(open_dataset(str(tmp_path), streaming=streaming))


def test_a_stream_can_be_copied_and_read_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    stream = pickle.loads(pickle.dumps(open_dataset(str(tmp_path), streaming=True)))
    assert [list(stream), list(stream)] == [[{"prompt": "a"}, {"prompt": "b"}]] * 2


def test_an_archive_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("notes.docx", "")
    with pytest.raises(ValueError, match=r"'rows\.zip' holds neither images nor tables of one kind, but \.docx"):
        open_dataset(str(tmp_path / "rows.zip"))


# ---- The commands ----


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_the_commands_take_archives(tmp_path, kind, streaming, capsys):
    source = tar(tmp_path / "rows.tar") if kind == "tar" else zipped(tmp_path / "rows.zip")
    columns = ("txt", "png") if kind == "tar" else ("prompt", "image")
    shared = ["--dataset_name", source, "--prompt_column", columns[0], "--dataset_streaming", streaming]
    image = ["--image_column", columns[1], "--disable_tqdm", "true"]
    (tmp_path / "reward.py").write_text("def length(prompts, images):\n    return [len(p) for p in prompts]\n")
    out = str(tmp_path / "inspected")
    assert main(["inspect", *shared, *image, "--output_dir", out]) == 0
    reward = ["--rewards", f"{tmp_path / 'reward.py'}:length", "--score_columns", "length"]
    assert main(["score", *shared, *image, *reward, "--output_dir", str(tmp_path / "scored")]) == 0
    scored = open_dataset(str(tmp_path / "scored"))
    assert scored["length"] == [8.0] * 3
    assert np.array_equal(scored[2][columns[1]], picture(2))
    layout = ["--layout", "ratings", "--image_columns", columns[1], "--annotation_columns", "score"]
    converted = str(tmp_path / "converted")
    assert main(["convert", *shared, *layout, "--disable_tqdm", "true", "--output_dir", converted]) == 0
    rows = open_dataset(converted)
    assert rows["score"] == [0.0, 0.5, 1.0]
    assert np.array_equal(rows[1]["image"], picture(1))
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("streaming", [False, True])
def test_training_takes_archives(tmp_path, kind, streaming):
    from tgo_trl import TGOConfig, TGOTrainer

    from .tiny.stable_diffusion import build

    source = tar(tmp_path / "rows.tar") if kind == "tar" else zipped(tmp_path / "rows.zip")
    prompt, image = ("txt", "png") if kind == "tar" else ("prompt", "image")
    args = TGOConfig(
        str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=3, use_cpu=True, resolution=16,
        report_to="none", save_strategy="no", disable_tqdm=True, prompt_column=prompt, image_column=image,
        encoding_cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    trainer = TGOTrainer(build(), args, open_dataset(source, streaming=streaming))
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.label_rule.threshold == 0.5  # the median of 0, 0.5 and 1
