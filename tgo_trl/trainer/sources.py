"""Source images in a run: which settings and data sets go with a pipeline, and the files of samples."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import IterableDataset
from PIL import Image

from ..data.columns import known_columns
from ..families import Family
from ..media.images import load_image
from ..messages.values import did_you_mean
from ..settings import shown
from .tgo_config import DEFAULTS, TGOConfig

logger = logging.getLogger(__name__)

SETTINGS = ("source_column", "sample_sources", "eval_sources")


def check_sources(args: TGOConfig, family: type[Family], datasets: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings and data sets that do not go with a family, and warns of a column nobody reads.

    Args:
        args: the run's settings.
        family: of the pipeline.
        datasets: of training and evaluation, by name.
    """
    if not family.most_sources:
        _check_unread(args, family, datasets)
        return
    for name, dataset in datasets.items():
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"`{name}` is a stream, and `{family.__name__}` trains on rows with source images, which are encoded "
                "before training. Load it without `streaming=True`."
            )
        columns = known_columns(dataset)
        if columns is not None and args.source_column not in columns:
            raise ValueError(
                f"`{family.__name__}` makes samples from source images, and `{name}` has no column "
                f"{args.source_column!r} of them; it has {', '.join(map(repr, columns))}."
                f"{did_you_mean(args.source_column, columns)} Set `source_column`, or train a pipeline that reads "
                "prompts alone."
            )
    for prompts, sources in (("sample_prompts", "sample_sources"), ("eval_prompts", "eval_sources")):
        if getattr(args, prompts) and not getattr(args, sources):
            raise ValueError(
                f"`{prompts}` is set, and `{family.__name__}` makes samples from source images. Set `{sources}` to the "
                "file of one for each prompt."
            )
        load_sources(getattr(args, sources))  # before anything that takes long


def _check_unread(args: TGOConfig, family: type[Family], datasets: Mapping[str, Any]) -> None:
    for name in SETTINGS:
        if getattr(args, name) != DEFAULTS[name]:
            raise ValueError(
                f"`{name}` is {shown(getattr(args, name))}, and `{family.__name__}` reads prompts alone. Leave it out, "
                "or train a pipeline of edits, such as FLUX.1 Kontext."
            )
    for name, dataset in datasets.items():
        if args.process_index == 0 and args.source_column in (known_columns(dataset) or ()):
            logger.warning(
                "`%s` has a column %r, which is not read: `%s` reads prompts alone. Train a pipeline of edits on it.",
                name, args.source_column, family.__name__,
            )  # fmt: skip


def load_sources(paths: Sequence[str] | None) -> list[list[Image.Image]] | None:
    """The source image of each sample, by file, as a list of one; None of samples of prompts alone.

    Raises:
        ValueError: if one cannot be read.
    """
    if paths is None:
        return None
    loaded = []
    for path in paths:
        try:
            loaded.append([load_image(path)])
        except ValueError as error:
            raise ValueError(f"The source image {shown(path)} of a sample cannot be used: {error}.") from error
    return loaded


def sources_of(args: TGOConfig) -> Sequence[str] | None:
    """The files of the samples of evaluations, whose prompts may be those of the grids."""
    return args.eval_sources if args.eval_prompts else args.sample_sources
