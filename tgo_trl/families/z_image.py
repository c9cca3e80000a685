"""Z-Image: a single-stream transformer on latents and prompts in one sequence, conditioned on Qwen3's hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from ..precision import compute_dtype
from .base import known_lengths
from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class ZImageFamily(FlowMatchingFamily):
    """`ZImagePipeline`: Z-Image, and Z-Image-Turbo.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, with the chat template around it; longer prompts are cut. What
            is left of them is padding on disk, which the network does not see.
    """

    max_sequence_length: int = 512

    network_names = ("transformer",)
    has_sampler = True
    usual_size = (1024, 1024)
    guides_from_prompt = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders = ("text_encoder", "tokenizer")
    reads_lengths = True
    comfyui_prefix = "transformer."
    reads_posterior_noise = False
    undistilled = "Tongyi-MAI/Z-Image"
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses networks that take pictures beside the prompt."""
        super().check(pipeline)
        if pipeline.transformer.config.get("siglip_feat_dim") is not None:
            raise ValueError(
                "The transformer has a `siglip_feat_dim`: this is an omni model, which takes pictures beside the "
                "prompt, and those cannot be trained here. Use Z-Image, Z-Image-Turbo, or a fine-tune of them."
            )

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """The positions that the network has for prompts."""
        return int(pipeline.transformer.config.axes_lens[0]) - 1

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean of the autoencoder's posterior, float32 `[B, C, H, W]`."""
        return {"mean": super().encode_images(pipeline, pixels, geometry)["mean"]}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, max_sequence_length, features]`, and bool `mask`: False for padding."""
        length, device = self.max_sequence_length, pipeline.text_encoder.device
        # it writes the template into the list that it is given
        encoded, _ = pipeline.encode_prompt(
            list(prompts), device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        embeds = torch.stack([F.pad(tokens, (0, 0, 0, length - len(tokens))) for tokens in encoded])
        lengths = torch.tensor([len(tokens) for tokens in encoded], device=device)
        return {"embeds": embeds, "mask": torch.arange(length, device=device) < lengths[:, None]}

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = (mean - shift_factor) * scaling_factor`, float32 `[B, C, H, W]`.

        The posterior's mode instead of a sample of it, as in diffusers' training script for this network.
        """
        config = pipeline.vae.config
        return (image["mean"] - float(config.shift_factor)) * float(config.scaling_factor)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`. The network takes videos; its time and its velocity run from noise to data."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        lengths = known_lengths(conditions)
        embeds = [tokens[:length] for tokens, length in zip(conditions["embeds"].to(dtype), lengths, strict=True)]
        latents = list(corrupted.to(dtype).unsqueeze(2))
        prediction = transformer(latents, (1000 - time) / 1000, embeds, return_dict=False)[0]
        return -torch.stack(prediction).squeeze(2)
