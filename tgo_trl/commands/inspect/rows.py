"""Reading a scored data set to report on it: what training could use, and what it could not."""

import hashlib
import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, Features, IterableDataset
from PIL import Image
from tqdm.auto import tqdm

from ...data.classes import check_no_classes
from ...data.columns import check_columns, column_names, known_columns, undecoded
from ...data.rows import check_prompt, check_score, read_cell
from ...data.score_columns import score_names
from ...data.sources import locate_sources
from ...labels.thresholds import percentile_threshold
from ...media.embedding import ColumnError
from ...media.images import encoded_bytes, image_size
from ...media.origin import Origin
from ...media.types import Size
from ...messages.values import cut
from ...storage.fingerprints import task_of
from ..generate.config import SOURCE_COLUMN
from .config import InspectConfig

PAIR_COLUMNS = ("chosen", "rejected")
REMEDY = (
    "Set `prompt_column`, `image_column`, `score_column` (`score_columns`, if several are to count) and "
    "`source_column`, or `skip_images` if there are no images."
)
VIDEO_COLUMN = "video"
REMEDY_OF_VIDEOS = "It holds videos, of which `inspect` looks at prompts and scores alone: set `skip_images`."
REMEDY_OF_PAIRS = (
    "It holds pairs, and `inspect` reports on scores. Train on pairs as they are with `--loss_type diffusion_dpo`, or "
    "make scores of them with `tgo-trl convert`, and inspect those."
)

LONG_PROMPT = 55
"""Words of a prompt that fill the 77 tokens of a CLIP text encoder, or nearly."""


@dataclass
class Rows:
    """What was read of each row that training could use, and which it could not.

    Attributes:
        prompts, scores: of the usable rows; of several columns, there are no scores before they are combined.
        by_column: the scores of the usable rows, where there are several columns, by the column's name.
        sources: hashes of the images that each was made from; none where the data set has no column of them.
        sizes: height and width of their images, in pixels; empty if images were not read.
        files: hash of each image; empty if images were not read.
        num_rows: all of them.
        problems: for each kind of unusable row, the rows.
        first_reasons: of the first unusable row of each kind.
    """

    prompts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    by_column: dict[str, list[float]] = field(default_factory=dict)
    sources: list[tuple[bytes, ...]] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    num_rows: int = 0
    problems: dict[str, list[int]] = field(default_factory=dict)
    first_reasons: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """What each image answers, so that scores of the same can be compared: its prompt, and its sources if any."""
        return [task_of(prompt, sources) for prompt, sources in zip(self.prompts, self.sources, strict=True)]


@dataclass(frozen=True)
class Duplicates:
    """Rows that say the same again.

    Attributes:
        images: rows whose image was in an earlier row, byte for byte.
        rows: those of them whose prompt, and source, was the same, too.
        contradictions: pairs of prompt and image that come with different scores.
    """

    images: int
    rows: int
    contradictions: int


@dataclass(frozen=True)
class PromptLengths:
    """Of the distinct prompts, by percent.

    Attributes:
        words, characters: minimum, median, 90 % and maximum.
        num_long: prompts of more than [`LONG_PROMPT`] words.
    """

    words: tuple[int, int, int, int]
    characters: tuple[int, int, int, int]
    num_long: int


def read_rows(dataset: Dataset | IterableDataset, config: InspectConfig, origin: Origin) -> Rows:
    """Prompt, score, and image's size and hash of each row, and the hashes of its sources; images are not decoded.

    Raises:
        ValueError: if a column is missing.
    """
    names = score_names(vars(config))
    columns = [("prompt", config.prompt_column), *(("score", name) for name in names)]
    if not config.skip_images:
        columns.append(("image", config.image_column))
    if config.source_column != SOURCE_COLUMN or SOURCE_COLUMN in column_names(dataset):
        columns.append(("source", config.source_column))
    present = known_columns(dataset)
    remedy = REMEDY_OF_PAIRS if {*PAIR_COLUMNS} <= {*(present or ())} else REMEDY
    if not config.skip_images and VIDEO_COLUMN in (present or ()) and config.image_column not in (present or ()):
        remedy = REMEDY_OF_VIDEOS
    check_columns("The data set", present, [column for _, column in columns], remedy)
    settings = {"prompt_column": [config.prompt_column], f"score_column{'s' * (len(names) > 1)}": names}
    check_no_classes(dataset.features, settings)
    _check_numbers(dataset.features, names)
    narrow = undecoded(dataset, *(column for _, column in columns))
    total = len(dataset) if isinstance(dataset, Dataset) else None
    rows = Rows(by_column={name: [] for name in names if len(names) > 1})
    limited = itertools.islice(narrow, config.max_rows)
    for row, example in enumerate(tqdm(limited, "Reading", total, unit="row", disable=config.disable_tqdm)):
        rows.num_rows += 1
        values = _read(row, example, columns, origin, rows)
        if values is not None:
            rows.prompts.append(values["prompt"][0])
            for column, score in zip([*rows.by_column.values()] or [rows.scores], values["score"], strict=True):
                column.append(score)
            rows.sources.append(values["source"][0] if "source" in values else ())
            if "image" in values:
                ((size, digest),) = values["image"]
                rows.sizes.append(size)
                rows.files.append(digest)
    return rows


def _check_numbers(features: Features | None, names: Sequence[str]) -> None:
    """Raises a ValueError if a column of scores holds text, of which `convert` may make numbers."""
    for name in names:
        if getattr((features or {}).get(name), "dtype", None) in ("string", "large_string"):
            raise ValueError(
                f"Column {name!r} holds text, and scores are numbers. `tgo-trl convert --layout ratings "
                f"--annotation_columns {shlex.quote(name)}` makes scores of ratings such as '4 stars', and of "
                "other words with `--word_values`; inspect what it writes."
            )


def find_duplicates(rows: Rows) -> Duplicates:
    """Rows whose image, or whose prompt and image, were there before."""
    scores: dict[tuple[str, bytes], set[float]] = {}
    for task, file, score in zip(rows.tasks, rows.files, rows.scores, strict=True):
        scores.setdefault((task, file), set()).add(score)
    return Duplicates(
        images=len(rows.files) - len(set(rows.files)),
        rows=len(rows.files) - len(scores),
        contradictions=sum(len(found) > 1 for found in scores.values()),
    )


def prompt_lengths(prompts: list[str]) -> PromptLengths:
    """Lengths of the distinct prompts."""
    distinct = set(prompts)
    words = [len(prompt.split()) for prompt in distinct]
    return PromptLengths(
        words=_spread(words),
        characters=_spread([len(prompt) for prompt in distinct]),
        num_long=sum(length > LONG_PROMPT for length in words),
    )


def _spread(lengths: list[int]) -> tuple[int, int, int, int]:
    values = torch.tensor(lengths, dtype=torch.float64)
    low, middle, high, top = (round(percentile_threshold(values, p).item()) for p in (0, 50, 90, 100))
    return low, middle, high, top


def _read(
    row: int, example: dict[str, Any], columns: Sequence[tuple[str, str]], origin: Origin, rows: Rows
) -> dict[str, list[Any]] | None:
    """What the columns of each kind hold, or None, with the reason noted, if training could not use the row."""
    checks: dict[str, Callable[[Any], Any]] = {
        "prompt": check_prompt,
        "score": check_score,
        "image": lambda value: _check_image(origin.locate(value)),
        "source": lambda value: tuple(_check_image(image)[1] for image in locate_sources(value, origin)),
    }
    values: dict[str, list[Any]] = {}
    for kind, column in columns:
        try:
            values.setdefault(kind, []).append(read_cell(example, column, checks[kind]))
        except ColumnError as error:
            rows.problems.setdefault(f"bad {kind}", []).append(row)
            rows.first_reasons.setdefault(f"bad {kind}", f"row {row}: {cut(str(error))}")
    return values if sum(map(len, values.values())) == len(columns) else None


def _check_image(value: Any) -> tuple[Size, bytes]:
    content = encoded_bytes(value)
    size = image_size(value if isinstance(value, Image.Image) else content)
    return size, hashlib.blake2b(content, digest_size=16).digest()
