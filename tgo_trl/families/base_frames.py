"""What the families share whose autoencoder is one of videos, to which each image is a video of one frame."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import Tensor

from .base import posterior_sample
from .base_flow import FlowMatchingFamily
from .base_latents import not_standardized, standardized


@dataclass(frozen=True)
class FrameFamily(FlowMatchingFamily):
    """A flow-matching family of images on the latents of an autoencoder of videos, standardised by channel."""

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the posterior, float32 `[B, C, H, W]` each."""
        encoded = super().encode_images(pipeline, pixels.unsqueeze(2), geometry)
        return {name: tensor.squeeze(2) for name, tensor in encoded.items()}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = (mean + std * noise - latents_mean) / latents_std`, float32 `[B, C, H, W]`."""
        return standardized(posterior_sample(image, posterior_noise), pipeline.vae.config)

    def decode(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]`, about -1 to 1, with gradient."""
        return super().decode(pipeline, latents).squeeze(2)

    def unscaled(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Also one frame of a video, `[B, C, 1, H, W]`."""
        return not_standardized(latents, pipeline.vae.config).unsqueeze(2)
