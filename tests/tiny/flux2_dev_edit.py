"""A FLUX.2 [dev] of 64-pixel images, each made from one."""

from diffusers import Flux2Pipeline

from . import flux2_dev, flux2_edit

RESOLUTION = flux2_edit.RESOLUTION
SOURCES = [images[:1] for images in flux2_edit.SOURCES]
CALL = {**flux2_dev.CALL, "height": RESOLUTION, "width": RESOLUTION, "image": SOURCES[0]}
UNGUIDED = flux2_dev.UNGUIDED
SETTINGS = flux2_dev.SETTINGS


def build(seed: int = 0, **network_kwargs) -> Flux2Pipeline:
    """The pipeline, with the latents of the tiny [klein]; `network_kwargs` go to its transformer."""
    return flux2_dev.build(seed, flux2_edit.WIDTHS, **network_kwargs)


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_flux2_img2img.py computes it."""
    return flux2_dev.denoising_error(pipeline, pixels, prompts, draw, flux2_edit.source_pixels(pipeline, SOURCES))


read_call = flux2_edit.read_call
