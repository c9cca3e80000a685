"""Which rows a batch holds: a pure function of (seed, epoch), padded so that every process gets as many batches."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from ..draws import shuffled_rows

PADDING = -1
"""Position of a row that only fills a batch; it carries no weight."""

Index = tuple[int, int]
"""Epoch and position of a row: the epoch travels with the row, so that its draw needs no state."""


class RowSampler(Sampler[Index]):
    """Yields `(epoch, position)` of every row, in the epoch's order.

    Args:
        num_rows: rows of the data set.
        seed: of the shuffle; None keeps the data set's order.
        multiple_of: the number of rows is padded to a multiple of this, with [`PADDING`].
        epoch: the epoch that the next iteration draws; the trainer moves it.
    """

    def __init__(self, num_rows: int, seed: int | None, multiple_of: int = 1, epoch: int = 0) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.multiple_of = multiple_of
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_rows // self.multiple_of) * self.multiple_of

    def __iter__(self) -> Iterator[Index]:
        epoch = self.epoch
        order = range(self.num_rows) if self.seed is None else shuffled_rows(self.seed, epoch, self.num_rows)
        for position in order:
            yield epoch, position
        for _ in range(len(self) - self.num_rows):
            yield epoch, PADDING
