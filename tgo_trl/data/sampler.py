"""Which rows a batch holds: a pure function of (seed, epoch), padded so that every process gets as many batches."""

import copy
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from torch.utils.data import Sampler

from ..policy.draws import shuffled_rows

Index = tuple[int, int]
"""Epoch and position of a row: the epoch travels with the row, so that its draw needs no state."""


def padding_like(position: int) -> int:
    """The index of a row that only fills a batch: `-1 - position`, which looks like the row there but has no weight.

    Its own inverse.
    """
    return -1 - position


UNSAMPLED_EPOCH = -2
"""Of rows that are asked for by position alone while a run goes on: a callback may look, and no batch has them."""
WITHOUT_SAMPLER = (
    "`get_train_dataloader` or `_get_train_sampler` was overridden, so that rows come without the sampler of this "
    "trainer, which says of each row in which epoch it is drawn: every epoch would have the noise of the first, and a "
    "run that is resumed would train on other rows. Leave them as they are; `train_sampling_strategy`, `data_seed` and "
    "`positive_ratio` say which rows come when, and a row that is in `train_dataset` twice comes twice."
)


Kind = tuple[Hashable, bool]
"""Group and label of a row."""


class RowSampler(Sampler[Index]):
    """Yields `(epoch, position)` of every row, in the epoch's order.

    Rows of several groups are yielded in blocks of one group. A block is an update's rows, however they are laid out in
    batches and over processes, so that the updates do not depend on how they are spread.

    Args:
        num_rows: rows of the data set.
        seed: of the shuffle; None keeps the data set's order, but for the blocks.
        block: each group's rows are padded to a multiple of this.
        epoch: the epoch that the next iteration draws; the trainer moves it.
        groups: the group of each row, such as the size of its image; None for one group.
        rows_per_item: rows that stay together, in their order, and belong to one group: two of a pair.
        is_positive: the label of each row, for `positive_ratio`.
        positive_ratio: the share of positive rows in an epoch, of each group alike: of the side that has too many, it
            leaves out some, others in each epoch. None for all rows.

    Attributes:
        done: for an epoch that a resumed run goes on with, the rows that are trained on already.
    """

    def __init__(
        self, num_rows: int, seed: int | None, block: int = 1, epoch: int = 0, groups: Sequence[Hashable] | None = None,
        rows_per_item: int = 1, is_positive: Sequence[bool] = (), positive_ratio: float | None = None,
    ) -> None:  # fmt: skip
        self.num_rows = num_rows
        self.seed = seed
        self.block = block
        self.epoch = epoch
        self.groups = groups
        self.rows_per_item = rows_per_item
        self.done: dict[int, frozenset[int]] = {}
        self.is_positive = is_positive
        self._quotas: Counter[Kind] | None = None
        if positive_ratio is not None:
            self._quotas = _quotas(Counter(map(self._kind, range(num_rows))), positive_ratio)
        self._length = self._padded(self._order(epoch))  # asked for at every update

    def __len__(self) -> int:
        return self._length

    def in_blocks(self, block: int) -> "RowSampler":
        """The same rows in blocks of another size, nothing done of them yet."""
        other = copy.copy(self)
        other.block, other.done = block, {}
        other._length = other._padded(other._order(self.epoch))
        return other

    def num_left(self, epoch: int) -> int:
        """How many rows, padding included, an iteration of the epoch yields: fewer than `len` of a resumed one."""
        done = self.done.get(epoch, frozenset())
        return self._padded([position for position in self._order(epoch) if position not in done])

    def first(self, epoch: int, count: int) -> frozenset[int]:
        """The rows among the first `count` that a whole iteration of the epoch yields, padding among them.

        Of what belongs together, all is among them or nothing: a run may go on with pairs that had none before.
        """
        count = -(-count // self.rows_per_item) * self.rows_per_item
        positions = (position for block in self._blocks(self._order(epoch)) for position in block)
        return frozenset(position for position in islice(positions, count) if position >= 0)

    def __iter__(self) -> Iterator[Index]:
        epoch = self.epoch
        done = self.done.get(epoch, frozenset())
        for block in self._blocks([position for position in self._order(epoch) if position not in done]):
            for position in block:
                yield epoch, position

    def _order(self, epoch: int) -> Sequence[int]:
        if self.seed is None:
            return range(self.num_rows)
        size = self.rows_per_item
        items = shuffled_rows(self.seed, epoch, self.num_rows // size)
        if self._quotas is not None:
            return list(self._within_quotas(items))
        return items if size == 1 else [size * item + i for item in items for i in range(size)]

    def _within_quotas(self, order: Sequence[int]) -> Iterator[int]:
        left = Counter(self._quotas)
        for position in order:
            kind = self._kind(position)
            if left[kind]:
                left[kind] -= 1
                yield position

    def _kind(self, position: int) -> Kind:
        return self._group(position), bool(self.is_positive[position])

    def _padded(self, positions: Iterable[int]) -> int:
        counts = Counter(map(self._group, positions))
        return sum(-(-count // self.block) * self.block for count in counts.values())

    def _blocks(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Full blocks as soon as they are full, then the rest of each group, padded."""
        begun: dict[Hashable, list[int]] = {}
        for position in order:
            block = begun.setdefault(self._group(position), [])
            block.append(position)
            if len(block) == self.block:
                yield begun.pop(self._group(position))
        for block in begun.values():
            yield block + [padding_like(block[0])] * (self.block - len(block))

    def _group(self, position: int) -> Hashable:
        return None if self.groups is None else self.groups[position]


def _quotas(counts: Counter[Kind], positive_ratio: float) -> Counter[Kind]:
    """How many rows of each kind an epoch takes: all of the side that has too few, and a share of the other."""
    sides = {side: {kind: count for kind, count in counts.items() if kind[1] == side} for side in (True, False)}
    positive, negative = rows_at_ratio(sum(sides[True].values()), sum(sides[False].values()), positive_ratio)
    return Counter({**_share_out(sides[True], positive), **_share_out(sides[False], negative)})


def rows_at_ratio(num_positive: int, num_negative: int, positive_ratio: float) -> tuple[int, int]:
    """How many positive and negative rows an epoch takes of those that there are, so that it has the ratio."""
    num_rows = min(num_positive / positive_ratio, num_negative / (1 - positive_ratio))
    return round(num_rows * positive_ratio), round(num_rows * (1 - positive_ratio))


def _share_out(counts: Mapping[Kind, int], total: int) -> dict[Kind, int]:
    """`total` rows, shared out by the counts: rounded down, and one more where most was cut off.

    Rounded each by itself, many small groups would come to another total, or to nothing.
    """
    whole = sum(counts.values())
    shares = {kind: total * count // whole for kind, count in counts.items()}
    left = total - sum(shares.values())
    most_cut_off = sorted(counts, key=lambda kind: total * counts[kind] % whole, reverse=True)
    return {kind: share + (kind in most_cut_off[:left]) for kind, share in shares.items()}
