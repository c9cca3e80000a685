"""Samples with gradient: the pipeline's own way from noise to pixels, through whose last steps a reward is climbed."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..families import FAMILIES, Family
from ..families.base_latents import LatentFamily
from .draws import SampleDraw
from .encoders import FrozenEncoders


def check_sampler(family: Family | type[Family], name: str) -> None:
    """Raises a ValueError if samples of a family cannot have a gradient, saying why.

    Args:
        family: of the pipeline, or its class.
        name: what the pipeline is called.
    """
    if family.has_sampler:
        return
    known = ", ".join(pipeline for pipeline, kind in FAMILIES.items() if kind.has_sampler)
    raise ValueError(
        f"`{name}` cannot be trained by the gradient of a reward here: {_why_not(family)}. Use one of {known}; or "
        "`TGOTrainer`, which needs no gradient of the reward."
    )


def _why_not(family: Family | type[Family]) -> str:
    kind = family if isinstance(family, type) else type(family)
    if not issubclass(kind, LatentFamily):
        return "it draws tokens, and a token that was drawn passes no gradient on"
    if kind.task.endswith("-to-video"):
        return "rewards with a gradient look at images, and it draws videos"
    return f"`{kind.__name__}` does not say how its sampler goes (`has_sampler`)"


@dataclass(frozen=True)
class GradientSampler:
    """Draws samples as the pipeline does, step by step, with a gradient through the last of them.

    Every step is the scheduler's own: `x_(i+1) = step(f_theta(x_i, t_i, c), t_i, x_i)`, with `f` the guided prediction
    `f_0 + s (f_c - f_0)`. Of a row whose gradient goes back through `K` steps, the predictions of all steps before are
    constants (truncated backpropagation through time: AlignProp, arXiv 2310.03739; `K = 1` is DRaFT-1, arXiv
    2309.17400). What a step keeps for the backward pass is up to the model: of a
    [`~tgo_trl.policy.policy.Policy`] that recomputes its calls, a few latents.

    Attributes:
        encoders: of the pipeline.
        image: what the image encoders make of any image of the samples' size, `[1, ...]`, for networks that are told of
            it.
        nothing: what the prompt encoders make of no prompt, `[1, ...]`.
        num_steps: of denoising.
        guidance_scale: `s`; at 1 and below, samples are not guided.
        eta: share of the noise that the scheduler adds at each step, for schedulers that take it (DDIM).
    """

    encoders: FrozenEncoders
    image: Mapping[str, Tensor]
    nothing: Mapping[str, Tensor]
    num_steps: int
    guidance_scale: float
    eta: float = 0.0

    @property
    def family(self) -> LatentFamily:
        """Of the pipeline."""
        family = self.encoders.family
        assert isinstance(family, LatentFamily)
        return family

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of one sample."""
        return self.family.latent_shape(self.image)

    def __call__(self, model: nn.Module, prompt: Mapping[str, Tensor], draw: SampleDraw) -> Tensor:
        """Pixels of `B` samples, float `[B, 3, H, W]` in [0, 1], which hold gradient.

        Args:
            model: the policy, or what wraps it.
            prompt: the prompt encoders' tensors, `[B, ...]`.
            draw: of the rows.
        """
        device, num_rows = draw.noise.device, len(draw.noise)
        scheduler = self.family.schedule(self.encoders.pipeline, self.num_steps, self.shape, device)
        options = step_options(scheduler, self.eta, draw.generators)
        conditions = self._conditions(prompt, num_rows)
        num_last = torch.tensor(draw.num_last_steps)
        latents = draw.noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, time in enumerate(scheduler.timesteps):
            is_last = num_last >= len(scheduler.timesteps) - i  # of each row, whether the gradient comes this far
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(is_last.any())):
                seen = (
                    scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
                )
                prediction = self._predict(model, seen, time, conditions).to(latents.dtype)
            if prediction.requires_grad and not is_last.all():
                rows = is_last.to(device).reshape(-1, *[1] * (prediction.dim() - 1))
                prediction = torch.where(rows, prediction, prediction.detach())
            latents = scheduler.step(prediction, time, latents, **options, return_dict=False)[0]
        return (self.encoders.decode(latents) / 2 + 0.5).clamp(0, 1)

    def _conditions(self, prompt: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        """What the network sees beside the latents, of the rows, and behind them of as many without a prompt."""
        image, prompt = dict(self.image), dict(prompt)
        if self.guidance_scale > 1:
            nothing = {name: _expanded(self.nothing[name], num_rows).to(tensor) for name, tensor in prompt.items()}
            prompt = {name: torch.cat([tensor, nothing[name]]) for name, tensor in prompt.items()}
            num_rows *= 2
        image = {name: _expanded(tensor, num_rows) for name, tensor in image.items()}
        return self.family.conditions(self.encoders.pipeline, image, prompt)

    def _predict(self, model: nn.Module, latents: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        if not self.guidance_scale > 1:
            prediction: Tensor = model(latents, time.expand(len(latents)), conditions)
            return prediction
        twice = torch.cat([latents, latents])
        with_prompt, without = model(twice, time.expand(len(twice)), conditions).chunk(2)
        return self.family.guided(with_prompt, without, self.guidance_scale)


def step_options(scheduler: Any, eta: float, generators: list[torch.Generator] | None) -> dict[str, Any]:
    """What a scheduler's `step` takes beside sample and prediction.

    Args:
        scheduler: of the pipeline.
        eta: share of the noise that is added.
        generators: one per row, for the noise.

    Raises:
        ValueError: if it takes no `eta`, and that is not 0; if its noise would come from elsewhere.
    """
    taken = inspect.signature(scheduler.step).parameters
    name = type(scheduler).__name__
    if eta and "eta" not in taken:
        raise ValueError(
            f"`sample_eta` is {eta}, and the pipeline's scheduler, a `{name}`, takes none. Leave it at 0, or set "
            "`pipeline.scheduler` to a `DDIMScheduler`."
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"The pipeline's `{name}` has `stochastic_sampling=True`, whose noise comes from PyTorch's own generator, "
            "so that a run could not be resumed or laid out otherwise with the same result. Set it to False."
        )
    options = {"eta": eta} if eta else {}
    return options | ({"generator": generators} if "generator" in taken else {})


def _expanded(tensor: Tensor, num_rows: int) -> Tensor:
    return tensor.expand(num_rows, *tensor.shape[1:])
