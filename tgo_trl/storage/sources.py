"""Data sets opened by name: files, archives, patterns of files, folders and Hub repositories, all in one way."""

import copy
import csv
import glob
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, Value, Video, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from datasets.utils.file_utils import xopen
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image as Pictures
from pyarrow import ArrowInvalid

from ..messages.values import did_you_mean
from .casts import CheckedCast, TypedMetadata, WidenedTypes
from .records import CARD_NAME, RECORD_NAMES
from .text_tables import MISSING, checked_text, dtype_of, suffix_of

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".zip": "",
}
"""The loader of each kind of file; a `.zip` file's depends on what is inside."""

DIALECTS: dict[str, dict[str, Any]] = {",": {}, "\t": {"sep": "\t", "quoting": csv.QUOTE_NONE}}
"""How `pandas` is to read tables, by what separates their cells: TSV has no quotes."""

DOWNLOADS = (str(datasets.config.HF_DATASETS_CACHE), HF_HUB_CACHE)
"""Where archives from the Hub are."""
EMPTY = ("EmptyDataError", "StopIteration")
"""What the loaders of tables and of JSON raise over a file without a byte."""
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "file size is 0 bytes")
"""What `datasets` says of one with a head alone, and `pyarrow` of Parquet without rows or bytes."""
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")


def open_dataset(
    name: str, config: str | None = None, split: str = "train", streaming: bool = False,
    columns: Sequence[str] | None = None,
) -> Dataset | IterableDataset:  # fmt: skip
    """The rows of a file, of several, of a folder or of a Hub repository.

    Args:
        name: a file of [`FORMATS`], compressed or not: a table, a `.tar` archive as WebDataset has it (the names in its
            `.json` files become columns), or a `.zip` archive of tables or of images with their `metadata.jsonl`; a
            pattern such as `data/*.parquet`; a folder that `load_dataset` reads or `save_to_disk` wrote; or a Hub id.
        config: of the data set; a file has none.
        split: likewise, or a part of it as `load_dataset` takes it: `"train[:100]"`. A file is any split.
        streaming: read the rows as they come.
        columns: take these alone; of Parquet files, the others are not read.

    Raises:
        ValueError: if there is no such file, folder or split, the folder was not finished, a part of a split is wanted
            of a stream or of what `save_to_disk` wrote, or a table cannot be right; with the line, if it has lines.
    """
    path = Path(name)
    if streaming and "[" in split:
        raise ValueError(
            f"`dataset_split` is {split!r}, but a stream is not read in parts. Name the whole split, or do not stream."
        )
    files = _files(name)
    if files:
        dataset = _open_files(files, split, streaming, columns)
    elif any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        dataset = _open_saved(path, split, streaming)
    else:
        dataset = _open_named(name, config, split, streaming, columns)
    if dataset.features is not None and {"__key__", "__url__", "json"} <= dataset.features.keys():
        dataset = _with_named_columns(dataset)
    if columns is not None and dataset.column_names is not None:
        dataset = dataset.select_columns([name for name in dataset.column_names if name in columns])
    return dataset


def _files(name: str) -> list[Path]:
    """The files that a name stands for; none if it is a folder or a repository.

    Raises:
        ValueError: if they are not there, or of no kind that is read, or of several.
    """
    path = Path(name)
    if path.is_dir():
        return []
    if path.is_file():
        files = [path]
    elif glob.has_magic(name):
        files = [Path(found) for found in sorted(glob.glob(name, recursive=True)) if Path(found).is_file()]
        if not files:
            raise ValueError(f"No file here is like {name!r}.")
    elif suffix_of(path) in FORMATS:
        raise ValueError(f"There is no file {name!r}.")
    else:
        return []
    kinds = {suffix_of(file) for file in files}
    for kind in kinds - FORMATS.keys():
        unknown = next(file for file in files if suffix_of(file) == kind)
        raise ValueError(f"{unknown.name!r} is no kind of file that is read here: write {', '.join(FORMATS)}.")
    if len({FORMATS[kind] for kind in kinds}) > 1 or {".csv", ".tsv"} <= kinds:
        raise ValueError(f"{name!r} stands for files of several kinds, {', '.join(sorted(kinds))}. Name one kind.")
    return files


def _open_files(
    files: Sequence[Path], split: str, streaming: bool, columns: Sequence[str] | None
) -> Dataset | IterableDataset:
    kind = suffix_of(files[0])
    loader = FORMATS[kind] or _archived_format(files[0])
    arguments = _check_texts(files)
    if kind in (".csv", ".tsv"):
        arguments |= DIALECTS["\t" if kind == ".tsv" else ","]
    if loader == "parquet" and columns is not None:
        arguments = {"columns": list(columns)}
    # `datasets` takes names for patterns, and would find nothing for `rows[1].csv`
    data_files = {split.partition("[")[0]: [glob.escape(str(file)) for file in files]}
    builder = load_dataset_builder(loader, data_files=data_files, cache_dir=_own_cache(), **arguments)
    return _built(builder, split, streaming, files[0].name)


def _open_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if "[" in split:
        raise ValueError(
            f"`dataset_split` is {split!r}, but what `save_to_disk` wrote is not read in parts. Name the whole split, "
            "or save the part."
        )
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        if split not in dataset:
            raise _no_split(split, dataset)
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def _open_named(
    name: str, config: str | None, split: str, streaming: bool, columns: Sequence[str] | None
) -> Dataset | IterableDataset:
    path = Path(name)
    is_ours = any((path / settings).is_file() for settings in RECORD_NAMES)
    if is_ours and not (path / CARD_NAME).is_file():
        raise ValueError(
            f"The data set in {name!r} is not finished: it has no {CARD_NAME}, which is written last. Run the command "
            "that writes it once more; it goes on where it stopped."
        )
    try:
        cache = _own_cache() if path.is_dir() else None
        builder = load_dataset_builder(name, config, cache_dir=cache)
        arguments = _check_texts([Path(file) for file in _data_files(builder)] if path.is_dir() else [])
        arguments = {**arguments, **DIALECTS.get(builder.config.sep, {})} if hasattr(builder.config, "quoting") else {}
        if builder.info.features is not None:  # which the folder's card declares, classes for instance
            arguments.pop("features", None)
        if columns is not None and hasattr(builder.config, "columns"):
            arguments = {"columns": list(columns)}
        if arguments:
            builder = load_dataset_builder(name, config, cache_dir=cache, **arguments)
        return _built(builder, split, streaming, name)
    except (FileNotFoundError, ConnectionError) as error:
        if path.exists():
            raise
        raise ValueError(
            f"There is no file or folder {name!r} here, and no such data set could be read from the Hub "
            f"({type(error).__name__}: {error}). Mend the name, or look to the connection and the token."
        ) from error


def _own_cache() -> str:
    """Of files on this machine, which `datasets` by itself reads otherwise, and may have read before."""
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "tgo_trl")


def _built(builder: Any, split: str, streaming: bool, name: str) -> Dataset | IterableDataset:
    """What `load_dataset` makes of a builder, with whatever is wrong in the data as a ValueError."""
    if hasattr(builder, "_read_metadata") and builder.config.features is None:
        builder._read_metadata = TypedMetadata(builder, [*map(Path, _data_files(builder))])
    if hasattr(builder, "_cast_table"):
        builder._cast_table = CheckedCast(builder)
        if builder.info.features is None:
            builder._split_generators = WidenedTypes(builder, [*map(Path, _data_files(builder))])
    try:
        if streaming:
            dataset = _streamed(builder, split, name)
        else:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=split)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # loaders raise anything over a broken file: ArrowInvalid, TarError, KeyError, ...
        splits = builder.info.splits or builder.config.data_files or {}
        if splits and split.partition("[")[0] not in splits and "+" not in split:
            raise _no_split(split, splits) from error
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, OSError):  # a full disk, say
            raise cause from error
        raise _told(cause or error, name, split, builder) from error
    if dataset.column_names == []:  # of a stream of JSON lines that are all blank, or of an empty list
        raise ValueError(_no_rows(name, split, builder))
    archives = [file for file in _data_files(builder) if file.endswith(".zip")]
    return _with_archived_files(dataset, archives) if archives and dataset.features is not None else dataset


def _told(cause: BaseException, name: str, split: str, builder: Any) -> ValueError:
    """What a loader could not read, in words."""
    if type(cause).__name__ in EMPTY or any(phrase in str(cause) for phrase in NO_ROWS):
        return ValueError(_no_rows(name, split, builder))
    return _unreadable(name, cause)


def _no_rows(name: str, split: str, builder: Any) -> str:
    """Why there are none: no file has any, one of several is empty, or none is in a slice."""
    files = _data_files(builder)
    empty = [Path(file).name for file in files if _is_empty(Path(file))]
    if empty and len(files) > len(empty):
        return f"Of {name!r}, {empty[0]!r} is empty. Was it written to its end? If it is of no use, delete it."
    if "[" in split and not empty:
        return f"{name!r} has no rows in {split!r}. Set another split, or a longer slice."
    return f"{name!r} has no rows. Was it written to its end?"


def _is_empty(file: Path) -> bool:
    """Whether a file has no byte, or, of Parquet, no row."""
    if not file.is_file():
        return False
    with suppress(ArrowInvalid):  # damaged, which is not empty
        if file.stat().st_size and suffix_of(file) == ".parquet":
            return bool(pq.read_metadata(file).num_rows == 0)
    return file.stat().st_size == 0


def _streamed(builder: Any, split: str, name: str) -> IterableDataset:
    """The stream of a builder, whose rows tell of files that cannot be read as [`_built`] does."""
    dataset: IterableDataset
    if not hasattr(builder, "_generate_tables"):
        dataset = builder.as_streaming_dataset(split=split)
        return dataset
    told = partial(_told, name=name, split=split, builder=copy.copy(builder))
    builder._generate_tables = partial(_read_tables, builder._generate_tables, told)
    try:
        dataset = builder.as_streaming_dataset(split=split)
    finally:
        del builder._generate_tables  # the stream has it; a copy of the builder finds its class's own again
    return dataset


def _read_tables(
    generate: Callable[..., Iterator[Any]], told: Callable[[BaseException], ValueError], *args: Any, **kwargs: Any
) -> Iterator[Any]:
    try:
        yield from generate(*args, **kwargs)
    except Exception as error:
        if isinstance(error, (CastError, ArrowInvalid)) or type(error).__name__ in EMPTY:
            raise told(error) from error
        raise  # others say what is wrong, or are meant for `datasets` itself


def _unreadable(name: str, cause: BaseException) -> ValueError:
    remedy = ""
    if isinstance(cause, CastError):
        remedy = " Its files have other columns than each other: name one of them, or a pattern of some in quotes."
    reason = " ".join(str(cause).split())[:300]
    return ValueError(f"{name!r} cannot be read ({type(cause).__name__}: {reason}).{remedy}")


def _no_split(split: str, known: Iterable[str]) -> ValueError:
    names = [*known]
    return ValueError(
        f"The data set has no split {split!r}; it has {', '.join(map(repr, names))}."
        f"{did_you_mean(split.partition('[')[0], names)}"
    )


def _data_files(builder: Any) -> list[str]:
    return [str(file) for files in (builder.config.data_files or {}).values() for file in files]


def _check_texts(files: Sequence[Path]) -> dict[str, Any]:
    """How `pandas` is to read these local files: a type for each column, `NA` and `null` words where others are.

    By itself, it would look for a type in every ten thousand rows anew. Numbers are read exactly.

    Raises:
        ValueError: if a table among them cannot be right.
    """
    tables: list[dict[str, frozenset[str]]] = []
    for file in files:
        columns = checked_text(file) if file.is_file() else {}
        if columns and suffix_of(file) in (".csv", ".tsv"):
            tables.append(columns)
    if not tables:
        return {}
    names = dict.fromkeys(name for columns in tables for name in columns)
    dtypes = {name: dtype_of(frozenset().union(*(columns.get(name, ()) for columns in tables))) for name in names}
    missing = {name: [""] if dtype in ("string", "bool") else list(MISSING) for name, dtype in dtypes.items()}
    arguments = {"keep_default_na": False, "na_values": missing, "float_precision": "round_trip"}
    if all(columns.keys() == dtypes.keys() for columns in tables) and "" not in dtypes:
        arguments["features"] = Features({name: Value(dtype) for name, dtype in dtypes.items()})
    return arguments


# ---- Archives ----


def _archived_format(archive: Path) -> str:
    """The loader of what is in a `.zip` file.

    Raises:
        ValueError: if it is no archive, or nothing in it can be read.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            names = [PurePosixPath(name) for name in file.namelist() if not name.endswith("/")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive.name!r} is no zip archive ({error}). Is the file whole?") from error
    suffixes = {name.suffix.lower() for name in names}
    Pictures.init()
    if suffixes & Pictures.EXTENSION.keys():
        return "imagefolder"
    if suffixes & set(VIDEOS):
        return "videofolder"
    found = {FORMATS[suffix] for suffix in suffixes & {".parquet", ".json", ".jsonl", ".csv"}}
    if len(found) != 1:
        inside = ", ".join(sorted(suffixes)) or "nothing"
        raise ValueError(
            f"{archive.name!r} holds neither images nor tables of one kind, but {inside}. Unpack it, and name what is "
            "in it."
        )
    return found.pop()


def _with_named_columns(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """A WebDataset whose `.json` files have become columns; those of other files keep their names."""
    inner = dataset.features["json"]
    if not isinstance(inner, dict):
        return dataset
    added = {name: feature for name, feature in inner.items() if name not in dataset.features}
    kept = {name: feature for name, feature in dataset.features.items() if name != "json"}

    def spread(row: dict[str, Any]) -> dict[str, Any]:
        return {name: (row["json"] or {}).get(name) for name in added}

    return _mapped(dataset, spread, Features({**kept, **added}), ["json"])


def _with_archived_files(dataset: Dataset | IterableDataset, archives: Sequence[str]) -> Dataset | IterableDataset:
    """The images or videos of `.zip` archives with their bytes, since a path into an archive is no file."""
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, (Image, Video))]

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {name: _archived_file(row[name], archives) for name in columns}

    return _mapped(dataset, read, dataset.features, []) if columns else dataset


def _archived_file(cell: dict[str, Any] | None, archives: Sequence[str]) -> dict[str, Any] | None:
    """A file of one of the archives with its bytes; any other, which a table may name, as it is."""
    if cell is None or cell["bytes"] is not None:
        return cell
    member, _, archive = str(cell["path"]).removeprefix("zip://").partition("::")
    if archive not in archives and not any(Path(archive).is_relative_to(cache) for cache in DOWNLOADS):
        return cell
    with xopen(cell["path"], "rb") as file:
        return {"bytes": file.read(), "path": member}


def _mapped(
    dataset: Dataset | IterableDataset, change: Callable[[dict[str, Any]], dict[str, Any]], features: Features,
    removed: list[str],
) -> Dataset | IterableDataset:  # fmt: skip
    """The data set with rows changed, and no image decoded on the way."""
    media = {name: feature for name, feature in features.items() if isinstance(feature, (Image, Video))}
    undecoded = {name: type(feature)(decode=False) for name, feature in media.items()}
    for name, feature in undecoded.items():
        dataset = dataset.cast_column(name, feature)
    dataset = dataset.map(change, features=Features({**features, **undecoded}), remove_columns=removed)
    for name, feature in media.items():
        dataset = dataset.cast_column(name, feature)
    return dataset
