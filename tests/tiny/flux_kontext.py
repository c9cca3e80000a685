"""A FLUX.1 Kontext of 16-pixel images, each made from another."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

from . import flux
from .data import picture
from .parts import ready

RESOLUTION = 16
SOURCES = [[picture(70)], [picture(71)]]
CALL = {**flux.CALL, "image": SOURCES[0][0], "max_area": RESOLUTION**2, "_auto_resize": False}
UNGUIDED = {}
SETTINGS = flux.SETTINGS


def build(seed: int = 0, **network_kwargs) -> FluxKontextPipeline:
    """FLUX.1 Kontext [dev]; `network_kwargs` go to its transformer."""
    return ready(FluxKontextPipeline(**flux.build(seed, **network_kwargs).components))


def denoising_error(pipeline, pixels, prompts, draw):
    """As that of FLUX.1, with the tokens of the sources, scaled as latents are, behind those of the sample."""
    embeds, pooled, text_ids = pipeline.encode_prompt(prompts, None, max_sequence_length=16)
    posterior, config = pipeline.vae.encode(pixels).latent_dist, pipeline.vae.config
    model_input = (posterior.mean + posterior.std * draw.posterior_noise - config.shift_factor) * config.scaling_factor
    sources = torch.cat([pipeline.image_processor.preprocess(images[0]) for images in SOURCES])
    schedule = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    sigmas, timesteps = schedule.sigmas[indices].reshape(-1, 1, 1, 1), schedule.timesteps[indices]
    noisy = (1.0 - sigmas) * model_input + sigmas * draw.noise
    batch, channels, height, width = noisy.shape
    tokens, source_tokens, ids, source_ids = pipeline.prepare_latents(
        sources, batch, channels, pixels.shape[-2], pixels.shape[-1], torch.float32, "cpu",
        latents=pipeline._pack_latents(noisy, batch, channels, height, width),
    )  # fmt: skip
    prediction = pipeline.transformer(
        hidden_states=torch.cat([tokens, source_tokens], dim=1),
        timestep=timesteps / 1000,
        guidance=torch.tensor([3.5]).expand(batch),
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=torch.cat([ids, source_ids]),
        return_dict=False,
    )[0][:, : tokens.shape[1]]
    scale = pipeline.vae_scale_factor
    prediction = pipeline._unpack_latents(prediction, height * scale, width * scale, scale)
    return ((prediction - (draw.noise - model_input)) ** 2).reshape(batch, -1).mean(1)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the source's tokens."""
    _, height, width = latent_shape
    tokens = arguments["hidden_states"][:, : height * width // 4]
    return FluxKontextPipeline._unpack_latents(tokens, height, width, 1), arguments["timestep"] * 1000
