"""From what people said about images to a score for each: pairs, rankings, labels and ratings.

A data set is read twice. The first pass reads what was said, and counts it for each distinct image of each prompt; the
second reads the images, each where it first appears, and writes a row for it. So memory does not depend on the size of
the images, and a killed run loses a shard of them at most.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from rich.console import Console
from tqdm.auto import tqdm

from ...cards.dataset_card import dataset_info
from ...data.columns import column_names, undecoded
from ...data.rows import BadRows
from ...media.origin import find_origin, named_origin
from ...messages.public import public_name
from ...settings import check_choice
from ...storage.parquet import ParquetFolder
from ...storage.processes import process_state
from ...storage.records import CONVERSION_NAME
from ...storage.sources import open_dataset
from ..sharded_run import ShardedRun, check_destination, locks_output_dir, write_dataset
from .annotations import AnnotatedImage, Annotations, OpenColumns, read_annotations
from .card import build_card
from .config import ConvertConfig
from .layouts import KINDS, LAYOUTS, Layout, find_layout, layout_of_kind
from .media import MediaFiles
from .scores import ScoreRule, fit_score_rule
from .tallies import Comparisons, Ratings

WINNERS = {
    "outcomes": ("images_that_won", "images_that_never_won"),
    "votes": ("images_with_votes", "images_without_votes"),
    "shares": ("images_with_votes", "images_without_votes"),
}
"""What images with and without wins are called: one vote of 26 is no victory."""
IMAGES_PER_SHARD = 1000


@locks_output_dir
def convert(config: ConvertConfig) -> Path:
    """Writes the scored data set; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share the writing.

    Args:
        config: what is converted, and how.

    Returns:
        The folder, `config.output_dir`. Columns: `prompt`; `image`, or `video`, if that is what the data set holds,
        with its bytes as they were; `source_image`, where it was made from others; `image_uid`, where images have a
        name; `score`; and, of comparisons and labels, `wins`, `ties`, `comparisons`, `win_rate` and
        `smoothed_win_rate`, or, of ratings, `ratings`, `mean_...` of each column and `bayesian`.

    Raises:
        ValueError: for settings or rows that cannot work, or a folder that holds data made with other settings.
    """
    state = process_state()
    folder = Path(config.output_dir)
    open_columns = _opener(config)
    name, layout = named_layout(config.layout, open_columns(None), config.given_columns())
    layout = config.adapt(layout)
    origin = named_origin(config.dataset_name, config.image_dir, config.allow_urls)
    files = MediaFiles(open_columns, layout, origin, config.image_suffix)
    check_destination(folder, config, state)
    disable = config.disable_tqdm or not state.is_main_process
    with tqdm(desc="Reading", unit="row", disable=disable) as progress:
        found = read_annotations(
            open_columns, layout, config.on_bad_row == "skip", progress.update, files.content, origin
        )
    rule = fit_score_rule(found, layout, config.score_type, config.ties, config.prior)
    read_from = layout.present_in(column_names(open_columns(None))).describe()
    run = _Conversion(config, name, read_from, files, found, rule, scored_images(found, rule))
    return write_dataset(run, folder, config, state)


@dataclass
class _Conversion(ShardedRun[AnnotatedImage]):
    """Images with the scores that come from what was said about them.

    Attributes:
        config: of the command.
        layout: the name of the data set's.
        read_from: its columns, in words.
        files: of the images or videos.
        found: what was said.
        rule: what becomes the score.
        kept: the images that have one.
    """

    config: ConvertConfig
    layout: str
    read_from: str
    files: MediaFiles
    found: Annotations
    rule: ScoreRule
    kept: Sequence[AnnotatedImage]

    record_name = CONVERSION_NAME
    verb = "Writing"
    unit = "image"

    def __post_init__(self) -> None:
        self.num_rows = len(self.kept)
        self.shard_rows = self.config.rows_per_shard or IMAGES_PER_SHARD
        self.features = self.files.features(self.kept[0].uid is not None, self.rule)
        self.bad = BadRows(self.config.on_bad_row == "skip")

    def settings(self) -> dict[str, Any]:
        config, rule = self.config, self.rule
        return {
            "layout": self.layout,
            "rows_per_shard": self.shard_rows,
            "annotations": _digest(self.kept, rule),
            "images": self.files.place(),
            "dataset_name": public_name(config.dataset_name),
            "dataset_config": config.dataset_config,
            "dataset_split": config.dataset_split,
            "columns": asdict(self.files.layout),
            "scale": rule.scale,
            "score_type": rule.score_type,
            "ties": rule.ties,
            "prior": rule.prior,
            "on_bad_row": config.on_bad_row,
        }

    def blocks(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Sequence[AnnotatedImage]]]:
        for shard, rows in self.ranges(wanted):
            yield shard, self.kept[rows.start : rows.stop]

    def source(self, items: Sequence[AnnotatedImage]) -> str | None:
        return self.files.digest(items)

    def rows(
        self, shard: int, items: Sequence[AnnotatedImage], progress: Callable[[int], object]
    ) -> list[dict[str, Any]]:
        rows = list(self.files.rows(items, self.rule, self.bad))
        progress(len(rows))
        return rows

    def warn(self) -> None:
        self.found.bad.warn("annotated", self.found.num_rows)
        self.bad.warn("annotated", self.found.num_rows)

    def facts(self, folder: ParquetFolder) -> dict[str, Any]:
        counts = _counts(self.found, self.kept, folder)
        if not counts["images"]:
            raise ValueError(_none_left(self.files.medium, self.bad))
        return {"found": counts}

    def card(self, folder: ParquetFolder, facts: Mapping[str, Any]) -> str:
        return build_card(folder, self.config.license, self.rule, facts["found"], self.files.medium)

    def announce(self, facts: Mapping[str, Any]) -> None:
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path may hold `[/x]`
        counted = ", ".join(_counted(name, value) for name, value in facts["found"].items() if value)
        told = [f"{self.layout}, {self.read_from}", *([self.found.reading] if self.found.reading else [])]
        console.print(f"Layout: {'; '.join(told)}.")
        console.print(f"Converted: {counted}.")


def convert_dataset(
    dataset: Dataset | IterableDataset, layout: str | Layout = "auto", *, score_type: str | None = None,
    ties: str = "half", prior: float = 1.0, image_dir: str = "", image_suffix: str = "", on_bad_row: str = "error",
    allow_urls: bool = False,
) -> Dataset:  # fmt: skip
    """As [`convert`], of a data set at hand, in memory.

    Args:
        dataset: with the columns of the layout.
        layout: a name of [`LAYOUTS`], `"auto"`, or columns of your own.
        score_type: what becomes the score; see [`~tgo_trl.commands.convert.config.ConvertConfig`], as for the rest.
        ties: `"half"`, `"drop"` or `"zero"`, in win rates.
        prior: of smoothed scores.
        image_dir: where paths of images are relative to, and must lead. If not set, they are relative to the current
            directory, and those of a data set that `load_dataset` read must lead there or into its cache.
        image_suffix: added to paths of images.
        on_bad_row: `"error"` or `"skip"`.
        allow_urls: fetch images whose URLs the data set has.
    """

    def open_columns(columns: Sequence[str] | None) -> Dataset | IterableDataset:
        return dataset if columns is None else undecoded(dataset, *columns)

    if isinstance(layout, str):
        _, layout = named_layout(layout, dataset)
    layout.check()
    origin = find_origin(dataset, image_dir or None, allow_urls, True)
    files = MediaFiles(open_columns, layout, origin, image_suffix)
    found = read_annotations(open_columns, layout, on_bad_row == "skip", content=files.content, origin=origin)
    rule = fit_score_rule(found, layout, score_type, ties, prior)
    kept = scored_images(found, rule)
    features = files.features(kept[0].uid is not None, rule)
    bad = BadRows(on_bad_row == "skip")
    rows = list(files.rows(kept, rule, bad))
    found.bad.warn("annotated", found.num_rows)
    bad.warn("annotated", found.num_rows)
    if not rows:
        raise ValueError(_none_left(files.medium, bad))
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def named_layout(
    name: str, dataset: Dataset | IterableDataset, given: Mapping[str, Any] | None = None
) -> tuple[str, Layout]:
    """The layout of a name of [`LAYOUTS`], or, of `"auto"`, that which the columns tell; and its name.

    Args:
        name: of a published data set, or of what a row is.
        dataset: of which columns are looked at.
        given: the columns that the user has named, by fields of [`Layout`].

    Raises:
        ValueError: if there is none.
    """
    if name == "auto":
        return find_layout(column_names(dataset))
    check_choice("layout", name, ("auto", *LAYOUTS))
    return name, layout_of_kind(name, column_names(dataset), given) if name in KINDS else LAYOUTS[name]


def scored_images(found: Annotations, rule: ScoreRule) -> list[AnnotatedImage]:
    """The images that something was said about.

    Raises:
        ValueError: if there are none.
    """
    kept = [image for image in found.images if rule.values(image.tally) is not None]
    if not kept:
        raise ValueError(
            f"None of the {found.num_rows} rows says anything about an image: {found.num_unlabelled} have no label, "
            f"{found.num_same} compare an image with itself, {len(found.bad.rows)} cannot be read. "
            + " ".join(found.bad.reasons[:3])
        )
    return kept


def _none_left(medium: str, bad: BadRows) -> str:
    return (
        f"No {medium} of the data set can be read, so there is nothing to write. {' '.join(bad.reasons[:3])}".rstrip()
    )


# ---- Opening ----


def _opener(config: ConvertConfig) -> OpenColumns:
    source = (config.dataset_name, config.dataset_config, config.dataset_split, config.dataset_streaming)
    dataset = open_dataset(*source)

    def open_columns(columns: Sequence[str] | None) -> Dataset | IterableDataset:
        if columns is None:
            return dataset
        # to select columns of a stream reads all of them, and nearly all of Pick-a-Pic is images
        is_stream = isinstance(dataset, IterableDataset)
        return undecoded(open_dataset(*source, columns=columns) if is_stream else dataset, *columns)

    return open_columns


# ---- Records ----


def _digest(images: Sequence[AnnotatedImage], rule: ScoreRule) -> str:
    """Of all that the shards hold, images by what tells them apart."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        row = [image.task, image.identity, image.row, image.slot, rule.values(image.tally)]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _counted(name: str, value: int) -> str:
    """A number of `rows_skipped`, say, in words."""
    noun, *rest = name.split("_")
    return " ".join([f"{value:,}", noun.removesuffix("s") if value == 1 else noun, *rest])


def _counts(found: Annotations, kept: Sequence[AnnotatedImage], shards: ParquetFolder) -> dict[str, Any]:
    num_images = dataset_info(shards).splits[shards.split].num_examples
    counts: dict[str, Any] = {
        "rows": found.num_rows,
        "rows_without_label": found.num_unlabelled,
        "rows_of_one_image": found.num_same,
        "rows_skipped": len(found.bad.rows),
        "images": num_images,
        "images_without_score": len(found.images) - len(kept),
        "images_skipped": len(kept) - num_images,
        "prompts": len({image.task for image in kept}),
    }
    comparisons = [image.tally for image in kept if isinstance(image.tally, Comparisons)]
    if comparisons:
        won, never_won = WINNERS[found.scale]
        counts[won] = sum(said.wins > 0 for said in comparisons)
        counts[never_won] = sum(said.wins == 0 for said in comparisons)
    else:
        counts["ratings"] = sum(image.tally.counts[0] for image in kept if isinstance(image.tally, Ratings))
    return counts
