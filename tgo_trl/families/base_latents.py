"""What the families on latents of a variational autoencoder share: encoding, decoding, and the sampler's way."""

import functools
import inspect
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

    image_encoders: ClassVar[tuple[str, ...]] = ("vae",)
    latent_patch: ClassVar[int] = 1
    """Latents on each side of what the network sees as one."""
    guides_from_prompt: ClassVar[bool] = False
    """Whether the pipeline's scale is `s` in `f_c + s (f_c - f_0)`, which is 0 for no guidance."""
    usual_size: ClassVar[Size | None] = None
    """The pipeline's default, of one that does not say it but in its call."""

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """The pipeline's default, or else its network's sample size, in pixels."""
        return self.usual_size or default_square(pipeline, self.network_names[0])

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
        latents, shift = posterior_sample(image, posterior_noise), config.get("shift_factor")
        return (latents - float(shift) if shift else latents) * float(config.scaling_factor)

    # ---- The sampler's way, of families that have `has_sampler` ----

    def decode(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]`, about -1 to 1, with gradient.

        Args:
            pipeline: its autoencoder is on the device of `latents`, and decodes in its own dtype.
            latents: float `[B, C, H, W]`, as [`clean`] has them.
        """
        latents = self.unscaled(pipeline, latents).to(pipeline.vae.dtype)
        pixels: Tensor = pipeline.vae.decode(latents, return_dict=False)[0]
        return pixels

    def unscaled(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """What the autoencoder decodes: the inverse of [`clean`]."""
        config = pipeline.vae.config
        return latents / float(config.scaling_factor) + float(config.get("shift_factor") or 0.0)

    def schedule(
        self, pipeline: DiffusionPipeline, num_steps: int, shape: tuple[int, ...], device: torch.device
    ) -> Any:
        """A scheduler of its own, of the pipeline's kind, at the start of `num_steps` steps, as the pipeline sets it.

        Args:
            pipeline: for its scheduler's configuration.
            num_steps: of denoising.
            shape: `(C, H, W)` of the latents.
            device: of its timesteps.
        """
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps, device=device)
        return scheduler

    def guidance(self, pipeline: DiffusionPipeline, scale: float | None) -> float:
        """The scale of classifier-free guidance, the pipeline's own for None; there is none at 1 and below.

        It is 1 more than the pipeline's scale where that [`guides_from_prompt`].

        Raises:
            ValueError: if a scale is given, and the pipeline guides in another way.
        """
        own = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default
        return float(own if scale is None else scale) + self.guides_from_prompt

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """The guided prediction `f_0 + s (f_c - f_0)`, of predictions `[B, C, H, W]` with a prompt and without."""
        return without + scale * (with_prompt - without)

    def guidance_options(self, scale: float) -> dict[str, Any]:
        """What the pipeline is called with to guide by a scale that [`guidance`] returned."""
        return {"guidance_scale": scale - self.guides_from_prompt}

    def encode_nothing(self, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
        """What the networks take in place of a prompt, to be guided away from, as [`encode_prompts`], `[1, ...]`."""
        return self.encode_prompts(pipeline, [""])


def check_num_frames(num_frames: int, step: int) -> None:
    """Raises a ValueError for a video that an autoencoder cannot take that has one frame and then `step` at a time."""
    if num_frames % step != 1 % step:
        below = (num_frames - 1) // step * step + 1
        raise ValueError(
            f"`num_frames` is {num_frames}, but the autoencoder takes one frame and then {step} at a time. Set "
            f"`num_frames` to {below} or {below + step}."
        )


def standardized(latents: Tensor, config: Any) -> Tensor:
    """`(latents - latents_mean) / latents_std` by channel, `[B, C, ...]`, as the configuration has them."""
    mean, std = _moments(latents, config)
    return (latents - mean) / std


def not_standardized(latents: Tensor, config: Any) -> Tensor:
    """`latents * latents_std + latents_mean` by channel, the inverse of [`standardized`]."""
    mean, std = _moments(latents, config)
    return latents * std + mean


def _moments(latents: Tensor, config: Any) -> list[Tensor]:
    shape = (-1, *[1] * (latents.ndim - 2))
    moments = (config.latents_mean, config.latents_std)
    return [_on_device(tuple(values), latents.device).reshape(shape) for values in moments]


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, because to bring numbers to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)
