"""LAION aesthetic score: how people would rate an image from 1 to 10, by its CLIP embedding; ignores the prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from .base import ModelReward, load_images, load_pt_file, local_version
from .networks import load_complete, normalize, resized_square


class Aesthetic(ModelReward):
    """`MLP(v / |v|)` of the image's CLIP-L/14 embedding `v`: linear layers 768-1024-128-64-16-1, no activations.

    The model that chose LAION-Aesthetics (`sac+logos+ava1-l14-linearMSE`), preprocessed as OpenAI's CLIP code does.

    Args:
        model_id: the linear layers, by Hub id or folder.
        filename: their file.
        backbone: a CLIP model of transformers, by Hub id or folder, whose image tower is used.
        kwargs: as for [`ModelReward`].
    """

    name = "aesthetic"
    differentiable = True
    license = "Apache-2.0 (christophschuhmann/improved-aesthetic-predictor); CLIP: MIT (code)"

    def __init__(
        self,
        model_id: str = "trl-lib/ddpo-aesthetic-predictor",
        filename: str = "aesthetic-model.pth",
        *,
        backbone: str = "openai/clip-vit-large-patch14",
        **kwargs: Any,
    ) -> None:
        super().__init__(model_id, **kwargs)
        self.filename = filename
        self.backbone = backbone

    @property
    def version(self) -> str:
        """Repository, commit and file, and the backbone that it reads, as [`local_version`] has it."""
        return f"{self._version_of(self.filename)}/{self.filename}, backbone {local_version(self.backbone)}"

    def _load(self) -> None:
        self._tower, _ = load_complete(CLIPVisionModelWithProjection, self.backbone, None)
        self._tower.requires_grad_(False).to(device=self.device, dtype=self.dtype)
        self._head = linear_head(load_pt_file(self._weights_file(self.filename))).requires_grad_(False).to(self.device)
        width = self._tower.config.projection_dim
        if self._head[0].in_features != width:
            raise ValueError(
                f"The head {self.filename!r} reads {self._head[0].in_features} numbers, but {self.backbone!r} embeds "
                f"images in {width}. Name the backbone that the head was trained on."
            )

    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        size = self._tower.config.image_size
        return self._score_inputs(torch.stack([openai_pixels(image, size) for image in load_images(images)]))

    def _score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        return self._score_inputs(normalize(resized_square(pixels, self._tower.config.image_size, round)))

    def _score_inputs(self, inputs: Tensor) -> Tensor:
        embeddings = self._tower(pixel_values=inputs.to(self.device, self.dtype)).image_embeds
        scores: Tensor = self._head(F.normalize(embeddings.float(), dim=-1))
        return scores[:, 0]


def linear_head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The linear layers of `layers.<n>.weight` and `layers.<n>.bias`, in order of `n`, float32.

    Raises:
        ValueError: if there are others, or they do not follow one another down to one number.
    """
    found = {name: re.fullmatch(r"layers\.(\d+)\.(weight|bias)", name) for name in weights}
    numbers = sorted({int(match[1]) for match in found.values() if match})
    sizes = [tuple(weights[f"layers.{n}.weight"].shape) for n in numbers if f"layers.{n}.weight" in weights]
    follow = [size[0] for size in sizes] == [*(size[1] for size in sizes[1:]), 1]
    if not all(found.values()) or len(weights) != 2 * len(sizes) or not sizes or not follow:
        raise ValueError(
            f"The file's tensors are not a stack of linear layers with one output: {', '.join(list(weights)[:12])}. "
            "Name a head like 'sac+logos+ava1-l14-linearMSE.pth'."
        )
    head = nn.Sequential(*(nn.Linear(size[1], size[0]) for size in sizes))
    for layer, n in zip(head, numbers, strict=True):
        layer.load_state_dict({kind: weights[f"layers.{n}.{kind}"].float() for kind in ("weight", "bias")})
    return head


def openai_pixels(image: Image.Image, size: int) -> Tensor:
    """Shorter side resized to `size` (bicubic, on 8 bits), centre cropped, as OpenAI's CLIP code does.

    transformers rounds the corner of the crop down; there, it is rounded to the nearest: up to a pixel's difference.

    Args:
        image: RGB.
        size: side of the square, in pixels.

    Returns:
        float32 `[3, size, size]`, normalised by CLIP's mean and standard deviation.
    """
    short = min(image.size)
    if short != size:
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    return normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
