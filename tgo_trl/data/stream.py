"""Streaming data: rows are checked, decoded and labelled as they come, and encoded in the training step."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from ..labels.rule import LabelRule
from ..media.origin import Origin
from ..media.readers import MediaReader
from ..media.sizes import nearest_size
from ..media.types import Size
from .rows import BadRows, Columns, iterate_rows


class StreamDataset(TorchIterableDataset[dict[str, Any]]):
    """Rows of a stream in the stream's order, with the pixels and prompts still to be encoded.

    Every process reads the whole stream and keeps its share of each batch, so that rows, and with them draws, do not
    depend on the number of processes. With several sizes, rows wait until an update's worth of one size has come.

    Args:
        stream: the user's data set.
        columns: its columns.
        rule: fitted on its scores.
        reader: of the image or video column.
        sizes: each row is brought to the nearest of them.
        origin: of the stream.
        skip_bad_rows: whether to count bad rows instead of stopping at the first.
        epoch: the epoch of the first pass over the stream.
        repeat: whether to start over, in the next epoch, when the stream ends.
        positives_only: whether to leave out negative rows.
        block: rows of one size come together in this number; at the end of the stream they are padded to it.
        fingerprint: a digest of the rows' prompts and scores, where they have been looked through.

    Attributes:
        skip: rows, padding included, that a resumed run has been trained on already.
    """

    def __init__(
        self, stream: IterableDataset, columns: Columns, rule: LabelRule, reader: MediaReader, sizes: Sequence[Size],
        origin: Origin, skip_bad_rows: bool, epoch: int, repeat: bool, positives_only: bool, block: int,
        fingerprint: str = "",
    ) -> None:  # fmt: skip
        self.stream = stream
        self.columns = columns
        self.rule = rule
        self.reader = reader
        self.sizes = sizes
        self.origin = origin
        self.skip_bad_rows = skip_bad_rows
        self.first_epoch = epoch
        self.repeat = repeat
        self.positives_only = positives_only
        self.block = block
        self.fingerprint = fingerprint
        self.skip = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"A streaming data set is read in order, which `dataloader_num_workers={worker.num_workers}` cannot "
                "do. Set it to 0 or 1, or load the data set without `streaming=True`."
            )
        yield from islice(self._blocks(), self.skip, None)

    def _blocks(self) -> Iterator[dict[str, Any]]:
        begun: dict[Size, list[dict[str, Any]]] = {}
        for size, row in self._rows():
            block = begun.setdefault(size, [])
            block.append(row)
            if len(block) == self.block:
                yield from begun.pop(size)
        for block in begun.values():
            yield from block
            yield from [{**block[-1], "valid": False}] * (self.block - len(block))

    def _rows(self) -> Iterator[tuple[Size, dict[str, Any]]]:
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

    def _one_pass(self, epoch: int) -> Iterator[tuple[Size, dict[str, Any]]]:
        self.stream.set_epoch(max(epoch, 0))
        bad = BadRows(self.skip_bad_rows)
        row = -1
        for row, prompt, value, score in iterate_rows(self.stream, self.columns, bad, self.origin):
            label = self.rule.apply([score], [prompt])
            if self.positives_only and not label.is_positive[0]:
                continue
            try:
                size = self.sizes[0] if len(self.sizes) == 1 else nearest_size(self.reader.size(value), self.sizes)
                pixels, geometry = self.reader.read(value, size)
            except ValueError as error:
                bad.add(row, self.columns.media, str(error))
                continue
            yield (
                size,
                {
                    "row": row,
                    "epoch": epoch,
                    "valid": True,
                    "score": torch.tensor(score, dtype=torch.float32),
                    "is_positive": label.is_positive[0],
                    "weight": label.weights[0],
                    "pixels": pixels,
                    "geometry": geometry,
                    "prompt_text": prompt,
                },
            )
        bad.report("streamed", row + 1)


def scan_stream(stream: IterableDataset, columns: Columns, bad: BadRows) -> tuple[list[float], list[str]]:
    """Scores and prompts of the whole stream, in one pass that does not read images where the format allows it."""
    scores, prompts = [], []
    without_media = Columns(columns.prompt, columns.score, columns.score)
    for _, prompt, _, score in iterate_rows(stream, without_media, bad, Origin()):
        scores.append(score)
        prompts.append(prompt)
    return scores, prompts
