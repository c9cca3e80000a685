"""Streaming data: rows are checked, decoded and labelled as they come, and encoded in the training step."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from ..labels.rule import LabelRule
from ..losses import Loss
from ..media.origin import Origin
from ..media.types import Size
from .batch import PreparedRow
from .columns import Columns
from .lanes import Share, in_lanes, lane_of
from .rows import BadRows, RowSource, Score, iterate_rows


class StreamDataset(TorchIterableDataset[PreparedRow]):
    """Rows of a stream in the stream's order, with the pixels and prompts still to be encoded.

    Every process reads the whole stream and keeps its share of each batch, so that rows, and with them draws, do not
    depend on the number of processes; in lanes, it reads those that it has a share of, and the rows of each come in its
    order. With several sizes, rows wait until an update's worth of one size has come.

    Args:
        source: of the rows, a stream.
        rule: fitted on its scores.
        epoch: the epoch of the first pass over the stream.
        repeat: whether to start over, in the next epoch, when the stream ends.
        loss: says which rows are left out, and what prompts become.
        block: rows of one size come together in this number; at the end of the stream they are padded to it.
        fingerprint: a digest of the rows' prompts and scores, where they have been looked through.
        relative_scores: of scores and prompts, what the loss reads of them; None where it reads labels alone.
        shards: rows of each shard, of a stream that can be divided; else empty.
        share: what of an update is this process's, of a stream that is read in lanes.
        num_lanes: how many lanes it is read in, unless a run that goes on has others; 1 for the stream's order.

    Attributes:
        labels, example_prompt: None, which a stream does not know beforehand.
        pairs: None, as a stream gives none.
        skip: rows, padding included, that a resumed run has been trained on already, over all processes.
        num_lanes: how many lanes it is read in now.
    """

    labels = example_prompt = pairs = None

    def __init__(
        self, source: RowSource, rule: LabelRule, epoch: int, repeat: bool, loss: Loss, block: int,
        fingerprint: str = "", relative_scores: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
        shards: Sequence[int] = (), share: Share | None = None, num_lanes: int = 1,
    ) -> None:  # fmt: skip
        self.source = source
        self.rule = rule
        self.first_epoch = epoch
        self.repeat = repeat
        self.loss = loss
        self.block = block
        self.fingerprint = fingerprint
        self.relative_scores = relative_scores
        self.shards = shards
        self.share = share or Share()
        self.skip = 0
        self.own_lanes = self.num_lanes = num_lanes

    @property
    def lanes(self) -> tuple[int, ...]:
        """Rows of each lane; empty if the stream is read in its order."""
        return in_lanes(self.shards, self.num_lanes) if self.num_lanes > 1 else ()

    def describe_reading(self) -> str | None:
        """How the rows come from the shards, for the summary; None of a single shard."""
        if self.source.dataset.num_shards == 1:
            return None
        if not self.lanes:
            return "in the stream's order, whole in every process"
        return f"in {len(self.lanes)} lanes of {min(self.lanes):,} to {max(self.lanes):,} rows"

    def __iter__(self) -> Iterator[PreparedRow]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"A streaming data set is read in order, which `dataloader_num_workers={worker.num_workers}` cannot "
                "do. Set it to 0 or 1, or load the data set without `streaming=True`."
            )
        if self.num_lanes == 1:
            yield from islice(self._blocks(), self.skip, None)
            return
        done = self.skip // self.num_lanes
        lanes = [islice(self._lane(index), done, None) for index in range(self.num_lanes)]
        yield from self.share.spread(self.share.take(lanes))

    def _lane(self, index: int) -> Iterator[PreparedRow]:
        lane, first_row = copy.copy(self), sum(self.lanes[:index])
        part = lane_of(self.source.dataset, self.num_lanes, index)
        lane.source = replace(self.source, dataset=part, first_row=first_row)
        for _, row in lane._rows():
            yield row

    def _blocks(self) -> Iterator[PreparedRow]:
        begun: dict[Size, list[PreparedRow]] = {}
        for size, row in self._rows():
            block = begun.setdefault(size, [])
            block.append(row)
            if len(block) == self.block:
                yield from begun.pop(size)
        for block in begun.values():
            yield from block
            padding: PreparedRow = {**block[-1], "valid": False}
            yield from [padding] * (self.block - len(block))

    def _rows(self) -> Iterator[tuple[Size, PreparedRow]]:
        epoch = self.first_epoch
        while True:
            is_empty = True
            for size_and_row in self._one_pass(epoch):
                is_empty = False
                yield size_and_row
            if is_empty:
                where = f", from row {self.source.first_row} on," if self.num_lanes > 1 else ""
                remedy = " Set `stream_lanes=1`, which reads it as a whole." if where else ""
                raise ValueError(f"The stream{where} yielded no row that can be trained on.{remedy}")
            if not self.repeat:
                return
            epoch += 1

    def _one_pass(self, epoch: int) -> Iterator[tuple[Size, PreparedRow]]:
        source = self.source
        source.dataset.set_epoch(max(epoch, 0))
        bad = BadRows(source.skip_bad)
        row = source.first_row - 1
        for row, prompt, value, score in source.rows(bad):
            label = self.rule.apply([score], [prompt])
            is_positive = bool(label.is_positive[0])
            if self.loss.rows == "positives" and not is_positive:
                continue
            try:
                size = source.size(value)
                pixels, geometry = source.reader.read(value, size)
            except ValueError as error:
                bad.add(row, source.columns.media, str(error))
                continue
            prepared: PreparedRow = {
                "row": row,
                "epoch": epoch,
                "valid": True,
                "score": label.scores[0].float(),
                "is_positive": label.is_positive[0],
                "weight": label.weights[0],
                "pixels": pixels,
                "geometry": geometry,
                "prompt_text": self.loss.prompt(prompt, is_positive),
            }
            if self.relative_scores is not None:
                prepared["relative_score"] = self.relative_scores(label.scores, [prompt])[0]
            yield size, prepared
        bad.warn("streamed", row + 1 - source.first_row)


def scan_scores(dataset: Dataset | IterableDataset, columns: Columns, bad: BadRows) -> tuple[list[Score], list[str]]:
    """Scores and prompts of all good rows, in one pass that does not read images where the format allows it."""
    scores: list[Score] = []
    prompts: list[str] = []
    for _, prompt, _, score in iterate_rows(dataset, columns.without_media, bad, Origin()):
        scores.append(score)
        prompts.append(prompt)
    return scores, prompts
