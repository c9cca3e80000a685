"""Scores of reward models for a data set: columns that are added to its rows, in shards that a killed run completes."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Value

from ...cards.dataset_card import build_card
from ...data.columns import features_of, undecoded
from ...data.rows import BadRows
from ...media.embedding import ColumnError
from ...media.origin import find_origin, named_origin
from ...messages.public import public_name, public_value
from ...rewards import REWARDS, load_reward
from ...rewards.base import (
    NoScore,
    Reward,
    check_rates,
    check_sources,
    reads_fps,
    reads_sources,
    reward_name,
    scores_or_none,
)
from ...rewards.ensemble import Ensemble, Member
from ...storage.files import replace_file
from ...storage.fingerprints import fingerprint
from ...storage.parquet import ParquetFolder, column
from ...storage.processes import process_state
from ...storage.records import GENERATION_NAME, SCORING_NAME, read_record
from ...storage.sources import open_dataset
from ..sharded_run import ShardedRun, check_destination, locks_output_dir, rows_per_shard, write_dataset
from .config import ScoreConfig
from .rows import ReadRow, Row, RowBlocks, RowReader, find_reader, read_ahead

PIXELS_PER_CALL = 256_000_000
"""Of all images of a reward's batch, which are in memory together: 1 GB. One image may have more."""


@locks_output_dir
def score(
    config: ScoreConfig,
    dataset: Dataset | IterableDataset | None = None,
    rewards: Mapping[str, Reward] | None = None,
) -> Path:
    """Writes a data set with columns of scores; goes on where a run with the same settings stopped.

    Every process of a distributed launch calls this; they share the work.

    Args:
        config: what is scored, and by what.
        dataset: scored instead of the one that `config` names.
        rewards: by their name in `config.rewards`, instead of loading those.

    Returns:
        The folder, `config.output_dir`: the rows as they were, files and all, with float64 columns.

    Raises:
        ValueError: for settings that cannot work, a folder that holds data made with other settings, or a bad row.
    """
    state = process_state()
    folder = Path(config.output_dir)
    if dataset is not None:
        origin = find_origin(dataset, config.image_dir, config.allow_urls, copies=True)
    else:
        _check_folders(config)
        origin = named_origin(config.dataset_name, config.image_dir, config.allow_urls)
        dataset = open_dataset(
            config.dataset_name, config.dataset_config, config.dataset_split, config.dataset_streaming
        )
    check_destination(folder, config, state)
    models = dict(zip(config.reward_columns(), _load_rewards(config, rewards), strict=True))
    features = features_of(dataset)
    reader = find_reader(
        features, config.prompt_column, config.image_column, config.video_column, config.num_frames, config.fps,
        origin, is_copied=True,
    )  # fmt: skip
    reader = with_sources(reader, features, config.source_column, models)
    named = dict(zip(config.rewards, models.values(), strict=True))
    reader = with_rate(reader, named, *_known_rate(config) if reader.is_video else (None, ""))
    rows = RowBlocks(dataset, features, rows_per_shard(config.rows_per_shard, reader.is_video))
    run = _Scoring(config, models, reader, rows, _with_scores(features, config.new_columns()))
    try_rewards(models, reader, rows.first)
    return write_dataset(run, folder, config, state)


@dataclass
class _Scoring(ShardedRun[Row]):
    """Rows with their scores.

    Attributes:
        config: of the command.
        models: the rewards by column.
        reader: of what they are given.
        data: the rows.
        features: of the rows with scores.
    """

    config: ScoreConfig
    models: Mapping[str, Reward]
    reader: RowReader
    data: RowBlocks
    features: Features
    ensemble: Ensemble | None = None

    record_name = SCORING_NAME
    verb = "Scoring"
    unit = "row"

    def __post_init__(self) -> None:
        name = re.match(r"\w+", self.config.dataset_split)  # of "train[:100]"
        self.split = name[0] if name else "train"
        self.num_rows, self.shard_rows = self.data.num_rows, self.data.shard_rows
        self.bad = BadRows(skip=self.config.on_bad_row == "skip")
        self.num_seen = 0

    def settings(self) -> dict[str, Any]:
        """Everything that the shards are a function of, but for the rows: each shard's are compared with its own.

        Those of the first stand for all where the folder is looked at first.
        """
        config, reader, rows = self.config, self.reader, self.data
        kwargs: Any = config.reward_kwargs or {}
        earlier = read_record(Path(config.dataset_name), SCORING_NAME)
        return {
            "dataset": public_name(config.dataset_name),
            "dataset_config": config.dataset_config,
            "dataset_split": config.dataset_split,
            "num_rows": rows.num_rows,
            "columns": list(rows.features),
            "content": fingerprint(*map(reader.content, rows.first)),
            "reader": reader.settings(),
            "rewards": [
                describe_reward(spec, column, reward, kwargs.get(spec, {}))
                for spec, (column, reward) in zip(config.rewards, self.models.items(), strict=True)
            ],
            "earlier_rewards": [*earlier["settings"]["earlier_rewards"], *earlier["settings"]["rewards"]]
            if earlier
            else [],
            "ensemble": None
            if config.ensemble_weights is None
            else {
                "column": config.ensemble_column,
                "weights": config.ensemble_weights,
                "normalization": config.ensemble_normalization,
            },
            "batch_size": config.batch_size,
            "rows_per_shard": rows.shard_rows,
            "on_bad_row": config.on_bad_row,
        }

    def blocks(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        return self.data.shards(wanted)

    def source(self, items: Sequence[Row]) -> str:
        return fingerprint(*map(self.reader.content, items))

    def rows(self, shard: int, items: Sequence[Row], progress: Callable[[int], object]) -> list[Row]:
        scored = []
        numbered = enumerate(items, shard * self.shard_rows)
        for _, row, scores in score_rows(numbered, self.models, self.reader, self.bad, self.config.batch_size):
            scored.append({**row, **scores})
            progress(1)
        self.num_seen += len(items)
        return scored

    def warn(self) -> None:
        self.bad.warn("scored", self.num_seen)

    def complete(self, folder: ParquetFolder, state: PartialState) -> None:
        """Fills the column of the weighted sum, whose normalisation is fitted on all rows."""
        config, written = self.config, folder.written()
        if config.ensemble_weights is None:
            return
        names = config.reward_columns()
        members = {
            name: Member(weight=weight, normalization=config.ensemble_normalization)
            for name, weight in zip(names, config.ensemble_weights, strict=True)
        }
        self.ensemble = Ensemble(members).fit({name: column(written.values(), name) for name in names})
        for shard, path in list(written.items())[state.process_index :: state.num_processes]:
            table = pq.ParquetFile(path).read()
            position = table.schema.get_field_index(config.ensemble_column)
            sums = self.ensemble.combine({name: table[name].to_pylist() for name in names})
            if table[position].to_pylist() != sums:  # or they were, before another shard was lost and scored anew
                table = table.set_column(position, table.schema.field(position), pa.array(sums, pa.float64()))
                folder.write_table(shard, table, folder.source(shard))

    def facts(self, folder: ParquetFolder) -> dict[str, Any]:
        num_scored = sum(pq.read_metadata(path).num_rows for path in folder.written().values())
        if num_scored == 0:
            raise ValueError(
                f"No row of {self.config.dataset_name!r} could be scored, so there is no data set to write."
            )
        generation = Path(self.config.dataset_name) / GENERATION_NAME
        if generation.is_file():  # how the images were sampled, for the card
            replace_file(folder.folder / GENERATION_NAME, lambda path: path.write_bytes(generation.read_bytes()))
        return {
            "ensemble": None if self.ensemble is None else self.ensemble.version,
            "num_left_out": None if self.num_rows is None else self.num_rows - num_scored,
        }

    def card(self, folder: ParquetFolder, facts: Mapping[str, Any]) -> str:
        return str(build_card(folder, self.config.hub_dataset_id, self.config.license))


def score_dataset(
    dataset: Dataset, rewards: Reward | Mapping[str, Reward], *, prompt_column: str = "prompt",
    image_column: str = "image", video_column: str = "video", source_column: str = "source_image",
    num_frames: int | None = None, fps: float | None = None,
    batch_size: int = 32, on_bad_row: str = "error", image_dir: str | None = None, allow_urls: bool = False,
) -> Dataset:  # fmt: skip
    """The data set with columns of scores, in memory; bad rows are left out or raise as in [`score`].

    Args:
        dataset: with prompts and images, or videos.
        rewards: by the name of their column; of a single one it is `score`.
        prompt_column: of the data set.
        image_column: of the data set.
        video_column: scored if there is no column of images.
        source_column: of the images that each row's was made from, for rewards that judge edits.
        num_frames: of a video that is scored; lists of frames are taken whole if None.
        fps: of a video file that is scored.
        batch_size: rows per call of a reward.
        on_bad_row: `"error"` or `"skip"`.
        image_dir: where paths of images are relative to, and must lead; any file of this machine if not set.
        allow_urls: fetch images whose URLs the data set has.

    Raises:
        TypeError: for a stream.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`dataset` is a `{type(dataset).__name__}`, which has no rows in memory. Use `score`.")
    models = rewards if isinstance(rewards, Mapping) else {"score": rewards}
    features = features_of(dataset)
    origin = find_origin(dataset, image_dir, allow_urls)
    reader = find_reader(features, prompt_column, image_column, video_column, num_frames, fps, origin)
    reader = with_sources(reader, features, source_column, models)
    reader = with_rate(reader, models, fps if reader.is_video else None, READ_AT)
    _with_scores(features, list(models))
    bad = BadRows(skip=on_bad_row == "skip")
    rows = score_rows(enumerate(undecoded(dataset)), models, reader, bad, batch_size)
    kept = [(index, scores) for index, _, scores in rows]
    bad.warn("given", len(dataset))
    scored = dataset.select([index for index, _ in kept])
    for name in models:
        scored = scored.add_column(name, [scores[name] for _, scores in kept])
    return scored


def score_rows(
    rows: Iterable[tuple[int, Row]], rewards: Mapping[str, Reward], reader: RowReader, bad: BadRows, batch_size: int
) -> Iterator[tuple[int, Row, dict[str, float]]]:
    """Index, row and scores by column of each good row, in order.

    Args:
        rows: with their index in the data set.
        rewards: by column.
        reader: of what they are given.
        bad: raises at bad rows, or notes them.
        batch_size: rows per call of a reward.
    """
    batch: list[tuple[int, ReadRow]] = []
    num_pixels = 0
    for index, read in read_ahead(rows, reader, 2 * batch_size):
        if isinstance(read, ColumnError):
            bad.add(index, read.column, str(read))
            continue
        if batch and num_pixels + read.num_pixels > PIXELS_PER_CALL:
            yield from _score_batch(batch, rewards, reader.rate, bad)
            batch, num_pixels = [], 0
        batch.append((index, read))
        num_pixels += read.num_pixels
        if len(batch) == batch_size:
            yield from _score_batch(batch, rewards, reader.rate, bad)
            batch, num_pixels = [], 0
    if batch:
        yield from _score_batch(batch, rewards, reader.rate, bad)


def _score_batch(
    batch: Sequence[tuple[int, ReadRow]], rewards: Mapping[str, Reward], rate: float | None, bad: BadRows
) -> Iterator[tuple[int, Row, dict[str, float]]]:
    prompts, media = [read.prompt for _, read in batch], [read.media for _, read in batch]
    sources = [read.sources for _, read in batch if read.sources is not None] or None
    columns: dict[str, list[float | NoScore]] = {}
    for name, reward in rewards.items():
        try:
            columns[name] = scores_or_none(reward, prompts, media, sources, rate)
        except ValueError as error:
            raise ValueError(f"Rows {batch[0][0]} to {batch[-1][0]}: {error}") from error
    for position, (index, read) in enumerate(batch):
        given = {name: column[position] for name, column in columns.items()}
        missing = [(name, score.reason) for name, score in given.items() if isinstance(score, NoScore)]
        if missing:
            bad.add(index, *missing[0])
        else:
            yield index, read.row, {name: score for name, score in given.items() if not isinstance(score, NoScore)}


def _with_scores(features: Features, names: Sequence[str]) -> Features:
    """The features with columns of scores."""
    taken = [name for name in names if name in features]
    if taken:
        raise ValueError(
            f"The data set has a column {taken[0]!r} already. Name the new one with `score_columns` or "
            "`ensemble_column`, or drop the old one."
        )
    return Features({**features, **{name: Value("float64") for name in names}})


# ---- Rewards ----


def with_sources(reader: RowReader, features: Features, column: str, rewards: Mapping[str, Reward]) -> RowReader:
    """The reader, which also reads the images that others were made from if a reward judges edits.

    Raises:
        ValueError: if one does, and there is no such column.
    """
    check_sources(rewards, column in features, f"Set `source_column`: there is no {column!r} in {', '.join(features)}.")
    return replace(reader, source_column=column) if any(map(reads_sources, rewards.values())) else reader


def with_rate(reader: RowReader, rewards: Mapping[str, Reward], rate: float | None, known: str) -> RowReader:
    """The reader, which also knows the rate of videos if a reward is to be told it; raises as [`check_rates`]."""
    check_rates(rewards, rate, known)
    return replace(reader, rate=rate) if any(map(reads_fps, rewards.values())) else reader


READ_AT = "frames are read at `fps`"


def _known_rate(config: ScoreConfig) -> tuple[float | None, str]:
    """The rate of frames that `generate` has drawn, whatever `fps` is, else of files that are read at it; and why."""
    drawn = read_record(Path(config.dataset_name), GENERATION_NAME)
    rate = None if drawn is None else drawn["settings"].get("family", {}).get("fps")
    if rate is not None:
        return rate, f"{GENERATION_NAME} says that the videos were drawn for"
    return config.fps, READ_AT


def _load_rewards(config: ScoreConfig, rewards: Mapping[str, Reward] | None) -> list[Reward]:
    kwargs: Any = config.reward_kwargs or {}
    if rewards is None:
        return [load_reward(spec, **kwargs.get(spec, {})) for spec in config.rewards]
    missing = [spec for spec in config.rewards if spec not in rewards]
    if missing:
        raise ValueError(f"`rewards` has no {missing[0]!r}, which the settings name; it has {', '.join(rewards)}.")
    return [rewards[spec] for spec in config.rewards]


def try_rewards(models: Mapping[str, Reward], reader: RowReader, rows: Sequence[Row]) -> None:
    """Scores one row, so that a reward that cannot work fails now, and one from the Hub knows its commit."""
    for row in rows:
        read = reader.read(row)
        if isinstance(read, ReadRow):
            for reward in models.values():
                sources = None if read.sources is None else [read.sources]
                scores_or_none(reward, [read.prompt], [read.media], sources, reader.rate)
            return


def describe_reward(spec: str, column: str, reward: Reward, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a reward, without what names a machine.

    The settings of the user's own code may hold anything, keys of services too: they leave a digest only.
    """
    unrecorded = {"device", *getattr(reward, "unrecorded_settings", ())}
    settings = {name: value for name, value in kwargs.items() if name not in unrecorded}
    if spec in REWARDS:
        settings = public_value(settings)
    elif settings:
        settings = {"digest": fingerprint(json.dumps(settings, sort_keys=True, default=str))}
    dtype = getattr(reward, "dtype", None)
    if isinstance(dtype, torch.dtype):  # the usual one depends on the machine
        settings = {**settings, "dtype": str(dtype).removeprefix("torch.")}
    return {
        "column": column,
        "name": reward_name(reward),
        "version": public_name(str(getattr(reward, "version", "not stated"))),
        "license": str(getattr(reward, "license", "not stated")),
        "settings": json.loads(json.dumps(settings, default=str)),
    }


def _check_folders(config: ScoreConfig) -> None:
    source, target = Path(config.dataset_name), Path(config.output_dir)
    if source.exists() and target.resolve() in (source.resolve(), source.resolve().parent):
        raise ValueError(
            f"`output_dir` is {config.output_dir!r}, where the data set itself is. Set another folder: the rows are "
            "copied there with their scores."
        )
