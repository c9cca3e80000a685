"""What the families share whose pipelines take no size: samples have that of the source image, brought to another."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from ..media.types import Size
from .base import class_name
from .base_sources import SourceFamily


@dataclass(frozen=True)
class KeptSizeFamily(SourceFamily):
    """A family whose rows and samples have to have a size that its pipeline keeps; put it before the other base."""

    @abstractmethod
    def drawn_size(self, pipeline: DiffusionPipeline, size: Size) -> Size:
        """Height and width in pixels of what the pipeline draws of a source image of a size."""

    def kept_size(self, pipeline: DiffusionPipeline, size: Size) -> Size:
        """Where an image of a size ends that is drawn from again and again: it is drawn with that very size.

        Many sizes are drawn with another of them, and this with a third; none leads back.
        """
        while (drawn := self.drawn_size(pipeline, size)) != tuple(size):
            size = drawn
        return size

    def check_size(self, pipeline: DiffusionPipeline, size: Size) -> None:
        """Raises a ValueError for a height and width in pixels that the pipeline does not leave an image at."""
        drawn = self.drawn_size(pipeline, size)
        if drawn != tuple(size):
            height, width = self.kept_size(pipeline, drawn)
            raise ValueError(
                f"The size is set to {size[1]} x {size[0]} pixels, and a `{class_name(pipeline)}` takes none: it draws "
                f"{self.medium}s of such an image with {drawn[1]} x {drawn[0]}. Set `height={height}` and "
                f"`width={width}`, which it keeps."
            )

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """Without the size, which is that of the image.

        Raises:
            ValueError: if the pipeline would bring the image to another size.
        """
        self.check_size(pipeline, size)
        call = super().call_options(pipeline, size, **kwargs)
        return {name: value for name, value in call.items() if name not in ("height", "width")}
