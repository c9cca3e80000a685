"""A FLUX.1 of 16-pixel images, with latents of 4 x 8 x 8 in 16 tokens."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from .parts import autoencoder, clip_encoder, clip_tokenizer, ready, t5_encoder, t5_tokenizer

RESOLUTION = 16
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "guidance_scale": 3.5,
    "max_sequence_length": 16,
}
UNGUIDED = {}  # the guidance is an input of the network
SETTINGS = {"max_sequence_length": 16}


def build(seed: int = 0, **network_kwargs) -> FluxPipeline:
    """FLUX.1-dev, or FLUX.1-schnell where `guidance_embeds=False`."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
            **network_kwargs,
        }
    )
    is_dev = transformer.config.guidance_embeds
    return ready(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if is_dev else 1.0, use_dynamic_shifting=is_dev),
            vae=autoencoder(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=clip_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(tokenizer_2),
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
    )


def build_schnell(seed: int = 0) -> FluxPipeline:
    """FLUX.1-schnell, without an input for the guidance."""
    return build(seed, guidance_embeds=False)


VARIANTS = {"schnell": build_schnell}


def noisy_latents(pipeline, pixels, draw):
    """Latents, scaled and with the noise of a draw, their timesteps, and what the network should predict."""
    posterior, config = pipeline.vae.encode(pixels).latent_dist, pipeline.vae.config
    model_input = (posterior.mean + posterior.std * draw.posterior_noise - config.shift_factor) * config.scaling_factor
    schedule = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    sigmas, timesteps = schedule.sigmas[indices].reshape(-1, 1, 1, 1), schedule.timesteps[indices]
    noisy = (1.0 - sigmas) * model_input + sigmas * draw.noise
    return noisy, timesteps, draw.noise - model_input


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_flux.py computes it."""
    embeds, pooled, text_ids = pipeline.encode_prompt(prompts, None, max_sequence_length=16)
    noisy, timesteps, target = noisy_latents(pipeline, pixels, draw)
    batch, channels, height, width = noisy.shape
    is_dev = pipeline.transformer.config.guidance_embeds
    prediction = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, batch, channels, height, width),
        timestep=timesteps / 1000,
        guidance=torch.tensor([3.5]).expand(batch) if is_dev else None,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    scale = pipeline.vae_scale_factor
    prediction = pipeline._unpack_latents(prediction, height * scale, width * scale, scale)
    return ((prediction - target) ** 2).reshape(batch, -1).mean(1)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network."""
    _, height, width = latent_shape
    return FluxPipeline._unpack_latents(arguments["hidden_states"], height, width, 1), arguments["timestep"] * 1000
