"""Prompts with their categories: of the user's file or data set, and of the sets that papers compare models on."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download

from ...data.columns import check_columns
from ...messages.values import shown, why
from ...storage.sources import open_dataset
from ...storage.text_tables import parse_json, read_table
from ..generate.prompts import PROMPTS_ALONE, SourceUse, distinct_tasks, read_tasks
from ..generate.tasks import Task
from .config import EvaluateConfig

STYLES = ("anime", "concept-art", "paintings", "photo")
TIE = 0.5
MOST_CATEGORIES = 100


class PromptSet(NamedTuple):
    """A set on the Hub.

    Attributes:
        repository: of it.
        read: its prompts, alone or with their categories; takes the column of categories.
    """

    repository: str
    read: Callable[[str, str | None], Iterator[list[Any]]]


def read_prompt_set(config: EvaluateConfig, use: SourceUse = PROMPTS_ALONE) -> dict[Task, str | None]:
    """The category of each distinct prompt, with its source images if there are any; None of all without categories.

    Args:
        config: that names them.
        use: what the models make of source images.

    Raises:
        ValueError: if the source cannot be read, a set is not to be had, or has no source images, there are fewer than
            two prompts, or more categories than a table has lines.
    """
    if config.prompts in SETS and use.are_needed:
        raise ValueError(
            f"The set {config.prompts!r} has prompts alone, and the models make images from others. Name a file or a "
            f"data set with a column {config.source_column!r} beside that of the prompts."
        )
    if config.prompts in SETS:
        prompts = _named(config.prompts, config.category_column, config.max_prompts)
    else:
        prompts = read_tasks(
            config.prompts, config.prompt_column, config.category_column, config.dataset_config, config.dataset_split,
            config.max_prompts, config.source_column, use,
        )  # fmt: skip
    if len(prompts) < 2:
        raise ValueError(
            f"{config.prompts!r} has one prompt, and intervals are over prompts. Give two or more; 20 are few."
        )
    categories = set(prompts.values())
    if len(categories) > MOST_CATEGORIES:
        raise ValueError(
            f"The {len(prompts)} prompts of {config.prompts!r} are of {len(categories)} categories, and "
            f"{MOST_CATEGORIES} are the most. Is `category_column` the column of something else?"
        )
    return prompts


def _named(name: str, category_column: str | None, max_prompts: int | None) -> dict[Task, str | None]:
    repository, read = SETS[name]
    try:
        entries = list(read(repository, category_column))
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):  # as all errors of the connection and of the Hub are
            raise
        raise ValueError(
            f"The prompts of {name!r} are in the data set {repository!r} of the Hub, which cannot be read "
            f"({why(cause)}). Look to the connection, the token and HF_HUB_OFFLINE. Without a connection, write the "
            "prompts to a .jsonl or .csv file elsewhere, and name that (`prompts`, `prompt_column`, `category_column`)."
        ) from error
    return distinct_tasks(entries, name, max_prompts)


def _pick_a_pic(repository: str, category_column: str | None) -> Iterator[list[Any]]:
    """The test prompts on which people preferred one of two images: 424 of 500. Of the Parquet files, two columns."""
    columns = ["caption", "label_0"]
    for row in open_dataset(repository, split="test_unique", streaming=True, columns=columns):
        check_columns(repr(repository), list(row), columns, "Has the data set changed?")
        if row["label_0"] != TIE:
            yield [row["caption"]]


def _parti(repository: str, category_column: str | None) -> Iterator[list[Any]]:
    """The 1,632 PartiPrompts, with one of their `Category` and `Challenge`."""
    columns = ["Prompt", category_column or "Category"]
    for row in read_table(Path(hf_hub_download(repository, "PartiPrompts.tsv", repo_type="dataset"))):
        check_columns(repr(repository), list(row), columns, "Set `category_column`.")
        yield [row[name] for name in columns]


def _hpsv2(repository: str, category_column: str | None) -> Iterator[list[Any]]:
    """The 3,200 prompts of the benchmark, 800 of each style, in turns: the first ones are of all styles."""
    columns = []
    for style in STYLES:
        path = Path(hf_hub_download(repository, f"benchmark/{style}.json", repo_type="dataset"))
        prompts = parse_json(path.read_text("utf-8"), repr(path.name))
        if not isinstance(prompts, list):
            raise ValueError(f"{path.name!r} of {repository!r} holds no list of prompts: {shown(prompts)}.")
        columns.append([[prompt, style] for prompt in prompts])
    for entries in zip_longest(*columns):
        yield from (entry for entry in entries if entry is not None)


SETS = {
    # `yuvalkirstain/pickapic_v2` is no longer on the Hub; the card of this copy has its columns, splits and sizes.
    "pick-a-pic": PromptSet("liuhuohuo2/pick-a-pic-v2", _pick_a_pic),
    "parti": PromptSet("nateraw/parti-prompts", _parti),
    "hpsv2": PromptSet("zhwang/HPDv2", _hpsv2),
}
