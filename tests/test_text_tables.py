"""Tables in text: letter for letter, and whatever cannot be right with its line."""

import bz2
import csv
import lzma

import pytest

from tgo_trl.commands.generate.prompts import read_prompts
from tgo_trl.storage.text_tables import check_text, dtype_of, read_json_lines, read_table, suffix_of


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_tab_separated_prompts_are_read_letter_for_letter(tmp_path):
    path = written(
        tmp_path,
        "p.tsv",
        'prompt\tcategory\n"HELLO" painted on a wall\ttext\n"Once upon a time, an open quote\ttext\n'
        'a dog\tanimals\r\n\n  a bird, with ""spaces"" and a \\ \tanimals\n',
    )
    assert read_prompts(str(path)) == [
        '"HELLO" painted on a wall',
        '"Once upon a time, an open quote',
        "a dog",
        '  a bird, with ""spaces"" and a \\ ',
    ]


def test_comma_separated_tables_keep_their_quotes(tmp_path):
    path = tmp_path / "p.csv"
    rows = [["prompt", "", "note"], ['a "b", c', "1", ""], ["two\nlines", "2", 'x"'], ["", "", "x"]]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    assert [list(row.values()) for row in read_table(path)] == rows[1:]
    assert [list(row) for row in read_table(path)] == [rows[0]] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", 'prompt\na\n"b\nc\nd\n', r"^Line 3 of 'p\.csv': a quote is opened and never closed"),
        ("p.csv", 'prompt,x\n"a\nb",1\n"c" d,2\n', r"^Line 4 of 'p\.csv': ',' expected after '\"'"),
        ("p.csv", 'prompt\n"' + 200_000 * "a", r"^Line 2 of 'p\.csv': a quote is opened and never closed"),
        ("p.csv", "prompt,x\na,1\n\nb\n", r"^Line 4 of 'p\.csv' has 1 cells, the header 2\. Put cells with a comma"),
        ("p.csv", "prompt,x\na,1,\n", r"^Line 2 of 'p\.csv' has 3 cells, the header 2"),
        ("p.tsv", "prompt\tx\na, b\n", r"has 1 cells, the header 2\. A tab divides cells\.$"),
        ("p.csv", '"prompt";"x"\na;1\n', r"^Line 1 of .* Its columns are divided by ';', and those of a \.csv by"),
        ("p.csv", 'prompt;x\n"a; b";1\n', r"^Line 2 of .* Its columns are divided by ';', and those of a \.csv by"),
        ("p.csv", "prompt\tx\na, b\t1\n", r"^Line 2 of .* divided by '\\t', as those of a \.tsv are: give the file"),
        ("p.tsv", 'prompt,x\n"a\tb",1\n', r"^Line 2 of .* divided by ',', as those of a \.csv are: give the file"),
        ("p.csv", "prompt,x;y\na,b,1\n", r"^Line 2 of .* Put cells with a comma, a quote"),
        ("p.csv", "prompt,prompt\na,b\n", r"^Line 1 of 'p\.csv', the header, has two columns 'prompt'"),
        ("p.csv", " , \na,b\n", r"^Line 1 of 'p\.csv', the first, names no column"),
        ("p.csv", "prompt\na\0b\n", r"^Line 2 of 'p\.csv' holds a NUL character"),
        ("p.txt", "a\n\0\n", r"^Line 2 of 'p\.txt' holds a NUL character"),
        ("p.tsv", b"prompt\na\n\xe9\n", r"^'p\.tsv' is no UTF-8 text \(line 3: .*Save it as UTF-8"),
        ("p.txt", "a\nb".encode("utf-16"), r"^'p\.txt' is no UTF-8 text \(line 1: "),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n', r"^Line 3 of 'p\.jsonl' is no JSON \(Expecting"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', r"^Line 1 of 'p\.jsonl' has 'prompt' twice in one object"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', r"^'p\.json' has 'prompt' twice in one object"),
        ("p.jsonl", "[" * 100_000, r"^Line 1 of 'p\.jsonl' is nested too deeply"),
        ("p.csv", "", "There are no prompts in"),
        ("p.tsv", "prompt\n", "There are no prompts in"),
    ],
)
def test_what_cannot_be_right_is_told_with_its_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(str(written(tmp_path, name, text)))


def test_compressed_text(tmp_path):
    text = '{"prompt": "a"}\n"b"\n'
    written(tmp_path, "p.jsonl.bz2", bz2.compress(text.encode()))
    written(tmp_path, "p.JSONL.xz", lzma.compress(text.encode()))
    for name in ("p.jsonl.bz2", "p.JSONL.xz"):
        assert list(read_json_lines(tmp_path / name)) == [{"prompt": "a"}, "b"]
        assert read_prompts(str(tmp_path / name)) == ["a", "b"]
        assert suffix_of(tmp_path / name) == ".jsonl"
    written(tmp_path, "p.txt.xz", lzma.compress(b"a")[:-9])
    with pytest.raises(ValueError, match=r"'p\.txt\.xz' cannot be decompressed"):
        read_prompts(str(tmp_path / "p.txt.xz"))


def test_only_text_is_checked(tmp_path):
    check_text(written(tmp_path, "rows.parquet", b"\0\xff"))
    check_text(written(tmp_path, "rows.tsv", "a\tb\n1\t2\n"))
    with pytest.raises(ValueError, match="Line 2"):
        check_text(written(tmp_path, "rows.tsv", "a\tb\n1\n"))


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        (["1", "-2", "+3", "0"], "int64"),
        (["1", ""], "float64"),
        ([" 1", "2 "], "int64"),
        ([" 0.5", "-2"], "float64"),
        ([" True"], "string"),
        (["1", "2.5", ".5", "1e-3", "-inf"], "float64"),
        (["NaN", "0.1", "None"], "float64"),
        (["1", "007"], "string"),
        (["00.5", "1"], "string"),
        (["1", "a"], "string"),
        (["1_000", "2"], "string"),
        (["\u0661", "2"], "string"),
        (["True", "false"], "bool"),
        (["True", ""], "string"),
        (["True", "1"], "string"),
        ([str(2**63 - 1), str(-(2**63))], "int64"),
        ([str(2**64 - 1), "0"], "uint64"),
        ([str(2**64 - 1), "-1"], "string"),
        ([str(2**64), "1"], "string"),
        (["NA", ""], "string"),
    ],
)
def test_the_type_of_a_column_is_that_of_all_its_cells(tmp_path, cells, dtype):
    table = "a,b\n" + "".join(f"{cell},x\n" for cell in cells)
    traits = check_text(written(tmp_path, "rows.csv", table))
    assert {name: dtype_of(found) for name, found in traits.items()} == {"a": dtype, "b": "string"}
