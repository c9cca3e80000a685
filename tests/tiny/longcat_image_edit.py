"""A LongCat-Image-Edit of 32-pixel images, each made from another; Qwen sees 16 pixels of it as 28."""

import torch
from diffusers import LongCatImageEditPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

from . import flux, longcat_image
from .data import picture
from .parts import ready

calculate_dimensions = pipeline_longcat_image_edit.calculate_dimensions
# A million pixels, which the pipeline draws, would take minutes
pipeline_longcat_image_edit.calculate_dimensions = lambda area, ratio: calculate_dimensions(area // 1024, ratio)

RESOLUTION = 32
OBLONG = (32, 48)  # a size that it keeps
SOURCES = [[picture(70, (32, 32))], [picture(71, (32, 32))]]
CALL = {"image": SOURCES[0][0], "num_inference_steps": 2, "guidance_scale": 2.0}
UNGUIDED = longcat_image.UNGUIDED
SETTINGS = {}


def build(seed: int = 0, **network_kwargs) -> LongCatImageEditPipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    parts = longcat_image.build(seed, **network_kwargs)
    pipeline = LongCatImageEditPipeline(**parts.components)
    pipeline.tokenizer_max_length = parts.tokenizer_max_length
    return ready(pipeline)


def denoising_error(pipeline, pixels, prompts, draw):
    """As the published train_edit_dpo.py computes it, without its weights, of the mean of the sources' latents."""
    noisy, timesteps, target = flux.noisy_latents(pipeline, pixels, draw)
    errors = []
    for row, (prompt, (image,)) in enumerate(zip(prompts, SOURCES, strict=True)):
        seen = pipeline.image_processor.resize(image, RESOLUTION // 2, RESOLUTION // 2)
        embeds, text_ids = pipeline.encode_prompt(prompt, seen)
        latents = noisy[[row]]
        tokens, of_source, ids, source_ids = pipeline.prepare_latents(
            pipeline.image_processor.preprocess(image), 1, latents.shape[1], RESOLUTION, RESOLUTION, torch.float32,
            embeds.shape[1], "cpu", None, latents=pipeline._pack_latents(latents, *latents.shape),
        )  # fmt: skip
        prediction = pipeline.transformer(
            hidden_states=torch.cat([tokens, of_source], dim=1),
            timestep=timesteps[[row]] / 1000,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=torch.cat([ids, source_ids]),
            return_dict=False,
        )[0][:, : tokens.shape[1]]
        prediction = pipeline._unpack_latents(prediction, RESOLUTION, RESOLUTION, pipeline.vae_scale_factor)
        errors.append(((prediction - target[[row]]) ** 2).mean())
    return torch.stack(errors)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the tokens of the source."""
    _, height, width = latent_shape
    tokens = arguments["hidden_states"][:, : height * width // 4]
    return flux.read_call({**arguments, "hidden_states": tokens}, latent_shape)
