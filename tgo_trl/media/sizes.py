"""The sizes that images are brought to: one for all, or a bucket per aspect ratio."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .types import Size

STEPS_PER_SIDE = 16
"""Sides of buckets are multiples of a sixteenth of the square's side: 64 pixels at 1024, as is usual."""


def aspect_ratio_sizes(size: Size, multiple: int, max_aspect_ratio: float) -> list[Size]:
    """Sizes of about as many pixels as `size` and never more, from tall to wide, `size` among them.

    Args:
        size: of the bucket that the others are like.
        multiple: what both sides are multiples of.
        max_aspect_ratio: of the longer side to the shorter.
    """
    area = math.prod(size)
    step = max(multiple, int(math.sqrt(area) / STEPS_PER_SIDE) // multiple * multiple)
    sides = range(step, int(math.sqrt(area * max_aspect_ratio)) + 1, step)
    tall = {(side, area // side // step * step) for side in sides}
    tall = {(long, short) for long, short in tall if short and 1 <= long / short <= max_aspect_ratio}
    return by_aspect_ratio([*tall, *((short, long) for long, short in tall), size])


def by_aspect_ratio(sizes: Iterable[Size]) -> list[Size]:
    """The distinct ones of some sizes, from tall to wide."""
    return sorted(set(sizes), key=_aspect_ratio)


def nearest_size(original: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to the original's, by its logarithm: the one that is cropped least."""
    target = math.log(_aspect_ratio(original))
    return min(sizes, key=lambda size: abs(math.log(_aspect_ratio(size)) - target))


def crop_geometry(original: Size, size: Size) -> Tensor:
    """int64 `[4]`, pixels: the original's height and width, and top and left of the centred crop after resizing.

    What networks with size conditioning (SDXL, arXiv 2307.01952, section 2.2) are told of an image.
    """
    scale = max(size[0] / original[0], size[1] / original[1])
    corner = (max(0, round((side * scale - kept) / 2)) for side, kept in zip(original, size, strict=True))
    return torch.tensor([*original, *corner])


def _aspect_ratio(size: Size) -> float:
    return size[1] / size[0]


def check_size(size: Size, multiple: int, is_square: bool = False) -> None:
    """Raises a ValueError, with the nearest size, if height and width are not multiples of what the pipeline needs.

    Args:
        size: height and width in pixels.
        multiple: of the pipeline.
        is_square: whether it was set as `resolution`.
    """
    nearest = [max(1, round(side / multiple)) * multiple for side in size]
    if nearest != list(size):
        came = f"`resolution` is {size[0]}" if is_square else f"`height` and `width` are {size[0]} and {size[1]}"
        write = f"`resolution={nearest[0]}`" if is_square else f"`height={nearest[0]}` and `width={nearest[1]}`"
        raise ValueError(f"{came}, but this pipeline needs a multiple of {multiple}. Set {write}.")
