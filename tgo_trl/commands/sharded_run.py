"""What every command that writes a data set does, in one order, so that a run that was killed goes on byte for byte.

A command says in a [`ShardedRun`] what its shards are made of, and how. The rest is here: settings are recorded before
the first shard is written, and compared with those of an earlier run; shards that are whole stay; each process makes
its share of the others; card and upload come last.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pyarrow as pa
from accelerate import PartialState
from datasets import Features
from tqdm.auto import tqdm

from ..hub.dataset_upload import publish
from ..hub.repositories import Destination, open_repository
from ..storage.files import replace_file
from ..storage.locks import sole_writer
from ..storage.parquet import ParquetFolder
from ..storage.processes import process_state
from ..storage.records import CARD_NAME, read_record
from ..storage.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD
from .settings import DatasetSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


class ShardedRun(ABC, Generic[Item]):
    """What a command writes: items, such as a prompt and a seed, of which each becomes a row, or none if it is bad.

    Attributes:
        record_name: the file of the settings.
        verb, unit: of the progress bar.
        split: of the rows.
        num_rows: items of all shards; None as long as it is unknown, of a stream.
        shard_rows: items of each shard; the last one may have fewer.
        features: of the rows that are written.
    """

    record_name: str
    verb: str
    unit: str
    split: str = "train"
    num_rows: int | None
    shard_rows: int
    features: Features

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that the shards are a function of, as it is recorded."""

    @abstractmethod
    def blocks(self, wanted: Callable[[int], bool]) -> Iterable[tuple[int, Sequence[Item]]]:
        """Index and items of the wanted shards, in order."""

    def source(self, items: Sequence[Item]) -> str | None:
        """A digest of a shard's items, where the settings do not say it all; asked for once its rows are made."""
        return None

    @abstractmethod
    def rows(self, shard: int, items: Sequence[Item], progress: Callable[[int], object]) -> Sequence[Mapping[str, Any]]:
        """The rows of a shard; `progress` is told the number of those that are made, while they are."""

    def warn(self) -> None:
        """Tells what was wrong with items; every process does, once its shards are written."""

    def complete(self, folder: ParquetFolder, state: PartialState) -> None:
        """Adds to the shards what is a function of all of them; each process to its share."""

    @abstractmethod
    def facts(self, folder: ParquetFolder) -> dict[str, Any]:
        """What was found out on the way, which is recorded beside the settings.

        Raises:
            ValueError: if there is nothing in the shards.
        """

    @abstractmethod
    def card(self, folder: ParquetFolder, facts: Mapping[str, Any]) -> str:
        """The text of the card, of a folder whose record is complete."""

    def announce(self, facts: Mapping[str, Any]) -> None:
        """Prints what was written, and what comes next."""

    @property
    def num_shards(self) -> int | None:
        """None for a stream."""
        return None if self.num_rows is None else math.ceil(self.num_rows / self.shard_rows)

    def ranges(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, range]]:
        """Index of each wanted shard, and those of its items; none for a stream."""
        for shard in filter(wanted, range(self.num_shards or 0)):
            yield shard, range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows or 0))


def locks_output_dir(command: Command) -> Command:
    """The command, which takes a configuration first, as the sole writer of its `output_dir`."""

    @functools.wraps(command)
    def locked(config: Any, *args: Any, **kwargs: Any) -> Any:
        is_main = process_state().is_main_process
        with sole_writer(Path(config.output_dir)) if is_main else nullcontext():
            return command(config, *args, **kwargs)

    return cast(Command, locked)


def check_destination(folder: Path, config: DatasetSettings, state: PartialState) -> None:
    """Opens the repository before the work begins, if the data set in `folder` is to be pushed at its end.

    Raises:
        UploadError: if it cannot be written to.
    """
    if config.push_to_hub and state.is_main_process:
        _destination(folder, config)


def check_own_folder(folder: Path, record_name: str) -> None:
    """Raises a ValueError if a folder that a command keeps several data sets in holds something else.

    Args:
        folder: the command's `output_dir`.
        record_name: of the file that the command writes there first.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if not name.startswith(("_", "."))]  # without the lock, and what a kill leaves
    if others and read_record(folder, record_name) is None:
        raise ValueError(
            f"The folder {str(folder)!r} holds {min(others)!r} and no {record_name}: it is not of this command. "
            "Set another `output_dir`."
        )


def write_dataset(run: ShardedRun[Any], folder: Path, config: DatasetSettings, state: PartialState) -> Path:
    """Writes the shards that are missing, the card and the record, and uploads them; returns the folder.

    Every process of a distributed launch calls this; they share the work.

    Args:
        run: what is written.
        folder: where to.
        config: of the card, the upload and the progress bar.
        state: this process among the others.

    Raises:
        ValueError: if the folder holds data made with other settings, or of other items.
    """
    shards = ParquetFolder(folder, run.record_name, run.split, run.num_shards)
    written = set(shards.begin(run.settings(), state))
    _write_missing(run, shards, written, state, state.is_main_process and not config.disable_tqdm)
    run.warn()
    state.wait_for_everyone()
    if shards.num_shards is None:
        _seal(shards, state)
    run.complete(shards, state)
    state.wait_for_everyone()
    if state.is_main_process:
        shards.check_complete(shards.num_shards or 0)
        facts = run.facts(shards)
        shards.finish(facts)
        text = run.card(shards, facts)
        replace_file(folder / CARD_NAME, lambda path: path.write_text(text, "utf-8"))
        run.announce(facts)
        if config.push_to_hub:
            publish(folder, _destination(folder, config))
    state.wait_for_everyone()
    return folder


def rows_per_shard(given: int | None, is_video: bool) -> int:
    """Rows of a shard: as set, or some that take minutes rather than hours."""
    return given or (VIDEOS_PER_SHARD if is_video else ROWS_PER_SHARD)


def _destination(folder: Path, config: DatasetSettings) -> Destination:
    name = config.hub_dataset_id or folder.resolve().name
    return open_repository(name, "dataset", config.hub_token, config.hub_private_repo, None, "hub_dataset_id")


def _write_missing(
    run: ShardedRun[Any], shards: ParquetFolder, written: set[int], state: PartialState, show_progress: bool
) -> None:
    missing = sorted(set(range(run.num_shards or 0)) - written)
    mine = set(missing[state.process_index :: state.num_processes])

    def wanted(shard: int) -> bool:
        is_in_turn = shard % state.num_processes == state.process_index
        if shard in written:  # to see that it is of these items
            return is_in_turn and shards.source(shard) is not None
        return shard in mine if run.num_shards is not None else is_in_turn

    total = None if run.num_shards is None else sum(len(rows) for _, rows in run.ranges(mine.__contains__))
    disable = not show_progress or total == 0
    unseen = {shard for shard in written if run.num_shards is None and wanted(shard)}
    with tqdm(total=total, desc=run.verb, unit=run.unit, disable=disable) as progress:
        for shard, items in run.blocks(wanted):
            unseen.discard(shard)
            if shard in written:
                _check_source(shards, shard, run.source(items))
                continue
            rows = run.rows(shard, items, progress.update)
            shards.write(shard, rows, run.features, run.source(items))
            pa.default_memory_pool().release_unused()  # as much as the files of a shard, which images need
    if unseen:  # of a stream that has become shorter
        raise ValueError(_of_other_rows(shards, min(unseen)))


def _check_source(shards: ParquetFolder, shard: int, source: str | None) -> None:
    if shards.source(shard) != source:
        raise ValueError(_of_other_rows(shards, shard))


def _of_other_rows(shards: ParquetFolder, shard: int) -> str:
    return (
        f"{shards.written()[shard].name} in {str(shards.folder)!r} holds rows of other prompts or images than the data "
        "set has there now. Set another `output_dir`, or delete the folder to begin anew."
    )


def _seal(shards: ParquetFolder, state: PartialState) -> None:
    num_shards = len(shards.written())
    state.wait_for_everyone()
    if state.is_main_process:
        shards.seal(num_shards)
    state.wait_for_everyone()
    shards.num_shards = num_shards
