"""The images of models that are compared: which each has, and what two of them have of the same prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from datasets import Dataset

from ...data.classes import ClassNames, check_no_classes
from ...data.columns import check_columns, undecoded
from ...data.rows import check_prompt, read_cell
from ...data.sources import locate_sources
from ...media.embedding import ColumnError
from ...media.images import encoded_bytes
from ...media.origin import Origin, named_origin
from ...messages.values import shown
from ...storage.fingerprints import fingerprint, task_of
from ...storage.sources import open_dataset
from ..generate.config import SOURCE_COLUMN
from .config import JudgeConfig

T = TypeVar("T")

REMEDY = "Set `prompt_column` and `image_column`."


@dataclass(frozen=True)
class Subject:
    """What images are of.

    Attributes:
        prompt: that they are drawn from.
        sources: digests of the images that they were made from; none of those that are of prompts alone.
    """

    prompt: str
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells it from others: the prompt itself, without sources."""
        return task_of(self.prompt, self.sources)


@dataclass(frozen=True)
class ModelSamples:
    """The images of one model.

    Attributes:
        name: of the model.
        files: the rows, with images as files that are not opened.
        image_column: of them.
        source_column: of the images that they were made from; None of images of prompts alone.
        origin: of the data set.
        rows: the row of each subject and sample, in order.
        categories: of each subject; empty if none are asked for.
    """

    name: str
    files: Dataset
    image_column: str
    source_column: str | None
    origin: Origin
    rows: dict[tuple[Subject, int], int]
    categories: dict[Subject, str]

    def image(self, subject: Subject, sample_index: int) -> bytes:
        """The file of an image, not decoded.

        Raises:
            ValueError: if it cannot be read, naming row and column.
        """
        return self._read(subject, sample_index, self.image_column, _image_file)

    def sources(self, subject: Subject, sample_index: int) -> list[bytes]:
        """The files of the images that one was made from, not decoded; raises as [`image`]."""
        if self.source_column is None:
            return []
        return self._read(subject, sample_index, self.source_column, read_files)

    def _read(self, subject: Subject, sample_index: int, column: str, read: Callable[[Any, Origin], T]) -> T:
        row = self.rows[subject, sample_index]
        try:
            return read_cell(self.files[row], column, lambda cell: read(cell, self.origin))
        except ColumnError as error:
            raise ValueError(f"Row {row} of {self.name!r}, column {error.column!r}: {error}. Mend the row.") from error


@dataclass(frozen=True)
class Comparison:
    """Two images of one subject.

    Attributes:
        subject, sample_index: of both.
        first, second: places of the models; the first one's name comes first in reports.
        category: of the prompt; None if none are asked for.
    """

    subject: Subject
    sample_index: int
    first: int
    second: int
    category: str | None


def _image_file(cell: Any, origin: Origin) -> bytes:
    """The file of the one image in a cell, which a list is not."""
    return encoded_bytes(origin.locate(cell))


def read_files(cell: Any, origin: Origin) -> list[bytes]:
    """The files of the image, or the images, in a cell; raises a ValueError, with a clause, if one cannot be read."""
    return [encoded_bytes(image) for image in locate_sources(cell, origin)]


def digests_of(cell: Any, origin: Origin) -> tuple[str, ...]:
    """What tells source images from others; raises as [`read_files`]."""
    return tuple(map(fingerprint, read_files(cell, origin)))


def open_models(config: JudgeConfig) -> list[ModelSamples]:
    """What each model has, in the order of the settings; no image is opened but those that others were made from.

    Raises:
        ValueError: if a column is missing, a prompt is bad, or a sample is there twice.
    """
    models = []
    names = config.model_names()
    datasets = [open_dataset(str(source), split=config.dataset_split) for source in config.datasets]
    source_column = _shared_sources(config, dict(zip(names, datasets, strict=True)))
    for place, (source, name, dataset) in enumerate(zip(config.datasets, names, datasets, strict=True)):
        category = config.category_column if place == 0 else None
        wanted = [config.prompt_column, config.image_column, *([] if category is None else [category])]
        remedy = REMEDY if category is None else f"{REMEDY[:-1]}, or `category_column`."
        check_columns(f"The data set of {name!r}", dataset.column_names, wanted, remedy)
        check_no_classes(dataset.features, {"prompt_column": [config.prompt_column]})
        origin, of_images = named_origin(str(source)), [config.image_column, *_named(source_column)]
        rows, categories = _index(dataset, config, category, source_column, name, origin)
        files = undecoded(dataset, *of_images)
        models.append(ModelSamples(name, files, config.image_column, source_column, origin, rows, categories))
    return models


def _shared_sources(config: JudgeConfig, datasets: Mapping[str, Dataset]) -> str | None:
    """The column of source images, which all data sets have; None if none has it, and it is not asked for."""
    column = config.source_column
    having, lacking = (
        [name for name, it in datasets.items() if (column in it.column_names) is has] for has in (True, False)
    )
    if column != SOURCE_COLUMN and lacking:
        check_columns(
            f"The data set of {lacking[0]!r}", datasets[lacking[0]].column_names, [column], "Set `source_column`."
        )
    if having and lacking:
        raise ValueError(
            f"{having[0]!r} has a column {column!r} of what its images were made from, and {lacking[0]!r} has none. "
            "Compare edits with edits of the same images, or drop the column where images are of prompts alone."
        )
    return column if having else None


def _named(column: str | None) -> list[str]:
    return [] if column is None else [column]


def find_comparisons(models: Sequence[ModelSamples], config: JudgeConfig) -> list[Comparison]:
    """The comparisons that are asked for: by prompt and sample as the first model has them, then by pair of models.

    Raises:
        ValueError: if a model has other prompts or samples than the first.
    """
    first = models[0]
    for other in models[1:]:
        for here, there in ((first, other), (other, first)):
            missing = [key for key in here.rows if key not in there.rows]
            if missing:
                subject, sample = missing[0]
                alike = "the same prompts" if not subject.sources else "the same prompts for the same source images"
                raise ValueError(
                    f"{there.name!r} lacks {len(missing):,} of the {len(here.rows):,} images that {here.name!r} has: "
                    f"the first is of prompt {shown(subject.prompt)}, sample {sample}. Draw {alike} with the same "
                    "`num_images_per_prompt` for all models, or take the others out of the data set."
                )
    taken = set(list(dict.fromkeys(subject for subject, _ in first.rows))[: config.max_prompts])
    num_taken: dict[Subject, int] = {}
    comparisons = []
    for subject, sample in first.rows:
        num_taken[subject] = num_taken.get(subject, 0) + 1
        if subject not in taken or num_taken[subject] > (config.max_samples_per_prompt or num_taken[subject]):
            continue
        category = first.categories.get(subject)
        comparisons += [Comparison(subject, sample, i, j, category) for i, j in config.model_pairs()]
    return comparisons


def _index(
    dataset: Dataset, config: JudgeConfig, category_column: str | None, source_column: str | None, name: str,
    origin: Origin,
) -> tuple[dict[tuple[Subject, int], int], dict[Subject, str]]:  # fmt: skip
    """The row of each subject and sample, and the category of each subject."""
    columns = [config.prompt_column, config.sample_column, *_named(category_column), *_named(source_column)]
    narrow = undecoded(dataset, *columns)
    names = ClassNames(narrow.features)
    rows: dict[tuple[Subject, int], int] = {}
    categories: dict[Subject, str] = {}
    counters: dict[Subject, Any] = {}
    for row, example in enumerate(narrow):
        try:
            prompt = read_cell(example, config.prompt_column, check_prompt)
            subject = Subject(prompt)
            if source_column is not None:
                subject = Subject(prompt, read_cell(example, source_column, lambda cell: digests_of(cell, origin)))
            if config.sample_column in example:
                sample = read_cell(example, config.sample_column, _check_index)
            else:
                sample = next(counters.setdefault(subject, count()))
            if category_column is not None:
                category = names.resolve(example)[category_column]
                if categories.setdefault(subject, str(category)) != str(category):
                    raise ColumnError(category_column, f"the prompt is of {shown(categories[subject])} in another row")
        except ColumnError as error:
            raise ValueError(
                f"Row {row} of {name!r}, column {error.column!r}: {error}. Mend or drop the row."
            ) from error
        if (subject, sample) in rows:
            raise ValueError(
                f"{name!r} has sample {sample} of prompt {shown(prompt)} twice, in rows {rows[subject, sample]} and "
                f"{row}. Drop one, or set `sample_column`."
            )
        rows[subject, sample] = row
    return rows, categories


def _check_index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a sample's index is a whole number, not {shown(value)}")
    return value
