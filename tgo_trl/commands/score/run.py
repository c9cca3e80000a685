"""Scores of reward models for a data set: columns that are added to its rows, in shards that a killed run completes."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Value
from tqdm.auto import tqdm

from ...cards.dataset_card import read_record, write_card
from ...data.classes import check_no_classes
from ...data.rows import BadRows
from ...hub.dataset_upload import check_destination, publish
from ...media.origin import find_origin, named_origin
from ...messages.public import public_name, public_value
from ...rewards import REWARDS, load_reward
from ...rewards.base import Reward, checked_scores, reward_name
from ...rewards.ensemble import Ensemble, Member
from ...storage.files import replace_file
from ...storage.fingerprints import fingerprint
from ...storage.parquet import (
    GENERATION_NAME,
    SCORING_NAME,
    ParquetFolder,
    column,
    locks_output_dir,
    process_state,
    rows_per_shard,
)
from ...storage.sources import open_dataset
from .rows import (
    ReadRow,
    Row,
    RowBlocks,
    RowReader,
    Unreadable,
    as_files,
    features_of,
    find_reader,
    read_ahead,
    read_row,
)

if TYPE_CHECKING:
    from .config import ScoreConfig

PIXELS_PER_CALL = 256_000_000
"""Of all images of a reward's batch, which are in memory together: 1 GB. One image may have more."""


@locks_output_dir
def score(
    config: "ScoreConfig",
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
    if dataset is not None:
        origin = find_origin(dataset, config.image_dir, config.allow_urls, copies=True)
    else:
        _check_folders(config)
        origin = named_origin(config.dataset_name, config.image_dir, config.allow_urls)
        dataset = open_dataset(
            config.dataset_name, config.dataset_config, config.dataset_split, config.dataset_streaming
        )
    check_destination(config, config.output_dir, state)
    models = dict(zip(config.reward_columns(), _load_rewards(config, rewards), strict=True))
    features = features_of(dataset)
    check_no_classes(features, {"prompt_column": config.prompt_column})
    reader = find_reader(
        features, config.prompt_column, config.image_column, config.video_column, config.num_frames, config.fps,
        origin, is_copied=True,
    )  # fmt: skip
    rows = RowBlocks(dataset, features, rows_per_shard(config.rows_per_shard, reader.is_video))
    features = _with_scores(features, config.new_columns())
    _try(models, reader, rows.first)

    split = re.match(r"\w+", config.dataset_split)  # of "train[:100]" the name
    shards = ParquetFolder(Path(config.output_dir), SCORING_NAME, split[0] if split else "train", rows.num_shards)
    written = shards.begin(_settings(config, models, reader, rows), state)
    _write_missing(config, shards, set(written), models, reader, rows, features, state)

    state.wait_for_everyone()
    if rows.num_shards is None:
        num_shards = len(shards.written())
        state.wait_for_everyone()
        if state.is_main_process:
            shards.seal(num_shards)
        state.wait_for_everyone()
        shards.num_shards = num_shards
    ensemble = _add_ensemble(config, shards, state)
    state.wait_for_everyone()
    if state.is_main_process:
        shards.check_complete(shards.num_shards or 0)
        _finish(config, shards, rows, ensemble)
    state.wait_for_everyone()
    return shards.folder


def score_dataset(
    dataset: Dataset, rewards: Reward | Mapping[str, Reward], *, prompt_column: str = "prompt",
    image_column: str = "image", video_column: str = "video", num_frames: int | None = None, fps: float | None = None,
    batch_size: int = 32, on_bad_row: str = "error", image_dir: str | None = None, allow_urls: bool = False,
) -> Dataset:  # fmt: skip
    """The data set with columns of scores, in memory; bad rows are left out or raise as in [`score`].

    Args:
        dataset: with prompts and images, or videos.
        rewards: by the name of their column; of a single one it is `score`.
        prompt_column: of the data set.
        image_column: of the data set.
        video_column: scored if there is no column of images.
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
    check_no_classes(features, {"prompt_column": prompt_column})
    origin = find_origin(dataset, image_dir, allow_urls)
    reader = find_reader(features, prompt_column, image_column, video_column, num_frames, fps, origin)
    _with_scores(features, list(models))
    bad = BadRows(skip=on_bad_row == "skip")
    rows = score_rows(enumerate(as_files(dataset)), models, reader, bad, batch_size)
    kept = [(index, scores) for index, _, scores in rows]
    bad.report("given", len(dataset))
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
        if isinstance(read, Unreadable):
            bad.add(index, read.column, read.reason)
            continue
        if batch and num_pixels + read.num_pixels > PIXELS_PER_CALL:
            yield from _score_batch(batch, rewards)
            batch, num_pixels = [], 0
        batch.append((index, read))
        num_pixels += read.num_pixels
        if len(batch) == batch_size:
            yield from _score_batch(batch, rewards)
            batch, num_pixels = [], 0
    if batch:
        yield from _score_batch(batch, rewards)


def _score_batch(
    batch: Sequence[tuple[int, ReadRow]], rewards: Mapping[str, Reward]
) -> Iterator[tuple[int, Row, dict[str, float]]]:
    prompts, media = [read.prompt for _, read in batch], [read.media for _, read in batch]
    columns = {}
    for name, reward in rewards.items():
        try:
            columns[name] = checked_scores(reward, prompts, media)
        except ValueError as error:
            raise ValueError(f"Rows {batch[0][0]} to {batch[-1][0]}: {error}") from error
    for position, (index, read) in enumerate(batch):
        yield index, read.row, {name: scores[position] for name, scores in columns.items()}


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


def _load_rewards(config: "ScoreConfig", rewards: Mapping[str, Reward] | None) -> list[Reward]:
    kwargs: Any = config.reward_kwargs or {}
    if rewards is None:
        return [load_reward(spec, **kwargs.get(spec, {})) for spec in config.rewards]
    missing = [spec for spec in config.rewards if spec not in rewards]
    if missing:
        raise ValueError(f"`rewards` has no {missing[0]!r}, which the settings name; it has {', '.join(rewards)}.")
    return [rewards[spec] for spec in config.rewards]


def _try(models: Mapping[str, Reward], reader: RowReader, rows: Sequence[Row]) -> None:
    """Scores one row, so that a reward that cannot work fails now, and one from the Hub knows its commit."""
    for row in rows:
        read = read_row(reader, row)
        if isinstance(read, ReadRow):
            for reward in models.values():
                checked_scores(reward, [read.prompt], [read.media])
            return


def _describe(spec: str, column: str, reward: Reward, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a reward, without what names a machine.

    The settings of the user's own code may hold anything, keys of services too: they leave a digest only.
    """
    settings = {name: value for name, value in kwargs.items() if name != "device"}
    if spec in REWARDS:
        settings = public_value(settings)
    elif settings:
        settings = {"digest": fingerprint(json.dumps(settings, sort_keys=True, default=str))}
    return {
        "column": column,
        "name": reward_name(reward),
        "version": public_name(str(getattr(reward, "version", "not stated"))),
        "license": str(getattr(reward, "license", "not stated")),
        "settings": json.loads(json.dumps(settings, default=str)),
    }


def _add_ensemble(config: "ScoreConfig", shards: ParquetFolder, state: PartialState) -> Ensemble | None:
    """Fills the column of the weighted sum, whose normalisation is fitted on all rows."""
    if config.ensemble_weights is None:
        return None
    names = config.reward_columns()
    written = shards.written()
    members = {
        name: Member(weight=weight, normalization=config.ensemble_normalization)
        for name, weight in zip(names, config.ensemble_weights, strict=True)
    }
    ensemble = Ensemble(members).fit({name: column(written.values(), name) for name in names})
    for shard, path in list(written.items())[state.process_index :: state.num_processes]:
        table = pq.ParquetFile(path).read()
        position = table.schema.get_field_index(config.ensemble_column)
        if table[position].null_count:
            sums = ensemble.combine({name: table[name].to_pylist() for name in names})
            table = table.set_column(position, table.schema.field(position), pa.array(sums, pa.float64()))
            shards.write_table(shard, table, shards.source(shard))
    return ensemble


# ---- The folder ----


def _check_folders(config: "ScoreConfig") -> None:
    source, target = Path(config.dataset_name), Path(config.output_dir)
    if source.exists() and target.resolve() in (source.resolve(), source.resolve().parent):
        raise ValueError(
            f"`output_dir` is {config.output_dir!r}, where the data set itself is. Set another folder: the rows are "
            "copied there with their scores."
        )


def _settings(
    config: "ScoreConfig", models: Mapping[str, Reward], reader: RowReader, rows: RowBlocks
) -> dict[str, Any]:
    """Everything that the shards are a function of, but for the rows: each shard's are compared with its own.

    Those of the first stand for all where the folder is looked at first.
    """
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
            _describe(spec, column, reward, kwargs.get(spec, {}))
            for spec, (column, reward) in zip(config.rewards, models.items(), strict=True)
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


def _write_missing(
    config: "ScoreConfig", shards: ParquetFolder, written: set[int], models: Mapping[str, Reward], reader: RowReader,
    rows: RowBlocks, features: Features, state: PartialState,
) -> None:  # fmt: skip
    bad = BadRows(skip=config.on_bad_row == "skip")
    num_seen = 0
    if rows.num_shards is None:
        mine, total = None, None
    else:
        missing = sorted(set(range(rows.num_shards)) - written)
        mine = set(missing[state.process_index :: state.num_processes])
        total = sum(min(rows.shard_rows, (rows.num_rows or 0) - shard * rows.shard_rows) for shard in mine)

    def wanted(shard: int) -> bool:  # those that are written, to see that they are of these rows
        if mine is None or shard in written:
            return bool(shard % state.num_processes == state.process_index)
        return shard in mine

    show_progress = state.is_main_process and not config.disable_tqdm and total != 0
    with tqdm(total=total, desc="Scoring", unit="row", disable=not show_progress) as progress:
        for shard, block in rows.shards(wanted):
            source = fingerprint(*map(reader.content, block))
            if shard in written:
                _check_source(shards, shard, source)
                continue
            scored = []
            numbered = enumerate(block, shard * rows.shard_rows)
            for _, row, scores in score_rows(numbered, models, reader, bad, config.batch_size):
                scored.append({**row, **scores})
                progress.update()
            shards.write(shard, scored, features, source)
            pa.default_memory_pool().release_unused()  # as much as the files of a shard, which images need
            num_seen += len(block)
    bad.report("scored", num_seen)


def _check_source(shards: ParquetFolder, shard: int, source: str) -> None:
    if shards.source(shard) != source:
        raise ValueError(
            f"{shards.written()[shard].name} in {str(shards.folder)!r} holds the scores of other prompts or images "
            "than the data set has there now. Set another `output_dir`, or delete the folder to begin anew."
        )


def _finish(config: "ScoreConfig", shards: ParquetFolder, rows: RowBlocks, ensemble: Ensemble | None) -> None:
    num_scored = sum(pq.read_metadata(path).num_rows for path in shards.written().values())
    if num_scored == 0:
        raise ValueError(f"No row of {config.dataset_name!r} could be scored, so there is no data set to write.")
    facts = {
        "ensemble": None if ensemble is None else ensemble.version,
        "num_left_out": None if rows.num_rows is None else rows.num_rows - num_scored,
    }
    shards.finish(facts)
    generation = Path(config.dataset_name) / GENERATION_NAME
    if generation.is_file():  # how the images were drawn, for the card
        replace_file(shards.folder / GENERATION_NAME, lambda path: path.write_bytes(generation.read_bytes()))
    write_card(shards, config)
    if config.push_to_hub:
        publish(shards.folder, config)
