"""A Chroma of 16-pixel images, with latents of 4 x 8 x 8 in 16 tokens."""

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from . import flux
from .parts import autoencoder, ready, t5_encoder, t5_tokenizer

RESOLUTION = 16
CALL = {**flux.CALL, "guidance_scale": 2.0}
UNGUIDED = {"guidance_scale": 1.0}
SETTINGS = flux.SETTINGS
read_call = flux.read_call


def build(seed: int = 0, **network_kwargs) -> ChromaPipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (2, 2, 4),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
            **network_kwargs,
        }
    )
    return ready(
        ChromaPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True),
            vae=autoencoder(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=t5_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer,
        )
    )


def denoising_error(pipeline, pixels, prompts, draw):
    """As that of FLUX.1, with the mask that the pipeline has for its own call."""
    embeds, text_ids, mask, *_ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=16
    )
    noisy, timesteps, target = flux.noisy_latents(pipeline, pixels, draw)
    batch, channels, height, width = noisy.shape
    prediction = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, batch, channels, height, width),
        timestep=timesteps / 1000,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        attention_mask=pipeline._prepare_attention_mask(batch, height * width // 4, noisy.dtype, mask),
        return_dict=False,
    )[0]
    scale = pipeline.vae_scale_factor
    prediction = pipeline._unpack_latents(prediction, height * scale, width * scale, scale)
    return ((prediction - target) ** 2).reshape(batch, -1).mean(1)
