"""Lumina Image 2: a single-stream transformer on latents and prompts, conditioned on Gemma 2's hidden states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Size
from ..precision import compute_dtype
from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class Lumina2Family(FlowMatchingFamily):
    """`Lumina2Pipeline`.

    Attributes:
        max_sequence_length: Gemma tokens of each prompt, with the system prompt before it; longer prompts are cut. The
            published network has positions for no more than 299.
    """

    max_sequence_length: int = 256

    network_names = ("transformer",)
    has_sampler = True
    own_sigmas = True
    latent_patch = 2
    prompt_encoders = ("text_encoder", "tokenizer")
    reads_lengths = True
    ignores_padding = True
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    def default_size(self, pipeline: DiffusionPipeline) -> Size:
        """The pipeline's default, 1024 pixels for the published one."""
        side = int(pipeline.default_image_size)
        return side, side

    def longest_prompt(self, pipeline: DiffusionPipeline) -> int:
        """The positions that the network has for prompts."""
        return int(pipeline.transformer.config.axes_lens[0]) - 1

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Gemma's hidden states `[B, max_sequence_length, features]`, and int64 `mask`: 1 for tokens, 0 for padding."""
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=pipeline.text_encoder.device,
            max_sequence_length=self.max_sequence_length,
        )
        return {"embeds": embeds, "mask": mask}

    def encode_nothing(self, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
        """The empty prompt, without the system prompt."""
        _, _, embeds, mask = pipeline.encode_prompt(
            [""], True, device=pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        return {"embeds": embeds, "mask": mask}

    def num_tokens(self, pipeline: DiffusionPipeline, shape: tuple[int, ...]) -> int:
        """The channels: the pipeline takes the second dimension of latents that are not packed."""
        return shape[0]

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """As long as the prediction with a prompt, in each row of latents."""
        guided = super().guided(with_prompt, without, scale)
        length, wanted = (torch.linalg.vector_norm(it, dim=-1, keepdim=True) for it in (guided, with_prompt))
        scaled: Tensor = guided * (wanted / length)
        return scaled

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`. To the network, time and velocity run from noise to data."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        with _asking_no_device(transformer.rope_embedder, corrupted.device, conditions):
            prediction: Tensor = transformer(
                hidden_states=corrupted.to(dtype),
                timestep=1 - time / 1000,
                encoder_hidden_states=conditions["embeds"].to(dtype),
                encoder_attention_mask=conditions["mask"],
                return_dict=False,
            )[0]
        return -prediction


@contextmanager
def _asking_no_device(rope: Any, device: torch.device, conditions: Mapping[str, Any]) -> Iterator[None]:
    """Within, the network's position embedding waits for no GPU, if the lengths of the prompts are told.

    It reads these off the mask, of which it uses nothing else, and brings its table of numbers to the device each time.
    """
    lengths = conditions.get("lengths")
    if lengths is None:
        yield
        return
    if rope.freqs_cis[0].device != device and device.type != "mps":
        rope.freqs_cis = [table.to(device) for table in rope.freqs_cis]
    mask = torch.arange(conditions["mask"].shape[1]) < torch.tensor(lengths)[:, None]
    hook = rope.register_forward_pre_hook(lambda _, inputs: (inputs[0], mask))
    try:
        yield
    finally:
        hook.remove()
