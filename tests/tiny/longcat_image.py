"""A LongCat-Image of 16-pixel images, with latents of 16 x 8 x 8 in 16 tokens."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline, LongCatImageTransformer2DModel
from transformers import Qwen2VLImageProcessorPil

from . import flux
from .parts import autoencoder, qwen_tokenizer, qwen_vl_encoder, ready
from .qwen_image_edit import VISION, PictureProcessor

RESOLUTION = 16
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "enable_prompt_rewrite": False,
}
UNGUIDED = {"guidance_scale": 1.0}
SETTINGS = {}
read_call = flux.read_call


def build(seed: int = 0, **network_kwargs) -> LongCatImagePipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(special=list(VISION.values()))
    transformer = LongCatImageTransformer2DModel(
        **{
            "in_channels": 64,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": [4, 2, 2],
            **network_kwargs,
        }
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION.items()}
    pipeline = LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(latent_channels=16, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=qwen_vl_encoder(tokenizer, **ids),
        tokenizer=tokenizer,
        text_processor=PictureProcessor(Qwen2VLImageProcessorPil(min_pixels=28**2), tokenizer),
        transformer=transformer,
    )
    pipeline.tokenizer_max_length = 24  # of one that is built; its own is 512, which it pads prompts to
    return ready(pipeline)


def denoising_error(pipeline, pixels, prompts, draw):
    """As the published train_dpo.py computes it, without its weights."""
    embeds, text_ids = pipeline.encode_prompt(prompts)
    noisy, timesteps, target = flux.noisy_latents(pipeline, pixels, draw)
    batch, channels, height, width = noisy.shape
    scale = pipeline.vae_scale_factor
    tokens, image_ids = pipeline.prepare_latents(
        batch, channels, height * scale, width * scale, torch.float32, "cpu", None,
        latents=pipeline._pack_latents(noisy, batch, channels, height, width),
    )  # fmt: skip
    prediction = pipeline.transformer(
        hidden_states=tokens,
        timestep=timesteps / 1000,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]
    prediction = pipeline._unpack_latents(prediction, height * scale, width * scale, scale)
    return ((prediction - target) ** 2).reshape(batch, -1).mean(1)
