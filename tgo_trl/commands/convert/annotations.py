"""What people said about images, read from a data set of any [`Layout`] and counted for each distinct image."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from ...data.classes import ClassNames, shown_names
from ...data.columns import check_columns, column_names
from ...data.rows import BadRows, check_prompt, read_cell
from ...data.sources import locate_sources
from ...media.images import encoded_bytes
from ...media.origin import OWN, Origin
from ...storage.fingerprints import task_of
from .layouts import Layout
from .pairs import PairReader, check_choices, find_pair_reader
from .tallies import Comparisons, Ratings, Tally, compare_all
from .words import UnknownWordError, as_number, is_good, is_missing, is_set, spelt

LABELS_SHOWN = 5

OpenColumns = Callable[[Sequence[str] | None], Dataset | IterableDataset]
"""Gives a data set with some of its columns, of which images are not decoded; with all of them, as it is, for None."""


@dataclass(slots=True)
class AnnotatedImage:
    """One distinct image: where it first appears, and what was said about it.

    Attributes:
        prompt: of the image.
        task: what tells the prompt from others: with the images that it is to be carried out on, if there are any.
        identity: what tells it apart: a name, a path, or a digest of its content.
        uid: the same, if that is more than its content.
        row, slot: of its first appearance: the row of the data set, and which of the row's images.
        tally: of what was said about it.
    """

    prompt: str
    task: str
    identity: str
    uid: str | None
    row: int
    slot: int
    tally: Tally


@dataclass
class Annotations:
    """What the first pass found.

    Attributes:
        images: in the order of their first appearance.
        num_rows: that were read.
        num_unlabelled: rows that say nothing.
        num_same: pairs and rankings of an image with itself.
        labels: the first different labels in words; a few.
        scale: of pairs with a number for each image, one of [`~tgo_trl.commands.convert.layouts.SCALES`].
        reading: what was found out about the numbers of pairs, in words; None if nothing had to be.
        bad: rows that cannot be read.
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    num_rows: int = 0
    num_unlabelled: int = 0
    num_same: int = 0
    labels: list[str] = field(default_factory=list)
    scale: str = "outcomes"
    reading: str | None = None
    bad: BadRows = field(default_factory=lambda: BadRows(skip=False))


def read_annotations(
    open_columns: OpenColumns, layout: Layout, skip_bad: bool, progress: Callable[[], object] | None = None,
    content: Callable[[Any], bytes] = encoded_bytes, origin: Origin = OWN,
) -> Annotations:  # fmt: skip
    """Counts what was said about each image.

    Args:
        open_columns: gives the data set with some of its columns.
        layout: of the data set.
        skip_bad: leave out rows that cannot be read, instead of stopping at the first.
        progress: called at each row.
        content: what tells an image without a name from others; raises a ValueError, with a clause, if it is none.
        origin: of the data set, and so of source images.

    Raises:
        ValueError: if a column is missing, or no label is the good one.
        BadRowError: at a row that cannot be read.
    """
    present = column_names(open_columns(None))
    remedy = (
        "Set `layout`, or name its columns with `prompt_column`, `image_columns`, `annotation_columns` and "
        "`source_column`."
    )
    check_columns("The data set", present, sorted(layout.required), remedy)

    # Row by row: the images that are new, and what was said about each.
    reader = _RowReader(layout.present_in(present), open_columns, skip_bad, content, origin)
    found, layout = reader.found, reader.layout
    images: dict[tuple[str, str], AnnotatedImage] = {}
    rankings: dict[tuple[str, str], list[tuple[AnnotatedImage, float]]] = {}
    for row, example in enumerate(open_columns(reader.columns)):
        found.num_rows += 1
        if progress is not None:
            progress()
        for slot, (prompt, task, key, said) in enumerate(reader.read(row, example)):
            image = images.get((task, key.identity))
            if image is None:
                fresh: Tally = Ratings() if layout.kind == "ratings" else Comparisons()
                image = AnnotatedImage(prompt, task, key.identity, key.name, row, slot, fresh)
                images[task, key.identity] = image
            if isinstance(said, float):  # the rest of its ranking is in other rows
                group = "" if layout.group is None else str(example[layout.group])
                rankings.setdefault((task, group), []).append((image, said))
            else:
                _count(image.tally, said)

    # Ranks mean something only beside the others of their ranking, which may lie in any row.
    for members in rankings.values():
        ranks = [rank for _, rank in members]
        for i, outcome in compare_all(ranks, layout.lower_is_better, [id(image) for image, _ in members]):
            _count(members[i][0].tally, [outcome])
    found.images = list(images.values())
    if found.labels and not any(isinstance(image.tally, Comparisons) and image.tally.wins for image in found.images):
        shown = ", ".join(map(repr, found.labels)) + (" ..." if len(found.labels) == LABELS_SHOWN else "")
        raise ValueError(
            f"No label is {layout.positive!r}, so that every image would lose; there are {shown}. Set `positive_label` "
            "to the good one."
        )
    return found


class _RowReader:
    """Reads what the rows of one data set say, with the names of classes for their codes.

    Args:
        layout: of the data set, with its present columns.
        open_columns: gives the data set with some of its columns.
        skip_bad: leave out rows that cannot be read, instead of stopping at the first.
        content: what tells an image from others, of a cell that is no path.
        origin: of source images.
    """

    def __init__(
        self, layout: Layout, open_columns: OpenColumns, skip_bad: bool, content: Callable[[Any], bytes], origin: Origin
    ) -> None:
        self.layout = layout
        self.content, self.origin = content, origin
        self.columns = [name for name in layout.columns if name not in layout.images or not layout.uids]
        self.names = ClassNames(open_columns(None).features)
        self._check_classes()
        self.pairs = PairReader(layout)
        self.found = Annotations(bad=BadRows(skip_bad))
        if layout.kind == "pairs":
            self.pairs = find_pair_reader(layout, self._annotations(open_columns))
            self.found.scale, self.found.reading = self.pairs.scale, self.pairs.describe()

    def read(self, row: int, example: dict[str, Any]) -> list[tuple[str, str, "_Key", Any]]:
        """Prompt, task, identity and annotations of each image of a row; none of a row that says nothing."""
        layout, found = self.layout, self.found
        where = ", ".join(layout.columns)
        try:
            example = self.names.resolve(example)
            if self._says_nothing(example):
                found.num_unlabelled += 1
                return []
            prompt = read_cell(example, layout.prompt, check_prompt)
            task = prompt if layout.source is None else task_of(prompt, self._sources(example[layout.source]))
            keys = _keys(example, layout, self.content)
            said = self._said(example, keys)
        except UnknownWordError as error:
            raise UnknownWordError(f"Row {row}, column {where!r}: {error}.") from error
        except ValueError as error:
            found.bad.add(row, where, str(error))
            return []
        if said is None:
            found.num_unlabelled += 1
            return []
        if layout.kind in ("pairs", "ranking") and len(keys) > 1 and len(set(keys)) == 1:
            found.num_same += 1
            return []
        if layout.kind == "labels" and layout.positive is not None:
            label = spelt(example[layout.annotations[0]])
            if label not in found.labels and len(found.labels) < LABELS_SHOWN:
                found.labels.append(label)
        return [(prompt, task, key, annotation) for key, annotation in zip(keys, said, strict=True)]

    def _sources(self, cell: Any) -> list[bytes]:
        """What tells the source images of a row from others."""
        return [encoded_bytes(image) for image in locate_sources(cell, self.origin)]

    def _annotations(self, open_columns: OpenColumns) -> Iterator[dict[str, Any]]:
        """The rows with what was said alone; unreadable ones are told where they are counted."""
        for example in open_columns(list(self.layout.annotations)):
            try:
                yield self.names.resolve(example)
            except ValueError:
                continue

    def _says_nothing(self, example: dict[str, Any]) -> bool:
        if self.layout.valid is not None and not is_set(example[self.layout.valid]):
            return True
        if self.layout.first_is_better or not self.layout.annotations:
            return False
        return all(is_missing(example[name]) for name in self.layout.annotations)

    def _said(self, example: dict[str, Any], keys: Sequence["_Key"]) -> list[Any] | None:
        """For each image of a row: its outcomes, its ratings by column, or its rank; None if nothing was said."""
        layout = self.layout
        cells = [example[name] for name in layout.annotations]
        if layout.kind == "pairs":
            outcome = self.pairs.read(example, [key.name for key in keys])
            said: list[Any] | None = None if outcome is None else [[tally] for tally in outcome]
        elif layout.kind == "labels":
            said = [[float(is_good(cells[0], layout.positive))]]
        elif layout.kind == "ranking":
            said = _ranks(cells[0], layout, keys)
        else:
            named = example[(layout.uids or layout.images)[0]]  # images that have names are not read yet
            said = _ratings(cells, isinstance(named, (list, tuple)), layout)
        if said is not None and len(keys) != len(said):
            raise ValueError(f"there are {len(keys)} images and {len(said)} annotations of them")
        return said

    def _check_classes(self) -> None:
        """Raises a ValueError if the names of a class mean nothing here, before any row is read."""
        layout = self.layout
        for column in layout.annotations:
            names = self.names.of.get(column, [])
            try:
                _check_meaning(layout, names, column in self.names.in_lists)
            except ValueError as error:
                raise ValueError(f"The column {column!r} holds the classes {shown_names(names)}: {error}.") from error


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


def _check_meaning(layout: Layout, names: Sequence[str], are_in_lists: bool) -> None:
    """Raises a ValueError, with a clause, if a name of a class is none that the layout can read."""
    if layout.kind == "pairs" and len(layout.annotations) == 1 and not are_in_lists:
        check_choices(layout, names)
    if layout.kind == "labels" and layout.positive is not None and names and layout.positive not in names:
        raise ValueError(f"`positive_label` is {layout.positive!r}, which is none of them. Set it to the good one")
    for name in names:
        if layout.kind == "labels":
            is_good(name, layout.positive)
        elif layout.kind in ("ranking", "ratings"):
            as_number(name, layout.values)


def _ranks(cell: Any, layout: Layout, keys: Sequence[object]) -> list[Any]:
    """The rank of a row's image, or, of a list of ranks, the outcomes of comparing its images."""
    ranks = [as_number(rank, layout.values) for rank in _listed(cell)]
    if None in ranks:
        raise ValueError("a rank is missing")
    if not isinstance(cell, (list, tuple)) or len(ranks) != len(keys):
        return ranks
    outcomes: list[list[float]] = [[] for _ in ranks]
    for i, outcome in compare_all(ranks, layout.lower_is_better, keys):  # type: ignore[arg-type]
        outcomes[i].append(outcome)
    return outcomes


def _ratings(cells: Sequence[Any], are_lists_of_images: bool, layout: Layout) -> list[list[list[float]]]:
    """Ratings of each image of a row, by column; a list of them is of several images, or of several raters of one."""

    def numbers(values: Sequence[Any]) -> list[float]:
        return [number for number in (as_number(value, layout.values) for value in values) if number is not None]

    if not are_lists_of_images:
        return [[numbers(_listed(cell)) for cell in cells]]
    columns = [_listed(cell) for cell in cells]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise ValueError(f"the lists of ratings have different lengths, {', '.join(map(str, lengths))}")
    return [[numbers([column[i]]) for column in columns] for i in range(len(columns[0]))]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _count(tally: Tally, annotation: Sequence[Any]) -> None:
    if isinstance(tally, Ratings):
        tally.add(annotation)
    else:
        for outcome in annotation:
            if isinstance(outcome, Comparisons):
                tally.merge(outcome)
            else:
                tally.add(outcome)
