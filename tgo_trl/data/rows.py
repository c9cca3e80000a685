"""Reading `(prompt, image or video, score)` rows: column checks, row checks, and what to do about bad ones."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, IterableDataset, LargeList, List

from ..labels.checks import MAX_FLOAT32
from ..media.origin import Origin
from ..messages.values import cut
from .classes import check_no_classes

logger = logging.getLogger(__name__)


LONGEST_REASON = 1000


class BadRowError(ValueError):
    """A row that cannot be trained on; the message names row and column."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a data set.

    Attributes:
        prompt, score: of prompts and scores.
        media: of images or videos.
        media_argument: the setting that names that column, for messages.
    """

    prompt: str = "prompt"
    media: str = "image"
    score: str = "score"
    media_argument: str = "image_column"

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """Raises a ValueError if a column is missing, naming those there are, or holds codes of classes."""
        present = dataset.column_names
        if present is None or _has_transform(dataset):  # unknown before they are read: checked row by row
            return
        for argument, column in (
            ("prompt_column", self.prompt),
            (self.media_argument, self.media),
            ("score_column", self.score),
        ):
            if column not in present:
                raise ValueError(
                    f"The {name} data set has no column {column!r}; it has {', '.join(map(repr, present))}. Rename the "
                    f"column, or set `{argument}` in the `TGOConfig`."
                )
        check_no_classes(dataset.features, {"prompt_column": self.prompt, "score_column": self.score})


@dataclass
class BadRows:
    """Raises at a bad row, or counts it if bad rows are skipped."""

    skip: bool
    rows: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, row: int, column: str, reason: str) -> None:
        """Raises [`BadRowError`], or notes the row.

        Args:
            row: index in the data set.
            column: the column at fault.
            reason: what is wrong, as a clause.
        """
        message = f"Row {row}, column {column!r}: {cut(reason, LONGEST_REASON)}."
        if not self.skip:
            raise BadRowError(f"{message} Mend or drop the row, or set `on_bad_row='skip'` to leave such rows out.")
        self.rows.append(row)
        self.reasons.append(message)

    def report(self, name: str, num_rows: int) -> None:
        """Warns with how many rows were left out, and why the first ones were."""
        if self.rows:
            shown = " ".join(self.reasons[:5]) + (" ..." if len(self.rows) > 5 else "")
            logger.warning("Skipped %d of %d rows of the %s data set. %s", len(self.rows), num_rows, name, shown)


def check_prompt(value: Any) -> str:
    """The prompt; raises a ValueError with the reason if there is none."""
    if not isinstance(value, str):
        raise ValueError(f"the prompt is a `{type(value).__name__}`, not a string")
    if not value.strip():
        raise ValueError("the prompt is empty")
    return value


def check_score(value: Any) -> float:
    """The score as a float; raises a ValueError with the reason if it is no finite number."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise ValueError(f"the score is a `{type(value).__name__}`, not a number")
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the score is no single number ({error})") from error
    if not abs(score) <= MAX_FLOAT32:
        where = " in float32, which training computes in" if math.isfinite(score) else ""
        raise ValueError(f"the score is {score}, not a finite number{where}")
    return score


def undecoded(
    dataset: Dataset | IterableDataset, column: str, others: tuple[str, ...] = ()
) -> Dataset | IterableDataset:
    """The data set with its images or videos as files, without output formatting and without further columns.

    A transform set by the user (`set_transform`) is left in place: what it returns is what is trained on.
    """
    if _has_transform(dataset):
        return dataset
    files = dataset.with_format(None)
    if files.column_names is not None:  # another column of images would be decoded for nothing
        files = files.select_columns([name for name in files.column_names if name in (column, *others)])
    files = with_files(files)
    if isinstance(dataset, IterableDataset):
        files.set_epoch(dataset.epoch)  # `datasets` makes copies of streams in epoch 0, where they shuffle the same
    return files


def with_files(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The data set with every image, video, sound and whatever else `datasets` decodes as its file, not opened."""
    for name, feature in (dataset.features or {}).items():
        file_feature = _undecoded_feature(feature)
        if file_feature != feature:
            dataset = dataset.cast_column(name, file_feature)
    return dataset


def _undecoded_feature(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _undecoded_feature(entry) for name, entry in feature.items()}
    if isinstance(feature, (List, LargeList)):
        return replace(feature, feature=_undecoded_feature(feature.feature))
    if isinstance(feature, list):
        return [_undecoded_feature(entry) for entry in feature]
    return replace(feature, decode=False) if getattr(feature, "decode", False) else feature


def _has_transform(dataset: Dataset | IterableDataset) -> bool:
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def read_row(example: dict[str, Any], columns: Columns, row: int, bad: BadRows) -> tuple[str, Any, float] | None:
    """Prompt, image or video, and score of one example, or None if it is bad and bad rows are skipped."""
    checked: list[Any] = []
    for column, check in ((columns.prompt, check_prompt), (columns.score, check_score)):
        try:
            if column not in example:
                raise ValueError(f"the column is missing; the row has {', '.join(map(repr, example))}")
            checked.append(check(example[column]))
        except ValueError as error:
            bad.add(row, column, str(error))
            return None
    if columns.media not in example:
        bad.add(row, columns.media, f"the column is missing; the row has {', '.join(map(repr, example))}")
        return None
    return checked[0], example[columns.media], checked[1]


def iterate_rows(
    dataset: Dataset | IterableDataset, columns: Columns, bad: BadRows, origin: Origin
) -> Iterator[tuple[int, str, Any, float]]:
    """Index, prompt, image or video, and score of each good row, in order; files are named, and not opened."""
    for row, example in enumerate(undecoded(dataset, columns.media, (columns.prompt, columns.score))):
        values = read_row(example, columns, row, bad)
        if values is not None:
            prompt, media, score = values
            yield row, prompt, origin.locate(media), score
