"""Data sets on disk, written as Parquet shards that a killed run completes byte for byte.

A folder holds `data/train-00000-of-00004.parquet` ..., a JSON file of the settings that made it, and `README.md`, which
is written last. What a shard holds is a function of these settings and the shard's index, and a shard is written under
another name and renamed. Size and SHA-256 of each stand in `.manifest`: one that is as it says is whole and right, and
a run that was killed goes on with the others.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Features

from ..media.embedding import check_embedded, stored_table
from ..messages.values import shown
from .files import replace_file, sweep, write_json
from .manifest import file_damage, file_entry
from .records import CARD_NAME

logger = logging.getLogger(__name__)


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
        """The shards that are whole; makes the folder ready for the others, in every process before any writes.

        A shard that is not as it was written is removed, with a warning, to be made again.

        Args:
            settings: everything that the shards are a function of, as JSON has it.
            state: this process among the others.

        Raises:
            ValueError: if there are shards that were made with other settings, or of which none are known, or files
                of another split.
        """
        # What is there must be of this run.
        self._check_split()
        written = list(self.written())
        if written:
            self._check_settings(json.loads(json.dumps(settings)))  # as it is read: without tuples
        state.wait_for_everyone()  # so that none has changed the folder while another looks at it
        if state.is_main_process:
            for folder in (self.folder, self.folder / "data", self.folder / ".manifest"):
                sweep(folder)
            if not written:
                (self.folder / CARD_NAME).unlink(missing_ok=True)  # of a data set that was here before
                write_json(self.settings_path, {"settings": settings})
        # Each process looks through its share of the shards; then all agree on what is left.
        self._remove_damaged(written[state.process_index :: state.num_processes])
        state.wait_for_everyone()
        whole = list(self.written())
        state.wait_for_everyone()
        return whole

    def write(
        self, shard: int, rows: Sequence[Mapping[str, Any]], features: Features, source: str | None = None
    ) -> None:
        """Writes a shard of rows that hold the bytes of their files; see [`~tgo_trl.media.embedding.embed_files`].

        Args:
            shard: its index.
            rows: all of them.
            features: of the rows.
            source: a digest of what the shard is made of, where the settings do not say it all.
        """
        self.write_table(shard, stored_table(rows, features), source)

    def write_table(self, shard: int, table: pa.Table, source: str | None = None) -> None:
        """Writes a table such that the shard either has all of it or is as it was; arguments as in [`write`]."""
        path = self.path(shard)
        check_embedded(table)
        table = table.combine_chunks()
        path.parent.mkdir(parents=True, exist_ok=True)

        def fill(temporary: Path) -> None:
            with pq.ParquetWriter(temporary, table.schema) as writer:
                if table.num_rows:  # `datasets` cannot read a row group without rows
                    writer.write_table(table)
            # before the shard has its name, so that none is without
            write_json(self._entry_path(shard), {**file_entry(temporary), "source": source})

        replace_file(path, fill)

    def source(self, shard: int) -> str | None:
        """The digest of what a written shard was made of."""
        return self._entry(shard).get("source")

    def digest(self, shard: int) -> str | None:
        """The SHA-256 of a written shard, as it was when it was written."""
        return self._entry(shard).get("sha256")

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

    def _entry_path(self, shard: int) -> Path:
        return self.folder / ".manifest" / f"{self.split}-{shard:05d}.json"  # hidden: `datasets` passes over it

    def _entry(self, shard: int) -> dict[str, Any]:
        try:
            entry = json.loads(self._entry_path(shard).read_text("utf-8"))
        except (FileNotFoundError, ValueError):  # killed before it was written; damaged
            return {}
        is_whole = isinstance(entry, dict) and entry.keys() <= {"sha256", "size", "source"}
        return entry if is_whole else {}

    def _remove_damaged(self, shards: Iterable[int]) -> None:
        for shard in shards:
            path, entry = self.written()[shard], self._entry(shard)
            damage = file_damage(path, entry) if entry else f"{path.name} is not in the manifest"
            if damage is not None:
                logger.warning("In %s, %s. It is made again.", self.folder, damage)
                (self.folder / CARD_NAME).unlink(missing_ok=True)  # which says that all is there
                path.unlink()

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
        try:
            before = dict(json.loads(self.settings_path.read_text("utf-8")))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} holds data whose {self.settings_path.name} is damaged. {remedy}") from error
        differences = list(_differences(before, settings))
        if differences:
            raise ValueError(f"{where} holds data made with other settings: {'; '.join(differences)}. {remedy}")


def column(paths: Iterable[Path], name: str) -> list[Any]:
    """A column of all shards."""
    return [value for path in paths for value in pq.ParquetFile(path).read([name])[name].to_pylist()]


def _differences(before: Any, now: Any, where: str = "") -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{where}[{i}]")
    elif before != now:
        if _is_digest(before) and _is_digest(now):
            yield f"`{where}` are others"
        else:
            yield f"`{where}` was {shown(before)}, is {shown(now)}"


def _is_digest(value: Any) -> bool:
    """Whether a value only tells contents apart, and says nothing to a reader."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value) is not None
