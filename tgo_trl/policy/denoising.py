"""How the networks of a pipeline are asked to denoise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..families import Family
from ..noise import NoiseProcess
from .draws import Draw, to_device


@dataclass(frozen=True)
class Denoiser:
    """How the networks of a pipeline are asked to denoise.

    Attributes:
        family: how they are called.
        pipeline: for the family's scaling factors.
        noise_process: how samples are corrupted.
    """

    family: Family
    pipeline: DiffusionPipeline
    noise_process: NoiseProcess

    def corrupt(self, image: Mapping[str, Tensor], prompt: Mapping[str, Any], draw: Draw) -> "Corrupted":
        """What policy and reference are both asked about.

        Args:
            image: the image encoder's tensors `[B, ...]`.
            prompt: the prompt encoder's tensors `[B, ...]`; beside them perhaps `lengths`, tokens of each, a tuple.
            draw: `K` draws of each row, `[K * B, ...]`, all rows of the first draw first.
        """
        num_rows = next(iter(image.values())).shape[0]
        num_samples = len(draw.quantile) // num_rows
        image, prompt = _repeat(image, num_samples), _repeat(prompt, num_samples)
        clean = self.family.clean(self.pipeline, image, draw.posterior_noise)
        host_time = self.noise_process.time(draw.quantile)
        time = to_device(host_time, clean.device)
        sample = self.noise_process.corrupt(clean, draw.noise, time)
        conditions = {
            **self.family.conditions(self.pipeline, image, prompt),
            **self.family.host_conditions(self.pipeline, host_time),
        }
        return Corrupted(self.noise_process, draw, num_rows, clean, time, sample, conditions)


@dataclass(frozen=True)
class Corrupted:
    """`K` corrupted samples of each of `B` rows, and what tells how well they are denoised.

    Attributes:
        noise_process: that corrupted them.
        draw: its randomness, `[K * B, ...]`.
        num_rows: `B`.
        clean: `[K * B, ...]`, float32 or int64 tokens.
        time: `[K * B]`.
        sample: `[K * B, ...]`, what the networks see.
        conditions: `[K * B, ...]` each, or tuples, what they see beside it.
    """

    noise_process: NoiseProcess
    draw: Draw
    num_rows: int
    clean: Tensor
    time: Tensor
    sample: Tensor
    conditions: dict[str, Any]

    def predictions(self, model: nn.Module) -> Tensor:
        """What a model says, in its native target, `[K * B, ...]`."""
        prediction: Tensor = model(self.sample, self.time, self.conditions)
        return prediction

    def errors(self, predictions: Tensor) -> Tensor:
        """How far predictions are off, float32 `[K, B]`."""
        errors = self.noise_process.error(predictions, self.clean, self.draw.noise, self.time)
        return self.by_row(errors)

    def target(self) -> Tensor:
        """What should be predicted, float32 `[K * B, ...]`."""
        return self.noise_process.target(self.clean, self.draw.noise, self.time)

    def by_row(self, values: Tensor) -> Tensor:
        """`[K * B, ...]` as `[K, B, ...]`."""
        return values.reshape(-1, self.num_rows, *values.shape[1:])


def _repeat(values: Mapping[str, Any], times: int) -> dict[str, Any]:
    if times == 1:
        return dict(values)
    return {
        name: value * times if isinstance(value, tuple) else torch.cat([value] * times)
        for name, value in values.items()
    }
