"""What the families share that see one source image as latents, as clean samples are: its mean, scaled alike."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import Tensor

from .base_sources import SourceFamily


@dataclass(frozen=True)
class SourceLatentFamily(SourceFamily):
    """A family of one source image, on an autoencoder with a scale, perhaps a shift; put it before the other base."""

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """The mean of the autoencoder's posterior, which the pipeline takes too, float32 `[B, C, H, W]`."""
        source = pixels[:, 0].to(pipeline.vae.dtype)
        return {"source": pipeline.vae.encode(source).latent_dist.mode().float()}

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With `source` as [`clean`] scales latents, which the configuration says."""
        conditions, config = super().conditions(pipeline, image, prompt), pipeline.vae.config
        shift = float(config.get("shift_factor") or 0.0)
        return {**conditions, "source": (image["source"] - shift) * float(config.scaling_factor)}
