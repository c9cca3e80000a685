"""Streams of several shards in lanes: a process reads the shards whose rows it trains on, and leaves the others alone.

A lane is a run of shards. Every update takes as many rows of each lane as of the others, one lane after the other, and
a process trains on one run of these rows; it reads the lanes that this run touches. How many lanes there are follows
from data and settings, not from the processes, so that neither the rows of an update depend on them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, repeat
from typing import Any, TypeVar

from datasets import IterableDataset

from ..media.origin import Origin
from ..storage.fingerprints import fingerprint
from .columns import Columns
from .rows import BadRows, Score, iterate_rows

T = TypeVar("T")

MOST_LANES = 16
"""Unless a number is asked for: each lane keeps a file open, and rows of it in memory."""
MOST_UNEVEN = 1.1
"""Unless a number is asked for: rows of the longest lane to those of the shortest, which come as much more often."""

_FROM_ONE = (
    "ArrowExamplesIterable", "BufferShuffledExamplesIterable", "ExamplesIterable", "FilteredExamplesIterable",
    "FormattedExamplesIterable", "InterleavedShardsExamplesIterable", "MappedExamplesIterable",
    "RebatchedArrowExamplesIterable", "SelectColumnsIterable", "VerticallyConcatenatedMultiSourcesExamplesIterable",
)  # fmt: skip
"""What `datasets` makes streams of, where it gives the same rows if it is asked for each shard by itself."""
_BUFFERED = "BufferShuffledExamplesIterable"
_OF_A_PLACE = ("with_indices", "batched", "drop_last_batch")
"""Attributes of these that make a row depend on where in the whole stream it is."""


def can_be_divided(stream: IterableDataset) -> bool:
    """Whether the shards of a stream together have the rows of the stream, each as it is there.

    Not so where rows are counted (`skip`, `take`, `with_indices=True`) or put together (`batched=True`), where streams
    are interleaved, or where the user has divided it already; of what is not known, False.
    """
    for part in _parts(stream):
        if type(part).__name__ not in _FROM_ONE or any(getattr(part, name, False) for name in _OF_A_PLACE):
            return False
    return getattr(stream, "_distributed", None) is None and stream.num_shards > 1


def lane_of(stream: IterableDataset, num_lanes: int, index: int) -> IterableDataset:
    """The shards of a lane, with its part of the buffer that the stream is shuffled in, if it is.

    All lanes together then keep as many rows in memory as the stream would.
    """
    lane = stream.shard(num_lanes, index)
    for part in _parts(lane):
        if type(part).__name__ == _BUFFERED:
            part.buffer_size = max(1, part.buffer_size // num_lanes)
    return lane


def order_of(stream: IterableDataset) -> str:
    """A digest of what decides the order of a shuffled stream, the same in all processes if it was given a seed."""
    generators = (getattr(part, "generator", None) for part in _parts(stream))
    return fingerprint(*(repr(it.bit_generator.state) for it in generators if it is not None))


def _parts(stream: IterableDataset) -> list[Any]:
    parts: list[Any] = [getattr(stream, "_ex_iterable", None)]
    for part in parts:
        parts += getattr(part, "ex_iterables", [part.ex_iterable] if hasattr(part, "ex_iterable") else [])
    return parts


@dataclass
class ScannedShard:
    """Scores and prompts of the good rows of a shard, and what there is besides.

    Attributes:
        scores, prompts: parallel lists.
        num_rows: of the shard, bad ones too.
        bad: row in the shard, column and reason of each bad one; only the first if bad rows are not skipped.
    """

    scores: list[Score] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    num_rows: int = 0
    bad: list[tuple[int, str, str]] = field(default_factory=list)


class _FoundRows(BadRows):
    """Bad rows of a shard, whose number in the whole stream is not known yet."""

    def __init__(self, shard: ScannedShard) -> None:
        super().__init__(skip=True)
        self.shard = shard

    def add(self, row: int, column: str, reason: str) -> None:
        self.shard.bad.append((row, column, reason))
        self.shard.num_rows = row + 1


def scan_shards(
    stream: IterableDataset, columns: Columns, bad: BadRows, process: int, num_processes: int,
    gather: Callable[[list[ScannedShard]], list[ScannedShard]],
) -> list[ScannedShard]:  # fmt: skip
    """What each shard of a stream holds, looked through by the processes together, without reading images.

    Args:
        stream: that can be divided.
        columns: of it.
        bad: raises for the first bad row, in every process, or notes all of them.
        process: the index of this one.
        num_processes: all of them.
        gather: lists of all processes, one after the other.
    """
    num_shards = stream.num_shards
    mine = range(process * num_shards // num_processes, (process + 1) * num_shards // num_processes)
    shards = gather([_scan_shard(stream.shard(num_shards, index), columns, bad.skip) for index in mine])
    first_row = 0
    for shard in shards:
        for row, column, reason in shard.bad:
            bad.add(first_row + row, column, reason)
        first_row += shard.num_rows
    return shards


def _scan_shard(stream: IterableDataset, columns: Columns, skip_bad: bool) -> ScannedShard:
    shard = ScannedShard()
    for row, prompt, _, score in iterate_rows(stream, columns.without_media, _FoundRows(shard), Origin()):
        if shard.bad and not skip_bad:
            break
        shard.scores.append(score)
        shard.prompts.append(prompt)
        shard.num_rows = row + 1
    return shard


def in_lanes(shards: Sequence[int], num_lanes: int) -> tuple[int, ...]:
    """A number of each shard, such as its rows, summed over each lane.

    Args:
        shards: the number of each.
        num_lanes: at most as many as shards; the first ones have one more shard if they are not alike, as
            [`~datasets.IterableDataset.shard`] does it.
    """
    each, more = divmod(len(shards), num_lanes)
    ends = list(accumulate(each + (lane < more) for lane in range(num_lanes)))
    return tuple(sum(shards[start:end]) for start, end in zip([0, *ends], ends, strict=False))


def unevenness(lanes: Sequence[int]) -> float:
    """Rows of the longest lane to those of the shortest: how much more often a row of that one comes."""
    return max(lanes) / min(lanes) if min(lanes) else float("inf")


def choose_lanes(usable: Sequence[int], rows_per_update: int) -> int:
    """How many lanes a stream is read in, if nobody says so: as many as divide an update, if they are even enough.

    Args:
        usable: rows of each shard that can be trained on.
        rows_per_update: of all processes.
    """
    most = min(MOST_LANES, len(usable), rows_per_update)
    divisors = (number for number in range(most, 1, -1) if rows_per_update % number == 0)
    return next((number for number in divisors if unevenness(in_lanes(usable, number)) <= MOST_UNEVEN), 1)


@dataclass(frozen=True)
class Share:
    """The rows of each update that a process trains on.

    Attributes:
        process, num_processes: this one, and all.
        batch_size: rows of a batch of one process.
        num_batches: batches of an update.
    """

    process: int = 0
    num_processes: int = 1
    batch_size: int = 1
    num_batches: int = 1

    @property
    def rows_per_update(self) -> int:
        """Of all processes."""
        return self.num_processes * self.batch_size * self.num_batches

    @property
    def positions(self) -> range:
        """Where the rows of this process are among those of an update."""
        num_rows = self.batch_size * self.num_batches
        return range(self.process * num_rows, (self.process + 1) * num_rows)

    def lanes(self, num_lanes: int) -> range:
        """The lanes that have rows of this process."""
        each = self.rows_per_update // num_lanes
        return range(self.positions.start // each, -(-self.positions.stop // each))

    def take(self, lanes: Sequence[Iterator[T]]) -> Iterator[T]:
        """The rows of this process, update after update, without end.

        Args:
            lanes: the rows of all lanes, of which those are read that [`lanes`] names.
        """
        each, positions = self.rows_per_update // len(lanes), self.positions
        read = self.lanes(len(lanes))
        while True:
            for position in range(read.start * each, read.stop * each):
                row = next(lanes[position // each])
                if position in positions:
                    yield row

    def spread(self, rows: Iterator[T]) -> Iterator[T | Any]:
        """The rows where accelerate looks for this process's, and None in the place of the others', which it drops."""
        while self.num_processes > 1:
            for process in range(self.num_processes):
                yield from islice(rows, self.batch_size) if process == self.process else repeat(None, self.batch_size)
        yield from rows
