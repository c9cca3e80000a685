"""Reading rows of a prompt, an image or video, and a score: what makes one bad, and what to do about it."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from datasets import Dataset, IterableDataset

from ..labels.checks import MAX_FLOAT32
from ..media.embedding import ColumnError
from ..media.origin import DataFile, Origin
from ..media.readers import MediaReader
from ..media.sizes import nearest_size
from ..media.types import Size
from ..messages.values import cut
from ..storage.fingerprints import fingerprint
from .columns import Columns, undecoded

logger = logging.getLogger(__name__)

T = TypeVar("T")

Score: TypeAlias = float | tuple[float, ...]
"""Of a row: a number, or, of several columns, one of each, in the order of their names."""

LONGEST_REASON = 1000


class BadRowError(ValueError):
    """A row that cannot be trained on; the message names row and column."""


@dataclass
class BadRows:
    """Raises at a bad row, or counts it if bad rows are skipped."""

    skip: bool
    rows: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    remedy: str = "Mend or drop the row, or set `on_bad_row='skip'` to leave such rows out."

    def add(self, row: int, column: str, reason: str) -> None:
        """Raises [`BadRowError`], or notes the row.

        Args:
            row: index in the data set.
            column: the column at fault.
            reason: what is wrong, as a clause.
        """
        message = f"Row {row}, column {column!r}: {cut(reason, LONGEST_REASON)}."
        if not self.skip:
            raise BadRowError(f"{message} {self.remedy}")
        self.rows.append(row)
        self.reasons.append(message)

    def warn(self, name: str, num_rows: int) -> None:
        """Warns with how many rows were left out, and why the first ones were."""
        if self.rows:
            shown = " ".join(self.reasons[:5]) + (" ..." if len(self.rows) > 5 else "")
            logger.warning("Skipped %d of %d rows of the %s data set. %s", len(self.rows), num_rows, name, shown)


CHANGES = (
    "it was another one a moment ago: by a transform of the data set that draws at random, or since somebody writes "
    "the file; it is encoded once for all epochs, so leave the transform out, or put what it makes into the data set "
    "(`map`)"
)
"""Why what is read is not what was identified, under whose fingerprint it would be kept for other runs."""


def as_identified(reader: MediaReader, value: Any, key: str) -> Any | None:
    """The value, a file as the bytes that were read, so that it is opened once; None if it is no longer what it was.

    Args:
        reader: of the value.
        value: of a cell, located.
        key: the fingerprint that it was identified by.
    """
    content = reader.content(value)
    if fingerprint(content) != key:
        return None
    return content if isinstance(value, DataFile) else value


class EndOfScanError(Exception):
    """A bad row was found where none is passed over, and is still to be told."""


@dataclass
class NotedRows(BadRows):
    """Bad rows of a part of a data set, which are told where those of the other parts are known.

    Attributes:
        found: index, column and reason of each.
    """

    found: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, row: int, column: str, reason: str) -> None:
        """Notes the row; raises [`EndOfScanError`] if bad rows are not skipped."""
        self.found.append((row, column, reason))
        if not self.skip:
            raise EndOfScanError


def check_prompt(value: Any) -> str:
    """The prompt; raises a ValueError with the reason if there is none."""
    if value is None:
        raise ValueError("the prompt is missing (None)")
    if not isinstance(value, str):
        raise ValueError(f"the prompt is a `{type(value).__name__}`, not a string")
    if not value.strip():
        raise ValueError("the prompt is empty")
    return value


def check_score(value: Any) -> float:
    """The score as a float; raises a ValueError with the reason if it is no finite number."""
    if value is None:
        raise ValueError("the score is missing (None)")
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        what = f"the text {cut(repr(value))}" if isinstance(value, str) else f"a `{type(value).__name__}`"
        raise ValueError(f"the score is {what}, not a number")
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the score is no single number ({error})") from error
    if not abs(score) <= MAX_FLOAT32:
        where = " in float32, which training computes in" if math.isfinite(score) else ""
        raise ValueError(f"the score is {score}, not a finite number{where}")
    return score


def read_cell(example: Mapping[str, Any], column: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of a cell.

    Raises:
        ColumnError: with a clause, if the row has no such column, or `read` raises a ValueError.
    """
    try:
        if column not in example:
            raise ValueError(f"the column is missing; the row has {', '.join(map(repr, example))}")
        return read(example[column])
    except ValueError as error:
        raise ColumnError(column, str(error)) from error


def read_row(
    example: Mapping[str, Any], columns: Columns, row: int, bad: BadRows, origin: Origin
) -> tuple[str, Any, Score] | None:
    """Prompt, image or video, and score of one example, or None if it is bad and bad rows are skipped.

    Files are named, and not opened.
    """
    try:
        prompt = read_cell(example, columns.prompt, check_prompt)
        scores = [read_cell(example, column, check_score) for column in columns.of_scores]
        score = tuple(scores) if columns.scores else scores[0]
        return prompt, read_cell(example, columns.media, origin.locate), score
    except ColumnError as error:
        bad.add(row, error.column, str(error))
        return None


def iterate_rows(
    dataset: Dataset | IterableDataset, columns: Columns, bad: BadRows, origin: Origin, first_row: int = 0
) -> Iterator[tuple[int, str, Any, Score]]:
    """Index, prompt, image or video, and score of each good row, in order; files are named, and not opened."""
    for row, example in enumerate(undecoded(dataset, columns.prompt, columns.media, *columns.of_scores), first_row):
        values = read_row(example, columns, row, bad, origin)
        if values is not None:
            yield row, *values


def iterate_pairs(
    dataset: Dataset, columns: Columns, bad: BadRows, origin: Origin, first_row: int = 0
) -> Iterator[tuple[int, str, Any, Any]]:
    """Index, prompt, better and worse image or video of each good row that is a pair, as [`iterate_rows`] does it."""
    for row, example in enumerate(undecoded(dataset, columns.prompt, *columns.of_media), first_row):
        try:
            prompt = read_cell(example, columns.prompt, check_prompt)
            better, worse = (read_cell(example, column, origin.locate) for column in columns.of_media)
        except ColumnError as error:
            bad.add(row, error.column, str(error))
        else:
            yield row, prompt, better, worse


@dataclass(frozen=True)
class RowSource:
    """Where the rows of training or of an evaluation come from, and how they are read.

    Attributes:
        dataset: the user's.
        columns: its columns.
        reader: of the column of images or videos.
        sizes: each image or video is brought to the nearest of them.
        origin: of the data set.
        name: of the data set, for messages.
        skip_bad: whether to leave out bad rows instead of stopping at the first.
        first_row: the index of its first row, where it is a part of a data set.
    """

    dataset: Dataset | IterableDataset
    columns: Columns
    reader: MediaReader
    sizes: Sequence[Size]
    origin: Origin
    name: str = "training"
    skip_bad: bool = False
    first_row: int = 0

    def rows(self, bad: BadRows) -> Iterator[tuple[int, str, Any, Score]]:
        """The good rows, as [`iterate_rows`] gives them."""
        return iterate_rows(self.dataset, self.columns, bad, self.origin, self.first_row)

    def images(self, bad: BadRows) -> Iterator[tuple[int, str, list[tuple[str, Any, Score]]]]:
        """Index and prompt of each good row, and column, image or video, and score of what it has of them.

        That is one, or the two of a pair, the better one first, whose scores are 1 and 0.
        """
        columns = self.columns
        if columns.rejected is None:
            for row, prompt, value, score in self.rows(bad):
                yield row, prompt, [(columns.media, value, score)]
            return
        assert isinstance(self.dataset, Dataset)  # a stream gives no pairs
        for row, prompt, better, worse in iterate_pairs(self.dataset, columns, bad, self.origin, self.first_row):
            yield row, prompt, [(columns.media, better, 1.0), (columns.rejected, worse, 0.0)]

    def size(self, value: Any) -> Size:
        """What an image or video is brought to; raises a ValueError, with a clause, if it cannot be read."""
        return self.sizes[0] if len(self.sizes) == 1 else nearest_size(self.reader.size(value), self.sizes)
