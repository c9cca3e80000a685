"""Reading prompts from files and data sets."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...data.classes import ClassNames
from ...data.columns import check_columns, column_names, known_columns, undecoded
from ...data.rows import check_prompt
from ...data.sources import locate_sources
from ...media.embedding import file_bytes
from ...media.images import load_image
from ...media.origin import DataFile, Origin, named_origin
from ...messages.values import shown
from ...storage.fingerprints import fingerprint
from ...storage.sources import FORMATS, open_dataset
from ...storage.text_tables import parse_json, read_json_lines, read_lines, read_table, suffix_of
from .tasks import SourceImage, SourceStore, Task

logger = logging.getLogger(__name__)


class SourceUse(NamedTuple):
    """What pipelines make of the source images of a prompt.

    Attributes:
        most: that they take; 0 for prompts alone.
        are_needed: whether they take no prompt without; if not, prompts without a column of source images are read
            alone.
    """

    most: int = 0
    are_needed: bool = False


PROMPTS_ALONE = SourceUse()


def read_prompts(
    source: str, column: str = "prompt", dataset_config: str | None = None, dataset_split: str = "train",
    max_prompts: int | None = None,
) -> list[str]:  # fmt: skip
    """The distinct prompts of a source, in order; arguments and errors as of [`read_tasks`]."""
    return [task.prompt for task in read_tasks(source, column, None, dataset_config, dataset_split, max_prompts)]


def read_tasks(
    source: str, column: str = "prompt", category_column: str | None = None, dataset_config: str | None = None,
    dataset_split: str = "train", max_prompts: int | None = None, source_column: str = "source_image",
    use: SourceUse = PROMPTS_ALONE,
) -> dict[Task, str | None]:  # fmt: skip
    """The category of each distinct task of a source, in order; None of all of them without `category_column`.

    Args:
        source: a text file with a prompt a line, where empty lines are passed over; a `.json` file with a list of
            prompts or of objects, `.jsonl` with one of them a line; `.csv`, or `.tsv`, where quotes are letters as all
            others; any of them compressed; or a data set, as [`~tgo_trl.storage.sources.open_dataset`] takes it.
        column: of the prompts; of a column of classes, their names are.
        category_column: of the categories; of a task that comes twice, the first one counts.
        dataset_config: of a data set.
        dataset_split: of a data set.
        max_prompts: take the first tasks only.
        source_column: of the source image of each prompt, or a list of them; those of a table are files beside it, or
            below its folder.
        use: what the pipeline makes of them.

    Raises:
        ValueError: if the source or a column cannot be read, a prompt is empty or no string, or has no category, or a
            source image is missing or cannot be read.
    """
    path = Path(source)
    if suffix_of(path) in _READERS:
        if not path.is_file():
            raise ValueError(f"There is no file {source!r} to read prompts from.")
        has_sources = use.are_needed or (use.most > 0 and source_column in _columns_of_first(path))
        columns = _columns(column, source_column if has_sources else None, category_column)
        unread = source_column if use.most > 0 and not has_sources else None
        entries = _file_entries(path, columns, unread)
    elif path.is_file() and suffix_of(path) not in FORMATS:
        raise ValueError(
            f"Prompts cannot be read from {path.name!r}. Write a text file with a prompt a line (.txt), or one of "
            f"{', '.join(dict.fromkeys([*_READERS, *FORMATS]))}."
        )
    else:
        has_sources = use.are_needed
        if use.most > 0 and not use.are_needed:
            dataset = open_dataset(source, dataset_config, dataset_split, streaming=True)
            has_sources = source_column in column_names(dataset)
        columns = _columns(column, source_column if has_sources else None, category_column)
        entries = _dataset_entries(source, columns, dataset_config, dataset_split)
    read = _SourceReader(named_origin(source), use.most) if has_sources else None
    return distinct_tasks(entries, source, max_prompts, read)


def distinct_tasks(
    entries: Iterable[Sequence[Any]], source: str, max_prompts: int | None = None,
    read_sources: Callable[[Any], tuple[SourceImage, ...]] | None = None,
) -> dict[Task, str | None]:  # fmt: skip
    """The category of each distinct task, in order.

    Args:
        entries: each a prompt, then what `read_sources` takes if there is one, then the category if there are any.
        source: of them, for messages.
        max_prompts: take the first tasks only.
        read_sources: gives the source images of an entry; raises a ValueError, with a clause.

    Raises:
        ValueError: if there are none, or one of them cannot be used.
    """
    tasks: dict[Task, str | None] = {}
    num_rows = 0
    for row, (prompt, *rest) in enumerate(entries):
        if max_prompts is not None and len(tasks) == max_prompts:
            break
        try:
            check_prompt(prompt).encode()
            task = Task(prompt) if read_sources is None else Task(prompt, read_sources(rest.pop(0)))
        except ValueError as error:  # of encoding, for half a surrogate pair
            raise ValueError(f"Prompt {row} of {source!r} cannot be used: {error}. Mend or drop it.") from error
        if rest and (rest[0] is None or isinstance(rest[0], (list, dict)) or not str(rest[0]).strip()):
            raise ValueError(
                f"Prompt {row} of {source!r} has no category, but {shown(rest[0])}. Write one beside each prompt, or "
                "leave `category_column` out."
            )
        tasks.setdefault(task, str(rest[0]).strip() if rest else None)
        num_rows += 1
    if not tasks:
        raise ValueError(f"There are no prompts in {source!r}.")
    if num_rows > len(tasks):
        logger.warning(
            "%d of %d prompts are repeated, and drawn once. For several images of each set `num_images_per_prompt`.",
            num_rows - len(tasks),
            num_rows,
        )
    return tasks


class _SourceReader:
    """The source images of cells: each distinct one is decoded once, to fail now and not after hours of sampling."""

    def __init__(self, origin: Origin, most: int | None) -> None:
        self._origin, self._most = origin, most
        self._found: dict[str, SourceImage] = {}
        self._store = SourceStore()

    def __call__(self, cell: Any) -> tuple[SourceImage, ...]:
        return tuple(map(self._checked, locate_sources(cell, self._origin, self._most)))

    def _checked(self, value: Any) -> SourceImage:
        content = file_bytes(value, "image")
        key = fingerprint(content)
        if key not in self._found:
            load_image(content)
            self._found[key] = SourceImage(key, value if isinstance(value, DataFile) else self._store.add(content))
        return self._found[key]


def _columns(column: str, source_column: str | None, category_column: str | None) -> dict[str, str]:
    """Those that are read, by the setting that names each, in the order of an entry."""
    named = {"prompt_column": column, "source_column": source_column, "category_column": category_column}
    return {setting: name for setting, name in named.items() if name is not None}


def _columns_of_first(path: Path) -> list[str]:
    """The columns of a file's first entry, if it has any."""
    first = next(iter(_READERS[suffix_of(path)](path)), None)
    return list(first) if isinstance(first, dict) else []


def _file_entries(path: Path, columns: Mapping[str, str], unread: str | None) -> Iterator[Sequence[Any]]:
    """What the columns hold; no entry has `unread`, which would be the column of source images."""
    for entry in _READERS[suffix_of(path)](path):
        if isinstance(entry, dict):
            if unread in entry:
                raise ValueError(
                    f"Some prompts of {path.name!r} have a {unread!r}, and the first has none. Those with source "
                    "images and those without are drawn apart: write two files."
                )
            check_columns(repr(path.name), list(entry), columns.values(), _remedy(columns))
            yield [entry[name] for name in columns.values()]
        elif "source_column" in columns:
            raise ValueError(
                f"{path.name!r} has prompts alone, and the pipeline makes images from others. Write a .jsonl or .csv "
                f"file with the columns {' and '.join(map(repr, columns.values()))}, where a source image is the path "
                "of a file."
            )
        elif len(columns) > 1:
            raise ValueError(
                f"{path.name!r} has prompts without columns, and so no categories. Leave `category_column` out, or "
                "write a .jsonl, .csv or .tsv file."
            )
        else:
            yield [entry]


def _dataset_entries(
    source: str, columns: Mapping[str, str], config: str | None, split: str
) -> Iterator[Sequence[Any]]:
    dataset = open_dataset(source, config, split, streaming=True)
    present, wanted = known_columns(dataset), list(columns.values())
    check_columns(repr(source), present, wanted, _remedy(columns))
    if present is not None:
        # so that no other image is read on the way
        dataset = open_dataset(source, config, split, streaming=True, columns=wanted)
    names = ClassNames(dataset.features)
    for row in undecoded(dataset, *wanted):
        check_columns(repr(source), list(row), wanted, _remedy(columns))
        resolved = names.resolve(row)
        yield [resolved[name] for name in wanted]


def _remedy(columns: Iterable[str]) -> str:
    return f"Set {' or '.join(f'`{setting}`' for setting in columns)}."


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
