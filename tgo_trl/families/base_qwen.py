"""What Qwen-Image and Qwen-Image 2.1 share: guidance beside a negative prompt alone, and prompts beside sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..media.types import Sample, Size
from .base_frames import FrameFamily
from .base_latents import standardized
from .base_sources import SourceFamily

NO_PROMPT = " "


@dataclass(frozen=True)
class QwenFamily(FrameFamily):
    """A family whose pipeline calls the scale of classifier-free guidance `true_cfg_scale`, which is 1 by default."""

    translated_arguments = frozenset({"guidance_scale"})

    def guidance(self, pipeline: DiffusionPipeline, scale: float | None) -> float:
        """The scale as [`sample`] takes it: 1, unless one is given, as the pipeline guides nothing by itself."""
        return 1.0 if scale is None else scale

    def guidance_options(self, scale: float) -> dict[str, Any]:
        """Nothing, where samples are not guided."""
        return super().guidance_options(scale) if scale > 1 else {}

    def encode_nothing(self, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
        """The negative prompt of [`sample`], a space."""
        return self.encode_prompts(pipeline, [NO_PROMPT])

    def sample(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], generators: list[torch.Generator], size: Size,
        **kwargs: Any,
    ) -> list[Sample]:  # fmt: skip
        """One image per prompt, each from its own generator; the pipeline wants a negative prompt for each."""
        negative = self.call_options(pipeline, size, **kwargs).get("negative_prompt")
        options = {**kwargs, **for_each(negative, len(prompts))}
        return super().sample(pipeline, prompts, generators, size, **options)

    def call_options(self, pipeline: DiffusionPipeline, size: Size, **kwargs: Any) -> dict[str, Any]:
        """With `guidance_scale` as the classifier-free one, as everywhere.

        The pipeline calls it `true_cfg_scale`, and heeds it only beside a negative prompt.
        """
        if "guidance_scale" in kwargs:
            kwargs = {"true_cfg_scale": kwargs.pop("guidance_scale"), "negative_prompt": NO_PROMPT, **kwargs}
        return super().call_options(pipeline, size, **kwargs)


@dataclass(frozen=True)
class QwenSourceFamily(SourceFamily, QwenFamily):
    """One whose text encoder reads prompts beside their sources; put it before the family without sources."""

    task = "image-to-image"
    has_sampler = False
    prompts_see_sources = True

    def encode_prompts(self, pipeline: DiffusionPipeline, prompts: list[str]) -> dict[str, Tensor]:
        """Refused: no prompt is read without sources, beside which [`encode_edits`] encodes it."""
        raise NotImplementedError("prompts are encoded beside their sources")

    def conditions(
        self, pipeline: DiffusionPipeline, image: Mapping[str, Tensor], prompt: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With `source` as [`clean`] scales latents, which the configuration says."""
        source = standardized(image["source"], pipeline.vae.config)
        return {**super().conditions(pipeline, image, prompt), "source": source}


def for_each(negative: Any, num_prompts: int) -> dict[str, list[str]]:
    """The argument `negative_prompt` with one for each prompt; nothing, unless one is given for all."""
    return {"negative_prompt": [negative] * num_prompts} if isinstance(negative, str) else {}


def num_picture_tokens(pipeline: DiffusionPipeline, size: Size) -> int:
    """Tokens that stand for a picture of a height and width in pixels in what the text encoder reads."""
    processor = pipeline.processor.image_processor
    patches: int = processor.get_number_of_image_patches(*size)
    return patches // int(processor.merge_size) ** 2


def check_length(prompt: str, length: int, limit: int) -> None:
    """Raises a ValueError for a prompt of more tokens than `max_sequence_length`, of a pipeline that cuts none."""
    if length > limit:
        raise ValueError(
            f"The prompt {prompt!r} has {length} tokens, and `max_sequence_length` is {limit}: this pipeline "
            "cuts no prompts. Set it higher, or shorten the prompt."
        )
