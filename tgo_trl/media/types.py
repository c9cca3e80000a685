"""Words for images and videos that every floor uses. Loads no library of models."""

from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""

Sample: TypeAlias = Image.Image | list[Image.Image]
"""A sampled image, or the frames of a sampled video."""


@dataclass(frozen=True)
class VideoFormat:
    """What a training video is cut to.

    Attributes:
        num_frames: frames of each video.
        fps: their rate, frames per second.
    """

    num_frames: int
    fps: float
