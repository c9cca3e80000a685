"""Columns of a data set: which there are, and that images and videos stay files until a row is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from datasets import Dataset, Features, IterableDataset, LargeList, List

from ..messages.values import did_you_mean
from ..storage.text_tables import SEPARATORS, divided_by
from .classes import check_no_classes

ROWS_LOOKED_AT = 64
"""Of a data set without features, to find out what its columns hold."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a data set.

    Attributes:
        prompt, score: of prompts and scores.
        scores: of scores, in the order of their names, where there are several; `score` then has no meaning.
        media: of images or videos.
        media_argument: the setting that names that column, for messages.
        rejected: of the worse images or videos, where a row is a pair; `media` is then that of the better ones, and
            there are no scores.
        source: of the images that each row's was made from; None where nothing reads them.
    """

    prompt: str = "prompt"
    media: str = "image"
    score: str = "score"
    media_argument: str = "image_column"
    rejected: str | None = None
    source: str | None = None
    scores: tuple[str, ...] = ()

    @property
    def of_scores(self) -> list[str]:
        """Those that hold scores, in the order in which a row has them."""
        return [*self.scores] or [self.score]

    @property
    def without_media(self) -> "Columns":
        """Of rows whose images or videos are not looked at: a score stands in their place."""
        return replace(self, media=self.of_scores[0])

    @property
    def of_media(self) -> list[str]:
        """Those that hold images or videos, the better one first."""
        return [self.media] if self.rejected is None else [self.media, self.rejected]

    @property
    def by_argument(self) -> dict[str, list[str]]:
        """The columns that are read, by the settings that name them."""
        of_scores = {"score_columns" if self.scores else "score_column": self.of_scores}
        last = of_scores if self.rejected is None else {"rejected_column": [self.rejected]}
        sources = {} if self.source is None else {"source_column": [self.source]}
        return {"prompt_column": [self.prompt], self.media_argument: [self.media], **last, **sources}

    def check(self, dataset: Dataset | IterableDataset, name: str, hint: str = "") -> None:
        """Raises a ValueError if a column of a data set for training is missing, or holds codes of classes.

        Args:
            dataset: of the rows.
            name: of the data set.
            hint: what else to do about a missing column, as a sentence.
        """
        for argument, columns in self.by_argument.items():
            remedy = f"Rename the column, or set `{argument}`. {hint}".rstrip()
            check_columns(f"The {name} data set", known_columns(dataset), columns, remedy)
        if known_columns(dataset) is not None:
            for argument, columns in self.by_argument.items():
                of_text = [column for column in columns if column not in (*self.of_media, self.source)]
                check_no_classes(dataset.features, {argument: of_text})


def check_columns(subject: str, present: Sequence[str] | None, wanted: Iterable[str], remedy: str) -> None:
    """Raises a ValueError if a wanted column is missing, naming those there are.

    Args:
        subject: whose columns they are, as a sentence begins.
        present: as [`known_columns`] has them; of None, rows are checked as they come.
        wanted: those that are to be there.
        remedy: what to do, as a sentence.
    """
    if present is None:
        return
    missing = [name for name in wanted if name not in present]
    if missing:
        has = ", ".join(map(repr, present)) or "none"
        raise ValueError(
            f"{subject} has no column {', '.join(map(repr, missing))}; it has {has}."
            f"{_other_separator(present, missing) or did_you_mean(missing[0], present)} {remedy}"
        )


def _other_separator(present: Sequence[str], missing: Sequence[str]) -> str:
    """A sentence, if a file's columns were read as one."""
    for mark in SEPARATORS:
        if len(present) == 1 and missing[0] in [name.strip().strip('"') for name in present[0].split(mark)]:
            return f" {divided_by(mark)}"
    return ""


def known_columns(dataset: Dataset | IterableDataset) -> list[str] | None:
    """The columns; None where only the rows tell: of some streams, and of what a transform of the user's returns."""
    return None if _has_transform(dataset) else dataset.column_names


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns, those of the first row where only rows tell."""
    known = known_columns(dataset)
    return list(next(iter(dataset), ())) if known is None else known


def features_of(dataset: Dataset | IterableDataset) -> Features:
    """The data set's; of one without any, what its first rows hold."""
    if dataset.features is not None and not _has_transform(dataset):
        return dataset.features
    return Dataset.from_list(list(islice(iter(undecoded(dataset)), ROWS_LOOKED_AT))).features


def undecoded(dataset: Dataset | IterableDataset, *columns: str) -> Dataset | IterableDataset:
    """The data set with every image, video, sound and whatever else `datasets` decodes as its file, not opened.

    It is without output formatting, and, if columns are given, without all others. A transform set by the user
    (`set_transform`) is left in place: what it returns is what is read.
    """
    if _has_transform(dataset):
        return dataset
    files = dataset.with_format(None)
    if columns and files.column_names is not None:
        files = files.select_columns([name for name in files.column_names if name in columns])
    for name, feature in (files.features or {}).items():
        file_feature = _undecoded_feature(feature)
        if file_feature != feature:
            files = files.cast_column(name, file_feature)
    if isinstance(dataset, IterableDataset):
        files.set_epoch(dataset.epoch)  # `datasets` makes copies of streams in epoch 0, where they shuffle the same
    return files


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
