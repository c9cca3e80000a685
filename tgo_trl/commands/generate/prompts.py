"""Reading prompts from files and data sets."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.classes import ClassNames
from ...data.columns import check_columns, known_columns
from ...data.rows import check_prompt
from ...storage.sources import FORMATS, open_dataset
from ...storage.text_tables import parse_json, read_json_lines, read_lines, read_table, suffix_of

logger = logging.getLogger(__name__)

REMEDY = "Set `prompt_column`."


def read_prompts(
    source: str, column: str = "prompt", dataset_config: str | None = None, dataset_split: str = "train",
    max_prompts: int | None = None,
) -> list[str]:  # fmt: skip
    """The distinct prompts of a source, in order.

    Args:
        source: a text file with a prompt a line, where empty lines are passed over; a `.json` file with a list of
            prompts or of objects, `.jsonl` with one of them a line; `.csv`, or `.tsv`, where quotes are letters as all
            others; any of them compressed; or a data set, as [`~tgo_trl.storage.sources.open_dataset`] takes it.
        column: of the prompts; of a column of classes, their names are.
        dataset_config: of a data set.
        dataset_split: of a data set.
        max_prompts: take the first ones only.

    Raises:
        ValueError: if the source or its column cannot be read, or a prompt is empty or no string.
    """
    path = Path(source)
    if suffix_of(path) in _READERS:
        if not path.is_file():
            raise ValueError(f"There is no file {source!r} to read prompts from.")
        values = _file_prompts(path, column)
    elif path.is_file() and suffix_of(path) not in FORMATS:
        raise ValueError(
            f"Prompts cannot be read from {path.name!r}. Write a text file with a prompt a line (.txt), or one of "
            f"{', '.join(dict.fromkeys([*_READERS, *FORMATS]))}."
        )
    else:
        values = _dataset_prompts(source, column, dataset_config, dataset_split)
    prompts: dict[str, None] = {}
    num_rows = 0
    for row, value in enumerate(values):
        if max_prompts is not None and len(prompts) == max_prompts:
            break
        try:
            check_prompt(value).encode()
        except ValueError as error:  # of encoding, for half a surrogate pair
            raise ValueError(f"Prompt {row} of {source!r} cannot be used: {error}. Mend or drop it.") from error
        prompts[value] = None
        num_rows += 1
    if not prompts:
        raise ValueError(f"There are no prompts in {source!r}.")
    if num_rows > len(prompts):
        logger.warning(
            "%d of %d prompts are repeated, and drawn once. For several images of each set `num_images_per_prompt`.",
            num_rows - len(prompts),
            num_rows,
        )
    return list(prompts)


def _file_prompts(path: Path, column: str) -> Iterator[Any]:
    for entry in _READERS[suffix_of(path)](path):
        if isinstance(entry, dict):
            check_columns(repr(path.name), list(entry), [column], REMEDY)
            entry = entry[column]
        yield entry


def _dataset_prompts(source: str, column: str, config: str | None, split: str) -> Iterator[Any]:
    dataset = open_dataset(source, config, split, streaming=True)
    present = known_columns(dataset)
    check_columns(repr(source), present, [column], REMEDY)
    if present is not None:
        # so that no image is read on the way
        dataset = open_dataset(source, config, split, streaming=True, columns=[column])
    names = ClassNames(dataset.features)
    for row in dataset:
        check_columns(repr(source), list(row), [column], REMEDY)
        yield names.resolve(row)[column]


def _read_text(path: Path) -> Iterator[str]:
    return (line.strip() for _, line in read_lines(path) if line.strip())


def _read_json(path: Path) -> Iterator[Any]:
    values = parse_json("".join(line for _, line in read_lines(path)), repr(path.name))
    if not isinstance(values, list):
        raise ValueError(f"{path.name!r} holds no list of prompts or of objects, but a `{type(values).__name__}`.")
    yield from values


_READERS = {
    ".txt": _read_text,
    ".json": _read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
}
