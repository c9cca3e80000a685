"""Streaming data: rows are checked, decoded and labelled as they come, and encoded in the training step."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from ..labels import LabelRule
from .images import image_to_tensor, load_image
from .rows import BadRows, Columns, iterate_rows


class StreamDataset(TorchIterableDataset[dict[str, Any]]):
    """Rows of a stream in the stream's order, with the pixels and prompts still to be encoded.

    Every process reads the whole stream and keeps its share of each batch, so that rows, and with them draws, do not
    depend on the number of processes.

    Args:
        stream: the user's data set.
        columns: its columns.
        rule: fitted on its scores.
        resolution: in pixels.
        skip_bad_rows: whether to count bad rows instead of stopping at the first.
        epoch: the epoch of the first pass over the stream.
        repeat: whether to start over, in the next epoch, when the stream ends.
        positives_only: whether to leave out negative rows.
        pad_to: rows that do not fill a multiple of this are filled up with padding at the end.
    """

    def __init__(
        self, stream: IterableDataset, columns: Columns, rule: LabelRule, resolution: int, skip_bad_rows: bool,
        epoch: int, repeat: bool, positives_only: bool, pad_to: int,
    ) -> None:  # fmt: skip
        self.stream = stream
        self.columns = columns
        self.rule = rule
        self.resolution = resolution
        self.skip_bad_rows = skip_bad_rows
        self.first_epoch = epoch
        self.repeat = repeat
        self.positives_only = positives_only
        self.pad_to = pad_to

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"A streaming data set is read in order, which `dataloader_num_workers={worker.num_workers}` cannot "
                "do. Set it to 0 or 1, or load the data set without `streaming=True`."
            )
        epoch = self.first_epoch
        while True:
            count = 0
            for example in self._one_pass(epoch):
                count += 1
                yield example
            if count == 0:
                raise ValueError("The stream yielded no row that can be trained on.")
            if not self.repeat:
                for _ in range(-count % self.pad_to):
                    yield {**example, "valid": False}
                return
            epoch += 1

    def _one_pass(self, epoch: int) -> Iterator[dict[str, Any]]:
        self.stream.set_epoch(max(epoch, 0))
        bad = BadRows(self.skip_bad_rows)
        row = -1
        for row, prompt, image, score in iterate_rows(self.stream, self.columns, bad):
            label = self.rule.apply([score], [prompt])
            if self.positives_only and not label.is_positive[0]:
                continue
            try:
                pixels = image_to_tensor(load_image(image), self.resolution)
            except ValueError as error:
                bad.add(row, self.columns.image, str(error))
                continue
            yield {
                "row": row,
                "epoch": epoch,
                "valid": True,
                "score": torch.tensor(score, dtype=torch.float32),
                "is_positive": label.is_positive[0],
                "weight": label.weights[0],
                "pixels": pixels,
                "prompt_text": prompt,
            }
        bad.report("streamed", row + 1)


def scan_stream(stream: IterableDataset, columns: Columns, bad: BadRows) -> tuple[list[float], list[str]]:
    """Scores and prompts of the whole stream, in one pass that does not read the images where the format allows it."""
    scores, prompts = [], []
    without_image = Columns(columns.prompt, columns.score, columns.score)
    for _, prompt, _, score in iterate_rows(stream, without_image, bad):
        scores.append(score)
        prompts.append(prompt)
    return scores, prompts
