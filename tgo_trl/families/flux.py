"""FLUX.1: a transformer on packed latents, conditioned on T5's hidden states and CLIP's pooled one."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor

from ..precision import compute_dtype
from .base_guidance import ToldGuidanceFamily


@dataclass(frozen=True)
class FluxFamily(ToldGuidanceFamily):
    """`FluxPipeline`: FLUX.1 [dev], which takes the guidance scale as an input, and FLUX.1 [schnell].

    Attributes:
        max_sequence_length: T5 tokens of each prompt; by default 512, of schnell 256, as they were trained.
        train_guidance_scale: what dev is told while it trains, 3.5 by default; schnell is told nothing.
    """

    max_sequence_length: int | None = None

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    usual_guidance = 3.5
    prompt_encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    comfyui_prefix = "transformer."
    undistilled = "black-forest-labs/FLUX.1-dev"
    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip

    def step_distilled_from(self, pipeline: DiffusionPipeline) -> str | None:
        """Also of [schnell] under another name: no guidance as an input, and a shift that sizes do not change."""
        is_schnell = not (
            pipeline.transformer.config.guidance_embeds or pipeline.scheduler.config.get("use_dynamic_shifting")
        )
        return f"`{self.undistilled}`" if is_schnell else super().step_distilled_from(pipeline)

    def prompt_length(self, pipeline: DiffusionPipeline) -> dict[str, int]:
        """As set, or as the network was trained."""
        trained = 512 if pipeline.transformer.config.guidance_embeds else 256
        return {"max_sequence_length": self.max_sequence_length or trained}

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """512, above which the pipeline refuses to be called."""
        return 512

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """T5's hidden states `[B, max_sequence_length, features]` and CLIP's pooled one `[B, features]`."""
        device = pipeline.text_encoder_2.device
        embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device=device, **self.prompt_length(pipeline))
        return {"embeds": embeds, "pooled": pooled}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype, device = compute_dtype(transformer), corrupted.device
        batch, _, height, width = corrupted.shape
        embeds = conditions["embeds"].to(dtype)
        tokens, ids = self.image_tokens(corrupted.to(dtype), conditions)
        guidance = self.guidance_input(batch, device) if transformer.config.guidance_embeds else None
        prediction = transformer(
            hidden_states=tokens,
            timestep=time / 1000,
            guidance=guidance,
            pooled_projections=conditions["pooled"].to(dtype),
            encoder_hidden_states=embeds,
            txt_ids=text_ids(embeds.shape[1], device, dtype),
            img_ids=ids,
            return_dict=False,
        )[0]
        prediction = prediction[:, : (height // 2) * (width // 2)]
        # with a scale factor of 1, pixels and latents are as large as each other
        unpacked: Tensor = FluxPipeline._unpack_latents(prediction, height, width, 1)
        return unpacked

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens `[B, n, 4 C]` and their ids `[n, 3]`: those of the latents `[B, C, H, W]`, and what comes behind."""
        ids = image_ids(latents.shape[-2] // 2, latents.shape[-1] // 2, latents.device, latents.dtype)
        return FluxPipeline._pack_latents(latents, *latents.shape), ids


# Kept, because the pipeline makes them on the CPU, and to bring them to a GPU waits for it.


@functools.lru_cache(maxsize=64)
def image_ids(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """0, row and column of each token, `[height * width, 3]`."""
    with torch.inference_mode(False):
        ids: Tensor = FluxPipeline._prepare_latent_image_ids(1, height, width, device, dtype)
        return ids


@functools.lru_cache(maxsize=64)
def text_ids(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, `[length, 3]`."""
    with torch.inference_mode(False):
        return torch.zeros(length, 3, dtype=dtype, device=device)
