"""Prompts of any letters, through every format that prompts are read from."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tgo_trl.commands.generate.prompts import read_prompts

LETTERS = st.characters(exclude_categories=["Cs"])
ODD = st.sampled_from(
    ['"', "'", ",", "\t", "\n", "\r", "\0", " ", "\ufeff", "\u2028", "\x85", "\x1c", "#", "NA", "null", "1e-6"]
)
texts = st.lists(st.one_of(ODD, st.text(LETTERS, max_size=6)), min_size=1, max_size=4).map("".join)
prompts = st.lists(texts, min_size=1, max_size=5, unique=True)
packing = st.sampled_from([("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])


def as_csv(values):
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([["prompt", "other"], *([value, "x"] for value in values)])
    return file.getvalue()


def as_lines(values):
    return "\n".join(json.dumps({"prompt": value}, ensure_ascii=False) for value in values)


FORMATS = {
    ".txt": ("\n".join, lambda text: "" != text == text.strip() and not {"\n", "\r", "\0"} & set(text)),
    ".tsv": (lambda values: "\n".join(["prompt\tother", *(f"{value}\tx" for value in values)]),
             lambda text: not {"\n", "\r", "\t", "\0"} & set(text)),
    ".csv": (as_csv, lambda text: "\0" not in text),
    ".jsonl": (as_lines, lambda text: True),
    ".json": (lambda values: json.dumps(values), lambda text: True),
}  # fmt: skip
"""How each format is written, and whether it can carry a text."""


@pytest.mark.parametrize("suffix", FORMATS)
@given(values=prompts, packed=packing)
def test_prompts_come_back_letter_for_letter(tmp_path_factory, suffix, values, packed):
    write, carries = FORMATS[suffix]
    assume(
        all(map(carries, values)) and not write(values).startswith("\ufeff")
    )  # else its mark is taken for the file's
    ending, pack = packed
    path = tmp_path_factory.getbasetemp() / f"prompts{suffix}{ending}"
    path.write_bytes(pack(write(values).encode()))
    if all(value.strip() for value in values):
        assert read_prompts(str(path)) == values
    else:
        with pytest.raises(ValueError, match=f"prompts{suffix}"):
            read_prompts(str(path))


@settings(max_examples=8)
@given(values=prompts)
def test_parquet_carries_every_letter(tmp_path_factory, values):
    assume(all(value.strip() for value in values))
    path = tmp_path_factory.mktemp("table") / "prompts.parquet"
    Dataset.from_dict({"prompt": values}).to_parquet(path)
    assert read_prompts(str(path)) == values


@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.one_of(st.binary(max_size=60), texts.map(str.encode)), packed=packing, cut=st.integers(0, 30))
def test_bytes_are_prompts_or_refused(tmp_path_factory, suffix, data, packed, cut):
    ending, pack = packed
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}{ending}"
    whole = pack(data)
    path.write_bytes(whole[: len(whole) - cut])
    try:
        found = read_prompts(str(path))
    except ValueError as error:
        found, reason = None, str(error)
    if found is None:
        assert f"bytes{suffix}" in reason
    else:
        assert found
        assert all(isinstance(value, str) and value.strip() for value in found)
