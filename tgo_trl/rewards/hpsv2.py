"""Human Preference Score v2.1: a CLIP fine-tuned on human choices between generated images (arXiv 2306.09341)."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .base import load_pt_file
from .clip_score import ClipScore
from .networks import normalize
from .open_clip import clip_from_open_clip

STRAIGHT_QUOTES = str.maketrans(dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("“”„‟", '"'))


class HPSv2(ClipScore):
    """`cos(text, image)` of the HPS network, without the logit scale. Compare images of one prompt only.

    As the package `hpsv2` 1.2 computes it, but in `dtype` instead of automatic float16, and with two departures: an
    image whose longer side already has 224 pixels is padded too (there, it fails), and of the repairs of the package
    ftfy only straight quotes and HTML entities are made to prompts.

    Args:
        model_id: the weights, by Hub id or folder.
        filename: `"HPS_v2_compressed.pt"` is version 2.0, whose scores are on another scale.
        processor: where the tokenizer is.
        antialias: the package resizes float tensors with torchvision, which smooths them before it makes them smaller
            since version 0.17, and did not before. Scores published before 2024 are those of `False`.
        num_vision_heads, num_text_heads: attention heads of the two towers.
        kwargs: as for [`ModelReward`].
    """

    name = "hpsv2.1"
    license = "Apache-2.0"

    def __init__(
        self,
        model_id: str = "xswu/HPSv2",
        filename: str = "HPS_v2.1_compressed.pt",
        *,
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        antialias: bool = True,
        num_vision_heads: int = 16,
        num_text_heads: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_id, processor=processor, **kwargs)
        self.filename = filename
        self.antialias = antialias
        self.num_vision_heads = num_vision_heads
        self.num_text_heads = num_text_heads

    @property
    def version(self) -> str:
        """Repository, commit and file."""
        return f"{self._version_of(self.filename)}/{self.filename}"

    def _load_model(self) -> Any:
        weights = load_pt_file(self._weights_file(self.filename))
        if not isinstance(weights, dict) or "state_dict" not in weights:
            raise ValueError(f"{self.filename!r} has no 'state_dict'. Name a checkpoint of HPS v2, as on xswu/HPSv2.")
        return clip_from_open_clip(
            weights["state_dict"], num_vision_heads=self.num_vision_heads, num_text_heads=self.num_text_heads
        )

    def _load_preprocessing(self) -> None:
        pass  # all of it is below

    def _clean(self, prompt: str) -> str:
        return html.unescape(html.unescape(prompt)).translate(STRAIGHT_QUOTES)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        size = self._model.config.vision_config.image_size
        return torch.stack([hps_pixels(image, size, self.antialias) for image in images])

    def _inputs(self, pixels: Tensor) -> Tensor:
        return padded_square(pixels, self._model.config.vision_config.image_size, self.antialias)


def hps_pixels(image: Image.Image, size: int, antialias: bool = True) -> Tensor:
    """The whole image in a square: longer side resized to `size` (bicubic, in float), black to both sides.

    Args:
        image: RGB.
        size: side of the square, in pixels.
        antialias: whether to smooth before making smaller.

    Returns:
        float32 `[3, size, size]`, normalised by CLIP's mean and standard deviation. Bicubic values are not clipped.
    """
    return padded_square(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255, size, antialias)[0]


def padded_square(pixels: Tensor, size: int, antialias: bool = True) -> Tensor:
    """As [`hps_pixels`], of float pixels `[N, 3, H, W]` in [0, 1], with gradient: float `[N, 3, size, size]`."""
    scale = size / max(pixels.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[-2:])
    if (height, width) != pixels.shape[-2:]:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=antialias)
    top, left = (size - height) // 2, (size - width) // 2
    pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
    return normalize(pixels)
