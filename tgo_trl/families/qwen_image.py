"""Qwen-Image: a transformer on packed latents, conditioned on Qwen2.5-VL's hidden states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor

from ..precision import compute_dtype
from .base import known_lengths, parts_of_last_block
from .base_packing import Shape, length_ratio, packed, padded, unpacked
from .base_qwen import QwenFamily


@dataclass(frozen=True)
class QwenImageFamily(QwenFamily):
    """`QwenImagePipeline`.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, without the template around it; longer prompts are cut. What
            is left of them is padding on disk, which the network does not see.
    """

    max_sequence_length: int = 512

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    # Without `add_q_proj` and `to_add_out`: nothing reads the text that leaves the last block, so that their adapters
    # could learn nothing there.
    reads_lengths = True
    comfyui_prefix = "transformer."
    undistilled: ClassVar[str | None] = "Qwen/Qwen-Image"
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses networks of the same class that this pipeline cannot call."""
        super().check(pipeline)
        config = pipeline.transformer.config
        for name, kind in (("guidance_embeds", "guidance-distilled"), ("use_additional_t_cond", "layered-image")):
            if config.get(name):
                raise ValueError(
                    f"The transformer has `{name}=True`: this is a {kind} model, which is not called as "
                    f"`{type(self).__name__}` calls one. Use a model of `{type(pipeline).__name__}` without it."
                )

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """1024, above which the pipeline refuses to be called."""
        return 1024

    def unread_parts(self, network: Any) -> list[str]:
        """The last block's own way of the text, which ends there, and with it what the text asks of the image."""
        return parts_of_last_block(network, ["attn.to_add_out", "attn.add_q_proj", "attn.norm_added_q", "txt_mlp"])

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, max_sequence_length, features]`, and int64 `mask`: 1 for tokens, 0 for padding."""
        length, device = self.max_sequence_length, pipeline.text_encoder.device
        embeds, mask = pipeline.encode_prompt(prompts, device, max_sequence_length=length)
        return padded(embeds, mask, length)

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """As long as the prediction with a prompt, in each token: the channels of two by two latents."""
        guided = super().guided(with_prompt, without, scale)
        return guided * length_ratio(with_prompt, guided)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        batch, _, height, width = corrupted.shape
        lengths = known_lengths(conditions)
        embeds, mask = _without_padding(conditions["embeds"].to(dtype), conditions["mask"], lengths)
        tokens, shapes = self.image_tokens(corrupted.to(dtype), conditions)
        prediction = transformer(
            hidden_states=tokens,
            timestep=time / 1000,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[shapes] * batch,
            return_dict=False,
        )[0]
        return unpacked(prediction[:, : (height // 2) * (width // 2)], height, width)

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, list[Shape]]:
        """Tokens `[B, n, 4 C]` and the shapes they lie in: of the latents `[B, C, H, W]`, and of what comes behind."""
        return packed(latents)


def _without_padding(embeds: Tensor, mask: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Embeddings and mask up to the longest prompt of the batch, and no mask if they all are as long.

    What is left is what the pipeline would pass. The network masks padding, but computes it.
    """
    longest = max(lengths)
    return embeds[:, :longest], None if min(lengths) == longest else mask[:, :longest]
