"""Sana: a linear-attention transformer on the latents of a deep-compression autoencoder, conditioned on Gemma 2."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from ..precision import compute_dtype
from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class SanaFamily(FlowMatchingFamily):
    """`SanaPipeline`: Sana and Sana 1.5, not the distilled Sana-Sprint.

    Attributes:
        max_sequence_length: Gemma tokens of each prompt, without the instruction that goes before it.
    """

    max_sequence_length: int = 300

    network_names = ("transformer",)
    has_sampler = True
    reads_posterior_noise = False
    ignores_padding = True
    prompt_encoders = ("text_encoder", "tokenizer")
    lora_target_modules = ("to_q", "to_k", "to_v")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses Sana-Sprint's network, which was distilled on another path from data to noise."""
        super().check(pipeline)
        if pipeline.transformer.config.guidance_embeds:
            raise ValueError(
                "The transformer takes the guidance scale as an input: this is Sana-Sprint, a consistency model "
                "(TrigFlow), which has no flow-matching likelihood. Use a Sana or Sana 1.5 model."
            )

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """32, which the pipeline asks for, or more if autoencoder and patches shrink by more."""
        return max(32, int(pipeline.vae_scale_factor * pipeline.transformer.config.patch_size))

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """The latent, float32 `[B, C, H, W]`: this autoencoder has no posterior to draw from."""
        return {"latent": pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent.float()}

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Gemma's hidden states `[B, max_sequence_length, features]`, and the mask of their tokens, int64.

        The instruction that a call of the pipeline puts before each prompt is read along with it.
        """
        instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=pipeline.text_encoder.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return {"embeds": embeds, "mask": mask}

    def encode_nothing(self, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
        """The empty prompt, without the instruction."""
        _, _, embeds, mask = pipeline.encode_prompt(
            [""], True, device=pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        return {"embeds": embeds, "mask": mask}

    def latent_shape(self, image: Mapping[str, Tensor]) -> tuple[int, ...]:
        """`(C, H, W)` of the latents."""
        return tuple(image["latent"].shape[1:])

    def clean(self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], posterior_noise: Tensor) -> Tensor:
        """`z = latent * scaling_factor`, float32 `[B, C, H, W]`; the noise is not used."""
        return image["latent"] * float(pipeline.vae.config.scaling_factor)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        prediction: Tensor = transformer(
            corrupted.to(dtype),
            encoder_hidden_states=conditions["embeds"].to(dtype),
            encoder_attention_mask=conditions["mask"],
            timestep=time * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return prediction

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """To draw at `size` itself, where the pipeline would take the nearest of its own sizes."""
        return super().call_options(pipeline, size, **{"use_resolution_binning": False, **kwargs})
