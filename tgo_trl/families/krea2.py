"""Krea 2: a single-stream transformer on packed latents, conditioned on hidden states of many layers of Qwen3-VL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline, Krea2Pipeline
from torch import Tensor

from ..precision import compute_dtype
from .base_frames import FrameFamily
from .base_packing import packed, unpacked

DISTILLED_SHIFT = 1.15
"""`mu` of the pipeline's schedule if it `is_distilled`, whatever the image's size; it has no name for it."""


@dataclass(frozen=True)
class Krea2Family(FrameFamily):
    """`Krea2Pipeline`: Krea 2 Raw, and Krea 2 Turbo, which was distilled from it.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, with the 5 of the template behind it; longer prompts are cut.
            What is left of them is padding on disk, which the network does not see.
    """

    max_sequence_length: int = 512

    network_names = ("transformer",)
    has_sampler = True
    usual_size = (1024, 1024)
    own_sigmas = True
    latent_patch = 2
    guides_from_prompt = True
    prompt_encoders = ("text_encoder", "tokenizer")
    ignores_padding = True
    comfyui_prefix = "transformer."
    undistilled = "krea/Krea-2-Raw"
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0", "to_gate")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses patches of another size, and prompts with room for nothing but the template."""
        super().check(pipeline)
        if pipeline.config.patch_size != self.latent_patch:
            raise ValueError(
                f"The pipeline has `patch_size={pipeline.config.patch_size}`, and `{type(self).__name__}` packs two by "
                "two latents, as the published models do. Use one of them, or a fine-tune."
            )
        template = pipeline.prompt_template_encode_num_suffix_tokens
        if self.max_sequence_length <= template:
            raise ValueError(
                f"`max_sequence_length` is {self.max_sequence_length}, of which the template behind each prompt takes "
                f"{template}: there is no room for a prompt. Set it higher."
            )

    def step_distilled_from(self, pipeline: DiffusionPipeline) -> str | None:
        """Of the pipelines that say `is_distilled` too."""
        return f"`{self.undistilled}`" if pipeline.config.get("is_distilled") else super().step_distilled_from(pipeline)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Hidden states of Qwen's layers, and where the pipeline has them.

        The pipeline pads each prompt before the rest of the template. Here, what is padding comes last.

        Returns:
            `embeds` `[B, max_sequence_length, layers * features]`, `mask` bool, False for padding, and `order` int64
            `[B, max_sequence_length]`: which of the tokens the pipeline has at each place.
        """
        embeds, mask = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        places = mask.logical_not().long().argsort(dim=1, stable=True)
        embeds = embeds.flatten(2).gather(1, places[..., None].expand(-1, -1, embeds[0, 0].numel()))
        return {"embeds": embeds, "mask": mask.gather(1, places), "order": places.argsort(dim=1)}

    def shift(self, pipeline: DiffusionPipeline, num_tokens: int, num_steps: int) -> float:
        """One for all sizes, of a distilled pipeline."""
        if pipeline.config.is_distilled:
            return DISTILLED_SHIFT
        return super().shift(pipeline, num_tokens, num_steps)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        height, width = corrupted.shape[-2:]
        embeds, order = conditions["embeds"].to(dtype), conditions["order"]
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        tokens, [(_, *grid)] = packed(corrupted.to(dtype))
        prediction = transformer(
            hidden_states=tokens,
            encoder_hidden_states=embeds.reshape(*order.shape, transformer.config.num_text_layers, -1),
            timestep=time / 1000,
            position_ids=Krea2Pipeline.prepare_position_ids(embeds.shape[1], *grid, corrupted.device),
            encoder_attention_mask=conditions["mask"].gather(1, order),
            return_dict=False,
        )[0]
        return unpacked(prediction, height, width)
