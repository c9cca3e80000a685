"""The images or videos of an annotated data set: which of both they are, and their files."""

import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from datasets import Dataset, Features, IterableDataset, LargeList, List, Value, Video
from datasets import Image as ImageFeature
from PIL import Image

from ...data.classes import ClassNames
from ...data.columns import column_names
from ...data.rows import BadRows
from ...data.sources import locate_sources
from ...media.embedding import file_bytes
from ...media.images import encoded_bytes
from ...media.origin import DataFile, Origin
from ...media.signatures import HEAD, IMAGE, VIDEO, media
from ...storage.fingerprints import fingerprint
from ..generate.config import SOURCE_COLUMN
from .annotations import AnnotatedImage, OpenColumns, image_cells
from .layouts import Layout
from .scores import ScoreRule

ROWS_LOOKED_AT = 20


class MediaFiles:
    """Reads images or videos where they first appear; they must be asked for in that order.

    Args:
        open_columns: gives the data set with some of its columns.
        layout: of the data set.
        origin: of the data set.
        suffix: added to paths.
    """

    def __init__(self, open_columns: OpenColumns, layout: Layout, origin: Origin, suffix: str) -> None:
        self._open_columns = open_columns
        self.layout = layout
        self.origin = origin
        self.suffix = suffix
        self._rows: Iterator[tuple[int, dict[str, Any]]] | None = None
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        self._digests: dict[str, str] = {}

    @cached_property
    def dataset(self) -> Dataset | IterableDataset:
        """The data set's columns of images or videos, and of what they were made from."""
        return self._open_columns(self._columns)

    @cached_property
    def _source(self) -> str | None:
        """The column of source images, if the data set has one."""
        return self.layout.present_in(column_names(self._open_columns(None))).source

    @property
    def _columns(self) -> list[str]:
        return [*self.layout.images, *([] if self._source is None else [self._source])]

    @cached_property
    def medium(self) -> str:
        """`"image"` or `"video"`, by the type of the columns, or else by the first files; the result's column."""
        columns = [(self.dataset.features or {}).get(name) for name in self.layout.images]
        types = {type(getattr(column, "feature", column)) for column in columns}
        if types & {Video, ImageFeature}:
            return VIDEO if Video in types else IMAGE
        for example in islice(iter(self.dataset), ROWS_LOOKED_AT):
            for cell in image_cells(example, self.layout):
                found = media(self._head(cell))
                if found:
                    return IMAGE if IMAGE in found else VIDEO
        return IMAGE

    def content(self, cell: Any) -> bytes:
        """What tells an image or video from others: its file, which must be of the medium, or its pixels."""
        return encoded_bytes(cell) if isinstance(cell, Image.Image) else file_bytes(self._located(cell), self.medium)

    def rows(self, images: Iterable[AnnotatedImage], rule: ScoreRule, bad: BadRows) -> Iterator[dict[str, Any]]:
        """The rows of the scored data set, without those whose image is bad."""
        for image in images:
            try:
                row = self._row(image.row)
                file = self._file(image_cells(row, self.layout)[image.slot])
                of_edit = {} if self._source is None else {SOURCE_COLUMN: self._source_cell(row[self._source])}
            except (ValueError, OSError) as error:
                bad.add(image.row, ", ".join(self._columns), str(error))
                continue
            values = rule.values(image.tally)
            assert values is not None
            if self._is_told_by_path(image):
                self._digests[image.identity] = fingerprint(file)
            file_cell = {"bytes": file, "path": None}
            yield {"prompt": image.prompt, self.medium: file_cell, **of_edit, "image_uid": image.uid, **values}

    def digest(self, images: Iterable[AnnotatedImage]) -> str | None:
        """A digest of the files of images that are told apart by their paths alone; None if none is.

        Of rows that were just read, it is of the bytes in them. Files behind URLs are not fetched for it.
        """
        digests = [self._file_digest(image.identity) for image in images if self._is_told_by_path(image)]
        self._digests.clear()
        return fingerprint(*digests) if digests else None

    def _is_told_by_path(self, image: AnnotatedImage) -> bool:
        return image.uid is not None and not self.layout.uids and "://" not in image.identity

    def _file_digest(self, path: str) -> str:
        if path not in self._digests:
            try:
                self._digests[path] = fingerprint(self.content(path))
            except (ValueError, OSError):
                self._digests[path] = "unreadable"
        return self._digests[path]

    def features(self, has_names: bool, rule: ScoreRule) -> Features:
        """The features of these rows."""
        features: dict[str, Any] = {"prompt": Value("string")}
        features[self.medium] = Video() if self.medium == VIDEO else ImageFeature()
        if self._source is not None:
            is_list = isinstance((self.dataset.features or {}).get(self._source), (List, LargeList))
            features[SOURCE_COLUMN] = List(ImageFeature()) if is_list else ImageFeature()
        if has_names:
            features["image_uid"] = Value("string")
        return Features(features | {name: Value(kind) for name, kind in rule.columns.items()})

    def place(self) -> str | None:
        """A digest of where paths lead, which tells nobody the path; None if the data set holds the images."""
        features = self._open_columns(None).features
        if features is not None and not any("string" in str(features[name]) for name in self._columns):
            return None  # so that a run goes on in whatever folder it is started
        return fingerprint(self.origin.base.resolve(), self.suffix)

    def _source_cell(self, cell: Any) -> Any:
        images = locate_sources(cell, self.origin)
        files = [{"bytes": _png(it) if isinstance(it, Image.Image) else file_bytes(it, IMAGE), "path": None}
                 for it in images]  # fmt: skip
        return files if isinstance(cell, (list, tuple)) else files[0]

    def _head(self, cell: Any) -> bytes:
        located = self._located(cell)
        if isinstance(located, bytes):
            return located[:HEAD]
        if not isinstance(located, DataFile):
            return b""
        try:
            with located.open() as file:
                return file.read(HEAD)
        except (ValueError, OSError):  # a bad row, when it is read
            return b""

    def _located(self, cell: Any) -> Any:
        located = self.origin.locate(cell)
        return located.with_suffix(self.suffix) if isinstance(cell, str) else located

    def _row(self, row: int) -> dict[str, Any]:
        if self._last[0] != row:  # else another image of the same row
            self._last = (row, ClassNames(self.dataset.features).resolve(self._read(row)))
        return self._last[1]

    def _read(self, row: int) -> dict[str, Any]:
        if isinstance(self.dataset, Dataset):
            return dict(self.dataset[row])
        if self._rows is None:
            self._rows = enumerate(self.dataset.skip(row), start=row)
        for index, example in self._rows:
            if index == row:
                return dict(example)
        raise RuntimeError(f"Row {row} of the data set is gone since it was read first. Run the command again.")

    def _file(self, cell: Any) -> bytes:
        return _png(cell) if isinstance(cell, Image.Image) else self.content(cell)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
