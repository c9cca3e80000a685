"""LongCat-Image-Edit: LongCat-Image with the tokens of a source behind those of the sample, and before Qwen's eyes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as edit
from torch import Tensor

from ..media.types import Size
from .base_kept_sizes import KeptSizeFamily
from .base_latents import LatentFamily
from .base_source_latents import SourceLatentFamily
from .base_sources import as_images
from .longcat_image import LongCatImageFamily, placed_tokens

AREA = 1024 * 1024
"""Pixels that `LongCatImageEditPipeline` draws, whatever the size of the source; it has no name for them."""


@dataclass(frozen=True)
class LongCatImageEditFamily(KeptSizeFamily, SourceLatentFamily, LongCatImageFamily):
    """`LongCatImageEditPipeline`: LongCat-Image-Edit, of one source image.

    Its call takes no size, and brings the source to about a million pixels: rows and samples have to have such a size.
    Qwen sees half of each side. Prompts have 512 tokens, padded, without the template and the picture before them.
    """

    task = "image-to-image"
    has_sampler = False
    prompts_see_sources = True
    undistilled = "meituan-longcat/LongCat-Image-Edit"
    prompt_encoders = ("text_encoder", "tokenizer", "text_processor")

    def drawn_size(self, pipeline: DiffusionPipeline, size: Size) -> Size:
        """About a million pixels, both sides rounded up to multiples of 16."""
        width, height = edit.calculate_dimensions(AREA, size[1] * 1.0 / size[0])
        return height, width

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """The mean of the autoencoder's posterior, which the pipeline takes too, float32 `[B, C, H, W]`.

        Raises:
            ValueError: if the pipeline would bring the images to another size.
        """
        self.check_size(pipeline, (pixels.shape[-2], pixels.shape[-1]))
        return super().encode_sources(pipeline, pixels)

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Refused: no prompt is read without a source, beside which [`encode_edits`] encodes it."""
        raise NotImplementedError("prompts are encoded beside their sources")

    def check_prompts(self, pipeline: DiffusionPipeline, prompts: Iterable[str], num_sources: int = 0) -> None:
        """Refuses those that are too long: the pipeline, which would cut them, fails at saying so."""
        for prompt in dict.fromkeys(prompts):
            length, most = _num_tokens(pipeline, prompt), pipeline.tokenizer_max_length
            if length > most:
                raise ValueError(
                    f"The prompt {prompt!r} has {length} tokens, each letter in quotation marks being one at least, "
                    f"and a `{type(pipeline).__name__}` takes {most} at most. Shorten it."
                )

    def encode_edits(self, pipeline: DiffusionPipeline, prompts: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """Qwen's hidden states `[B, picture + 512, features]`, of the picture, which sizes decide, and of the prompt.

        Raises:
            ValueError: if a prompt is longer, or if the pipeline would bring the sources to another size.
        """
        height, width = pixels.shape[-2:]
        self.check_size(pipeline, (height, width))
        self.check_prompts(pipeline, prompts)
        pictures = [pipeline.image_processor.resize(it, height // 2, width // 2) for it in as_images(pixels[:, 0])]
        rows = [pipeline.encode_prompt(prompt, it)[0] for prompt, it in zip(prompts, pictures, strict=True)]
        return {"embeds": torch.cat(rows)}

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """As long as it comes: this pipeline does not shorten it."""
        return LatentFamily.guided(self, with_prompt, without, scale)

    def image_tokens(self, latents: Tensor, start: int, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of the latents, then those of the source, which is at the same places of another image."""
        of_sample, of_source = super().image_tokens(latents, start, conditions), conditions["source"].to(latents.dtype)
        tokens, ids = zip(of_sample, placed_tokens(of_source, 2, start), strict=True)
        return torch.cat(tokens, 1), torch.cat(ids)

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """Without the rewriting of prompts, which this pipeline has not."""
        options = super().call_options(pipeline, size, **kwargs)
        del options["enable_prompt_rewrite"]
        return options


def _num_tokens(pipeline: DiffusionPipeline, prompt: str) -> int:
    """Tokens of a prompt as the pipeline reads it: what is in quotation marks letter by letter."""
    parts = edit.split_quotation(prompt)
    read = [part for text, is_quoted in parts for part in (text if is_quoted else [text])]
    return sum(len(pipeline.tokenizer(part, add_special_tokens=False)["input_ids"]) for part in read)
