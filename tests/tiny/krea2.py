"""A Krea 2 of 32-pixel images, with latents of 4 x 8 x 8 in 16 tokens."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

from . import qwen_image
from .parts import qwen3_vl_lm, qwen_tokenizer, ready

RESOLUTION = 32
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "max_sequence_length": 24,
}
UNGUIDED = {"guidance_scale": 0.0}
SETTINGS = {"max_sequence_length": 24}


def build(seed: int = 0, is_distilled: bool = False, **network_kwargs) -> Krea2Pipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    first, *others = qwen_image.TEMPLATE.split()  # which Krea 2 has too, with more commas: 34 tokens here as there
    tokenizer = qwen_tokenizer([first, *(f" {word}" for word in others)])
    transformer = Krea2Transformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 24,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 16,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 24,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
            **network_kwargs,
        }
    )
    return ready(
        Krea2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
            vae=qwen_image.autoencoder(),
            text_encoder=qwen3_vl_lm(tokenizer).model,
            tokenizer=tokenizer,
            transformer=transformer,
            text_encoder_select_layers=(1, 2),
            is_distilled=is_distilled,
        )
    )


def denoising_error(pipeline, pixels, prompts, draw):
    """As train_dreambooth_lora_krea2.py computes it."""
    embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=24)
    noisy, timesteps, target = qwen_image.noisy_latents(pipeline, pixels, draw)
    batch, channels, _, height, width = noisy.shape
    packed = noisy.permute(0, 2, 1, 3, 4)
    prediction = pipeline.transformer(
        hidden_states=pipeline._pack_latents(packed, batch, channels, height, width),
        encoder_hidden_states=embeds,
        timestep=timesteps / 1000,
        position_ids=pipeline.prepare_position_ids(embeds.shape[1], height // 2, width // 2, "cpu"),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    prediction = pipeline._unpack_latents(prediction, pixels.shape[-2], pixels.shape[-1])
    return ((prediction - target) ** 2).reshape(batch, -1).mean(1)


read_call = qwen_image.read_call
