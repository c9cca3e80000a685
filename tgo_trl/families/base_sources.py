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
from .base import Family, of_row


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
            kwargs: for the call; of a list of negative prompts, or of latents, each prompt has one.

        Raises:
            ValueError: if a prompt has no sources or is too long, or the pipeline does not take sources of this size.
        """
        self.check_size(pipeline, size)
        if sources is None or not all(sources):
            raise ValueError(
                f"`{type(self).__name__}` makes samples from source images, and there are none for some prompts. Give "
                "`sources`, a list of images for each prompt."
            )
        for prompt, images in zip(prompts, sources, strict=True):
            self.check_prompts(pipeline, [prompt], len(images))
        samples: list[Sample] = []
        for i, (prompt, generator, images) in enumerate(zip(prompts, generators, sources, strict=True)):
            options = self.source_options([fit_image(image, size) for image in images])
            samples += super().sample(pipeline, [prompt], [generator], size, **{**options, **of_row(kwargs, i)})
        return samples

    def source_options(self, images: list[Image.Image]) -> dict[str, Any]:
        """What the pipeline is called with for the sources of one sample, which have its size."""
        return {self.source_argument: images[0] if self.most_sources == 1 else images}


def shown_sources(sources: Sequence[Sequence[Image.Image]], samples: Sequence[Sample]) -> dict[str, list[Image.Image]]:
    """Source images brought to the sizes of samples, as pipelines see them, to be shown beside these.

    Args:
        sources: those of each sample; there may be none.
        samples: made from them.

    Returns:
        By what a picture calls them, the first of each sample, the second, and so on; white where a sample has fewer.
    """
    most = max(map(len, sources))
    names = ["source"] if most == 1 else [f"source {i + 1}" for i in range(most)]
    frames = [sample[0] if isinstance(sample, list) else sample for sample in samples]
    return {
        name: [_as_seen(images[i:], frame) for images, frame in zip(sources, frames, strict=True)]
        for i, name in enumerate(names)
    }


def _as_seen(images: Sequence[Image.Image], frame: Image.Image) -> Image.Image:
    """The first of the images, if there is one."""
    return fit_image(images[0], (frame.height, frame.width)) if images else Image.new("RGB", frame.size, "white")


def as_images(pixels: Tensor) -> list[Image.Image]:
    """8-bit RGB images of pixels `[N, 3, H, W]` in [-1, 1], of which they were made; black ones, of shapes alone."""
    if pixels.is_meta:
        return [Image.new("RGB", (pixels.shape[-1], pixels.shape[-2])) for _ in pixels]
    shades = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in shades.permute(0, 2, 3, 1).cpu().numpy()]
