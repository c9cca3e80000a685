"""Streaming data: rows are checked, decoded and labelled as they come, and encoded in the training step."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from ..labels.rule import LabelRule
from ..losses import Loss
from ..media.origin import Origin
from ..media.types import Size
from .batch import PreparedRow
from .columns import Columns
from .rows import BadRows, RowSource, iterate_rows


class StreamDataset(TorchIterableDataset[PreparedRow]):
    """Rows of a stream in the stream's order, with the pixels and prompts still to be encoded.

    Every process reads the whole stream and keeps its share of each batch, so that rows, and with them draws, do not
    depend on the number of processes. With several sizes, rows wait until an update's worth of one size has come.

    Args:
        source: of the rows, a stream.
        rule: fitted on its scores.
        epoch: the epoch of the first pass over the stream.
        repeat: whether to start over, in the next epoch, when the stream ends.
        loss: says which rows are left out, and what prompts become.
        block: rows of one size come together in this number; at the end of the stream they are padded to it.
        fingerprint: a digest of the rows' prompts and scores, where they have been looked through.
        relative_scores: of scores and prompts, what the loss reads of them; None where it reads labels alone.

    Attributes:
        labels, example_prompt: None, which a stream does not know beforehand.
        pairs: None, as a stream gives none.
        skip: rows, padding included, that a resumed run has been trained on already.
    """

    labels = example_prompt = pairs = None

    def __init__(
        self, source: RowSource, rule: LabelRule, epoch: int, repeat: bool, loss: Loss, block: int,
        fingerprint: str = "", relative_scores: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.rule = rule
        self.first_epoch = epoch
        self.repeat = repeat
        self.loss = loss
        self.block = block
        self.fingerprint = fingerprint
        self.relative_scores = relative_scores
        self.skip = 0

    def __iter__(self) -> Iterator[PreparedRow]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"A streaming data set is read in order, which `dataloader_num_workers={worker.num_workers}` cannot "
                "do. Set it to 0 or 1, or load the data set without `streaming=True`."
            )
        yield from islice(self._blocks(), self.skip, None)

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
                raise ValueError("The stream yielded no row that can be trained on.")
            if not self.repeat:
                return
            epoch += 1

    def _one_pass(self, epoch: int) -> Iterator[tuple[Size, PreparedRow]]:
        source = self.source
        source.dataset.set_epoch(max(epoch, 0))
        bad = BadRows(source.skip_bad)
        row = -1
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
                "score": torch.tensor(score, dtype=torch.float32),
                "is_positive": label.is_positive[0],
                "weight": label.weights[0],
                "pixels": pixels,
                "geometry": geometry,
                "prompt_text": self.loss.prompt(prompt, is_positive),
            }
            if self.relative_scores is not None:
                prepared["relative_score"] = self.relative_scores(label.scores, [prompt])[0]
            yield size, prepared
        bad.warn("streamed", row + 1)


def scan_stream(stream: IterableDataset, columns: Columns, bad: BadRows) -> tuple[list[float], list[str]]:
    """Scores and prompts of the whole stream, in one pass that does not read images where the format allows it."""
    scores, prompts = [], []
    without_media = Columns(columns.prompt, columns.score, columns.score)
    for _, prompt, _, score in iterate_rows(stream, without_media, bad, Origin()):
        scores.append(score)
        prompts.append(prompt)
    return scores, prompts
