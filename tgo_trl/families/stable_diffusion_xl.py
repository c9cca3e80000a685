"""Stable Diffusion XL: a UNet conditioned on two CLIP encoders, and told of each image's size and crop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..precision import compute_dtype
from .base import posterior_sample
from .base_latents import not_standardized, standardized
from .stable_diffusion import StableDiffusionFamily


@dataclass(frozen=True)
class StableDiffusionXLFamily(StableDiffusionFamily):
    """`StableDiffusionXLPipeline`, the base model and its fine-tunes, epsilon- or v-prediction."""

    undistilled = "stabilityai/stable-diffusion-xl-base-1.0"
    prompt_encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the posterior, and what the UNet is told of the image.

        `time_ids`, int64 `[B, 6]`, pixels: height and width of the original, top and left of the crop, height and width
        of what was cropped (arXiv 2307.01952, section 2.2).
        """
        size = torch.tensor(pixels.shape[-2:], device=geometry.device).expand(len(geometry), -1)
        return {**super().encode_images(pipeline, pixels, geometry), "time_ids": torch.cat([geometry, size], 1)}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Hidden states of both encoders `[B, tokens, features]`, and the second one's pooled one `[B, features]`."""
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder_2.device, do_classifier_free_guidance=False
        )
        return {"embeds": embeds, "pooled": pooled}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = (mean + std * noise - latents_mean) * scaling_factor / latents_std`, float32 `[B, C, H, W]`.

        Most autoencoders have neither `latents_mean` nor `latents_std`: 0 and 1.
        """
        config = pipeline.vae.config
        latents = posterior_sample(image, posterior_noise)
        if config.latents_mean is not None and config.latents_std is not None:
            latents = standardized(latents, config)
        return latents * float(config.scaling_factor)

    def unscaled(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Also undoes `latents_mean` and `latents_std`, where the autoencoder has them."""
        config = pipeline.vae.config
        latents = latents / float(config.scaling_factor)
        if config.latents_mean is not None and config.latents_std is not None:
            latents = not_standardized(latents, config)
        return latents

    def encode_nothing(self, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
        """Zeros, where the pipeline takes them for the empty prompt, as the base model's does."""
        nothing = super().encode_nothing(pipeline)
        if not pipeline.config.force_zeros_for_empty_prompt:
            return nothing
        return {name: torch.zeros_like(tensor) for name, tensor in nothing.items()}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The UNet's output, `[B, C, H, W]`."""
        unet = networks["unet"]
        dtype = compute_dtype(unet)
        prediction: Tensor = unet(
            corrupted.to(dtype),
            time,
            encoder_hidden_states=conditions["embeds"].to(dtype),
            # sizes stay whole: half precision would round them before they are embedded
            added_cond_kwargs={"text_embeds": conditions["pooled"].to(dtype), "time_ids": conditions["time_ids"]},
            return_dict=False,
        )[0]
        return prediction
