"""What the families on latents of a variational autoencoder share: encoding, and drawing from its posterior."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from .base import Family, default_square, posterior, posterior_sample


@dataclass(frozen=True)
class LatentFamily(Family):
    """A family on the latents of `pipeline.vae`, which has a Gaussian posterior, a scale, and perhaps a shift."""

    image_encoders = ("vae",)
    latent_patch: ClassVar[int] = 1
    """Latents on each side of what the network sees as one."""

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """The pipeline's default, or else its network's sample size, in pixels."""
        return default_square(pipeline, self.network_names[0])

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """Pixels on each side of a latent, times `latent_patch`."""
        return self.latent_patch * int(pipeline.vae_scale_factor)

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


def standardized(latents: Tensor, config: Any) -> Tensor:
    """`(latents - latents_mean) / latents_std` by channel, `[B, C, ...]`, as the configuration has them."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=latents.device).reshape(-1, *[1] * (latents.ndim - 2))
        for values in (config.latents_mean, config.latents_std)
    )
    return (latents - mean) / std
