"""A FLUX.2 [klein] of 64-pixel images, the smallest that it takes as sources, each made from two."""

import torch
from diffusers import Flux2KleinPipeline

from . import flux2
from .data import picture

RESOLUTION = 64
SOURCES = [[picture(i, (RESOLUTION, RESOLUTION)), picture(i + 1, (RESOLUTION, RESOLUTION))] for i in (76, 78)]
CALL = {**flux2.CALL, "height": RESOLUTION, "width": RESOLUTION, "image": SOURCES[0]}
UNGUIDED = flux2.UNGUIDED
SETTINGS = flux2.SETTINGS
WIDTHS = (4, 8, 8, 8)


def build(seed: int = 0, is_distilled: bool = False, **network_kwargs) -> Flux2KleinPipeline:
    """The pipeline, with latents of 4 x 8 x 8 in 16 tokens; `network_kwargs` go to its transformer."""
    return flux2.build(seed, is_distilled, WIDTHS, **network_kwargs)


def source_pixels(pipeline, sources):
    """`[B, 3, H, W]` of each place."""
    preprocess = pipeline.image_processor.preprocess
    return [torch.cat([preprocess(it) for it in of_place]) for of_place in zip(*sources, strict=True)]


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_flux2_klein_img2img.py computes it, of several sources."""
    return flux2.denoising_error(pipeline, pixels, prompts, draw, sources=source_pixels(pipeline, SOURCES))


read_call = flux2.read_call
