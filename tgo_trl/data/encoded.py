"""Map-style data: every row encoded once, to disk, and read from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..labels.rule import Labels, list_rows
from ..media.origin import Origin
from ..media.readers import MediaReader
from ..media.sizes import nearest_size
from ..media.types import Size
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint
from ..storage.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD, Shards, ShardWriter
from .rows import BadRows, Columns, iterate_rows, undecoded
from .sampler import Index, padding_like

READABLE = "readable"


@dataclass(frozen=True)
class ScannedRows:
    """The good rows of a data set, before their images are decoded: parallel lists of equal length.

    Attributes:
        rows: index of each row in the data set.
        prompts: its prompt.
        scores: its score.
        keys: a fingerprint of its image or video file.
        sizes: what its image is brought to.
    """

    rows: list[int]
    prompts: list[str]
    scores: list[float]
    keys: list[str]
    sizes: list[Size]


def scan_rows(
    dataset: Dataset, columns: Columns, bad: BadRows, reader: MediaReader, sizes: Sequence[Size], origin: Origin,
    name: str = "", progress: bool = False,
) -> ScannedRows:  # fmt: skip
    """Checks prompts and scores, fingerprints and measures the images, without decoding them.

    Args:
        dataset: the user's data set.
        columns: its columns.
        bad: what to do with bad rows.
        reader: of the image or video column.
        sizes: each row is brought to the nearest of them.
        origin: of the data set.
        name: of the data set, for the progress bar.
        progress: whether to show one.
    """
    scanned = ScannedRows([], [], [], [], [])
    rows = iterate_rows(dataset, columns, bad, origin)
    for row, prompt, value, score in tqdm(
        rows, total=len(dataset), desc=f"Reading {name} rows", unit="row", disable=not progress
    ):
        try:
            key = fingerprint(reader.content(value))
            size = sizes[0] if len(sizes) == 1 else nearest_size(reader.size(value), sizes)
        except ValueError as error:
            bad.add(row, columns.media, str(error))
            continue
        scanned.rows.append(row)
        scanned.prompts.append(prompt)
        scanned.scores.append(score)
        scanned.keys.append(key)
        scanned.sizes.append(size)
    return scanned


class EncodedImages:
    """Random access to the encoded images of scanned rows, which lie in shards by size."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[Shards, int]] = {}

    def add(self, positions: Sequence[int], shards: Shards) -> None:
        """Says that the rows at `positions` are the rows of `shards`, in order."""
        self._places.update((position, (shards, i)) for i, position in enumerate(positions))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        shards, i = self._places[position]
        return {name: tensor for name, tensor in shards[i].items() if name != READABLE}


class EncodedDataset(TorchDataset[dict[str, Any]]):
    """Rows as the trainer takes them, read from shards of encoded images and prompts.

    Indexed by `(epoch, position)`; a plain position means epoch 0. `-1 - position` is padding that looks like the row
    at `position`. Each row is a dictionary of `row` (index in the user's data set), `epoch`, `valid` (False for
    padding), `score`, `is_positive`, `weight`, and the encoders' tensors in `image` and `prompt`.
    """

    def __init__(
        self, scanned: ScannedRows, images: EncodedImages, prompts: Shards, positions: Sequence[int], labels: Labels
    ) -> None:
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(scanned.prompts))}
        self.scanned, self.images, self.prompts, self.labels = scanned, images, prompts, labels
        self.positions = list(positions)
        self._prompt_index = [index[prompt] for prompt in scanned.prompts]

    def positives(self) -> "EncodedDataset":
        """The rows above the threshold only."""
        kept = self.labels.is_positive.nonzero().flatten().tolist()
        labels = Labels(
            *(values[kept] for values in (self.labels.scores, self.labels.is_positive, self.labels.weights))
        )
        positions = [self.positions[i] for i in kept]
        return EncodedDataset(self.scanned, self.images, self.prompts, positions, labels)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row."""
        return [self.scanned.prompts[i] for i in self.positions]

    @property
    def fingerprint(self) -> str:
        """A digest of the rows in their order: prompts, scores, image or video files."""
        scores = self.labels.scores.tolist()
        rows = zip((self.scanned.keys[i] for i in self.positions), self.prompt_texts, scores, strict=True)
        return fingerprint(*(part for row in rows for part in row))

    @property
    def sizes(self) -> list[Size]:
        """The size of each row's image, pixels."""
        return [self.scanned.sizes[i] for i in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Index | int) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (0, index)
        valid = position >= 0
        position = position if valid else padding_like(position)
        source = self.positions[position]
        return {
            "row": self.scanned.rows[source],
            "epoch": epoch,
            "valid": valid,
            "score": self.labels.scores[position].float(),
            "is_positive": self.labels.is_positive[position],
            "weight": self.labels.weights[position],
            "image": self.images[source],
            "prompt": self.prompts[self._prompt_index[source]],
        }


def encode_images(
    dataset: Dataset, scanned: ScannedRows, columns: Columns, bad: BadRows, reader: MediaReader, origin: Origin,
    encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str,
) -> tuple[EncodedImages, list[int]]:  # fmt: skip
    """The encoded images or videos, and the positions of those that could be read.

    One that cannot be read raises [`~tgo_trl.data.rows.BadRowError`], or, if bad rows are skipped, is marked in the
    shard and left out of the positions.
    """
    encoded = EncodedImages()
    reasons: dict[int, str] = {}
    for size in dict.fromkeys(scanned.sizes):
        group = [position for position, other in enumerate(scanned.sizes) if other == size]
        rows = [scanned.rows[position] for position in group]
        bucket = _Bucket(dataset, rows, size, columns.media, bad, reader, origin)
        keys = [scanned.keys[position] for position in group]
        shards, unread = bucket.encode(keys, encoders, writer, batch_size, name)
        encoded.add(group, shards)
        reasons.update((group[i], reason) for i, reason in unread.items())
    for position, reason in sorted(reasons.items()):
        if scanned.rows[position] not in bad.rows:  # marked by an earlier run, or by another process
            bad.add(scanned.rows[position], columns.media, reason)
    positions = [position for position in range(len(scanned.rows)) if position not in reasons]
    if not positions:
        raise ValueError(f"No {reader.kind} of the {name} data set can be read ({list_rows(scanned.rows)}).")
    return encoded, positions


class _Bucket:
    """The rows whose images are brought to one size."""

    def __init__(
        self, dataset: Dataset, rows: list[int], size: Size, column: str, bad: BadRows, reader: MediaReader,
        origin: Origin,
    ) -> None:  # fmt: skip
        self.values = undecoded(dataset, column)
        self.rows, self.size, self.column, self.bad, self.reader = rows, size, column, bad, reader
        self.origin = origin

    def encode(
        self, keys: list[str], encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str
    ) -> tuple[Shards, dict[int, str]]:
        """Shards of the rows, and why those that could not be read could not."""
        height, width = self.size
        recipe = fingerprint(encoders.image_recipe, self.reader, self.size)
        description = f"Encoding {name} {self.reader.kind}s ({width} x {height})"
        per_shard = ROWS_PER_SHARD if self.reader.kind == "image" else VIDEOS_PER_SHARD

        def write() -> Shards:
            return writer.write(
                keys, lambda indices: self._tensors(indices, encoders), recipe, batch_size, description, per_shard
            )

        shards = write()
        unread = [i for i, readable in enumerate(shards.column(READABLE).tolist()) if not readable]
        reasons = {i: self._reason(i) for i in unread}
        mended = [i for i, reason in reasons.items() if reason is None]
        if mended:  # an earlier run could not read them, for want of a decoder or of memory
            shards.remove(mended)
            shards = write()
        return shards, {i: reason for i, reason in reasons.items() if reason is not None}

    def _tensors(self, indices: Sequence[int], encoders: FrozenEncoders) -> dict[str, Tensor]:
        values, readable = [], []
        for i in indices:
            try:
                values.append(self._read(i))
                readable.append(True)
            except ValueError as error:
                self.bad.add(self.rows[i], self.column, str(error))
                values.append(self.reader.blank(self.size))
                readable.append(False)
        pixels, geometry = (torch.stack(parts) for parts in zip(*values, strict=True))
        return {**encoders.images(pixels, geometry), READABLE: torch.tensor(readable)}

    def _read(self, i: int) -> tuple[Tensor, Tensor]:
        return self.reader.read(self.origin.locate(self.values[self.rows[i]][self.column]), self.size)

    def _reason(self, i: int) -> str | None:
        try:
            self._read(i)
        except ValueError as error:
            return str(error)
        return None


def encode_prompts(
    scanned: ScannedRows, encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str
) -> Shards:
    """Shards of the encoded prompts, one row per distinct prompt, in the order of first appearance."""
    distinct = list(dict.fromkeys(scanned.prompts))
    return writer.write(
        [fingerprint(prompt) for prompt in distinct],
        lambda positions: encoders.prompts([distinct[i] for i in positions]),
        encoders.prompt_recipe,
        batch_size,
        f"Encoding {name} prompts",
    )
