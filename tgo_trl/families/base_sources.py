"""What the families share that make a sample from images: which sources they take, and how they are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from ..media.images import fit_image
from ..media.types import Sample, Size
from .base import Family


@dataclass(frozen=True)
class SourceFamily(Family):
    """A family that makes each sample from source images, brought to the sample's size; put it before the other base.

    In training and in every sample alike: what a pipeline would otherwise make of the size of a source is not asked,
    unless it cannot be told one.
    """

    most_sources = 1
    source_argument: ClassVar[str] = "image"
    """What the pipeline's call takes them by."""

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        sources: Sequence[Sequence[Image.Image]] | None = None, **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One sample per prompt, one after the other, as pipelines take sources of a single prompt.

        Args:
            pipeline: called.
            prompts: `N` of them.
            generators: one each.
            size: height and width in pixels, also of the sources.
            sources: the source images of each.
            kwargs: for the call.

        Raises:
            ValueError: if a prompt has no sources.
        """
        if sources is None or not all(sources):
            raise ValueError(
                f"`{type(self).__name__}` makes samples from source images, and there are none for some prompts. Give "
                "`sources`, a list of images for each prompt."
            )
        samples: list[Sample] = []
        for prompt, generator, images in zip(prompts, generators, sources, strict=True):
            options = self.source_options([fit_image(image, size) for image in images])
            samples += super().sample(pipeline, [prompt], [generator], size, **{**options, **kwargs})
        return samples

    def source_options(self, images: list[Image.Image]) -> dict[str, Any]:
        """What the pipeline is called with for the sources of one sample, which have its size."""
        return {self.source_argument: images[0] if self.most_sources == 1 else images}


def as_images(pixels: Tensor) -> list[Image.Image]:
    """8-bit RGB images of pixels `[N, 3, H, W]` in [-1, 1], of which they were made; black ones, of shapes alone."""
    if pixels.is_meta:
        return [Image.new("RGB", (pixels.shape[-1], pixels.shape[-2])) for _ in pixels]
    shades = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in shades.permute(0, 2, 3, 1).cpu().numpy()]
