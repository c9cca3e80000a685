"""Reading prompts from files and data sets."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...data.classes import ClassNames
from ...data.columns import check_columns, known_columns, undecoded
from ...data.rows import check_prompt
from ...data.sources import locate_sources
from ...media.embedding import file_bytes
from ...media.images import load_image
from ...media.origin import named_origin
from ...messages.values import shown
from ...storage.sources import FORMATS, open_dataset
from ...storage.text_tables import parse_json, read_json_lines, read_lines, read_table, suffix_of

logger = logging.getLogger(__name__)


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
    return list(read_categories(source, column, None, dataset_config, dataset_split, max_prompts))


def read_categories(
    source: str, column: str = "prompt", category_column: str | None = None, dataset_config: str | None = None,
    dataset_split: str = "train", max_prompts: int | None = None,
) -> dict[str, str | None]:  # fmt: skip
    """The category of each distinct prompt of a source, in order; None of all of them without `category_column`.

    Args:
        source: as in [`read_prompts`], and so the others.
        column: of the prompts.
        category_column: of the categories; of a prompt that comes twice, the first one counts.
        dataset_config: of a data set.
        dataset_split: of a data set.
        max_prompts: take the first ones only.

    Raises:
        ValueError: as [`read_prompts`], and if a prompt has no category.
    """
    path = Path(source)
    columns = [column] if category_column is None else [column, category_column]
    if suffix_of(path) in _READERS:
        if not path.is_file():
            raise ValueError(f"There is no file {source!r} to read prompts from.")
        entries = _file_entries(path, columns)
    elif path.is_file() and suffix_of(path) not in FORMATS:
        raise ValueError(
            f"Prompts cannot be read from {path.name!r}. Write a text file with a prompt a line (.txt), or one of "
            f"{', '.join(dict.fromkeys([*_READERS, *FORMATS]))}."
        )
    else:
        entries = _dataset_entries(source, columns, dataset_config, dataset_split)
    return distinct_prompts(entries, source, max_prompts)


def distinct_prompts(
    entries: Iterable[Sequence[Any]], source: str, max_prompts: int | None = None
) -> dict[str, str | None]:
    """The category of each distinct prompt, in order.

    Args:
        entries: each a prompt, or a prompt and its category.
        source: of them, for messages.
        max_prompts: take the first ones only.

    Raises:
        ValueError: if there are none, or one of them cannot be used.
    """
    prompts: dict[str, str | None] = {}
    num_rows = 0
    for row, entry in enumerate(entries):
        if max_prompts is not None and len(prompts) == max_prompts:
            break
        try:
            check_prompt(entry[0]).encode()
        except ValueError as error:  # of encoding, for half a surrogate pair
            raise ValueError(f"Prompt {row} of {source!r} cannot be used: {error}. Mend or drop it.") from error
        if len(entry) > 1 and (entry[1] is None or isinstance(entry[1], (list, dict)) or not str(entry[1]).strip()):
            raise ValueError(
                f"Prompt {row} of {source!r} has no category, but {shown(entry[1])}. Write one beside each prompt, or "
                "leave `category_column` out."
            )
        prompts.setdefault(entry[0], str(entry[1]).strip() if len(entry) > 1 else None)
        num_rows += 1
    if not prompts:
        raise ValueError(f"There are no prompts in {source!r}.")
    if num_rows > len(prompts):
        logger.warning(
            "%d of %d prompts are repeated, and drawn once. For several images of each set `num_images_per_prompt`.",
            num_rows - len(prompts),
            num_rows,
        )
    return prompts


def read_edits(
    source: str, column: str, dataset_config: str | None, dataset_split: str, max_prompts: int | None, *,
    source_column: str, most: int,
) -> list[tuple[str, tuple[bytes, ...]]]:  # fmt: skip
    """The distinct prompts of a source, each with the files of the images that it is to be carried out on, in order.

    Args:
        source: as in [`read_prompts`], with columns; the images of a table are files beside it, or below its folder.
        column: of the prompts.
        dataset_config: of a data set.
        dataset_split: of a data set.
        max_prompts: take the first ones only.
        source_column: of the source image of each prompt, or a list of them.
        most: source images of a prompt that the pipeline takes.

    Raises:
        ValueError: as [`read_prompts`], and if a source image is missing or cannot be read.
    """
    path, columns = Path(source), [column, source_column]
    if suffix_of(path) in _READERS and path.is_file():
        if suffix_of(path) == ".txt":
            raise ValueError(
                f"{path.name!r} has prompts alone, and the pipeline makes images from others. Write a .jsonl or .csv "
                f"file with the columns {column!r} and {source_column!r}, the path of an image."
            )
        entries: Iterable[Sequence[Any]] = _file_entries(path, columns)
    else:
        dataset = open_dataset(source, dataset_config, dataset_split, streaming=True)
        check_columns(repr(source), known_columns(dataset), columns, "Set `prompt_column` or `source_column`.")
        entries = ([row.get(name) for name in columns] for row in undecoded(dataset, *columns))
    origin = named_origin(source)
    edits: dict[tuple[str, tuple[bytes, ...]], None] = {}
    read: dict[bytes, bytes] = {}  # each file once, however many prompts it has
    for row, (prompt, cell) in enumerate(entries):
        if max_prompts is not None and len(edits) == max_prompts:
            break
        try:
            images = locate_sources(cell, origin, most)
            files = [file_bytes(image, "image") for image in images]
            for file in files:
                if file not in read:
                    load_image(file)  # fails here, not after hours of sampling
                    read[file] = file
            edits.setdefault((check_prompt(prompt), tuple(read[file] for file in files)))
        except ValueError as error:
            raise ValueError(f"Row {row} of {source!r} cannot be used: {error}. Mend or drop it.") from error
    if not edits:
        raise ValueError(f"There are no prompts in {source!r}.")
    return list(edits)


def _file_entries(path: Path, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    for entry in _READERS[suffix_of(path)](path):
        if isinstance(entry, dict):
            check_columns(repr(path.name), list(entry), columns, _remedy(columns))
            yield [entry[name] for name in columns]
        elif len(columns) > 1:
            raise ValueError(
                f"{path.name!r} has prompts without columns, and so no categories. Leave `category_column` out, or "
                "write a .jsonl, .csv or .tsv file."
            )
        else:
            yield [entry]


def _dataset_entries(source: str, columns: Sequence[str], config: str | None, split: str) -> Iterator[Sequence[Any]]:
    dataset = open_dataset(source, config, split, streaming=True)
    present = known_columns(dataset)
    check_columns(repr(source), present, columns, _remedy(columns))
    if present is not None:
        # so that no image is read on the way
        dataset = open_dataset(source, config, split, streaming=True, columns=columns)
    names = ClassNames(dataset.features)
    for row in dataset:
        check_columns(repr(source), list(row), columns, _remedy(columns))
        resolved = names.resolve(row)
        yield [resolved[name] for name in columns]


def _remedy(columns: Sequence[str]) -> str:
    return "Set `prompt_column`." if len(columns) == 1 else "Set `prompt_column` or `category_column`."


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
