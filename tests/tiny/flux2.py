"""A FLUX.2 [klein] of 16-pixel images, with latents of 4 x 8 x 8 in 16 tokens."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)

from .parts import qwen3_lm, qwen_tokenizer, ready, sharpen

RESOLUTION = 16
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}
UNGUIDED = {"guidance_scale": 1.0}
SETTINGS = {"max_sequence_length": 16}
WIDTHS = (4, 8)


def build(
    seed: int = 0, is_distilled: bool = False, widths: Sequence[int] = WIDTHS, **network_kwargs
) -> Flux2KleinPipeline:
    """The pipeline; `widths` are its autoencoder's, and `network_kwargs` go to its transformer."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    transformer = tiny_transformer({"guidance_embeds": False, **network_kwargs})
    return ready(
        Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=tiny_autoencoder(widths),
            text_encoder=qwen3_lm(tokenizer, num_layers=28),  # the pipeline reads the 9th, 18th and 27th
            tokenizer=tokenizer,
            transformer=transformer,
            is_distilled=is_distilled,
        )
    )


def tiny_transformer(network_kwargs: dict) -> Flux2Transformer2DModel:
    """Of two blocks, one of each kind."""
    return Flux2Transformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (2, 2, 2, 2),
            **network_kwargs,
        }
    )


def tiny_autoencoder(widths: Sequence[int] = WIDTHS) -> AutoencoderKLFlux2:
    """Halves behind each width but the last, with statistics of two by two latents that are not those of noise."""
    vae = AutoencoderKLFlux2(
        block_out_channels=list(widths),
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=RESOLUTION,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    sharpen(vae, vae.encoder.conv_out, torch.rand(4, 3, RESOLUTION, RESOLUTION) * 2 - 1, std=2.0)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(2.0, 6.0)
    return vae


def denoising_error(pipeline, pixels, prompts, draw, max_sequence_length=16, guidance=None, sources=None):
    """As train_dreambooth_lora_flux2_klein.py computes it, and train_dreambooth_lora_flux2.py with a guidance.

    With pixels of `sources`, `[B, 3, H, W]` of each place, as the `_img2img` versions of the scripts do.
    """
    embeds, text_ids = pipeline.encode_prompt(list(prompts), max_sequence_length=max_sequence_length)
    statistics = pipeline.vae.bn
    std = torch.sqrt(statistics.running_var.view(1, -1, 1, 1) + pipeline.vae.config.batch_norm_eps)
    model_input = pipeline._patchify_latents(pipeline.vae.encode(pixels).latent_dist.mode())
    model_input = (model_input - statistics.running_mean.view(1, -1, 1, 1)) / std
    schedule = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    sigmas, timesteps = schedule.sigmas[indices].reshape(-1, 1, 1, 1), schedule.timesteps[indices]
    noisy = (1.0 - sigmas) * model_input + sigmas * draw.noise
    ids = pipeline._prepare_latent_ids(noisy)
    tokens, all_ids = pipeline._pack_latents(noisy), ids
    if sources is not None:
        latents = [pipeline._encode_vae_image(images, None) for images in sources]
        source_ids = pipeline._prepare_image_ids([it[:1] for it in latents]).expand(len(noisy), -1, -1)
        tokens = torch.cat([tokens, *map(pipeline._pack_latents, latents)], 1)
        all_ids = torch.cat([ids, source_ids], 1)
    prediction = pipeline.transformer(
        hidden_states=tokens,
        timestep=timesteps / 1000,
        guidance=guidance,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=all_ids,
        return_dict=False,
    )[0][:, : ids.shape[1]]
    prediction = pipeline._unpack_latents_with_ids(prediction, ids)
    return ((prediction - (draw.noise - model_input)) ** 2).reshape(len(prediction), -1).mean(1)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, without the tokens of sources."""
    num_tokens = latent_shape[-2] * latent_shape[-1]
    ids, tokens = (arguments[name][:, :num_tokens] for name in ("img_ids", "hidden_states"))
    return Flux2KleinPipeline._unpack_latents_with_ids(tokens, ids), arguments["timestep"] * 1000
