"""What a column of images and one of videos have in common: how a value is identified, measured and read."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from .images import encoded_bytes, image_size, image_to_tensor, load_image
from .sizes import crop_geometry
from .types import Sample, Size, VideoFormat
from .videos import frame_size, load_video, video_bytes, video_size, video_to_tensor


class MediaReader(ABC):
    """Reads the values of one column. Every method raises a ValueError, with a clause, for a value it cannot read."""

    kind: ClassVar[str]
    """What the column holds, in messages."""
    version: ClassVar[int] = 1
    """To be raised whenever [`read`] begins to return something else, so that what was cached is encoded anew."""

    @property
    def recipe(self) -> str:
        """What tells one way of reading from another, whatever the code is called."""
        return f"{self.kind} {self.version}"

    @abstractmethod
    def content(self, value: Any) -> bytes:
        """The bytes that identify a value."""

    @abstractmethod
    def size(self, value: Any) -> Size:
        """Height and width, without decoding more than is needed."""

    @abstractmethod
    def num_pixels(self, value: Any) -> int:
        """How many [`load`] decodes, by the beginning of the file."""

    @abstractmethod
    def load(self, value: Any) -> Sample:
        """The image or the frames, RGB and upright."""

    @abstractmethod
    def read(self, value: Any, size: Size) -> tuple[Tensor, Tensor]:
        """Pixels and geometry of a value, as [`~tgo_trl.families.Family.encode_images`] takes them, without batch."""

    @abstractmethod
    def blank(self, size: Size) -> tuple[Tensor, Tensor]:
        """What stands in for a value that cannot be read: zeros of the same shapes."""


@dataclass(frozen=True)
class ImageReader(MediaReader):
    """Reads images: pixels `[3, H, W]`."""

    kind = "image"

    def content(self, value: Any) -> bytes:
        """The image file, or size and pixels."""
        return encoded_bytes(value)

    def size(self, value: Any) -> Size:
        """Of the upright image."""
        return image_size(value)

    def num_pixels(self, value: Any) -> int:
        """Of the whole image."""
        return math.prod(image_size(value))

    def load(self, value: Any) -> Image.Image:
        """The image."""
        return load_image(value)

    def read(self, value: Any, size: Size) -> tuple[Tensor, Tensor]:
        """The image, resized and cropped."""
        image = self.load(value)
        return image_to_tensor(image, size), crop_geometry((image.height, image.width), size)

    def blank(self, size: Size) -> tuple[Tensor, Tensor]:
        """A grey image."""
        return torch.zeros(3, *size), crop_geometry(size, size)


@dataclass(frozen=True)
class VideoReader(MediaReader):
    """Reads videos: pixels `[3, F, H, W]`.

    Attributes:
        video_format: what each is cut to.
    """

    video_format: VideoFormat

    kind = "video"

    @property
    def recipe(self) -> str:
        """Also of the frames that are read."""
        return f"{super().recipe} {self.video_format.num_frames} {self.video_format.fps}"

    def content(self, value: Any) -> bytes:
        """The video file, or size and pixels of all frames."""
        return video_bytes(value)

    def size(self, value: Any) -> Size:
        """Of an upright frame."""
        return video_size(value)

    def num_pixels(self, value: Any) -> int:
        """Of all frames of the format."""
        return self.video_format.num_frames * math.prod(frame_size(value))

    def load(self, value: Any) -> list[Image.Image]:
        """The first frames at the format's rate."""
        return load_video(value, self.video_format.num_frames, self.video_format.fps)

    def read(self, value: Any, size: Size) -> tuple[Tensor, Tensor]:
        """The first frames, resized and cropped."""
        frames = self.load(value)
        return video_to_tensor(frames, *size), crop_geometry((frames[0].height, frames[0].width), size)

    def blank(self, size: Size) -> tuple[Tensor, Tensor]:
        """Grey frames."""
        return torch.zeros(3, self.video_format.num_frames, *size), crop_geometry(size, size)
