"""A HunyuanVideo 1.5 of clips of 5 frames of 16 pixels, with latents of 4 x 2 x 4 x 4."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import ByT5Tokenizer

from .parts import qwen_tokenizer, qwen_vl_text, ready, t5_encoder

RESOLUTION = 16
NUM_FRAMES = 5
CALL = {"height": RESOLUTION, "width": RESOLUTION, "num_frames": NUM_FRAMES, "num_inference_steps": 2}
UNGUIDED = {}
SETTINGS = {"num_frames": NUM_FRAMES}
LENGTHS = {
    "system_message": "Say",
    "prompt_template_encode_start_idx": 11,
    "tokenizer_max_length": 40,
    "tokenizer_2_max_length": 24,
    "vision_num_semantic_tokens": 6,
}
"""What the pipeline has no arguments for, of one that is built. One that is loaded has its own: 1985 tokens in all."""


def with_lengths(pipeline):
    """A pipeline, which is given [`LENGTHS`]; its class is left as it is."""
    vars(pipeline).update(LENGTHS)
    return pipeline


def build(seed: int = 0, guidance_scale: float = 1.0, **network_kwargs) -> HunyuanVideo15Pipeline:
    """The pipeline; `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    tokenizer, letters = qwen_tokenizer(), ByT5Tokenizer()
    transformer = HunyuanVideo15Transformer3DModel(
        **{
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 32,
            "image_embed_dim": 8,
            "rope_axes_dim": (4, 4, 4),
            "target_size": RESOLUTION,
            "task_type": "t2v",
            **network_kwargs,
        }
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        scaling_factor=0.8,
    )
    pipeline = HunyuanVideo15Pipeline(
        text_encoder=qwen_vl_text(tokenizer, num_layers=3),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=t5_encoder(letters),
        tokenizer_2=letters,
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
    )
    return ready(with_lengths(pipeline))


def denoising_error(pipeline, pixels, prompts, draw, first_frames=None):
    """The velocity's error on the scheduler's shifted training grid, with what the pipeline gives the network.

    `first_frames(noisy)` are what it gives of images: latents, a mask, and embeddings.
    """
    embeds, mask, embeds_2, mask_2 = pipeline.encode_prompt(prompts, batch_size=len(prompts))
    posteriors = [pipeline.vae.encode(row[None]).latent_dist for row in pixels]
    mean, std = (torch.cat([getattr(it, name) for it in posteriors]) for name in ("mean", "std"))
    latents = (mean + std * draw.posterior_noise) * pipeline.vae.config.scaling_factor
    schedule = FlowMatchEulerDiscreteScheduler(shift=5.0)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    sigmas, timesteps = schedule.sigmas[indices].reshape(-1, 1, 1, 1, 1), schedule.timesteps[indices]
    noisy = (1.0 - sigmas) * latents + sigmas * draw.noise
    if first_frames is None:
        condition, condition_mask = pipeline.prepare_cond_latents_and_mask(noisy, torch.float32, "cpu")
        image_embeds = torch.zeros(len(prompts), pipeline.vision_num_semantic_tokens, 8)
    else:
        condition, condition_mask, image_embeds = first_frames(noisy)
    prediction = pipeline.transformer(
        hidden_states=torch.cat([noisy, condition, condition_mask], dim=1),
        timestep=timesteps,
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        encoder_hidden_states_2=embeds_2,
        encoder_attention_mask_2=mask_2,
        image_embeds=image_embeds,
        return_dict=False,
    )[0]
    return ((prediction - (draw.noise - latents)) ** 2).flatten(1).mean(1)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the empty channels."""
    return arguments["hidden_states"][:, : latent_shape[0]], arguments["timestep"]
