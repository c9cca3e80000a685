"""What the flow-matching families share: their process, and its settings."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from ..noise import FlowMatchingProcess, NoiseProcess, build_density
from .base_latents import LatentFamily


@dataclass(frozen=True)
class FlowMatchingFamily(LatentFamily):
    """A family whose network predicts the velocity from data to noise.

    Attributes:
        timestep_density: where training looks on the way: `"uniform"`, `"logit_normal"` or `"mode"`.
        logit_mean, logit_std: of `"logit_normal"`.
        mode_scale: of `"mode"`.
        timestep_shift: `s` in `sigma -> s sigma / (1 + (s - 1) sigma)`, towards noise if above 1. The default is the
            scheduler's own static shift, or none if the pipeline shifts by the image's size when it samples.
    """

    training_settings: ClassVar[tuple[str, ...]] = (
        "timestep_density", "logit_mean", "logit_std", "mode_scale", "timestep_shift",
    )  # fmt: skip

    own_sigmas: ClassVar[bool] = False
    """Whether the pipeline gives its scheduler noise levels from 1 to `1 / num_steps`, evenly spread, to be shifted."""

    timestep_density: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    timestep_shift: float | None = None

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses schedulers of other processes."""
        super().check(pipeline)
        prediction_type = pipeline.scheduler.config.get("prediction_type", "flow_prediction")
        if prediction_type != "flow_prediction":
            raise ValueError(
                f"The scheduler is a `{type(pipeline.scheduler).__name__}` with `prediction_type={prediction_type!r}`, "
                "but this network was trained by flow matching. Set `pipeline.scheduler` to a "
                "`FlowMatchEulerDiscreteScheduler`, or to a solver with `prediction_type='flow_prediction'`."
            )

    def process(self, pipeline: DiffusionPipeline) -> NoiseProcess:
        """Straight paths on the training grid of the pipeline's scheduler."""
        schedule = flow_schedule(pipeline, self.timestep_shift)
        density = build_density(self.timestep_density, self.logit_mean, self.logit_std, self.mode_scale)
        return FlowMatchingProcess(schedule.sigmas, schedule.config.num_train_timesteps, density)

    def schedule(
        self, pipeline: DiffusionPipeline, num_steps: int, shape: tuple[int, ...], device: torch.device
    ) -> Any:
        """As of any latents, shifted by the image's size where the scheduler asks for it."""
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        config = scheduler.config
        levels = self.noise_levels(pipeline, num_steps)
        arguments: dict[str, Any] = {"num_inference_steps": num_steps} if levels is None else {"sigmas": levels}
        if config.get("use_dynamic_shifting"):
            arguments["mu"] = self.shift(pipeline, self.num_tokens(pipeline, shape), num_steps)
        scheduler.set_timesteps(device=device, **arguments)
        return scheduler

    def noise_levels(self, pipeline: DiffusionPipeline, num_steps: int) -> Sequence[float] | None:
        """What the pipeline gives its scheduler to be shifted, from noise to data; None if that chooses itself."""
        return [*np.linspace(1.0, 1 / num_steps, num_steps)] if self.own_sigmas else None

    def num_tokens(self, pipeline: DiffusionPipeline, shape: tuple[int, ...]) -> int:
        """The size of an image that the scheduler shifts by, of the shape of its latents."""
        return shape[-2] * shape[-1] // self.latent_patch**2

    def shift(self, pipeline: DiffusionPipeline, num_tokens: int, num_steps: int) -> float:
        """The scheduler's `mu` for an image of so many tokens, drawn in so many steps: linear in the tokens."""
        config = pipeline.scheduler.config
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return float(least + (num_tokens - few) * (most - least) / (many - few))


def flow_schedule(pipeline: DiffusionPipeline, shift: float | None) -> FlowMatchEulerDiscreteScheduler:
    """The flow-matching schedule behind the pipeline's sampler, as training uses it.

    Solvers such as UniPC and DPM-Solver call their shift `flow_shift`.
    """
    config = pipeline.scheduler.config
    changes: dict[str, Any] = {}
    if shift is not None:
        changes = {"shift": shift, "use_dynamic_shifting": False}
    elif "flow_shift" in inspect.signature(type(pipeline.scheduler).__init__).parameters:
        # whatever `shift` a configuration may have kept of another class
        changes = {"shift": config["flow_shift"]}
    return FlowMatchEulerDiscreteScheduler.from_config(config, **changes)
