"""A Qwen-Image-Edit-2509 of 32-pixel images, each made from two, which the autoencoder and Qwen see at two sizes."""

import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

from . import qwen_image, qwen_image_edit
from .data import picture
from .parts import ready

AREAS = {name: getattr(pipeline_qwenimage_edit_plus, name) for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE")}
# A million pixels and 384 x 384, which the pipeline brings sources to, would take minutes
pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = 64 * 64
pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE = 32 * 32

RESOLUTION = qwen_image_edit.RESOLUTION
SOURCES = [[picture(i, (32, 32)), picture(i + 1, (32, 32))] for i in (72, 74)]
CALL = {**qwen_image_edit.CALL, "image": SOURCES[0], "max_sequence_length": 80}
UNGUIDED = qwen_image_edit.UNGUIDED
SETTINGS = {"max_sequence_length": 80}


def build(seed: int = 0, **network_kwargs) -> QwenImageEditPlusPipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    return ready(QwenImageEditPlusPipeline(**qwen_image_edit.components(seed, **network_kwargs)))


def denoising_error(pipeline, pixels, prompts, draw):
    """As that of Qwen-Image-Edit, with two sizes of each source."""
    noisy, timesteps, target = qwen_image.noisy_latents(pipeline, pixels, draw)
    errors = []
    for row, (prompt, images) in enumerate(zip(prompts, SOURCES, strict=True)):
        embeds, _ = pipeline.encode_prompt([prompt], images)
        frames = [pipeline.image_processor.preprocess(image, 64, 64).unsqueeze(2) for image in images]
        errors.append(
            qwen_image_edit.edit_error(
                pipeline, embeds, frames, [(1, 8, 8)] * 2, noisy[[row]], timesteps[[row]], target[[row]]
            )
        )
    return torch.stack(errors)


read_call = qwen_image_edit.read_call
