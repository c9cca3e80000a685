"""What a scale's scored samples tell: rewards by prompt, small pictures, and pictures to show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ...measures import thumbnails
from ...media.images import load_image
from ...media.types import Sample
from ...storage.parquet import ParquetFolder
from ...storage.records import SCORING_NAME

PROMPTS_SHOWN = 3


@dataclass(frozen=True)
class ScaleSamples:
    """The samples of a scale, in the order in which all scales have them.

    Attributes:
        prompt_indices: of each sample, `N` of them.
        rewards: float64 `[N]` each, by column.
        features: float32 `[N, D]`, of [`~tgo_trl.measures.thumbnails`].
        shown: the first sample of some prompts, by the index of the prompt; of a video, its middle frame.
    """

    prompt_indices: list[int]
    rewards: dict[str, Tensor]
    features: Tensor
    shown: dict[int, Image.Image]

    def prompt_means(self, column: str) -> Tensor:
        """The mean of a reward over the samples of each prompt, float64 `[P]`."""
        indices = torch.tensor(self.prompt_indices)
        sums = torch.zeros(int(indices.max()) + 1, dtype=torch.float64).index_add_(0, indices, self.rewards[column])
        return sums / indices.bincount()


def read_samples(folder: Path, medium: str, columns: Sequence[str], num_prompts: int) -> ScaleSamples:
    """Reads what `score` wrote of samples that `generate` had drawn, a shard at a time.

    Args:
        folder: of the scored data set.
        medium: the column of images or videos.
        columns: of the rewards.
        num_prompts: of the whole data set, of which some are shown, spread evenly.
    """
    count = min(PROMPTS_SHOWN, num_prompts)
    is_shown = {i * num_prompts // count for i in range(count)}
    indices: list[int] = []
    rewards: dict[str, list[float]] = {name: [] for name in columns}
    features, shown = [], {}
    for table in _tables(folder, ["prompt_index", "sample_index", medium, *columns]):
        samples = [_decoded(cell) for cell in table[medium]]
        features.append(thumbnails(samples))
        indices += table["prompt_index"]
        for name in columns:
            rewards[name] += table[name]
        for index, number, sample in zip(table["prompt_index"], table["sample_index"], samples, strict=True):
            if number == 0 and index in is_shown:
                shown[index] = sample[len(sample) // 2] if isinstance(sample, list) else sample
    values = {name: torch.tensor(column, dtype=torch.float64) for name, column in rewards.items()}
    return ScaleSamples(indices, values, torch.cat(features), shown)


def _tables(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    for path in ParquetFolder(folder, SCORING_NAME).written().values():
        yield pq.ParquetFile(path).read(list(columns)).to_pydict()


def _decoded(cell: Any) -> Sample:
    """The image, or the frames of a video, as `generate` writes them."""
    return [load_image(frame) for frame in cell] if isinstance(cell, list) else load_image(cell)
