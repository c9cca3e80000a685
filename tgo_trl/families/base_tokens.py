"""What the families of masked image tokens share: a VQ tokenizer, CLIP, and a transformer that fills in tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from ..noise import MaskedTokenProcess, NoiseProcess
from .base import Family, default_square

GOOD_AESTHETIC_SCORE = 6.0
"""What both kinds of network were told of every training image, and their pipelines tell them by default."""


@dataclass(frozen=True)
class MaskedTokenFamily(Family):
    """A family whose network predicts the tokens of an image, in a grid, of which some are masked."""

    network_names = ("transformer",)
    image_encoders = ("vqvae",)
    prompt_encoders = ("text_encoder", "tokenizer")
    reads_posterior_noise = False

    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        """Tokens masked on the cosine schedule; the last of the network's tokens stands for "masked"."""
        return MaskedTokenProcess(int(pipeline.transformer.config.vocab_size) - 1)

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """The pipeline's default, or else the network's sample size, in pixels."""
        return default_square(pipeline, "transformer")

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """A token, or two of them on each side if the network takes four as one."""
        return int(pipeline.vae_scale_factor) * (2 if pipeline.transformer.config.downsample else 1)

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Tokens, int64 `[B, h, w]`, and what the networks are told of the image.

        Those are its micro-conditions, float32 `[B, 5]`: width and height of the original, top and left of the crop,
        pixels, and an aesthetic score.
        """
        vqvae = pipeline.vqvae
        latents = vqvae.encode(((pixels + 1) / 2).to(vqvae.dtype)).latents
        _, _, (_, _, tokens) = vqvae.quantize(latents)
        height, width, top, left = geometry.to(torch.float32).unbind(1)
        score = torch.full_like(width, GOOD_AESTHETIC_SCORE)
        return {
            "tokens": tokens.reshape(len(latents), *latents.shape[2:]),
            "micro_conds": torch.stack([width, height, top, left, score], dim=1),
        }

    def latent_shape(self, image: Mapping[str, Tensor]) -> tuple[int, ...]:
        """`(L,)`, the number of tokens."""
        return (image["tokens"][0].numel(),)

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """The tokens, int64 `[B, L]`; the tokenizer has no posterior."""
        return image["tokens"].flatten(1)


def as_grid(tokens: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """Tokens `[B, L]` as `[B, h, w]`, the grid that the images were encoded to."""
    return tokens.reshape(conditions["tokens"].shape)


def token_logits(logits: Tensor) -> Tensor:
    """Logits `[B, V, h, w]` of a grid as `[B, L, V]`."""
    return logits.flatten(2).transpose(1, 2)
