"""What people said about images, read from a data set of any [`Layout`] and counted for each distinct image."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from .data.images import encoded_bytes
from .data.rows import BadRows, check_prompt, check_score
from .layouts import SCORE_TYPES, Layout
from .tallies import Comparisons, Ratings, compare_all

Said = Comparisons | Ratings

LABELS_SHOWN = 5

OpenColumns = Callable[[Sequence[str] | None], Dataset | IterableDataset]
"""Gives a data set with some of its columns, of which images are not decoded; with all of them, as it is, for None."""


@dataclass(slots=True)
class AnnotatedImage:
    """One distinct image: where it first appears, and what was said about it.

    Attributes:
        prompt: of the image.
        uid: what tells it apart, if that is more than its content.
        row, slot: of its first appearance: the row of the data set, and which of the row's images.
        said: about it.
    """

    prompt: str
    uid: str | None
    row: int
    slot: int
    said: Said


@dataclass
class Annotations:
    """What the first pass found.

    Attributes:
        images: in the order of their first appearance.
        num_rows: that were read.
        num_unlabelled: rows that say nothing.
        num_same: pairs and rankings of an image with itself.
        labels: the first different labels in words; a few.
        bad: rows that cannot be read.
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    num_rows: int = 0
    num_unlabelled: int = 0
    num_same: int = 0
    labels: list[str] = field(default_factory=list)
    bad: BadRows = field(default_factory=lambda: BadRows(skip=False))


@dataclass(frozen=True)
class Scoring:
    """How what was said becomes a score.

    Attributes:
        kind: of the layout.
        score_type: of [`SCORE_TYPES`], for that kind.
        ties: `"half"`, `"drop"` or `"zero"`, in win rates.
        prior: of the smoothed scores.
        names: of the columns of ratings.
        prior_mean: mean of all ratings in the first column.
    """

    kind: str
    score_type: str
    ties: str
    prior: float
    names: tuple[str, ...] = ()
    prior_mean: float = 0.0

    @property
    def columns(self) -> dict[str, str]:
        """The columns beside prompt and image, with their types."""
        if self.kind != "ratings":
            rates = {"win_rate": "float64", "smoothed_win_rate": "float64"}
            return {"score": "float64", "wins": "int64", "ties": "int64", "comparisons": "int64", **rates}
        means = {f"mean_{name}": "float64" for name in self.names}
        return {"score": "float64", "ratings": "int64", **means, "bayesian": "float64"}

    def values(self, said: Said) -> dict[str, Any] | None:
        """The values of these columns; None for an image that nothing was said about."""
        if isinstance(said, Comparisons):
            scores = {
                "wins": said.wins,
                "win_rate": said.win_rate(self.ties),
                "smoothed_win_rate": said.win_rate(self.ties, self.prior),
            }
            columns = {**scores, "ties": said.ties, "comparisons": said.total}
            has_score = scores["win_rate"] is not None
        else:
            scores = {"mean": said.mean(), "bayesian": said.mean(0, self.prior, self.prior_mean)}
            means = {f"mean_{name}": said.mean(i) for i, name in enumerate(self.names)}
            columns = {**means, "bayesian": scores["bayesian"], "ratings": said.counts[0] if said.counts else 0}
            has_score = scores["mean"] is not None
        return {"score": float(scores[self.score_type]), **columns} if has_score else None  # type: ignore[arg-type]


def read_annotations(
    open_columns: OpenColumns, layout: Layout, skip_bad: bool, progress: Callable[[], object] | None = None,
    content: Callable[[Any], bytes] = encoded_bytes,
) -> Annotations:  # fmt: skip
    """Counts what was said about each image.

    Args:
        open_columns: gives the data set with some of its columns.
        layout: of the data set.
        skip_bad: leave out rows that cannot be read, instead of stopping at the first.
        progress: called at each row.
        content: what tells an image without a name from others; raises a ValueError, with a clause, if it is none.

    Raises:
        ValueError: if a column is missing, or no label is the good one.
        BadRowError: at a row that cannot be read.
    """
    present = column_names(open_columns(None))
    missing = layout.required - set(present)
    if missing:
        raise ValueError(
            f"The data set has no column {', '.join(map(repr, sorted(missing)))}; it has "
            f"{', '.join(map(repr, present))}. Set `layout`, or name its columns with `prompt_column`, `image_columns` "
            "and `annotation_columns`."
        )
    layout = layout.present_in(present)
    columns = [name for name in layout.columns if name not in layout.images or not layout.uids]
    found = Annotations(bad=BadRows(skip_bad))
    images: dict[tuple[str, str], AnnotatedImage] = {}
    rankings: dict[tuple[str, str], list[tuple[AnnotatedImage, float]]] = {}
    for row, example in enumerate(open_columns(columns)):
        found.num_rows += 1
        if progress is not None:
            progress()
        for slot, (prompt, key, said) in enumerate(_read_row(row, example, layout, found, content)):
            image = images.get((prompt, key.identity))
            if image is None:
                fresh: Said = Ratings() if layout.kind == "ratings" else Comparisons()
                image = images[prompt, key.identity] = AnnotatedImage(prompt, key.name, row, slot, fresh)
            if isinstance(said, float):  # the rest of its ranking is in other rows
                group = "" if layout.group is None else str(example[layout.group])
                rankings.setdefault((prompt, group), []).append((image, said))
            else:
                _count(image.said, said)
    for members in rankings.values():
        ranks = [rank for _, rank in members]
        for i, outcome in compare_all(ranks, layout.lower_is_better, [id(image) for image, _ in members]):
            _count(members[i][0].said, [outcome])
    found.images = list(images.values())
    if found.labels and not any(isinstance(image.said, Comparisons) and image.said.wins for image in found.images):
        shown = ", ".join(map(repr, found.labels)) + (" ..." if len(found.labels) == LABELS_SHOWN else "")
        raise ValueError(
            f"No label is {layout.positive!r}, so that every image would lose; there are {shown}. Set `positive_label` "
            "to the good one."
        )
    return found


def _read_row(
    row: int, example: dict[str, Any], layout: Layout, found: Annotations, content: Callable[[Any], bytes]
) -> list[tuple[str, "_Key", Any]]:
    """Prompt, identity and annotations of each image of a row; none of a row that says nothing."""
    if _says_nothing(example, layout):
        found.num_unlabelled += 1
        return []
    try:
        prompt = check_prompt(example[layout.prompt])
        keys, said = _keys(example, layout, content), _said(example, layout)
        if len(keys) != len(said):
            raise ValueError(f"there are {len(keys)} images and {len(said)} annotations of them")
        if layout.kind == "ranking" and isinstance(example[layout.annotations[0]], (list, tuple)):
            said = _outcomes(said, keys, layout.lower_is_better)
    except ValueError as error:
        found.bad.add(row, ", ".join(layout.columns), str(error))
        return []
    if layout.kind in ("pairs", "ranking") and len(keys) > 1 and len(set(keys)) == 1:
        found.num_same += 1
        return []
    if layout.kind == "labels" and layout.positive is not None:
        label = str(example[layout.annotations[0]])
        if label not in found.labels and len(found.labels) < LABELS_SHOWN:
            found.labels.append(label)
    return [(prompt, key, spoken) for key, spoken in zip(keys, said, strict=True)]


@dataclass(frozen=True)
class _Key:
    """What tells an image from others of its prompt, and its name if that is one."""

    identity: str
    name: str | None


def _keys(example: dict[str, Any], layout: Layout, content: Callable[[Any], bytes]) -> list[_Key]:
    if layout.uids:
        names = _flattened(example, layout.uids)
        if None in names:
            raise ValueError("an image has no name")
        return [_Key(str(name), str(name)) for name in names]
    keys = []
    for cell in image_cells(example, layout):
        if isinstance(cell, str):
            keys.append(_Key(cell, cell))
        else:
            keys.append(_Key(hashlib.blake2b(content(cell), digest_size=16).hexdigest(), None))
    return keys


def image_cells(example: dict[str, Any], layout: Layout) -> list[Any]:
    """The images of a row, as their columns hold them."""
    return _flattened(example, layout.images)


def _flattened(example: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    """What a row holds of its images, one in each of the columns, or a list of them in a single one."""
    cells = [example[name] for name in columns]
    return list(cells[0]) if isinstance(cells[0], (list, tuple)) else cells


def _says_nothing(example: dict[str, Any], layout: Layout) -> bool:
    if layout.valid is not None and not example[layout.valid]:
        return True
    return bool(layout.annotations) and all(example[name] is None for name in layout.annotations)


def _said(example: dict[str, Any], layout: Layout) -> list[Any]:
    """For each image of a row: its outcomes, its ratings by column, or its rank."""
    if layout.kind == "pairs":
        return [[outcome] for outcome in _pair([example[name] for name in layout.annotations] or [1, 0])]
    if layout.kind == "labels":
        return [[_label(example[layout.annotations[0]], layout.positive)]]
    if layout.kind == "ranking":
        return [check_score(rank) for rank in _listed(example[layout.annotations[0]])]
    named = example[(layout.uids or layout.images)[0]]  # images that have names are not read yet
    return _ratings([example[name] for name in layout.annotations], isinstance(named, (list, tuple)))


def _outcomes(ranks: Sequence[float], images: Sequence[object], lower_is_better: bool) -> list[list[float]]:
    outcomes: list[list[float]] = [[] for _ in ranks]
    for i, outcome in compare_all(ranks, lower_is_better, images):
        outcomes[i].append(outcome)
    return outcomes


def _pair(labels: Sequence[Any]) -> list[float]:
    outcomes = [check_score(label) for label in labels]
    if sorted(outcomes) not in ([0.0, 1.0], [0.5, 0.5]):
        raise ValueError(f"the outcomes are {labels[0]} and {labels[1]}, not 1 and 0, 0 and 1, or 0.5 each")
    return outcomes


def _label(value: Any, positive: str | None) -> float:
    if positive is not None:
        return float(str(value) == positive)
    if isinstance(value, str) or value not in (-1, 0, 1):
        raise ValueError(f"the label is {value!r}, no boolean; say which one is good with `positive_label`")
    return float(value == 1)


def _ratings(cells: Sequence[Any], are_lists_of_images: bool) -> list[list[list[float]]]:
    """Ratings of each image of a row, by column; a list of them is of several images, or of several raters of one."""
    if not are_lists_of_images:
        return [[[check_score(value) for value in _listed(cell) if value is not None] for cell in cells]]
    columns = [_listed(cell) for cell in cells]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise ValueError(f"the lists of ratings have different lengths, {', '.join(map(str, lengths))}")
    return [
        [[] if column[i] is None else [check_score(column[i])] for column in columns] for i in range(len(columns[0]))
    ]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _count(said: Said, spoken: Sequence[Any]) -> None:
    if isinstance(said, Ratings):
        said.add(spoken)
    else:
        for outcome in spoken:
            said.add(outcome)


def fit_scoring(found: Annotations, layout: Layout, score_type: str | None, ties: str, prior: float) -> Scoring:
    """How to score; takes the mean of all ratings from what was found.

    Raises:
        ValueError: for a score that the kind does not have.
    """
    choices = SCORE_TYPES[layout.kind]
    if score_type is not None and score_type not in choices:
        raise ValueError(
            f"`score_type` is {score_type!r}, but {layout.kind} can become {', '.join(map(repr, choices))}."
        )
    ratings = [image.said for image in found.images if isinstance(image.said, Ratings) and image.said.counts]
    count = sum(said.counts[0] for said in ratings)
    prior_mean = math.fsum(said.sums[0] for said in ratings) / count if count else 0.0
    names = layout.annotations if layout.kind == "ratings" else ()
    return Scoring(layout.kind, score_type or choices[0], ties, prior, names, prior_mean)


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns, those of the first row where only rows tell."""
    names = dataset.column_names
    return list(next(iter(dataset)) if names is None else names)
