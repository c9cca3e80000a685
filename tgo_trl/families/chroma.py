"""Chroma: FLUX.1's transformer without the guidance and pooled prompt that steer its blocks, and T5 with a mask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ChromaPipeline, DiffusionPipeline
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor

from ..precision import compute_dtype
from .base_flow import FlowMatchingFamily
from .flux import image_ids, text_ids


@dataclass(frozen=True)
class ChromaFamily(FlowMatchingFamily):
    """`ChromaPipeline`: Chroma1 Base and HD.

    Attributes:
        max_sequence_length: T5 tokens of each prompt; shorter ones are padded, longer ones cut.
    """

    max_sequence_length: int = 512

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders = ("text_encoder", "tokenizer")
    undistilled = "lodestones/Chroma1-HD"
    comfyui_prefix = "transformer."
    comfyui_lacks = ("distilled_guidance_layer.",)
    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """512, above which the pipeline refuses to be called."""
        return 512

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """T5's hidden states `[B, max_sequence_length, features]`, and `mask` `[B, max_sequence_length]`.

        The mask is 1 for tokens and for the first of the padding, in the pipeline's dtype. Where that is floating, the
        network adds it to its scores of attention, so that padding is seen too, a little less
        (https://github.com/huggingface/diffusers/issues/12116). It is trained as the pipeline will call it.
        """
        embeds, _, mask, *_ = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )  # fmt: skip
        return {"embeds": embeds, "mask": mask}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype, device = compute_dtype(transformer), corrupted.device
        batch, _, height, width = corrupted.shape
        embeds, mask = conditions["embeds"].to(dtype), conditions["mask"]
        seen = torch.ones(batch, (height // 2) * (width // 2), dtype=torch.bool, device=device)
        prediction = transformer(
            hidden_states=ChromaPipeline._pack_latents(corrupted.to(dtype), *corrupted.shape),
            timestep=time / 1000,
            encoder_hidden_states=embeds,
            txt_ids=text_ids(embeds.shape[1], device, dtype),
            img_ids=image_ids(height // 2, width // 2, device, dtype),
            attention_mask=torch.cat([mask.to(dtype) if mask.is_floating_point() else mask, seen], 1),
            return_dict=False,
        )[0]
        # with a scale factor of 1, pixels and latents are as large as each other
        unpacked: Tensor = ChromaPipeline._unpack_latents(prediction, height, width, 1)
        return unpacked

    def enable_gradient_checkpointing(self, network: Any, every_n_layers: int = 1) -> None:
        """As of any network, with the mask, which its single blocks are recomputed without."""
        super().enable_gradient_checkpointing(network, every_n_layers)
        network._gradient_checkpointing_func = _with_mask(network._gradient_checkpointing_func)


def _with_mask(call: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a block, with the mask of the double blocks for the single ones that come after them."""
    mask: Tensor | None = None

    def call_with_mask(block: Any, *args: Any) -> Any:
        nonlocal mask
        if isinstance(block, ChromaSingleTransformerBlock):
            hidden_states, modulation, rotary, *_ = args
            return call(block, hidden_states, modulation, rotary, mask)
        mask = args[-1]
        return call(block, *args)

    return call_with_mask
