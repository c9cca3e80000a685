"""Tables in text files, read line by line, such that whatever cannot be right is told with its line.

CSV quotes cells as RFC 4180 has it. TSV has no quotes: every character of a cell stands for itself. JSON lines hold a
value each. All are UTF-8, with or without a byte order mark, and may be compressed.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

COMPRESSIONS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""What opens files of each suffix."""
_NOT_DECOMPRESSED = (EOFError, OSError, lzma.LZMAError, zlib.error)
"""What that raises over damaged files."""
MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "NULL", "None")
"""How programs write a number that is not there; elsewhere these are words as others are."""
BOOLEANS = ("True", "False", "TRUE", "FALSE", "true", "false")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,19})")
"""A whole number, without zeros before it: with them it is a name, such as of a file."""
_FLOAT = re.compile(
    r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|Inf|infinity|Infinity)"
)

SEPARATORS = {
    ",": "as those of a .csv are: give the file that name",
    "\t": "as those of a .tsv are: give the file that name",
    ";": "and those of a .csv by commas: write it anew with them, and numbers with a decimal point",
    "|": "and those of a .csv by commas: write it anew with them",
}
"""What may stand between the cells of a line, and what to do about a file whose name promises another."""


def suffix_of(path: Path) -> str:
    """The suffix of a file, in small letters, without that of its compression: `.csv` of `rows.CSV.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its end.

    Raises:
        ValueError: for a line that is no UTF-8 text.
    """
    opened = COMPRESSIONS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", newline="")
    with opened as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise ValueError(f"{_where(path, number)} holds a NUL character: the file is damaged, or no text.")
                yield number, line
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path.name!r} is no UTF-8 text (line {_undecodable(path)}: {error.reason}). Save it as UTF-8."
            ) from error
        except _NOT_DECOMPRESSED as error:
            raise ValueError(f"{path.name!r} cannot be decompressed ({error}).") from error


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a `.csv` or `.tsv` file, by column; blank lines are passed over.

    Raises:
        ValueError: with the line, for a quote that is not closed, or text behind one; a row with more or fewer cells
            than the header; two columns of one name.
    """
    rows = _tsv_rows(path) if suffix_of(path) == ".tsv" else _csv_rows(path)
    header: list[str] | None = None
    for line, cells in rows:
        if header is None:
            header = _checked_header(cells, path, line)
        elif len(cells) != len(header):
            usual = "Put cells with a comma, a quote or a line break in double quotes."
            remedy = _other_separator(path) or (usual if suffix_of(path) == ".csv" else "A tab divides cells.")
            raise ValueError(f"{_where(path, line)} has {len(cells)} cells, the header {len(header)}. {remedy}")
        else:
            yield dict(zip(header, cells, strict=True))


def read_json_lines(path: Path) -> Iterator[Any]:
    """The value of each line that is not blank.

    Raises:
        ValueError: with the line, for one that is no JSON, or that has a name twice.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield parse_json(line, _where(path, number))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; raises a ValueError that begins with `where` if it is none, or has a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"{where} has {repeated[:60]!r} twice in one object.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply.") from error


def checked_text(path: Path) -> dict[str, frozenset[str]]:
    """As [`check_text`], once as long as the file is as it was."""
    status = path.stat()
    return _checked(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _checked(path: Path, size: int, modified: int) -> dict[str, frozenset[str]]:
    return check_text(path)


def check_text(path: Path) -> dict[str, frozenset[str]]:
    """For each column of a table or of JSON lines, what its cells are: kinds, of which [`dtype_of`] is made.

    Raises:
        ValueError: with the line, if a table or JSON lines cannot be right; other files are let pass.
    """
    kind = suffix_of(path)
    if kind in (".csv", ".tsv"):
        return _traits_of(read_table(path), _traits)
    if kind in (".jsonl", ".ndjson"):
        return _traits_of(read_json_lines(path), _traits_of_value)
    return {}


def dtype_of(traits: Set[str]) -> str:
    """The type, one for all files and all rows, that cells of some kinds are read as: 7 is `"007"` beside a word.

    `"bool"`, `"int64"`, `"uint64"` or `"float64"`, where all that there are can be one; else `"string"`.
    """
    kinds = traits - {"missing", "negative"}
    if not kinds or "word" in kinds or ("bool" in kinds and traits != {"bool"}):
        return "string"
    if kinds == {"bool"}:
        return "bool"
    if "float" in kinds or "missing" in traits:
        return "float64"
    if "large" not in kinds:
        return "int64"
    return "string" if "negative" in traits else "uint64"


def typed(cell: str, dtype: str) -> Any:
    """What a cell holds in a column of a type of [`dtype_of`]; None if nothing."""
    if dtype == "string":
        return cell or None
    if cell in MISSING:
        return None
    if dtype == "bool":
        return cell.lower() == "true"
    return float(cell) if dtype == "float64" else int(cell)


def _traits_of(rows: Iterator[Any], traits_of_cell: Callable[[Any], set[str]]) -> dict[str, frozenset[str]]:
    traits: dict[str, set[str]] = {}
    for row in rows:
        for column, cell in row.items() if isinstance(row, dict) else ():
            found = traits.setdefault(column, set())
            if "word" not in found or not isinstance(cell, str):
                found |= traits_of_cell(cell)
    return {column: frozenset(found) for column, found in traits.items()}


def _traits_of_value(value: Any) -> set[str]:
    """Of JSON's, of which text is a word whatever it says."""
    if value is None:
        return {"missing"}
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, float):
        return {"float"}
    if isinstance(value, int):
        return _traits(str(value))
    return {"word"} if isinstance(value, str) else {"nested"}


def _traits(cell: str) -> set[str]:
    if cell in MISSING:
        return {"missing"}
    if cell in BOOLEANS:
        return {"bool"}
    cell = cell.strip(" \t")  # as around the commas of some tables; what is no number keeps them
    if not _INTEGER.fullmatch(cell):
        return {"float" if _FLOAT.fullmatch(cell) else "word"}
    if cell.startswith("-"):
        return {"int", "negative"} if int(cell) >= -(2**63) else {"word"}
    number = int(cell)
    return {"int"} if number < 2**63 else {"large"} if number < 2**64 else {"word"}


def divided_by(mark: str) -> str:
    """A sentence about a table whose header was read as one column."""
    return f"Its columns are divided by {mark!r}, {SEPARATORS[mark]}."


def _other_separator(path: Path) -> str:
    """That sentence, if the header has none of the marks that the file's name promises, and has another; else empty."""
    own = "\t" if suffix_of(path) == ".tsv" else ","
    header = next((line for _, line in read_lines(path) if line.strip()), "")
    found = [mark for mark in SEPARATORS if mark in header]
    return divided_by(found[0]) if found and own not in found else ""


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = any(hint in str(error) for hint in ("unexpected end", "field limit"))
            reason = "a quote is opened and never closed" if is_open else str(error)
            usual = (
                "A cell that holds a quote is written in double quotes, and the quote doubled; a tab-separated file "
                "(.tsv) needs none of that."
            )
            raise ValueError(f"{_where(path, line)}: {reason}. {_other_separator(path) or usual}") from error
        if cells:
            yield line, cells


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        cells = line.rstrip("\r\n")
        if cells:
            yield number, cells.split("\t")


def _checked_header(names: list[str], path: Path, line: int) -> list[str]:
    if not any(name.strip() for name in names):
        raise ValueError(f"{_where(path, line)}, the first, names no column.")
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise ValueError(f"{_where(path, line)}, the header, has two columns {repeated[0][:60]!r}. Rename one.")
    return names


def _where(path: Path, line: int) -> str:
    return f"Line {line} of {path.name!r}"


def _undecodable(path: Path) -> str:
    """The first line that is no UTF-8."""
    with COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb") as file, suppress(*_NOT_DECOMPRESSED):
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return str(number)
    return "unknown"  # it is damaged, too: what is read line by line ends sooner than what is read in blocks
