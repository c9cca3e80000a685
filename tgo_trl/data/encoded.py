"""Map-style data: every row encoded once, to disk, and read from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..labels.checks import list_rows
from ..labels.rule import Labels
from ..losses import Rows
from ..media.types import Size
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint
from ..storage.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD, Shards, ShardWriter
from .batch import PreparedRow
from .columns import undecoded
from .rows import BadRows, RowSource
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

    def take(self, positions: Sequence[int]) -> "ScannedRows":
        """The rows at these positions."""
        return ScannedRows(*([values[i] for i in positions] for values in vars(self).values()))


def scan_rows(source: RowSource, bad: BadRows, progress: bool = False) -> ScannedRows:
    """Checks prompts and scores, fingerprints and measures the images, without decoding them.

    Args:
        source: of the rows.
        bad: what to do with bad ones.
        progress: whether to show a progress bar.
    """
    scanned = ScannedRows([], [], [], [], [])
    description = f"Reading {source.name} rows"
    rows = tqdm(source.rows(bad), description, len(source.dataset), unit="row", disable=not progress)
    for row, prompt, value, score in rows:
        try:
            key, size = fingerprint(source.reader.content(value)), source.size(value)
        except ValueError as error:
            bad.add(row, source.columns.media, str(error))
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


class EncodedPrompts:
    """Random access to the encoded prompts of scanned rows, of which several may have the same.

    Args:
        shards: a row per distinct prompt.
        index: its row, by the position of a scanned row.
    """

    def __init__(self, shards: Shards, index: Mapping[int, int]) -> None:
        self._shards = shards
        self._index = index

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self._shards[self._index[position]]


class EncodedDataset(TorchDataset[PreparedRow]):
    """Rows as the trainer takes them, read from shards of encoded images and prompts.

    Indexed by `(epoch, position)`; a plain position means epoch 0. `-1 - position` is padding that looks like the row
    at `position`.

    Attributes:
        labels: of the rows, in order.
        rows_per_item: rows that belong together: two of a pair.
    """

    def __init__(
        self, scanned: ScannedRows, images: EncodedImages, prompts: EncodedPrompts, positions: Sequence[int],
        labels: Labels, rows_per_item: int = 1,
    ) -> None:  # fmt: skip
        self.scanned, self.images, self.prompts, self.labels = scanned, images, prompts, labels
        self.positions = list(positions)
        self.rows_per_item = rows_per_item

    def select(self, rows: Rows) -> "EncodedDataset":
        """The rows that a loss takes; there may be none."""
        if rows == "scored":
            return self
        return self._positives() if rows == "positives" else self._pairs()

    def _positives(self) -> "EncodedDataset":
        kept = self.labels.is_positive.nonzero().flatten().tolist()
        return self._take(kept, self.labels.is_positive[kept], 1)

    def _pairs(self) -> "EncodedDataset":
        """The best and the worst row of each prompt, in turns, where their scores differ; of one size of images."""
        groups: dict[tuple[str, Size], list[int]] = {}
        for i, group in enumerate(zip(self.prompt_texts, self.sizes, strict=True)):
            groups.setdefault(group, []).append(i)
        scores = self.labels.scores.tolist()
        pairs = [(max(rows, key=scores.__getitem__), min(rows, key=scores.__getitem__)) for rows in groups.values()]
        kept = [i for better, worse in pairs if scores[better] > scores[worse] for i in (better, worse)]
        return self._take(kept, torch.tensor([True, False]).repeat(len(kept) // 2), 2)

    def _take(self, kept: Sequence[int], is_positive: Tensor, rows_per_item: int) -> "EncodedDataset":
        relative = self.labels.relative_scores
        relative = None if relative is None else relative[kept]
        labels = Labels(self.labels.scores[kept], is_positive, self.labels.weights[kept], relative)
        positions = [self.positions[i] for i in kept]
        return EncodedDataset(self.scanned, self.images, self.prompts, positions, labels, rows_per_item)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row."""
        return [self.scanned.prompts[i] for i in self.positions]

    @property
    def example_prompt(self) -> str:
        """The first row's prompt."""
        return self.scanned.prompts[self.positions[0]]

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

    def __getitem__(self, index: Index | int) -> PreparedRow:
        epoch, position = index if isinstance(index, tuple) else (0, index)
        valid = position >= 0
        position = position if valid else padding_like(position)
        source = self.positions[position]
        row: PreparedRow = {
            "row": self.scanned.rows[source],
            "epoch": epoch,
            "valid": valid,
            "score": self.labels.scores[position].float(),
            "is_positive": self.labels.is_positive[position],
            "weight": self.labels.weights[position],
            "image": self.images[source],
            "prompt": self.prompts[source],
        }
        if self.labels.relative_scores is not None:
            row["relative_score"] = self.labels.relative_scores[position]
        return row


def encode_images(
    source: RowSource, scanned: ScannedRows, bad: BadRows, encoders: FrozenEncoders, writer: ShardWriter,
    batch_size: int,
) -> tuple[EncodedImages, list[int]]:  # fmt: skip
    """The encoded images or videos, and the positions of those that could be read.

    One that cannot be read raises [`~tgo_trl.data.rows.BadRowError`], or, if bad rows are skipped, is marked in the
    shard and left out of the positions.
    """
    encoded = EncodedImages()
    reasons: dict[int, str] = {}
    for size in dict.fromkeys(scanned.sizes):
        group = [position for position, other in enumerate(scanned.sizes) if other == size]
        shards, unread = _encode_one_size(source, scanned.take(group), bad, encoders, writer, batch_size)
        encoded.add(group, shards)
        reasons.update((group[i], reason) for i, reason in unread.items())
    for position, reason in sorted(reasons.items()):
        if scanned.rows[position] not in bad.rows:  # marked by an earlier run, or by another process
            bad.add(scanned.rows[position], source.columns.media, reason)
    positions = [position for position in range(len(scanned.rows)) if position not in reasons]
    if not positions:
        raise ValueError(
            f"No {source.reader.kind} of the {source.name} data set can be read ({list_rows(scanned.rows)})."
        )
    return encoded, positions


def _encode_one_size(
    source: RowSource, scanned: ScannedRows, bad: BadRows, encoders: FrozenEncoders, writer: ShardWriter,
    batch_size: int,
) -> tuple[Shards, dict[int, str]]:  # fmt: skip
    """Shards of rows whose images are brought to one size, and why those that could not be read could not."""
    reader, size, column = source.reader, scanned.sizes[0], source.columns.media
    files = undecoded(source.dataset, column)

    def read(i: int) -> tuple[Tensor, Tensor] | str:
        try:
            return reader.read(source.origin.locate(files[scanned.rows[i]][column]), size)
        except ValueError as error:
            return str(error)

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        values, readable = [], []
        for i in indices:
            value = read(i)
            readable.append(not isinstance(value, str))
            if isinstance(value, str):
                bad.add(scanned.rows[i], column, value)
                value = reader.blank(size)
            values.append(value)
        pixels, geometry = (torch.stack(parts) for parts in zip(*values, strict=True))
        return {**encoders.images(pixels, geometry), READABLE: torch.tensor(readable)}

    recipe = fingerprint(encoders.image_recipe, reader.recipe, size)
    description = f"Encoding {source.name} {reader.kind}s ({size[1]} x {size[0]})"
    per_shard = ROWS_PER_SHARD if reader.kind == "image" else VIDEOS_PER_SHARD
    write = partial(writer.write, scanned.keys, encode, recipe, batch_size, description, per_shard)
    shards = write()
    unread = [i for i, readable in enumerate(shards.column(READABLE).tolist()) if not readable]
    reasons = {i: value for i in unread if isinstance(value := read(i), str)}
    mended = [i for i in unread if i not in reasons]
    if mended:  # an earlier run could not read them, for want of a decoder or of memory
        shards.remove(mended)
        shards = write()
    return shards, reasons


def encode_prompts(
    texts: Mapping[int, str], encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str
) -> EncodedPrompts:
    """The encoded prompts of the rows at some positions, in shards of one row per distinct prompt.

    Args:
        texts: the prompt that each is trained with.
        encoders: of the pipeline.
        writer: of shards.
        batch_size: prompts that are encoded at once.
        name: of the data set, for the progress bar.
    """
    distinct = list(dict.fromkeys(texts.values()))
    shards = writer.write(
        [fingerprint(text) for text in distinct],
        lambda indices: encoders.prompts([distinct[i] for i in indices]),
        encoders.prompt_recipe,
        batch_size,
        f"Encoding {name} prompts",
    )
    index = {text: i for i, text in enumerate(distinct)}
    return EncodedPrompts(shards, {position: index[text] for position, text in texts.items()})
