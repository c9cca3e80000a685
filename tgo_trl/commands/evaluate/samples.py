"""The samples of a model: how they were drawn, their scores and their variety, and pictures of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ...measures import group_varieties, thumbnails
from ...storage.files import write_json
from ...storage.fingerprints import fingerprint
from ...storage.parquet import ParquetFolder, column
from ...storage.records import GENERATION_NAME, SCORING_NAME, read_record
from ..score.rows import Row, RowReader

VARIETY_NAME = "variety.json"
SCORE = "score"


@dataclass(frozen=True)
class Samples:
    """The data set that was drawn of a model, complete.

    Attributes:
        folder: of the model; its images are in `drawn`, its scores in `scores/<reward>`.
        medium: the column of images or videos.
        num_images_per_prompt: in the order of the prompts.
    """

    folder: Path
    medium: str
    num_images_per_prompt: int

    @property
    def drawn(self) -> ParquetFolder:
        """The images, in shards."""
        return ParquetFolder(self.folder / "drawn", GENERATION_NAME)

    @property
    def reader(self) -> RowReader:
        """Of their rows."""
        return RowReader("prompt", self.medium, self.medium == "video")

    def generation(self) -> dict[str, Any]:
        """How they were drawn."""
        record = read_record(self.folder / "drawn", GENERATION_NAME)
        assert record is not None
        return dict(record["settings"])

    def scores(self, reward: str) -> tuple[Tensor, list[int]]:
        """The scores by a reward, float64 `[P, K]`, and the seed of each of the `P K` samples, in their order."""
        paths = list(ParquetFolder(self.folder / "scores" / reward, SCORING_NAME).written().values())
        values = torch.tensor(column(paths, SCORE), dtype=torch.float64)
        return values.reshape(-1, self.num_images_per_prompt), column(paths, "seed")

    def varieties(self) -> Tensor:
        """Mean distance of two samples of each prompt, float64 `[P]`; measured once, and kept in `variety.json`."""
        path, shards = self.folder / VARIETY_NAME, self.drawn.written()
        source = fingerprint(*(str(self.drawn.digest(shard)) for shard in shards))
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if before.get("source") != source:
            features, prompts = [], []
            for table in map(rows_of, shards.values()):
                features.append(thumbnails([self.reader.media(row[self.medium]) for row in table]))
                prompts += [row["prompt_index"] for row in table]
            found = group_varieties(torch.cat(features), prompts)
            before = {"source": source, "varieties": [value.item() for value in found.values()]}
            write_json(path, before)
        return torch.tensor(before["varieties"], dtype=torch.float64)

    def pictures(self, prompts: Iterable[int]) -> dict[int, Image.Image]:
        """The first sample of some prompts, by the prompt's index; of a video, its middle frame."""
        shards, shard_rows, pictures = self.drawn.written(), self.generation()["rows_per_shard"], {}
        for prompt in prompts:
            shard, row = divmod(prompt * self.num_images_per_prompt, shard_rows)
            sample = self.reader.media(rows_of(shards[shard])[row][self.medium])
            pictures[prompt] = sample[len(sample) // 2] if isinstance(sample, list) else sample
        return pictures


def rows_of(path: Path) -> list[Row]:
    """The rows of a shard, with the bytes of their files."""
    rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
    return rows
