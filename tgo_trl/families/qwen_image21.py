"""Qwen-Image 2.1: a transformer on prompt and latents in one causal sequence, conditioned on Qwen3-VL."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..media.images import load_image
from ..media.types import Sample, Size
from ..precision import compute_dtype
from .base import known_lengths, of_row
from .base_packing import Shape, padded
from .base_qwen import QwenFamily, check_length

logger = logging.getLogger(__name__)

OPAQUE = 1.0
"""What the autoencoder takes where a picture is not transparent, -1 to 1."""


@dataclass(frozen=True)
class QwenImage21Family(QwenFamily):
    """`QwenImage21Pipeline`, from prompts alone: Qwen-Image-2.1, and Turbo, which was distilled from it.

    Pictures are opaque in training, and samples are laid over white, as every picture that is read is.

    The place that the network sees an image at depends on how many tokens are before it, padding among them. So each
    prompt is encoded, each row is predicted and each sample is drawn by itself, as if it were called alone.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, with the 8 of the template around it and without the system
            prompt. Longer prompts are refused, as the pipeline does not cut them.
    """

    max_sequence_length: int = 1024

    network_names = ("transformer",)
    has_sampler = True
    usual_size = (1024, 1024)
    own_sigmas = True
    prompt_encoders = ("text_encoder", "processor")
    reads_lengths = True
    waits_for_device = True
    comfyui_prefix = "transformer."
    undistilled = "Qwen/Qwen-Image-2.1"
    lora_target_modules = ("to_q", "to_k", "to_v", "to_out.0")

    def step_distilled_from(self, pipeline: DiffusionPipeline) -> str | None:
        """Also of pipelines with noise levels of their own, as Turbo has."""
        return (
            f"`{self.undistilled}`" if pipeline.config.get("sample_sigmas") else super().step_distilled_from(pipeline)
        )

    def size_multiple(self, pipeline: DiffusionPipeline) -> int:
        """Pixels on each side of two latents, by which the network counts images."""
        return 2 * int(pipeline.vae_scale_factor)

    def prompt_length(self, pipeline: DiffusionPipeline) -> dict[str, int]:
        """Nothing: the pipeline has no such argument."""
        return {}

    def encode_images(self, pipeline: DiffusionPipeline, pixels: Tensor, geometry: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the posterior, float32 `[B, C, H, W]` each, of pixels that are opaque."""
        return super().encode_images(pipeline, F.pad(pixels, (0, 0, 0, 0, 0, 1), value=OPAQUE), geometry)

    def check_prompts(self, pipeline: DiffusionPipeline, prompts: Iterable[str], num_sources: int = 0) -> None:
        """Refuses those that [`encode_prompts`] would, before anything is encoded."""
        for prompt in dict.fromkeys(prompts):
            tokens = pipeline.processor.tokenizer(pipeline.prompt_template_t2i.format(prompt))["input_ids"]
            check_length(prompt, len(tokens) - pipeline._drop_idx, self.max_sequence_length)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, max_sequence_length, features]`, and int64 `mask`: 1 for tokens, 0 for padding.

        Raises:
            ValueError: if a prompt is longer.
        """
        limit, rows = self.max_sequence_length, []
        for prompt in prompts:
            embeds, mask, _ = pipeline.encode_prompt(prompt, device=pipeline.text_encoder.device)
            check_length(prompt, embeds.shape[1], limit)
            rows.append(padded(embeds, mask, limit))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def decode(self, pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]`, -1 to 1, with gradient, of pictures laid over white."""
        pixels = super().decode(pipeline, latents)
        return 1 + (pixels[:, :3] - 1) * (pixels[:, 3:] + 1) / 2

    def noise_levels(self, pipeline: DiffusionPipeline, num_steps: int) -> Sequence[float] | None:
        """The pipeline's own, if it has any.

        Raises:
            ValueError: if these are not `num_steps`.
        """
        own = pipeline.config.sample_sigmas
        if own is None:
            return super().noise_levels(pipeline, num_steps)
        if len(own) != num_steps:
            raise ValueError(
                f"This pipeline draws in {len(own)} steps of its own (`sample_sigmas`), and not in {num_steps}. Set "
                f"`sample_num_steps` to {len(own)}."
            )
        return list(own)

    def predict(
        self, networks: Mapping[str, Any], corrupted: Tensor, time: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """The velocity, `[B, C, H, W]`."""
        transformer = networks["transformer"]
        dtype = compute_dtype(transformer)
        embeds, lengths = conditions["embeds"].to(dtype), known_lengths(conditions)
        predictions = []
        for row, (latents, moment, length) in enumerate(zip(corrupted.to(dtype), time / 1000, lengths, strict=True)):
            tokens, shapes = flattened([*self.row_sources(conditions, row, dtype), latents])
            prediction = transformer(
                hidden_states=tokens,
                timestep=moment[None],
                encoder_hidden_states=embeds[[row], :length],
                img_shapes=[shapes],
                img_mask=F.pad(self.picture_slots(conditions, row, length), (0, latents[0].numel() // 4), value=True),
                return_dict=False,
            )[0]
            predictions.append(prediction[0, -latents[0].numel() :].T.reshape(latents.shape))
        return torch.stack(predictions)

    def row_sources(self, conditions: Mapping[str, Any], row: int, dtype: torch.dtype) -> Sequence[Tensor]:
        """The latents of a row's source images, `[C, H, W]` each, if it has any."""
        return []

    def picture_slots(self, conditions: Mapping[str, Any], row: int, length: int) -> Tensor:
        """Bool `[1, length]`: which tokens of a row's prompt stand for pictures."""
        return torch.zeros(1, length, dtype=torch.bool, device=conditions["embeds"].device)

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One image per prompt, one after the other, each from its own generator."""
        own = pipeline.config.sample_sigmas
        if own is not None and kwargs.get("num_inference_steps", len(own)) != len(own):
            _warn_of_steps(len(own), kwargs["num_inference_steps"])
        samples: list[Sample] = []
        for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True)):
            samples += super().sample(pipeline, [prompt], [generator], size, **of_row(kwargs, i))
        return samples if kwargs.get("output_type") == "latent" else [_over_white(sample) for sample in samples]


def flattened(images: Sequence[Tensor]) -> tuple[Tensor, list[Shape]]:
    """Latents `[C, H, W]` as tokens `[1, n, C]`, one image after the other, and the shape that each lies in."""
    shapes = [(1, *image.shape[-2:]) for image in images]
    return torch.cat([image.flatten(1).T for image in images])[None], shapes


@functools.cache
def _warn_of_steps(own: int, asked: int) -> None:
    logger.warning(
        "This pipeline draws in %d steps of its own (`sample_sigmas`), and not in the %d asked for.", own, asked
    )


def _over_white(sample: Any) -> Any:
    """A picture with transparency, as it is seen: an image, or in [0, 1] a tensor `[4, H, W]` or array `[H, W, 4]`."""
    if isinstance(sample, Image.Image):
        return load_image(sample)
    if isinstance(sample, np.ndarray):
        return 1 + (sample[..., :3] - 1) * sample[..., 3:]
    return 1 + (sample[:3] - 1) * sample[3:]
