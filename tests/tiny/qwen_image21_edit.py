"""A Qwen-Image 2.1 of 64-pixel images, each made from two."""

from . import qwen_image21
from .data import picture

RESOLUTION = qwen_image21.RESOLUTION
SOURCES = [[picture(i, (RESOLUTION, RESOLUTION)), picture(i + 1, (RESOLUTION, RESOLUTION))] for i in (80, 82)]
CALL = {**qwen_image21.CALL, "image": SOURCES[0], "output_resolution": RESOLUTION}
UNGUIDED = qwen_image21.UNGUIDED
SETTINGS = {"max_sequence_length": 64}

build = qwen_image21.build
read_call = qwen_image21.read_call


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_qwenimage21_img2img.py computes it, of several sources."""
    return qwen_image21.denoising_error(pipeline, pixels, prompts, draw, SOURCES)
