"""Errors of the reference that are computed once, before training, and kept beside the encodings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..messages.values import shown_bytes
from ..storage.fingerprints import fingerprint
from ..storage.shards import VIDEOS_PER_SHARD as VIDEOS_PER_ENCODED_SHARD
from ..storage.shards import ShardWriter
from .encoded import EncodedDataset

ERRORS = "errors"
"""The tensor of a shard."""
ROWS_PER_SHARD, VIDEOS_PER_SHARD = 128, VIDEOS_PER_ENCODED_SHARD
"""That a process computes in one go, and a killed run computes again."""


@dataclass(frozen=True)
class ReferencePass:
    """How errors of the reference are computed.

    Attributes:
        errors: of rows by (draw, position), all of one size: float32 `[n, S]`, of `S` samples of the draw.
        recipe: a fingerprint of all that they depend on beside row and draw.
        batch_size: rows of a forward pass; fewer are filled up, so that all are of one shape.
        num_samples: `S`.
        kind: of what rows are, `"image"` or `"video"`.
        in_step: whether each forward pass takes all processes, which have parts of the reference.
    """

    errors: Callable[[Sequence[tuple[int, int]]], Tensor]
    recipe: str
    batch_size: int
    num_samples: int
    kind: str
    in_step: bool = False


def plan_reference_errors(
    dataset: EncodedDataset, draws: Sequence[int], how: ReferencePass, writer: ShardWriter, name: str,
    texts: Sequence[str],
) -> tuple[str, Callable[[], Tensor]]:  # fmt: skip
    """What it takes to have the reference's error of each row and draw, a sentence, and a function that gets them.

    It gives float32 `[draws, rows, S]`, computed, or read back where an earlier run left them.

    Args:
        dataset: of the rows.
        draws: the epochs whose draws are meant.
        how: they are computed.
        writer: of shards.
        name: of the data set, for messages.
        texts: the prompt that each row is trained with.
    """
    groups = [[i for i, size in enumerate(dataset.sizes) if size == it] for it in dict.fromkeys(dataset.sizes)]
    keys = _row_keys(dataset, texts)
    most = ROWS_PER_SHARD if how.kind == "image" else VIDEOS_PER_SHARD
    per_shard = how.batch_size * max(1, most // how.batch_size)
    work = [(draw, group, fingerprint(how.recipe, draw)) for draw in draws for group in groups]
    missing = [writer.num_missing([keys[i] for i in group], recipe, per_shard) for _, group, recipe in work]

    def compute() -> Tensor:
        errors = torch.empty(len(draws), len(dataset), how.num_samples)
        for index, (draw, group, recipe) in enumerate(work):
            encode = partial(_encode, dataset, how, draw, group)
            label = f"Reference errors of {name} rows, draw {index // len(groups) + 1} of {len(draws)}"
            shards = writer.write(
                [keys[i] for i in group], encode, recipe, how.batch_size, label, per_shard, in_step=how.in_step
            )
            errors[index // len(groups), group] = shards.column(ERRORS)
        return errors

    return _announcement(len(dataset), len(draws), how, missing, name, str(writer.folder)), compute


def _encode(
    dataset: EncodedDataset, how: ReferencePass, draw: int, group: Sequence[int], places: Sequence[int]
) -> dict[str, Tensor]:
    """The errors of the rows at some places of a group, in a batch that is filled up with its last row or pair."""
    rows = [(draw, group[i]) for i in places]
    item = rows[-dataset.rows_per_item :]
    filled = rows + item * ((how.batch_size - len(rows)) // len(item))
    return {ERRORS: how.errors(filled)[: len(rows)].float().cpu()}


def _row_keys(dataset: EncodedDataset, texts: Sequence[str]) -> list[str]:
    """What the error of each row depends on: its image, prompt, and what it is drawn by, the row or the pair."""
    scanned, each = dataset.scanned, dataset.rows_per_item
    numbers = [scanned.rows[i] for i in dataset.positions]
    items = [numbers[i - i % each : i - i % each + each] for i in range(len(numbers))]
    return [
        fingerprint(scanned.keys[i], scanned.sizes[i], text, *item, *scanned.sources[i])
        for i, text, item in zip(dataset.positions, texts, items, strict=True)
    ]


def _announcement(
    num_rows: int, num_draws: int, how: ReferencePass, missing: Sequence[int], name: str, folder: str
) -> str:
    size = shown_bytes(4 * num_rows * num_draws * how.num_samples)
    passes = sum(-(-number // how.batch_size) for number in missing)
    todo = f"{passes:,} forward passes of {how.batch_size} rows" if passes else "all of them are there already"
    return f"Reference errors of {num_rows:,} {name} rows, {num_draws} draws each: {size} in {folder}, {todo}."
