"""The scores of a model's samples by one reward, kept apart from the images: what is there is not scored again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Value

from ...cards.dataset_card import card_head, dataset_info
from ...data.rows import BadRows
from ...rewards.base import DRAWN_FOR, Reward, reward_name
from ...storage.parquet import ParquetFolder
from ...storage.processes import process_state
from ...storage.records import SCORING_NAME, read_record
from ..generate.config import SOURCE_COLUMN
from ..score.config import ScoreConfig
from ..score.rows import Row
from ..score.run import describe_reward, score_rows, try_rewards, with_rate, with_sources
from ..sharded_run import ShardedRun, write_dataset
from .samples import SCORE, Samples, rows_of

NUMBERS = ("prompt_index", "sample_index", "seed")
REMEDY = (
    "Models are compared on the scores of all samples. The same command scores what is missing; if this one stays "
    "without a score, leave the reward {} out."
)


def write_scores(config: ScoreConfig, reward: Reward, samples: Samples) -> None:
    """Scores what is missing, in `config.output_dir`; every process of a distributed launch calls this.

    Args:
        config: of one reward.
        reward: that one, loaded.
        samples: complete.

    Raises:
        ValueError: if the folder holds scores of other images, or by another version of the reward.
    """
    write_dataset(_Scoring(config, reward, samples), Path(config.output_dir), config, process_state())


@dataclass
class _Scoring(ShardedRun[Path]):
    """The scores of a model's samples by one reward: a row for each, without its image.

    The shards are those of the images, of which each is read only if its scores are missing.

    Attributes:
        config: of the reward.
        reward: loaded.
        samples: that are scored.
    """

    config: ScoreConfig
    reward: Reward
    samples: Samples

    record_name = SCORING_NAME
    verb = "Scoring"

    def __post_init__(self) -> None:
        self.unit = self.samples.medium
        self.images = self.samples.drawn.written()
        counts = [pq.read_metadata(path).num_rows for path in self.images.values()]
        self.num_rows, self.shard_rows = sum(counts), counts[0]
        numbers = {name: Value("int64") for name in NUMBERS}
        features = Features.from_arrow_schema(pq.read_schema(self.images[0]))
        reader = with_sources(self.samples.reader, features, SOURCE_COLUMN, {SCORE: self.reward})
        rate = self.samples.generation()["family"].get("fps") if reader.is_video else None
        self.reader = with_rate(reader, {reward_name(self.reward): self.reward}, rate, DRAWN_FOR)
        self.features = Features({"prompt": Value("string"), **numbers, SCORE: Value("float64")})
        if not self._is_scored():  # by a server, that may cost money, or be gone
            try_rewards({SCORE: self.reward}, self.reader, rows_of(self.images[0])[:1])

    def _is_scored(self) -> bool:
        """Whether all scores are there, by this reward as far as it knows its version before it is called."""
        folder = Path(self.config.output_dir)
        record = read_record(folder, SCORING_NAME)
        if record is None or record.get("settings") != self.settings():
            return False
        return ParquetFolder(folder, SCORING_NAME).written().keys() == self.images.keys()

    def settings(self) -> dict[str, Any]:
        kwargs: Any = self.config.reward_kwargs
        [spec] = self.config.rewards
        return {
            "reward": describe_reward(spec, SCORE, self.reward, kwargs.get(spec, {})),
            "batch_size": self.config.batch_size,
            "num_rows": self.num_rows,
            "rows_per_shard": self.shard_rows,
        }

    def blocks(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Path]]]:
        return ((shard, [path]) for shard, path in self.images.items() if wanted(shard))

    def source(self, items: Sequence[Path]) -> str | None:
        [path] = items
        return self.samples.drawn.digest(next(shard for shard, image in self.images.items() if image == path))

    def rows(self, shard: int, items: Sequence[Path], progress: Callable[[int], object]) -> list[Row]:
        scored, bad = [], BadRows(skip=False, remedy=REMEDY.format(repr(reward_name(self.reward))))
        numbered = enumerate(rows_of(items[0]), shard * self.shard_rows)
        models, size = {SCORE: self.reward}, self.config.batch_size
        for _, row, scores in score_rows(numbered, models, self.reader, bad, size):
            scored.append({name: row[name] for name in ("prompt", *NUMBERS)} | scores)
            progress(1)
        return scored

    def facts(self, folder: ParquetFolder) -> dict[str, Any]:
        return {}

    def card(self, folder: ParquetFolder, facts: Mapping[str, Any]) -> str:
        name = self.settings()["reward"]["name"]
        return f"{card_head(dataset_info(folder), tags=['tgo_trl'])}Scores of {self.num_rows:,} samples by {name}.\n"
