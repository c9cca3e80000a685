"""What the families on latents of a variational autoencoder share: encoding, and drawing from its posterior."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from .base import Family, posterior, posterior_sample


@dataclass(frozen=True)
class LatentFamily(Family):
    """A family on the latents of `pipeline.vae`, which has a Gaussian posterior, a scale, and perhaps a shift."""

    image_encoders = ("vae",)

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """The pipeline's default, in pixels."""
        side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
        return side, side

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the autoencoder's posterior, float32 `[B, C, ...]` each."""
        return posterior(pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist)

    def latent_shape(self, image: Mapping[str, Tensor]) -> tuple[int, ...]:
        """`(C, H, W)` of the latents, or `(C, F, H, W)`, not packed."""
        return tuple(image["mean"].shape[1:])

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = (mean + std * noise - shift_factor) * scaling_factor`, float32 `[B, C, ...]`."""
        config = pipeline.vae.config
        shift = float(config.get("shift_factor") or 0.0)
        return (posterior_sample(image, posterior_noise) - shift) * float(config.scaling_factor)
