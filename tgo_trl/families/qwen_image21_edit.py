"""Qwen-Image 2.1 with source images, whose tokens stand where the prompt names them, and before Qwen3-VL's eyes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..media.types import Size
from .base_packing import padded
from .base_qwen import QwenSourceFamily, check_length, num_picture_tokens
from .base_sources import as_images
from .qwen_image21 import QwenImage21Family

PICTURE = "<image{}><|vision_start|><|image_pad|><|vision_end|>"
"""What stands for a picture in what the pipeline has its text encoder read; it has no name for it."""


@dataclass(frozen=True)
class QwenImage21EditFamily(QwenSourceFamily, QwenImage21Family):
    """`QwenImage21Pipeline` of one to ten source images, as many as Qwen-Image-2.1 was published for.

    Sources are opaque, as all pictures that are read are.

    Attributes:
        max_sequence_length: as of Qwen-Image 2.1, the names of the pictures included: `<image1>`. The tokens of the
            pictures themselves are not counted.
    """

    most_sources = 10

    def check_size(self, pipeline: DiffusionPipeline, size: Size) -> None:
        """Raises a ValueError for a height and width in pixels at which the text encoder does not leave pictures."""
        tokens = math.prod(size) // self.size_multiple(pipeline) ** 2
        if num_picture_tokens(pipeline, size) != tokens:
            bounds = pipeline.processor.image_processor.size
            raise ValueError(
                f"The pipeline's text encoder does not see source images of {size[1]} x {size[0]} pixels as they are, "
                "and so not as the network does: it brings them to "
                f"{bounds['shortest_edge']:,} pixels at least and {bounds['longest_edge']:,} at most, height times "
                "width. They are brought to the size of the sample: set `resolution`, or `height` and `width`, so that "
                "it is within."
            )

    def encode_sources(self, pipeline: DiffusionPipeline, pixels: Tensor) -> dict[str, Tensor]:
        """The mean of the autoencoder's posterior, which the pipeline takes too, float32 `[B, C, S, H, W]`."""
        images = pixels.flatten(0, 1)
        # without a size of the original, which this network is not told
        means = self.encode_images(pipeline, images, images.new_zeros(len(images), 4))["mean"]
        return {"source": means.reshape(*pixels.shape[:2], *means.shape[1:]).transpose(1, 2).contiguous()}

    def check_prompts(self, pipeline: DiffusionPipeline, prompts: Iterable[str], num_sources: int = 0) -> None:
        """Refuses those that [`encode_edits`] would, before anything is encoded."""
        pictures = " ".join(PICTURE.format(i + 1) for i in range(num_sources))
        template = pipeline.prompt_template_ti2i.replace(PICTURE.format(1), pictures)
        for prompt in dict.fromkeys(prompts):
            tokens = pipeline.processor.tokenizer(template.format(prompt))["input_ids"]
            check_length(prompt, len(tokens) - pipeline._drop_idx - num_sources, self.max_sequence_length)

    def encode_edits(self, pipeline: DiffusionPipeline, prompts: list[str], pixels: Tensor) -> dict[str, Tensor]:
        """As [`encode_prompts`] of Qwen-Image 2.1, and int64 `slots`: 1 for tokens that stand for pictures.

        They have room for `max_sequence_length` tokens beside those of the pictures, which sizes decide.

        Raises:
            ValueError: if a prompt is longer, or pictures are too small or too large for the text encoder.
        """
        _, num_sources, _, height, width = pixels.shape
        self.check_size(pipeline, (height, width))
        of_pictures = num_sources * height * width // self.size_multiple(pipeline) ** 2
        rows = []
        for prompt, sources in zip(prompts, pixels, strict=True):
            embeds, mask, slots = pipeline.encode_prompt(prompt, as_images(sources), pipeline.text_encoder.device)
            assert slots.sum() == of_pictures
            check_length(prompt, embeds.shape[1] - of_pictures, self.max_sequence_length)
            row = padded(embeds, mask, self.max_sequence_length + of_pictures)
            missing = row["mask"].shape[1] - slots.shape[1]
            rows.append({**row, "slots": F.pad(slots.long(), (0, missing))})
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def row_sources(self, conditions: Mapping[str, Any], row: int, dtype: torch.dtype) -> Sequence[Tensor]:
        """Of `source`."""
        return list(conditions["source"][row].to(dtype).unbind(1))

    def picture_slots(self, conditions: Mapping[str, Any], row: int, length: int) -> Tensor:
        """Of `slots`."""
        slots: Tensor = conditions["slots"][[row], :length].bool()
        return slots

    def source_options(self, images: list[Image.Image]) -> dict[str, Any]:
        """With the size as it is: the pipeline would bring sources to about a million pixels."""
        side = math.sqrt(images[0].width * images[0].height)
        return {**super().source_options(images), "output_resolution": int(side) if side.is_integer() else side}
