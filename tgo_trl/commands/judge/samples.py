"""The images of models that are compared: which each has, and what two of them have of the same prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from datasets import Dataset

from ...data.classes import ClassNames, check_no_classes
from ...data.columns import check_columns, undecoded
from ...data.rows import check_prompt, read_cell
from ...media.embedding import ColumnError
from ...media.images import encoded_bytes
from ...media.origin import Origin, named_origin
from ...messages.values import shown
from ...storage.sources import open_dataset
from .config import JudgeConfig

REMEDY = "Set `prompt_column` and `image_column`."


@dataclass(frozen=True)
class ModelSamples:
    """The images of one model.

    Attributes:
        name: of the model.
        files: the rows, with images as files that are not opened.
        image_column: of them.
        origin: of the data set.
        rows: the row of each prompt and sample, in order.
        categories: of each prompt; empty if none are asked for.
    """

    name: str
    files: Dataset
    image_column: str
    origin: Origin
    rows: dict[tuple[str, int], int]
    categories: dict[str, str]

    def image(self, prompt: str, sample_index: int) -> bytes:
        """The file of an image, not decoded.

        Raises:
            ValueError: if it cannot be read, naming row and column.
        """
        row = self.rows[prompt, sample_index]
        try:
            return read_cell(self.files[row], self.image_column, lambda value: encoded_bytes(self.origin.locate(value)))
        except ColumnError as error:
            raise ValueError(f"Row {row} of {self.name!r}, column {error.column!r}: {error}. Mend the row.") from error


@dataclass(frozen=True)
class Comparison:
    """Two images of one prompt.

    Attributes:
        prompt, sample_index: of both.
        first, second: places of the models; the first one's name comes first in reports.
        category: of the prompt; None if none are asked for.
    """

    prompt: str
    sample_index: int
    first: int
    second: int
    category: str | None


def open_models(config: JudgeConfig) -> list[ModelSamples]:
    """What each model has, in the order of the settings; no image is opened.

    Raises:
        ValueError: if a column is missing, a prompt is bad, or a sample is there twice.
    """
    models = []
    for place, (source, name) in enumerate(zip(config.datasets, config.model_names(), strict=True)):
        dataset = open_dataset(str(source), split=config.dataset_split)
        category = config.category_column if place == 0 else None
        wanted = [config.prompt_column, config.image_column, *([] if category is None else [category])]
        remedy = REMEDY if category is None else f"{REMEDY[:-1]}, or `category_column`."
        check_columns(f"The data set of {name!r}", dataset.column_names, wanted, remedy)
        check_no_classes(dataset.features, {"prompt_column": [config.prompt_column]})
        rows, categories = _index(dataset, config, category, name)
        files = undecoded(dataset, config.image_column)
        models.append(ModelSamples(name, files, config.image_column, named_origin(str(source)), rows, categories))
    return models


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
                prompt, sample = missing[0]
                raise ValueError(
                    f"{there.name!r} lacks {len(missing):,} of the {len(here.rows):,} images that {here.name!r} has: "
                    f"the first is of prompt {shown(prompt)}, sample {sample}. Draw the same prompts with the same "
                    "`num_images_per_prompt` for all models, or take the others out of the data set."
                )
    prompts = list(dict.fromkeys(prompt for prompt, _ in first.rows))[: config.max_prompts]
    taken = set(prompts)
    num_taken: dict[str, int] = {}
    comparisons = []
    for prompt, sample in first.rows:
        num_taken[prompt] = num_taken.get(prompt, 0) + 1
        if prompt not in taken or num_taken[prompt] > (config.max_samples_per_prompt or num_taken[prompt]):
            continue
        category = first.categories.get(prompt)
        comparisons += [Comparison(prompt, sample, i, j, category) for i, j in config.model_pairs()]
    return comparisons


def _index(
    dataset: Dataset, config: JudgeConfig, category_column: str | None, name: str
) -> tuple[dict[tuple[str, int], int], dict[str, str]]:
    """The row of each prompt and sample, and the category of each prompt."""
    columns = [config.prompt_column, config.sample_column, *([] if category_column is None else [category_column])]
    narrow = undecoded(dataset, *columns)
    names = ClassNames(narrow.features)
    rows: dict[tuple[str, int], int] = {}
    categories: dict[str, str] = {}
    counters: dict[str, Any] = {}
    for row, example in enumerate(narrow):
        try:
            prompt = read_cell(example, config.prompt_column, check_prompt)
            if config.sample_column in example:
                sample = read_cell(example, config.sample_column, _check_index)
            else:
                sample = next(counters.setdefault(prompt, count()))
            if category_column is not None:
                category = names.resolve(example)[category_column]
                if categories.setdefault(prompt, str(category)) != str(category):
                    raise ColumnError(category_column, f"the prompt is of {shown(categories[prompt])} in another row")
        except ColumnError as error:
            raise ValueError(
                f"Row {row} of {name!r}, column {error.column!r}: {error}. Mend or drop the row."
            ) from error
        if (prompt, sample) in rows:
            raise ValueError(
                f"{name!r} has sample {sample} of prompt {shown(prompt)} twice, in rows {rows[prompt, sample]} and "
                f"{row}. Drop one, or set `sample_column`."
            )
        rows[prompt, sample] = row
    return rows, categories


def _check_index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a sample's index is a whole number, not {shown(value)}")
    return value
