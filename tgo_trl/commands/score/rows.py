"""Rows as a reward is given them: images decoded ahead, files kept as they are, in blocks that become shards.

Photographs take 4 bytes of memory per pixel once they are decoded, a hundred times their files. So what is decoded
ahead is limited by its pixels, not by the number of rows.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeAlias

from datasets import Dataset, Features, IterableDataset
from PIL import Image

from ...data.classes import check_no_classes
from ...data.columns import check_columns, undecoded
from ...data.rows import check_prompt, read_cell
from ...data.sources import locate_sources
from ...media.embedding import ColumnError, embed_files
from ...media.origin import OWN, Origin
from ...media.readers import ImageReader, MediaReader, VideoReader
from ...media.types import Sample, VideoFormat
from ...storage.fingerprints import fingerprint

Row: TypeAlias = dict[str, Any]

PIXELS_AHEAD = 128_000_000
"""Decoded, and not yet given to a reward: half a gigabyte, five photographs of 24 megapixels. One image may have more.
"""


@dataclass(frozen=True)
class RowReader:
    """Reads what a reward is given of a row.

    Attributes:
        prompt_column: of the prompts.
        media_column: of the images or videos.
        is_video: whether it holds videos.
        num_frames, fps: of a video, as in [`~tgo_trl.commands.score.config.ScoreConfig`].
        origin: of the data set.
        source_column: of the images that each row's was made from; None where no reward reads them.
        copied: the features of rows that become part of a new data set, so that their files are checked and embedded.
        rate: frames per second of the videos, where a reward is told; None where none asks.
    """

    prompt_column: str
    media_column: str
    is_video: bool
    num_frames: int | None = None
    fps: float | None = None
    origin: Origin = OWN
    copied: Features | None = None
    source_column: str | None = None
    rate: float | None = None

    def settings(self) -> dict[str, Any]:
        """What scores are a function of, as it is recorded."""
        names = ["prompt_column", "media_column", "is_video", "num_frames", "fps"]
        if self.source_column is not None:
            names.append("source_column")
        if self.rate is not None:
            names.append("rate")
        return {name: getattr(self, name) for name in names}

    def sources(self, cell: Any) -> list[Image.Image]:
        """The images that a row's was made from; raises a ValueError, with a clause, if one cannot be read."""
        return [ImageReader().load(image) for image in locate_sources(cell, self.origin)]

    def open(self, row: Row) -> Row:
        """The row with the bytes of its files, if it is copied.

        Raises:
            ColumnError: if a file may not be read, or is not what its column holds.
        """
        return row if self.copied is None else embed_files(row, self.copied, self.origin)

    def read(self, row: Row) -> "ReadRow | ColumnError":
        """What a reward is given of a row, or why there is nothing."""
        return _decode(self, _open(self, row))

    def num_pixels(self, row: Mapping[str, Any]) -> int:
        """Of all images and frames that are decoded, from the beginning of the files; 0 of what cannot be read."""
        number = 0
        with suppress(ValueError):
            value = self._located(row)
            number += self._reader(value).num_pixels(value)
        with suppress(ValueError):
            number += sum(map(ImageReader().num_pixels, self._located_sources(row)))
        return number

    def media(self, cell: Any) -> Sample:
        """The image, or a list of frames, RGB; raises a ValueError, with a clause, if it cannot be read."""
        value = self.origin.locate(cell)
        is_file = self.is_video and value is not None and not isinstance(value, (list, tuple))
        if is_file and (self.num_frames is None or self.fps is None):
            raise ValueError("the video is a file, of which `num_frames` and `fps` say what is scored; set both")
        return self._reader(value).load(value)

    def content(self, row: Mapping[str, Any]) -> bytes:
        """What identifies prompt and media, readable or not."""
        try:
            value = self._located(row)
            media = self._reader(value).content(value)
        except ValueError as error:
            media = str(error).encode()
        try:
            sources = [ImageReader().content(image) for image in self._located_sources(row)]
        except ValueError as error:
            sources = [str(error).encode()]
        return fingerprint(str(row.get(self.prompt_column)), media, *sources).encode()

    def _located_sources(self, row: Mapping[str, Any]) -> list[Any]:
        column = self.source_column
        return [] if column is None else locate_sources(row.get(column), self.origin)

    def _located(self, row: Mapping[str, Any]) -> Any:
        return read_cell(row, self.media_column, self.origin.locate)

    def _reader(self, value: Any) -> MediaReader:
        """Of images, or of as many frames as are set, else as a list has."""
        if not self.is_video:
            return ImageReader()
        length = len(value) if isinstance(value, (list, tuple)) else 1
        return VideoReader(VideoFormat(self.num_frames or max(1, length), self.fps or 1.0))


def find_reader(
    features: Features, prompt_column: str, image_column: str, video_column: str, num_frames: int | None,
    fps: float | None, origin: Origin, is_copied: bool = False,
) -> RowReader:  # fmt: skip
    """The reader of a data set with these columns.

    Raises:
        ValueError: if a column is missing, or that of prompts holds codes of classes.
    """
    check_no_classes(features, {"prompt_column": [prompt_column]})
    check_columns("The data set", list(features), [prompt_column], "Set `prompt_column`.")
    is_video = image_column not in features
    if is_video and video_column not in features:
        raise ValueError(
            f"The data set has neither a column {image_column!r} nor {video_column!r}; it has "
            f"{', '.join(map(repr, features))}. Set `image_column` or `video_column`."
        )
    column = video_column if is_video else image_column
    return RowReader(prompt_column, column, is_video, num_frames, fps, origin, features if is_copied else None)


class RowBlocks:
    """The rows of a data set, with their images and videos as files, in blocks that become shards.

    Args:
        dataset: map-style or a stream.
        features: of the data set as it was given.
        shard_rows: rows of a block.

    Attributes:
        num_rows, num_shards: None for a stream.
        first: the rows of the first shard.
    """

    def __init__(self, dataset: Dataset | IterableDataset, features: Features, shard_rows: int) -> None:
        self.features = features
        self.shard_rows = shard_rows
        self.num_rows = len(dataset) if isinstance(dataset, Dataset) else None
        self.num_shards = None if self.num_rows is None else math.ceil(self.num_rows / self.shard_rows)
        self._files = undecoded(dataset)
        self.first = next((rows for _, rows in self.shards(lambda shard: True)), [])

    def shards(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        """Index and rows of the wanted shards, in order; a stream is read to its end."""
        if self.num_shards is not None:
            for shard in filter(wanted, range(self.num_shards)):
                rows = range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, len(self._files)))
                yield shard, [self._files[row] for row in rows]
            return
        stream = iter(self._files)
        for shard in count():
            block = list(islice(stream, self.shard_rows))
            if not block:
                return
            if wanted(shard):
                yield shard, block


@dataclass(frozen=True)
class ReadRow:
    """A row as a reward is given it.

    Attributes:
        row: with the bytes of its files, if it is copied.
        prompt: of it.
        media: an image or a list of frames.
        num_pixels: of all that is decoded.
        sources: the images that it was made from, where a reward reads them.
    """

    row: Row
    prompt: str
    media: Sample
    num_pixels: int
    sources: list[Image.Image] | None = None


def read_ahead(
    rows: Iterable[tuple[int, Row]], reader: RowReader, num_ahead: int
) -> Iterator[tuple[int, ReadRow | ColumnError]]:
    """Rows with what is read of them, in threads, which decode while the reward model works.

    Files are opened up to `num_ahead` rows ahead, and decoded as far as [`PIXELS_AHEAD`] allows.
    """
    waiting: deque[tuple[int, int, Future[ReadRow | ColumnError]]] = deque()
    pixels_ahead = 0
    with ThreadPoolExecutor() as pool:
        for index, opened in _ahead(pool, rows, reader, num_ahead):
            while waiting and pixels_ahead + opened.num_pixels > PIXELS_AHEAD:
                pixels_ahead -= waiting[0][1]
                yield _next(waiting)
            pixels_ahead += opened.num_pixels
            waiting.append((index, opened.num_pixels, pool.submit(_decode, reader, opened)))
        while waiting:
            yield _next(waiting)


@dataclass(frozen=True)
class _Opened:
    """A row before its image is decoded."""

    row: Row
    num_pixels: int
    fault: ColumnError | None = None


def _open(reader: RowReader, row: Row) -> _Opened:
    try:
        opened = reader.open(row)
    except ColumnError as error:
        return _Opened(row, 0, error)
    return _Opened(opened, reader.num_pixels(opened))


def _decode(reader: RowReader, opened: _Opened) -> ReadRow | ColumnError:
    if opened.fault is not None:
        return opened.fault
    try:
        prompt = read_cell(opened.row, reader.prompt_column, check_prompt)
        media = read_cell(opened.row, reader.media_column, reader.media)
        column = reader.source_column
        sources = None if column is None else read_cell(opened.row, column, reader.sources)
    except ColumnError as error:
        return error
    return ReadRow(opened.row, prompt, media, opened.num_pixels, sources)


def _ahead(
    pool: ThreadPoolExecutor, rows: Iterable[tuple[int, Row]], reader: RowReader, num_ahead: int
) -> Iterator[tuple[int, _Opened]]:
    opening: deque[tuple[int, Future[_Opened]]] = deque()
    for index, row in rows:
        opening.append((index, pool.submit(_open, reader, row)))
        if len(opening) > num_ahead:
            index, future = opening.popleft()
            yield index, future.result()
    for index, future in opening:
        yield index, future.result()


def _next(waiting: deque[tuple[int, int, Future[Any]]]) -> tuple[int, Any]:
    index, _, future = waiting.popleft()
    return index, future.result()
