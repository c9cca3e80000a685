"""Qwen-Image-Edit: Qwen-Image with source images, as tokens behind those of the sample and before Qwen2.5-VL's eyes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from torch import Tensor

from ..media.types import Size
from .base_packing import Shape, packed, padded
from .base_qwen import QwenSourceFamily, check_length, num_picture_tokens
from .base_sources import as_images
from .qwen_image import QwenImageFamily

EDIT_AREA = 1024 * 1024
"""Pixels that `QwenImageEditPipeline` brings a source to; it has no name for them."""


@dataclass(frozen=True)
class QwenImageEditFamily(QwenSourceFamily, QwenImageFamily):
    """`QwenImageEditPipeline`: Qwen-Image-Edit, of one source image.

    The pipeline brings sources to about a million pixels, whatever the sample's size, and so do we.

    Attributes:
        max_sequence_length: Qwen tokens of each prompt, without the template before it and without those of pictures.
            Longer prompts are refused, as the pipeline does not cut them.
    """

    undistilled: ClassVar[str | None] = "Qwen/Qwen-Image-Edit"
    prompt_encoders = ("text_encoder", "tokenizer", "processor")

    def encoded_size(self, size: Size) -> Size:
        """What the pipeline brings a source of a height and width to, pixels, for the autoencoder."""
        width, height, _ = edit.calculate_dimensions(EDIT_AREA, size[1] / size[0])
        return height, width

    def seen_size(self, size: Size) -> Size:
        """What it brings the same source to for the text encoder."""
        return self.encoded_size(size)

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """The mean of the autoencoder's posterior, which the pipeline takes too, float32 `[B, C, S, H, W]`."""
        num_rows, num_sources, _, height, width = pixels.shape
        size = self.encoded_size((height, width))
        frames = pipeline.image_processor.preprocess(as_images(pixels.flatten(0, 1)), *size).unsqueeze(2)
        posterior = pipeline.vae.encode(frames.to(pixels.device, pipeline.vae.dtype)).latent_dist
        means = posterior.mode().float().squeeze(2).unflatten(0, (num_rows, num_sources))
        return {"source": means.transpose(1, 2).contiguous()}

    def pictures(self, number: int) -> str:
        """What stands for pictures at the beginning of a prompt, where the template has nothing for them."""
        return ""

    def check_prompts(self, pipeline: DiffusionPipeline, prompts: Iterable[str], num_sources: int = 0) -> None:
        """Refuses those that [`encode_edits`] would, before anything is encoded."""
        template, before = pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx
        for prompt in dict.fromkeys(prompts):
            tokens = pipeline.processor.tokenizer(template.format(self.pictures(num_sources) + prompt))["input_ids"]
            check_length(prompt, len(tokens) - before - num_sources, self.max_sequence_length)

    def encode_edits(self, pipeline: DiffusionPipeline, prompts: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, tokens, features]`, and int64 `mask`: 1 for tokens, 0 for padding.

        They have room for `max_sequence_length` tokens beside those of the pictures, which sizes decide.

        Raises:
            ValueError: if a prompt is longer.
        """
        _, num_sources, _, height, width = pixels.shape
        size, limit = self.seen_size((height, width)), self.max_sequence_length
        of_pictures = num_sources * num_picture_tokens(pipeline, size)
        rows = []
        for prompt, sources in zip(prompts, pixels, strict=True):
            pictures = [pipeline.image_processor.resize(image, *size) for image in as_images(sources)]
            embeds, mask = pipeline.encode_prompt(
                prompt, pictures, pipeline.text_encoder.device, max_sequence_length=limit
            )
            check_length(prompt, embeds.shape[1] - of_pictures, limit)
            rows.append(padded(embeds, mask, limit + of_pictures))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def image_tokens(self, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, list[Shape]]:
        """Those of the latents, then those of each source."""
        images = [latents, *conditions["source"].to(latents.dtype).unbind(2)]
        tokens, shapes = zip(*map(packed, images), strict=True)
        return torch.cat(tokens, 1), [shape for shapes_ in shapes for shape in shapes_]


@dataclass(frozen=True)
class QwenImageEditPlusFamily(QwenImageEditFamily):
    """`QwenImageEditPlusPipeline`: Qwen-Image-Edit-2509 and -2511, of up to three source images.

    Attributes:
        max_sequence_length: as of Qwen-Image-Edit, the names of the pictures included: `Picture 1: `.
    """

    most_sources = 3  # which the models were published for; the pipeline takes any number
    undistilled = None

    def pictures(self, number: int) -> str:
        """As the pipeline names them, without a name for it."""
        return "".join(f"Picture {i + 1}: <|vision_start|><|image_pad|><|vision_end|>" for i in range(number))

    def encoded_size(self, size: Size) -> Size:
        """About a million pixels too."""
        width, height = edit_plus.calculate_dimensions(edit_plus.VAE_IMAGE_SIZE, size[1] / size[0])
        return height, width

    def seen_size(self, size: Size) -> Size:
        """Smaller: about 384 x 384."""
        width, height = edit_plus.calculate_dimensions(edit_plus.CONDITION_IMAGE_SIZE, size[1] / size[0])
        return height, width
