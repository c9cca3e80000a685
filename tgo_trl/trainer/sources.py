"""Source images in a run: which settings and data sets go with a pipeline, and the files of samples."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import IterableDataset
from diffusers import DiffusionPipeline
from PIL import Image

from ..data.columns import column_names, known_columns
from ..families import EDIT_FAMILIES, Family
from ..media.images import load_image
from ..messages.values import did_you_mean
from ..settings import files_of, shown
from .tgo_config import DEFAULTS, TGOConfig

logger = logging.getLogger(__name__)

OF_GRIDS, OF_EVALUATIONS = "sample_sources", "eval_sources"

SampleSources = dict[str, list[list[Image.Image]]]
"""The source images of each sample, by the setting that names the files."""


class RunSources(NamedTuple):
    """What a run makes of source images.

    Attributes:
        are_read: whether its rows have some, as far as its pipeline's family does not say so itself.
        of_samples: of each sample; None where the family is not known before anything is loaded.
    """

    are_read: bool
    of_samples: SampleSources | None


def reads_sources(args: TGOConfig, family: type[Family] | None, datasets: Mapping[str, Any]) -> bool:
    """Whether a run is one of edits, of pipelines that take source images or none.

    It is if a data set has a column of them, or a setting names some.

    Args:
        args: the run's settings.
        family: of the pipeline; None where it is not known.
        datasets: of training and evaluation, by name.
    """
    if family is not None and family not in EDIT_FAMILIES:
        return False
    if any(getattr(args, name) != DEFAULTS[name] for name in ("source_column", OF_GRIDS, OF_EVALUATIONS)):
        return True
    return any(args.source_column in column_names(dataset) for dataset in datasets.values())


def read_sample_sources(args: TGOConfig, family: type[Family], datasets: Mapping[str, Any]) -> SampleSources:
    """The source images of samples; warns of a column of source images that nobody reads.

    Args:
        args: the run's settings.
        family: of the pipeline.
        datasets: of training and evaluation, by name.

    Raises:
        ValueError: for settings and data sets that do not go with a family, or a file that cannot be read.
    """
    if not family.most_sources:
        _check_unread(args, family, datasets)
        return {}
    for name, dataset in datasets.items():
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"`{name}` is a stream, and `{family.__name__}` trains on rows with source images, which are encoded "
                f"before training. Load it without `streaming=True`{_or_prompts_alone(args, family)}."
            )
        columns = known_columns(dataset)
        if columns is not None and args.source_column not in columns:
            raise ValueError(
                f"`{family.__name__}` makes samples from source images, and `{name}` has no column "
                f"{args.source_column!r} of them; it has {', '.join(map(repr, columns))}."
                f"{did_you_mean(args.source_column, columns)} Set `source_column`, or "
                f"train a pipeline that reads prompts alone{_or_prompts_alone(args, family)}."
            )
    for prompts, sources in (("sample_prompts", OF_GRIDS), ("eval_prompts", OF_EVALUATIONS)):
        if getattr(args, prompts) and not getattr(args, sources):
            raise ValueError(
                f"`{prompts}` is set, and `{family.__name__}` makes samples from source images. Set `{sources}` to the "
                f"file of one for each prompt{_or_prompts_alone(args, family)}."
            )
    given = {name: list(map(files_of, getattr(args, name) or ())) for name in (OF_GRIDS, OF_EVALUATIONS)}
    for name, files in given.items():
        _check_number(name, files, family)
    images: dict[str, Image.Image] = {}  # of each file, which may be named several times
    return {
        name: [[_load(it, images) for it in of_prompt] for of_prompt in files] for name, files in given.items() if files
    }


def check_drawn_prompts(args: TGOConfig, pipeline: DiffusionPipeline, family: Family) -> None:
    """Raises a ValueError, naming the setting, for a prompt of samples that the pipeline cannot encode.

    Args:
        args: the run's settings.
        pipeline: of which tokenizers are asked alone.
        family: of it.
    """
    for name, of_sources in (("sample_prompts", OF_GRIDS), ("eval_prompts", OF_EVALUATIONS)):
        prompts = getattr(args, name) or ()
        files = getattr(args, of_sources) if family.most_sources else None
        for prompt, images in zip(prompts, files or [()] * len(prompts), strict=True):
            try:
                family.check_prompts(pipeline, [prompt], len(files_of(images)))
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from error


def warn_of_other_numbers(args: TGOConfig, num_sources: int, name: str, number: int) -> None:
    """Warns of samples and evaluations with more source images than training rows have, or fewer, which train no such.

    Args:
        args: the run's settings.
        num_sources: source images of each row that is trained on.
        name: of a data set; `"training"`, whose rows they are, for the prompts of samples.
        number: source images of each of its rows.
    """
    if name != "training":
        if number != num_sources and args.process_index == 0:
            logger.warning(
                "Rows of the %s data set have %d source images, and those that are trained on have %d: what is "
                "evaluated are edits that are not trained. Give both as many.",
                name, number, num_sources,
            )  # fmt: skip
        return
    for setting in (OF_GRIDS, OF_EVALUATIONS):
        others = sorted({len(files_of(files)) for files in getattr(args, setting) or ()} - {num_sources})
        if others and args.process_index == 0:
            logger.warning(
                "`%s` has %s source images for a prompt, and the rows have %d: samples are of edits that are not "
                "trained. Give each prompt as many as the rows have.",
                setting, ", ".join(map(str, others)), num_sources,
            )  # fmt: skip


def _or_prompts_alone(args: TGOConfig, family: type[Family]) -> str:
    """What else there is to do, as the end of a sentence, of a pipeline that takes source images or none."""
    if family not in EDIT_FAMILIES.values():
        return ""
    return (
        f"; or, to train this one from prompts alone, leave out `source_column`, `{OF_GRIDS}` and `{OF_EVALUATIONS}`, "
        f"and remove the column {args.source_column!r} from all data sets"
    )


def _check_number(name: str, files: Sequence[Sequence[str]], family: type[Family]) -> None:
    """Raises a ValueError for a prompt with more source images than a family takes."""
    most = max(map(len, files), default=0)
    if most > family.most_sources:
        raise ValueError(
            f"`{name}` has {most} source images for a prompt, and `{family.__name__}` takes {family.most_sources} at "
            "most. Leave some out."
        )


def _check_unread(args: TGOConfig, family: type[Family], datasets: Mapping[str, Any]) -> None:
    for name in ("source_column", OF_GRIDS, OF_EVALUATIONS):
        if getattr(args, name) != DEFAULTS[name]:
            raise ValueError(
                f"`{name}` is {shown(getattr(args, name))}, and `{family.__name__}` reads prompts alone. Leave it out, "
                "or train a pipeline of edits, such as FLUX.1 Kontext."
            )
    for name, dataset in datasets.items():
        warn_of_unread(args, name, dataset, family.__name__, "Train a pipeline of edits on it.")


def warn_of_unread(args: TGOConfig, name: str, dataset: Any, reader: str, remedy: str) -> None:
    """Warns of a column of source images, of which nothing is read.

    Args:
        args: the run's settings.
        name: of the data set, as an argument.
        dataset: of rows.
        reader: what reads prompts alone.
        remedy: what to do instead.
    """
    if args.process_index == 0 and args.source_column in (known_columns(dataset) or ()):
        logger.warning(
            "`%s` has a column %r, which is not read: `%s` reads prompts alone. %s",
            name, args.source_column, reader, remedy,
        )  # fmt: skip


def _load(path: str, images: dict[str, Image.Image]) -> Image.Image:
    if path not in images:
        try:
            images[path] = load_image(path)
        except ValueError as error:
            raise ValueError(f"The source image {shown(path)} of a sample cannot be used: {error}.") from error
    return images[path]


def of_evaluations(args: TGOConfig) -> str:
    """The setting that names the sources of evaluations, whose prompts may be those of the grids."""
    return OF_EVALUATIONS if args.eval_prompts else OF_GRIDS
