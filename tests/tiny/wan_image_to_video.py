"""A Wan 2.1 and a Wan 2.2 of two stages, image to video: those of text to video, with a first frame beside the latents.

The networks take 16 channels of the sample, 4 of a mask of the first frame, and 16 of its latents. That of a Wan 2.2 of
the other kind takes the latents of the first frame before those of the sample, which are of 48 x 1 x 2 x 2.
"""

import torch
from diffusers import WanImageToVideoPipeline
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from . import wan
from .data import picture
from .parts import ready

RESOLUTION, NUM_FRAMES, UNGUIDED = wan.RESOLUTION, wan.NUM_FRAMES, wan.UNGUIDED
SOURCES = [[picture(80, (RESOLUTION, RESOLUTION))], [picture(81, (RESOLUTION, RESOLUTION))]]
CALL = {**wan.CALL, "image": SOURCES[0][0], "max_sequence_length": 512}
SETTINGS = {"num_frames": NUM_FRAMES}
BESIDE = {"in_channels": 36, "out_channels": 16}


def build(seed: int = 0, **network_kwargs) -> WanImageToVideoPipeline:
    """Wan 2.1, which sees the image by CLIP too."""
    of_image = {"image_dim": 16, "added_kv_proj_dim": 24}
    return _pipeline(wan.build(seed, **{**BESIDE, **of_image, **network_kwargs}), **_image_encoder())


def build_two_stage(seed: int = 0, boundary_ratio: float = 0.9, **network_kwargs) -> WanImageToVideoPipeline:
    """Wan 2.2 A14B."""
    return _pipeline(wan.build_two_stage(seed, boundary_ratio, **{**BESIDE, **network_kwargs}))


def build_ti2v(seed: int = 0, **network_kwargs) -> WanImageToVideoPipeline:
    """Wan 2.2 TI2V-5B."""
    return _pipeline(wan.build_ti2v(seed, **network_kwargs))


def _image_encoder() -> dict:
    size = {"height": 8, "width": 8}
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4,
        initializer_range=0.2,
    )  # fmt: skip
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


def _pipeline(text_to_video, **parts) -> WanImageToVideoPipeline:
    config = {name: text_to_video.config[name] for name in ("boundary_ratio", "expand_timesteps")}
    return ready(WanImageToVideoPipeline(**{**text_to_video.components, **parts}, **config))


VARIANTS = {"two_stage": build_two_stage, "ti2v": build_ti2v}


def denoising_error(pipeline, pixels, prompts, draw):
    """As a trainer of Wan computes it, with what the pipeline itself makes of the first frames."""
    image_embeds = None
    if pipeline.image_encoder is not None:
        image_embeds = pipeline.encode_image([images[0] for images in SOURCES])
    frames = torch.cat([pipeline.video_processor.preprocess(images[0]) for images in SOURCES])

    def given(sample, time, rows):
        """As in the pipeline's loop, but that the sample of TI2V-5B has no first latent frame."""
        size = (RESOLUTION, RESOLUTION, NUM_FRAMES)
        if pipeline.config.expand_timesteps:
            sample = torch.cat([torch.zeros_like(sample[:, :, :1]), sample], 2)
        sample, condition, *mask = pipeline.prepare_latents(
            frames[rows], 1, sample.shape[1], *size, torch.float32, "cpu", latents=sample
        )
        if not mask:
            image = None if image_embeds is None else image_embeds[rows]
            return {
                "hidden_states": torch.cat([sample, condition], 1),
                "timestep": time[None],
                "encoder_hidden_states_image": image,
            }
        mixed = (1 - mask[0]) * condition + mask[0] * sample
        return {"hidden_states": mixed, "timestep": (mask[0][0][0][:, ::2, ::2] * time).flatten()[None]}

    return wan.denoising_error(pipeline, pixels, prompts, draw, 512, given)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the mask and the first frame."""
    channels, num_frames, *_ = latent_shape
    sample = arguments["hidden_states"][:, :channels, -num_frames:]
    return sample, arguments["timestep"].reshape(1, -1)[:, -1]
