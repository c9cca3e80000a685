"""Networks of transformers with all of their weights, also from another layout, and the pixels that CLIP's take."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from .base import hub_file

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def load_complete(model_class: Any, model_id: str, revision: str | None) -> tuple[Any, str | None]:
    """A network of transformers, float32, on the CPU, in evaluation mode, and the commit it is from if known.

    Raises:
        ValueError: if the repository lacks weights, which transformers would draw at random.
    """
    _, commit = hub_file(model_id, "config.json", revision)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # or a tower that is not used is reported, weight by weight
    try:
        model, report = model_class.from_pretrained(
            model_id, revision=commit or revision or "main", dtype=torch.float32, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise ValueError(
            f"{model_id!r} lacks weights of a `{model_class.__name__}`, such as {min(report['missing_keys'])!r}. Name "
            "a model of that kind."
        )
    return model, commit


def network_from_weights(
    network_class: Any,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Any:
    """The network with exactly these weights, on the CPU, in evaluation mode, without gradient.

    Args:
        network_class: a `PreTrainedModel`.
        config: its configuration.
        weights: under the names that the class has.
        dtype: what they are cast to.
        kwargs: for the constructor, beside `config`.

    Raises:
        ValueError: if a weight is missing, left over, or of another shape.
    """
    network, report = network_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report too, which is easier to read than the exception
        **kwargs,
    )
    for state in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(name if isinstance(name, str) else name[0] for name in report[state])
        if names:
            raise ValueError(
                f"These are not the weights of the expected `{network_class.__name__}` ({state.replace('_', ' ')}: "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''})."
            )
    return network.requires_grad_(False).eval()


def normalize(pixels: Tensor, mean: Sequence[float] = OPENAI_MEAN, std: Sequence[float] = OPENAI_STD) -> Tensor:
    """CLIP's input of `[..., 3, height, width]` in [0, 1]."""
    centre, spread = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels - centre) / spread


def resized_square(pixels: Tensor, size: int, rounding: Callable[[float], int] = math.floor) -> Tensor:
    """Shorter side resized to `size` (bicubic, smoothed), centre cropped, with gradient: as Pillow does on 8 bits.

    Pillow rounds to 8 bits after each of its two passes; without that, pixels are up to 2 of 255 apart.

    Args:
        pixels: float `[N, 3, H, W]` in [0, 1].
        size: side of the square, in pixels.
        rounding: of the corner of the crop, which may lie between two pixels.

    Returns:
        float `[N, 3, size, size]` in [0, 1].
    """
    short = min(pixels.shape[-2:])
    if short != size:
        height, width = (size if side == short else int(size * side / short) for side in pixels.shape[-2:])
        for shape in ((pixels.shape[-2], width), (height, width)):  # Pillow clips after each of its two passes
            pixels = F.interpolate(pixels, shape, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (rounding((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]
