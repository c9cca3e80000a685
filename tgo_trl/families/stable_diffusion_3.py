"""Stable Diffusion 3 and 3.5: a transformer that reads CLIP's and T5's hidden states beside the latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from ..precision import compute_dtype
from .base import parts_of_last_block
from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class StableDiffusion3Family(FlowMatchingFamily):
    """`StableDiffusion3Pipeline`, with or without its T5 encoder.

    Attributes:
        max_sequence_length: T5 tokens of each prompt.
    """

    max_sequence_length: int = 256

    network_names = ("transformer",)
    has_sampler = True
    prompt_encoders = (
        "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3",
    )  # fmt: skip
    optional_components = ("text_encoder_3", "tokenizer_3")
    # Without `add_q_proj`, of which the last block's is not read; see `unread_parts`.
    comfyui_prefix = "transformer."
    undistilled = "stabilityai/stable-diffusion-3.5-large"
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "to_add_out")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses a T5 encoder without its tokenizer."""
        super().check(pipeline)
        if pipeline.text_encoder_3 is not None and pipeline.tokenizer_3 is None:
            raise ValueError(
                "The pipeline has a `text_encoder_3` and no `tokenizer_3`. Load both, or set both to None to train "
                "without T5."
            )

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """512, above which the pipeline refuses to be called."""
        return 512

    def unread_parts(self, network: Any) -> list[str]:
        """What the text asks of the image in the last block, which no text leaves."""
        return parts_of_last_block(network, ["attn.add_q_proj", "attn.norm_added_q"])

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """The transformer takes patches of the latents."""
        return int(pipeline.vae_scale_factor * pipeline.patch_size)

    def num_tokens(self, pipeline: DiffusionPipeline, shape: tuple[int, ...]) -> int:
        """Patches of the latents."""
        patch = int(pipeline.transformer.config.patch_size)
        return (shape[-2] // patch) * (shape[-1] // patch)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Hidden states of CLIP, then of T5, `[B, tokens, features]`, and CLIP's pooled ones, `[B, features]`.

        Without T5, the pipeline puts zeros in its place.
        """
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"embeds": embeds, "pooled": pooled}

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        prediction: Tensor = transformer(
            hidden_states=corrupted.to(dtype),
            timestep=time,
            encoder_hidden_states=conditions["embeds"].to(dtype),
            pooled_projections=conditions["pooled"].to(dtype),
            return_dict=False,
        )[0]
        return prediction
