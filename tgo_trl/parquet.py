"""Data sets on disk: opened by name, and written as Parquet shards that a killed run completes byte for byte.

A folder holds `data/train-00000-of-00004.parquet` ..., a JSON file of the settings that made it, and `README.md`, which
is written last. What a shard holds is a function of these settings and the shard's index, and a shard is written under
another name and renamed: one that exists is whole and right, and a run that was killed goes on with those that do not.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, load_dataset, load_from_disk

from .data.embedding import check_embedded, stored_table
from .data.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD

CARD_NAME = "README.md"
GENERATION_NAME = "generation.json"
SCORING_NAME = "scoring.json"
RECORD_NAMES = (GENERATION_NAME, SCORING_NAME, "conversion.json")
"""The settings of whatever the package writes in shards."""
FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
"""The loader of each kind of file."""


def process_state() -> PartialState:
    """The process among the others, which wait for each other for as long as the work takes.

    On machines without an accelerator too, where accelerate takes each launched process for the only one unless told.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))


class ParquetFolder:
    """The shards of one data set.

    Args:
        folder: of the data set.
        settings_name: the file of its settings.
        split: of the rows.
        num_shards: None as long as it is unknown, of a stream; see [`seal`].
    """

    def __init__(self, folder: Path, settings_name: str, split: str = "train", num_shards: int | None = None) -> None:
        self.folder = folder
        self.settings_path = folder / settings_name
        self.split = split
        self.num_shards = num_shards

    def path(self, shard: int) -> Path:
        """Where a shard goes."""
        count = "" if self.num_shards is None else f"-of-{self.num_shards:05d}"
        return self.folder / "data" / f"{self.split}-{shard:05d}{count}.parquet"

    def written(self) -> dict[int, Path]:
        """The shards that exist, by index, in order."""
        pattern = re.compile(rf"{re.escape(self.split)}-(\d{{5,}})(-of-\d{{5,}})?\.parquet")
        found = ((pattern.fullmatch(path.name), path) for path in (self.folder / "data").glob("*.parquet"))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def begin(self, settings: Mapping[str, Any], state: PartialState) -> list[int]:
        """The shards that exist; makes the folder ready for the others, in every process before any writes.

        Args:
            settings: everything that the shards are a function of, as JSON has it.
            state: this process among the others.

        Raises:
            ValueError: if there are shards that were made with other settings, or of which none are known, or files
                of another split.
        """
        self._check_split()
        written = list(self.written())
        if written:
            self._check_settings(json.loads(json.dumps(settings)))  # as it is read: without tuples
        state.wait_for_everyone()  # so that none has changed the folder while another looks at it
        if state.is_main_process and not written:
            (self.folder / CARD_NAME).unlink(missing_ok=True)  # of a data set that was here before
            write_json(self.settings_path, {"settings": settings})
        state.wait_for_everyone()
        return written

    def write(self, shard: int, rows: Sequence[Mapping[str, Any]], features: Features) -> None:
        """Writes a shard of rows that hold the bytes of their files; see [`~tgo_trl.data.embedding.embed_files`]."""
        self.write_table(self.path(shard), stored_table(rows, features))

    def write_table(self, path: Path, table: pa.Table) -> None:
        """Writes a table such that the file either has all of it or is as it was."""
        check_embedded(table)
        table = table.combine_chunks()
        path.parent.mkdir(parents=True, exist_ok=True)

        def fill(temporary: Path) -> None:
            with pq.ParquetWriter(temporary, table.schema) as writer:
                if table.num_rows:  # `datasets` cannot read a row group without rows
                    writer.write_table(table)

        replace_file(path, fill)

    def seal(self, num_shards: int) -> None:
        """Gives the shards of a stream their final names, once their number is known."""
        written = self.written()
        self.num_shards = num_shards
        for shard, path in written.items():
            os.replace(path, self.path(shard))

    def check_complete(self, num_shards: int) -> None:
        """Raises a ValueError if a shard is missing; removes what killed runs left."""
        missing = num_shards - len(self.written())
        if missing:
            raise ValueError(
                f"{missing} of {num_shards} files are not in {str(self.folder)!r} although all are written: the "
                "processes seem to run on machines that do not share this folder. Set `output_dir` to one that they "
                "share, and run the same command again."
            )
        for path in (self.folder / "data").glob(".*.parquet.*"):
            path.unlink(missing_ok=True)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Adds what was found out on the way to the settings."""
        recorded = {**json.loads(self.settings_path.read_text()), **facts}
        write_json(self.settings_path, recorded)

    def _check_split(self) -> None:
        """A folder has one card and one file of settings, which are of one split."""
        others = {path.name for path in (self.folder / "data").glob("*.parquet")}
        others -= {path.name for path in self.written().values()}
        if others:
            raise ValueError(
                f"The folder {str(self.folder)!r} holds {min(others)!r}, which is no file of the split {self.split!r}: "
                "its settings and its card would be lost. Set another `output_dir` for each split."
            )

    def _check_settings(self, settings: dict[str, Any]) -> None:
        where = f"The folder {str(self.folder)!r}"
        remedy = "Set another `output_dir`, or delete the folder to begin anew."
        if not self.settings_path.is_file():
            raise ValueError(f"{where} holds data without {self.settings_path.name}, from something else. {remedy}")
        differences = list(_differences(json.loads(self.settings_path.read_text())["settings"], settings))
        if differences:
            raise ValueError(f"{where} holds data made with other settings: {'; '.join(differences)}. {remedy}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file that is either whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, which then takes the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # hidden: `datasets` passes over it
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rows_per_shard(given: int | None, is_video: bool) -> int:
    """Rows of a shard: as set, or some that take minutes rather than hours."""
    return given or (VIDEOS_PER_SHARD if is_video else ROWS_PER_SHARD)


def column(paths: Iterable[Path], name: str) -> list[Any]:
    """A column of all shards."""
    return [value for path in paths for value in pq.ParquetFile(path).read([name])[name].to_pylist()]


def open_dataset(
    name: str, config: str | None = None, split: str = "train", streaming: bool = False
) -> Dataset | IterableDataset:
    """The rows of a file, a folder or a Hub repository.

    Args:
        name: a file of [`FORMATS`], a folder that `load_dataset` reads or `save_to_disk` wrote, or a Hub id.
        config: of the data set; a file has none.
        split: likewise, or a part of it as `load_dataset` takes it: `"train[:100]"`. A file is any split.
        streaming: read the rows as they come.

    Raises:
        ValueError: if there is no such file, folder or split, the folder was not finished, or a part of a split is
            wanted of a stream or of what `save_to_disk` wrote.
    """
    path = Path(name)
    if streaming and "[" in split:
        raise ValueError(
            f"`dataset_split` is {split!r}, but a stream is not read in parts. Name the whole split, or do not stream."
        )
    if path.is_file() or path.suffix.lower() in FORMATS:
        return _open_file(path, split, streaming)
    if any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return _open_saved(path, split, streaming)
    is_ours = any((path / settings).is_file() for settings in RECORD_NAMES)
    if is_ours and not (path / CARD_NAME).is_file():
        raise ValueError(
            f"The data set in {name!r} is not finished: it has no {CARD_NAME}, which is written last. Run the command "
            "that writes it once more; it goes on where it stopped."
        )
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        if path.exists():
            raise
        raise ValueError(
            f"There is no file or folder {name!r} here, and no such data set could be read from the Hub "
            f"({type(error).__name__}: {error}). Mend the name, or look to the connection and the token."
        ) from error


def public_name(name: str) -> str:
    """A Hub id as it is; of a file or folder, which names a machine, only the last part."""
    return Path(name).resolve().name if os.path.exists(name) else name  # `Path.exists` raises for a long text


def _open_file(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name!r} is no kind of file that is read here: write {', '.join(FORMATS)}.")
    name = split.partition("[")[0]
    return load_dataset(FORMATS[path.suffix.lower()], data_files={name: str(path)}, split=split, streaming=streaming)


def _open_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if "[" in split:
        raise ValueError(
            f"`dataset_split` is {split!r}, but what `save_to_disk` wrote is not read in parts. Name the whole split, "
            "or save the part."
        )
    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        if split not in dataset:
            raise ValueError(f"The data set has no split {split!r}; it has {', '.join(map(repr, dataset))}.")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def _differences(before: Any, now: Any, where: str = "") -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}".lstrip("."))
    elif before != now:
        yield f"`{where}` was {_shown(before)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
