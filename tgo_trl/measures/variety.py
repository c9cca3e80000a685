"""How different the samples of one prompt are: what a policy loses that has found one picture which scores well."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..media.types import Sample

THUMBNAIL = 32
"""Side of the pictures that are compared, in pixels: composition, pose and colour, without texture."""
MOST_FRAMES = 4
"""Frames of a video that are compared, evenly spread."""


def variety(features: Tensor, groups: Sequence[Hashable]) -> float:
    """Mean Euclidean distance of two samples of the same group, averaged over groups, in the units of `features`.

    0 where all samples of a prompt are the same picture. Compare it with that of the reference on the same prompts and
    seeds, or of real data: alone it says little.

    Args:
        features: float `[N, D]`, one row per sample.
        groups: what each sample is of, its prompt for instance; groups of one sample are passed over.

    Raises:
        ValueError: if no group has two samples, or there is not one group per row.
    """
    return float(torch.stack(list(group_varieties(features, groups).values())).mean())


def group_varieties(features: Tensor, groups: Sequence[Hashable]) -> dict[Hashable, Tensor]:
    """Mean Euclidean distance of two samples of each group, a float64 scalar; arguments and errors as in [`variety`].

    In the order of the groups' first samples, without groups of one.
    """
    if len(groups) != len(features):
        raise ValueError(f"There are {len(features)} samples and {len(groups)} groups; each sample has one.")
    rows: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    distances = {
        group: torch.pdist(features[chosen].double()).mean() for group, chosen in rows.items() if len(chosen) > 1
    }
    if not distances:
        raise ValueError(
            "Variety is the distance between two samples of the same prompt, and every prompt has one sample. Draw two "
            "or more of each."
        )
    return distances


def thumbnails(samples: Sequence[Sample]) -> Tensor:
    """Samples as small pictures in one row each, float32 `[N, D]` in [0, 1], over the square root of D.

    So that the distance of two rows is the root mean square difference of their pixels. Of a video, some frames.

    Args:
        samples: images, or videos as lists of frames, of the same number of frames.
    """
    rows = []
    for sample in samples:
        frames = sample if isinstance(sample, list) else [sample]
        last = len(frames) - 1
        shown = [frames[round(i)] for i in np.linspace(0, last, min(MOST_FRAMES, len(frames)))]
        small = [frame.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for frame in shown]
        rows.append(torch.from_numpy(np.stack([np.asarray(frame) for frame in small])).flatten())
    pixels = torch.stack(rows).float() / 255
    return pixels / math.sqrt(pixels.shape[1])


@dataclass(frozen=True)
class Spread:
    """How rows of numbers were spread.

    Attributes:
        mean: float64 `[D]`.
        variance: the unbiased one, summed over the `D` numbers; 0 of one row.
    """

    mean: Tensor
    variance: float

    @property
    def deviation(self) -> float:
        """The standard deviation, of `D = 1` in the units of the rows."""
        return math.sqrt(self.variance)

    @property
    def distance(self) -> float:
        """The root mean square difference of two rows, over all pairs of them and all of their numbers."""
        return math.sqrt(2 * self.variance / len(self.mean))


class Moments:
    """Sums of rows as they come, from which their [`Spread`] can be told without keeping them."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, rows: Tensor, mask: Tensor) -> None:
        """Adds the rows `[B, D]` where `mask` `[B]` is True."""
        kept = rows.detach().double().where(mask[:, None], 0)
        sums = torch.cat([mask.sum()[None].double(), kept.square().sum()[None], kept.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def pop(self, reduce: Callable[[Tensor, str], Tensor] = lambda sums, how: sums) -> Spread | None:
        """The spread of all rows since the last call, over all processes; None without any.

        Args:
            reduce: sums a tensor over processes, as `Accelerator.reduce` does.
        """
        if self._sums is None:
            return None
        sums, self._sums = reduce(self._sums, "sum").cpu(), None
        num, squares, total = int(sums[0]), sums[1], sums[2:]
        if num == 0:
            return None
        mean = total / num
        within = max(0.0, float(squares - num * mean.square().sum()))
        return Spread(mean, within / max(1, num - 1))
