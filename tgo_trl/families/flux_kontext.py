"""FLUX.1 Kontext: FLUX.1 with the tokens of a source image behind those of the sample."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from .base_source_latents import SourceLatentFamily
from .flux import FluxFamily, image_ids


@dataclass(frozen=True)
class FluxKontextFamily(SourceLatentFamily, FluxFamily):
    """`FluxKontextPipeline`: FLUX.1 Kontext [dev], of one source image.

    Attributes:
        max_sequence_length: T5 tokens of each prompt, by default 512.
        train_guidance_scale: what the network is told while it trains, 3.5 by default.
    """

    task = "image-to-image"
    undistilled = "black-forest-labs/FLUX.1-Kontext-dev"
    has_sampler = False

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of the latents, then those of the source, whose ids begin with 1."""
        tokens, _ = super().image_tokens(latents, conditions)
        source = conditions["source"].to(latents.dtype)
        packed = FluxPipeline._pack_latents(source, *source.shape)
        return torch.cat([tokens, packed], 1), _all_ids(_grid(latents), _grid(source), latents.device, latents.dtype)

    def source_options(self, images: list[Image.Image]) -> dict[str, Any]:
        """With the sizes as they are: neither is brought to one of the sizes that Kontext was trained at."""
        image = images[0]
        area = image.width * image.height
        return {**super().source_options(images), "max_area": area, "_auto_resize": False}


def _grid(latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2] // 2, latents.shape[-1] // 2


@functools.lru_cache(maxsize=64)
def _all_ids(sample: tuple[int, int], source: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """0, row and column of each token of the sample, then 1, row and column of each of the source, `[n, 3]`."""
    with torch.inference_mode(False):
        ids = image_ids(*source, device, dtype).clone()
        ids[:, 0] = 1
        return torch.cat([image_ids(*sample, device, dtype), ids])
