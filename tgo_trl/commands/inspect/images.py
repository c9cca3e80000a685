"""Sizes of a data set's images, and what bringing them to one size would cut off."""

from collections import Counter
from dataclasses import dataclass

import torch

from ...labels.thresholds import percentile_threshold
from ...media.types import Size

NUM_LISTED = 5


@dataclass(frozen=True)
class ImageSummary:
    """Of the images whose header could be read.

    Attributes:
        num_sizes: different sizes.
        sizes: the most frequent ones, as `"width x height"`, with their rows.
        shorter_side: minimum, 10 %, median and maximum, in pixels.
        aspect_ratio: of width to height, minimum, median and maximum.
        elongation: of the longer side to the shorter, 99 % of the rows have at most this.
        square_loss: mean share of the pixels that a centred square crop cuts off.
        single_size: width and height, if all images have the same.
    """

    num_sizes: int
    sizes: dict[str, int]
    shorter_side: tuple[int, int, int, int]
    aspect_ratio: tuple[float, float, float]
    elongation: float
    square_loss: float
    single_size: tuple[int, int] | None


def summarize_images(sizes: list[Size]) -> ImageSummary:
    """The summary of sizes, height and width in pixels, at least one."""
    counts = Counter(sizes)
    height, width = torch.tensor(sizes, dtype=torch.float64).unbind(1)
    shorter, longer = torch.minimum(height, width), torch.maximum(height, width)
    side = [percentile_threshold(shorter, p).item() for p in (0, 10, 50, 100)]
    ratio = [percentile_threshold(width / height, p).item() for p in (0, 50, 100)]
    (h, w), _ = counts.most_common(1)[0]
    return ImageSummary(
        num_sizes=len(counts),
        sizes={f"{w} x {h}": count for (h, w), count in counts.most_common(NUM_LISTED)},
        shorter_side=(int(side[0]), int(side[1]), int(side[2]), int(side[3])),
        aspect_ratio=(ratio[0], ratio[1], ratio[2]),
        elongation=percentile_threshold(longer / shorter, 99).item(),
        square_loss=(1 - shorter / longer).mean().item(),
        single_size=(w, h) if len(counts) == 1 else None,
    )
