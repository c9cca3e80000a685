"""A Qwen-Image of 32-pixel images, with latents of 4 x 8 x 8 in 16 tokens."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from .parts import qwen_tokenizer, qwen_vl_encoder, ready, sharpen

RESOLUTION = 32
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "true_cfg_scale": 2.0,
    "negative_prompt": " ",
    "max_sequence_length": 16,
}
UNGUIDED = {"true_cfg_scale": 1.0, "negative_prompt": None}
SETTINGS = {"max_sequence_length": 16}
TEMPLATE = (
    "Describe the image by detailing the color shape size texture quantity text spatial relationships of the objects "
    "and background"
)
"""Words that precede every prompt: the pipeline drops 34 tokens, which they are if each is one token."""


def build(seed: int = 0, **network_kwargs) -> QwenImagePipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    first, *others = TEMPLATE.split()
    tokenizer = qwen_tokenizer([first, *(f" {word}" for word in others)])
    transformer = QwenImageTransformer2DModel(
        **{
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 2, 2),
            **network_kwargs,
        }
    )
    vae = autoencoder()
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
    )
    return ready(
        QwenImagePipeline(
            scheduler=scheduler,
            vae=vae,
            text_encoder=qwen_vl_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer,
        )
    )


def autoencoder() -> AutoencoderKLQwenImage:
    """With four channels, an image four times as wide as its latents."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.75, 0.25, 0.5, 1.5],
        latents_std=[2.5, 1.5, 2.0, 3.0],
    )
    sharpen(vae, vae.quant_conv, torch.rand(4, 3, 1, RESOLUTION, RESOLUTION) * 2 - 1, std=2.0)
    return vae


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_qwen_image.py computes it."""
    embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=16)
    noisy, timesteps, target = noisy_latents(pipeline, pixels, draw)
    batch, channels, _, height, width = noisy.shape
    side, scale = pixels.shape[-1], pipeline.vae_scale_factor
    prediction = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy.permute(0, 2, 1, 3, 4), batch, channels, height, width),
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        timestep=timesteps / 1000,
        img_shapes=[(1, side // scale // 2, side // scale // 2)] * batch,
        return_dict=False,
    )[0]
    prediction = pipeline._unpack_latents(prediction, side, side, scale)
    return ((prediction - target) ** 2).reshape(batch, -1).mean(1)


def noisy_latents(pipeline, pixels, draw):
    """Noisy latents `[B, C, 1, H, W]` of images, their times `[B]`, and the velocity at them."""
    config = pipeline.vae.config
    latents_mean = torch.tensor(config.latents_mean).view(1, config.z_dim, 1, 1, 1)
    latents_std = 1.0 / torch.tensor(config.latents_std).view(1, config.z_dim, 1, 1, 1)
    posterior = pipeline.vae.encode(pixels.unsqueeze(2)).latent_dist
    model_input = posterior.mean + posterior.std * draw.posterior_noise.unsqueeze(2)
    model_input, noise = (model_input - latents_mean) * latents_std, draw.noise.unsqueeze(2)
    schedule = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    sigmas, timesteps = schedule.sigmas[indices].reshape(-1, 1, 1, 1, 1), schedule.timesteps[indices]
    return (1.0 - sigmas) * model_input + sigmas * noise, timesteps, noise - model_input


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network."""
    _, height, width = latent_shape
    latents = QwenImagePipeline._unpack_latents(arguments["hidden_states"], height, width, 1)
    return latents.squeeze(2), arguments["timestep"] * 1000
