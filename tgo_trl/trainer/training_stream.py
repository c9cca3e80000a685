"""A training stream before its first update: looked through once for its scores, and divided into lanes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from accelerate import PartialState
from datasets import IterableDataset

from ..data.columns import Columns
from ..data.lanes import MOST_UNEVEN, can_be_divided, choose_lanes, in_lanes, order_of, scan_shards, unevenness
from ..data.rows import BadRows
from ..data.stream import scan_scores
from ..storage.processes import from_all
from .tgo_config import TGOConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScannedStream:
    """What a training stream holds.

    Attributes:
        scores, prompts: of its good rows, in its order.
        num_good, shards: good rows and rows of each shard; empty where it is read in its order.
    """

    scores: list[Any]
    prompts: list[str]
    num_good: list[int]
    shards: list[int]

    @classmethod
    def of(cls, stream: IterableDataset, columns: Columns, args: TGOConfig, bad: BadRows) -> "ScannedStream":
        """Read once, by all processes together where it can be divided.

        Args:
            stream: of rows.
            columns: of it.
            args: the run's settings.
            bad: what to do with bad rows.

        Raises:
            ValueError: if the processes would read it in different orders.
        """
        if not reads_in_lanes(args, stream):
            return cls(*scan_scores(stream, columns, bad), [], [])
        state = PartialState()
        if len({*from_all([order_of(stream)])}) > 1:
            raise ValueError(
                "The processes read the stream in different orders: it was shuffled without a seed. Call "
                "`shuffle(seed=...)`."
            )
        found = scan_shards(stream, columns, bad, state.process_index, state.num_processes, from_all)
        return cls(
            [*chain.from_iterable(shard.scores for shard in found)],
            [*chain.from_iterable(shard.prompts for shard in found)],
            [len(shard.scores) for shard in found],
            [shard.num_rows for shard in found],
        )

    def num_lanes(self, args: TGOConfig, is_used: Sequence[bool]) -> int:
        """How many lanes it is read in; 1 for its order. Warns of uneven ones.

        Args:
            args: the run's settings.
            is_used: whether each good row is trained on.

        Raises:
            ValueError: if a lane would have no row that is.
        """
        if not self.shards:
            return 1
        rows = iter(is_used)
        usable = [sum(islice(rows, number)) for number in self.num_good]
        number = args.stream_lanes or choose_lanes(usable, args.rows_per_update)
        if number > 1:
            _check_lanes(in_lanes(usable, number))
        return number


def reads_in_lanes(args: TGOConfig, stream: IterableDataset) -> bool:
    """Whether a training stream may be read in more than one lane."""
    return can_be_divided(stream) and not args.aspect_ratio_buckets and args.stream_lanes != 1


def _check_lanes(usable: Sequence[int]) -> None:
    if not min(usable):
        raise ValueError(
            f"`stream_lanes` is {len(usable)}, and one of these lanes has no row that can be trained on. Set fewer."
        )
    if unevenness(usable) > MOST_UNEVEN:
        logger.warning(
            "`stream_lanes=%d` makes lanes of %d to %d rows that are trained on, as many of each in an update: the "
            "rows of the shortest come %.2g times as often as those of the longest. Cut the data set into shards of "
            "as many rows, or set fewer lanes.",
            len(usable), min(usable), max(usable), unevenness(usable),
        )  # fmt: skip
