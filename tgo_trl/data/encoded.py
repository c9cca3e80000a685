"""Map-style data: every row encoded once, to disk, and read from there."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..labels.checks import list_rows
from ..labels.rule import Labels
from ..losses import Rows
from ..media.embedding import ColumnError
from ..media.readers import MediaReader
from ..media.types import Size
from ..policy.encoders import FrozenEncoders
from ..storage.fingerprints import fingerprint, task_of
from ..storage.shards import ROWS_PER_SHARD, VIDEOS_PER_SHARD, Shards, ShardWriter
from .batch import PreparedRow
from .columns import undecoded
from .pairs import Pairs
from .rows import CHANGES, BadRows, EndOfScanError, NotedRows, RowSource, Score, as_identified
from .sampler import Index, padding_like
from .sources import Places, check_same_number, encode_edits, encode_sources, scan_sources

READABLE = "readable"


@dataclass(frozen=True)
class ScannedRows:
    """The good rows of a data set, before their images are decoded: parallel lists of equal length.

    Attributes:
        rows: index of each row in the data set.
        prompts: its prompt.
        scores: its score, or scores.
        keys: a fingerprint of its image or video file.
        sizes: what its image is brought to.
        columns: the column of its image or video.
        sources: the fingerprints of its source images, if the pipeline reads them.

    A row that is a pair is there twice, with its better and then its worse image.
    """

    rows: list[int]
    prompts: list[str]
    scores: list[Score]
    keys: list[str]
    sizes: list[Size]
    columns: list[str]
    sources: list[tuple[str, ...]]

    def take(self, positions: Sequence[int]) -> "ScannedRows":
        """The rows at these positions."""
        return ScannedRows(*([values[i] for i in positions] for values in vars(self).values()))

    @property
    def num_sources(self) -> int:
        """Source images of each row, which all have as many; 0 where the pipeline reads none."""
        return len(self.sources[0]) if self.sources else 0

    @property
    def tasks(self) -> list[str]:
        """What each image answers, so that scores of the same can be compared: its prompt, and its sources if any."""
        return [task_of(prompt, sources) for prompt, sources in zip(self.prompts, self.sources, strict=True)]


def scan_rows(
    source: RowSource, bad: BadRows, progress: bool = False, most_sources: int = 0, process: int = 0,
    num_processes: int = 1, gather: Callable[[list[Any]], list[Any]] = list,
) -> ScannedRows:  # fmt: skip
    """Checks prompts and scores, fingerprints and measures the images, without decoding them.

    Each process looks through a run of the rows, and all find what one would.

    Args:
        source: of the rows.
        bad: what to do with bad ones; the first raises in every process.
        progress: whether to show a progress bar.
        most_sources: source images of a row, where the columns have any.
        process: the index of this one.
        num_processes: all of them.
        gather: lists of all processes, one after the other.
    """

    def share(number: int) -> range:
        return range(process * number // num_processes, (process + 1) * number // num_processes)

    noted = NotedRows(bad.skip)
    scanned = _joined(gather([_scan_part(source, share(len(source.dataset)), noted, progress)]))
    _tell(gather(noted.found), bad)
    if source.columns.source is None:
        return scanned
    noted, distinct = NotedRows(bad.skip), [*dict.fromkeys(scanned.rows)]
    mine = [distinct[i] for i in share(len(distinct))]
    keys: list[tuple[str, ...] | None] = []
    with suppress(EndOfScanError):
        keys = scan_sources(source, mine, noted, most_sources)
    keys = gather(keys)
    _tell(gather(noted.found), bad)
    of_row = dict(zip(distinct, keys, strict=True))
    kept = [i for i, row in enumerate(scanned.rows) if of_row[row] is not None]
    scanned = replace(scanned.take(kept), sources=[of_row[scanned.rows[i]] or () for i in kept])
    check_same_number(f"Rows of the {source.name} data set", scanned.sources)
    return scanned


def _scan_part(source: RowSource, part: range, bad: BadRows, progress: bool) -> ScannedRows:
    """A run of the rows, as far as it can be scanned."""
    scanned = ScannedRows([], [], [], [], [], [], [])
    if len(part) < len(source.dataset):
        source = replace(source, dataset=source.dataset.select(part), first_row=part.start)
    with suppress(EndOfScanError):
        _scan_into(scanned, source, bad, progress)
    return scanned


def _joined(parts: Sequence[ScannedRows]) -> ScannedRows:
    """The rows of all parts, one part after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return ScannedRows(*([*chain.from_iterable(lists)] for lists in columns))


def _tell(found: Iterable[tuple[int, str, str]], bad: BadRows) -> None:
    for row, column, reason in found:
        bad.add(row, column, reason)


def _scan_into(scanned: ScannedRows, source: RowSource, bad: BadRows, progress: bool) -> None:
    """Adds the good rows of a source, without their source images."""
    description = f"Reading {source.name} rows"
    rows = tqdm(source.images(bad), description, len(source.dataset), unit="row", disable=not progress)
    for row, prompt, images in rows:
        try:
            found = _identify(source, images)
        except ColumnError as error:
            bad.add(row, error.column, str(error))
            continue
        for (column, _, score), (key, size) in zip(images, found, strict=True):
            for values, value in zip(vars(scanned).values(), (row, prompt, score, key, size, column, ()), strict=True):
                values.append(value)


def _identify(source: RowSource, images: Sequence[tuple[str, Any, Score]]) -> list[tuple[str, Size]]:
    """Fingerprint and size of each image of a row; raises a ColumnError, with a clause, if they cannot be used."""
    found = []
    for column, value, _ in images:
        try:
            found.append((fingerprint(source.reader.content(value)), source.size(value)))
        except ValueError as error:
            raise ColumnError(column, str(error)) from error
    if len({key for key, _ in found}) < len(found):
        raise ColumnError(images[1][0], f"the file is that of {images[0][0]!r}, and neither of the two is better")
    return found


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


class EncodedSources:
    """Random access to what was encoded of source images, or beside them, by the position of a scanned row."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        shards, i = self._places[position]
        return shards[i]


class EncodedDataset(TorchDataset[PreparedRow]):
    """Rows as the trainer takes them, read from shards of encoded images and prompts.

    Indexed by `(epoch, position)`; a plain position means `usual_epoch`. `-1 - position` is padding that looks like the
    row at `position`.

    Attributes:
        labels: of the rows, in order.
        sources: what the networks take of their source images; None of a pipeline that reads none.
        pairs: what they were made of, if they are pairs.
        rows_per_item: rows that belong together: two of a pair.
        usual_epoch: of a row that is asked for by its position alone, as a data loader of the user's own does; that of
            an evaluation set is [`~tgo_trl.policy.draws.EVALUATION_EPOCH`], whose draws its reference errors are of.
            [`~tgo_trl.data.sampler.UNSAMPLED_EPOCH`] while it is trained on.
        reference_errors: float32 `[D, len(self), S]`, of `D` draws that epochs take in turns; None if there are none.
    """

    usual_epoch: int = 0
    reference_errors: Tensor | None = None

    def __init__(
        self, scanned: ScannedRows, images: EncodedImages, prompts: EncodedPrompts | EncodedSources,
        positions: Sequence[int], labels: Labels, pairs: Pairs | None = None, sources: EncodedSources | None = None,
    ) -> None:  # fmt: skip
        self.scanned, self.images, self.prompts, self.labels = scanned, images, prompts, labels
        self.positions = list(positions)
        self.pairs, self.sources = pairs, sources
        self.rows_per_item = 1 if pairs is None else 2

    def select(self, rows: Rows) -> "EncodedDataset":
        """The rows that a loss takes, of scored ones; there may be none."""
        return self._positives() if rows == "positives" else self

    def _positives(self) -> "EncodedDataset":
        kept = self.labels.is_positive.nonzero().flatten().tolist()
        positions, labels = [self.positions[i] for i in kept], self.labels.take(kept)
        return EncodedDataset(self.scanned, self.images, self.prompts, positions, labels, sources=self.sources)

    @property
    def num_sources(self) -> int:
        """Source images of each row; 0 of a pipeline that reads none."""
        return self.scanned.num_sources

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
        scanned = self.scanned
        rows = ((scanned.keys[i], scanned.prompts[i], scanned.scores[i]) for i in self.positions)
        sources = (key for i in self.positions for key in scanned.sources[i])
        return fingerprint(*(part for row in rows for part in row), *sources)

    @property
    def sizes(self) -> list[Size]:
        """The size of each row's image, pixels."""
        return [self.scanned.sizes[i] for i in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Index | int) -> PreparedRow:
        epoch, position = index if isinstance(index, tuple) else (self.usual_epoch, index)
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
            "image": self.images[source] if self.sources is None else self.images[source] | self.sources[source],
            "prompt": self.prompts[source],
        }
        mask = row["prompt"].get("mask")
        if mask is not None and mask.dim() == 1 and not mask.is_floating_point():
            row["prompt_length"] = int(mask.sum())
        if self.labels.relative_scores is not None:
            row["relative_score"] = self.labels.relative_scores[position]
        if self.reference_errors is not None:
            row["reference_error"] = self.reference_errors[epoch % len(self.reference_errors), position]
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
            bad.add(scanned.rows[position], scanned.columns[position], reason)
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
    reader, size, columns = source.reader, scanned.sizes[0], scanned.columns
    files = undecoded(source.dataset, *source.columns.of_media)

    def read(i: int) -> tuple[Tensor, Tensor] | str:
        try:
            value = source.origin.locate(files[scanned.rows[i]][columns[i]])
            found = as_identified(reader, value, scanned.keys[i])
            return CHANGES if found is None else reader.read(found, size)
        except ValueError as error:
            return str(error)

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        values, readable = [], []
        for i in indices:
            value = read(i)
            readable.append(not isinstance(value, str))
            if isinstance(value, str):
                bad.add(scanned.rows[i], columns[i], value)
                value = reader.blank(size)
            values.append(value)
        pixels, geometry = (torch.stack(parts) for parts in zip(*values, strict=True))
        return {**encoders.images(pixels, geometry), READABLE: torch.tensor(readable)}

    recipe, per_shard = _image_shards(reader, size, encoders)
    description = f"Encoding {source.name} {reader.kind}s ({size[1]} x {size[0]})"
    write = partial(writer.write, scanned.keys, encode, recipe, batch_size, description, per_shard)
    shards = write()
    unread = [i for i, readable in enumerate(shards.column(READABLE).tolist()) if not readable]
    reasons = {i: value for i in unread if isinstance(value := read(i), str)}
    mended = [i for i in unread if i not in reasons]
    if mended:  # an earlier run could not read them, for want of a decoder or of memory
        shards.remove(mended)
        shards = write()
    return shards, reasons


def _image_shards(reader: MediaReader, size: Size, encoders: FrozenEncoders) -> tuple[str, int]:
    """A fingerprint of how images of one size are encoded, and how many a shard holds."""
    recipe = fingerprint(encoders.image_recipe, reader.recipe, size)
    return recipe, ROWS_PER_SHARD if reader.kind == "image" else VIDEOS_PER_SHARD


def num_missing(
    reader: MediaReader, scanned: ScannedRows, texts: Mapping[int, str], encoders: FrozenEncoders, writer: ShardWriter
) -> tuple[int, int]:
    """How many images [`encode_images`] would encode, and how many prompts [`encode_prompts`]; arguments as there."""
    images = 0
    for size in dict.fromkeys(scanned.sizes):
        keys = [key for key, other in zip(scanned.keys, scanned.sizes, strict=True) if other == size]
        images += writer.num_missing(keys, *_image_shards(reader, size, encoders))
    return images, writer.num_missing(_prompt_keys(dict.fromkeys(texts.values())), encoders.prompt_recipe)


def _prompt_keys(distinct: Iterable[str]) -> list[str]:
    return [fingerprint(text) for text in distinct]


def encode_prompts(
    texts: Mapping[int, str], encoders: FrozenEncoders, writer: ShardWriter, batch_size: int, name: str
) -> EncodedPrompts:
    """The encoded prompts of the rows at some positions, in shards of one row per distinct prompt, without padding.

    Args:
        texts: the prompt that each is trained with.
        encoders: of the pipeline.
        writer: of shards.
        batch_size: prompts that are encoded at once.
        name: of the data set, for the progress bar.
    """
    distinct = list(dict.fromkeys(texts.values()))

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        prompts = encoders.prompts([distinct[i] for i in indices])
        if encoders.family.ignores_padding:
            prompts["embeds"] = prompts["embeds"].masked_fill(prompts["mask"][..., None] == 0, 0)
        return prompts

    shards = writer.write(
        _prompt_keys(distinct),
        encode,
        encoders.prompt_recipe,
        batch_size,
        f"Encoding {name} prompts",
        are_padded=True,
    )
    index = {text: i for i, text in enumerate(distinct)}
    return EncodedPrompts(shards, {position: index[text] for position, text in texts.items()})


def encode_with_sources(
    source: RowSource, scanned: ScannedRows, texts: Mapping[int, str], encoders: FrozenEncoders, writer: ShardWriter,
    batch_size: int,
) -> tuple[EncodedPrompts | EncodedSources, EncodedSources | None]:  # fmt: skip
    """The encoded prompts of the rows at some positions, and what the networks take of source images, if any.

    The arguments are those of [`encode_images`] and [`encode_prompts`].
    """
    if source.columns.source is None:
        return encode_prompts(texts, encoders, writer, batch_size, source.name), None
    of_rows = (source, scanned.rows, scanned.sizes, scanned.sources)
    sources = EncodedSources(encode_sources(*of_rows, [*texts], encoders, writer, batch_size))
    encoders.release()
    if not encoders.family.prompts_see_sources:
        return encode_prompts(texts, encoders, writer, batch_size, source.name), sources
    return EncodedSources(encode_edits(*of_rows, texts, encoders, writer, batch_size)), sources
