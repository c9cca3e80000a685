"""One pass of policy and reference over the same draw."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..families import Family
from ..noise import Process
from .draws import Draw
from .reference import Reference


@dataclass(frozen=True)
class RowErrors:
    """Errors of `K` draws of `B` rows.

    Attributes:
        policy: float32 `[K, B]`; holds gradient.
        reference: float32 `[K, B]`, without gradient; None without a reference.
    """

    policy: Tensor
    reference: Tensor | None


def row_errors(
    model: nn.Module, reference: Reference | None, family: Family, pipeline: DiffusionPipeline, process: Process,
    image: Mapping[str, Tensor], prompt: Mapping[str, Tensor], draw: Draw,
) -> RowErrors:  # fmt: skip
    """Errors of policy and reference on one draw, for all draws of all rows in one forward pass each.

    Args:
        model: the policy as wrapped for training.
        reference: None to leave it out.
        family: how the networks are called.
        pipeline: for the family's scaling factors.
        process: how samples are corrupted.
        image: the image encoder's tensors `[B, ...]`.
        prompt: the prompt encoder's tensors `[B, ...]`.
        draw: `K` draws of each row, `[K * B, ...]`, all rows of the first draw first.
    """
    num_rows = next(iter(image.values())).shape[0]
    num_samples = len(draw.quantile) // num_rows
    image, prompt = _repeat(image, num_samples), _repeat(prompt, num_samples)
    clean = family.clean(pipeline, image, draw.posterior_noise)
    time = process.time(draw.quantile)
    corrupted = process.corrupt(clean, draw.noise, time)
    conditions = family.conditions(pipeline, image, prompt)

    def errors(called: nn.Module) -> Tensor:
        prediction = called(corrupted, time, conditions)
        return process.error(prediction, clean, draw.noise, time).reshape(num_samples, num_rows)

    reference_errors = None
    if reference is not None:
        with torch.no_grad(), reference.acting(model) as acting:
            reference_errors = errors(acting)
    return RowErrors(errors(model), reference_errors)


def _repeat(tensors: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: torch.cat([tensor] * times) if times > 1 else tensor for name, tensor in tensors.items()}
