"""A HunyuanVideo 1.5 of image to video: that of text to video, with a first frame of 16 pixels."""

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from . import hunyuan_video15
from .data import picture
from .parts import ready

RESOLUTION, NUM_FRAMES, UNGUIDED = (getattr(hunyuan_video15, name) for name in ("RESOLUTION", "NUM_FRAMES", "UNGUIDED"))
SETTINGS = hunyuan_video15.SETTINGS
OBLONG = (12, 20)  # a size that it keeps
SOURCES = [[picture(90)], [picture(91)]]
CALL = {"image": SOURCES[0][0], "num_frames": NUM_FRAMES, "num_inference_steps": 2}


def build(seed: int = 0, guidance_scale: float = 1.0, **network_kwargs) -> HunyuanVideo15ImageToVideoPipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    parts = hunyuan_video15.build(seed, guidance_scale, **{"task_type": "i2v", **network_kwargs}).components
    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    processor = SiglipImageProcessor(size={"height": 8, "width": 8})
    pipeline = HunyuanVideo15ImageToVideoPipeline(
        **parts, image_encoder=SiglipVisionModel(config), feature_extractor=processor
    )
    return ready(hunyuan_video15.with_lengths(pipeline))


def denoising_error(pipeline, pixels, prompts, draw):
    """As of text to video, with what the pipeline itself makes of the first frames."""

    def first_frames(noisy):
        rows = []
        for row, (image,) in zip(noisy, SOURCES, strict=True):
            size = (RESOLUTION, RESOLUTION)
            condition, mask = pipeline.prepare_cond_latents_and_mask(row[None], image, 1, *size, torch.float32, "cpu")
            rows.append((condition, mask, pipeline.encode_image(image, 1, "cpu", torch.float32)))
        return [torch.cat(tensors) for tensors in zip(*rows, strict=True)]

    return hunyuan_video15.denoising_error(pipeline, pixels, prompts, draw, first_frames)


read_call = hunyuan_video15.read_call
