"""FLUX.2 [dev] and [klein] with source images, whose tokens stand behind those of the sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from torch import Tensor

from ..media.types import Size
from .base_sources import SourceFamily, as_images
from .flux2 import Flux2DevFamily, Flux2Family, Flux2KleinFamily, flattened, token_ids

LARGEST = 1024 * 1024
"""Pixels that the pipelines bring larger sources to; they have no name for them."""
TIME_BETWEEN = 10
"""By which the ids tell sources from the sample and from each other."""


@dataclass(frozen=True)
class Flux2EditFamily(SourceFamily, Flux2Family):
    """What pipelines of FLUX.2 share that are given source images.

    The pipeline brings sources of more than a million pixels to about as many, whatever the sample's size, and so do
    we.
    """

    task = "image-to-image"
    has_sampler = False

    def check_size(self, pipeline: DiffusionPipeline, size: Size) -> None:
        """Raises a ValueError for a height and width in pixels of which the pipeline refuses sources."""
        try:
            Flux2ImageProcessor.check_image_input(Image.new("1", (size[1], size[0])))
        except ValueError as error:
            raise ValueError(
                f"FLUX.2 takes no source images of this size ({error}). They are brought to the size of the sample: "
                "set `resolution`, or `height` and `width`, to at least 64 pixels a side, and no side to more than 8 "
                "times the other."
            ) from error

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """The mean of the posterior as the network sees it, which the pipeline takes too.

        float32 `[B, S, 4 C, H / 2, W / 2]` of latents `[C, H, W]` of each source.

        Raises:
            ValueError: for a size of sources that the pipeline refuses.
        """
        self.check_size(pipeline, (pixels.shape[-2], pixels.shape[-1]))
        images = _as_taken(pipeline, as_images(pixels.flatten(0, 1)))
        # without a size of the original, which these networks are not told
        latents = super().encode_images(pipeline, images.to(pixels.device), pixels.new_zeros(len(images), 4))["mean"]
        return {"source": latents.reshape(*pixels.shape[:2], *latents.shape[1:])}

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of the latents, then those of each source, whose times are 10, 20, ..."""
        found = [super().image_tokens(latents, conditions)]
        for i, source in enumerate(conditions["source"].to(latents.dtype).unbind(1), 1):
            found.append((flattened(source), token_ids((*source.shape[-2:], 1), source.device, i * TIME_BETWEEN)))
        tokens, ids = zip(*found, strict=True)
        return torch.cat(tokens, 1), torch.cat(ids, 1)


@dataclass(frozen=True)
class Flux2DevEditFamily(Flux2EditFamily, Flux2DevFamily):
    """`Flux2Pipeline` of one to six source images, as many as are recommended for FLUX.2 [dev].

    Attributes:
        max_sequence_length: as of [`~tgo_trl.families.Flux2DevFamily`]; prompts are read without the sources.
        train_guidance_scale: likewise.
    """

    most_sources = 6


@dataclass(frozen=True)
class Flux2KleinEditFamily(Flux2EditFamily, Flux2KleinFamily):
    """`Flux2KleinPipeline` of one to four source images, as many as FLUX.2 [klein] was published for.

    Attributes:
        max_sequence_length: as of [`~tgo_trl.families.Flux2KleinFamily`]; prompts are read without the sources.
    """

    most_sources = 4


def _as_taken(pipeline: Any, images: list[Image.Image]) -> Tensor:
    """Pixels float32 `[N, 3, H, W]` of sources of one size, as the pipeline brings them to the autoencoder."""
    processor, multiple = pipeline.image_processor, 2 * int(pipeline.vae_scale_factor)
    taken = []
    for image in images:
        image = processor._resize_if_exceeds_area(image, LARGEST)
        height, width = (side // multiple * multiple for side in (image.height, image.width))
        taken.append(processor.preprocess(image, height=height, width=width, resize_mode="crop"))
    return torch.cat(taken)
