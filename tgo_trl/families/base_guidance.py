"""What the families share whose networks take the guidance scale as an input, as distilled from classifier-free one."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .base_flow import FlowMatchingFamily


@dataclass(frozen=True)
class ToldGuidanceFamily(FlowMatchingFamily):
    """A family whose network may be told the scale of its guidance; nothing else guides it.

    Attributes:
        train_guidance_scale: what it is told while it trains, if it takes one: [`usual_guidance`] if left out.
    """

    training_settings = (*FlowMatchingFamily.training_settings, "train_guidance_scale")
    usual_guidance: ClassVar[float]
    """What the pipeline tells the network if nobody says otherwise."""

    train_guidance_scale: float | None = None

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Also refuses a guidance for a network that takes none."""
        super().check(pipeline)
        if self.train_guidance_scale is not None and not pipeline.transformer.config.guidance_embeds:
            raise ValueError(
                f"`train_guidance_scale` is {self.train_guidance_scale}, but this network takes no guidance as an "
                "input (FLUX.1 [schnell] does not). Leave it unset."
            )

    def guidance(self, pipeline: DiffusionPipeline, scale: float | None) -> float:
        """1: the scale is an input of the network, if there is any, which [`predict`] gives it."""
        if scale is not None:
            raise ValueError(
                f"`sample_guidance_scale` is {scale}, and this network takes its guidance as an input or has none. "
                "Leave it out; `train_guidance_scale` is what FLUX.1 [dev] and FLUX.2 [dev] are told."
            )
        return 1.0

    def guidance_options(self, scale: float) -> dict[str, Any]:
        """What the network is told, under the pipeline's name for it; one that takes none passes it over."""
        return {"guidance_scale": self._told_guidance}

    def guidance_input(self, batch: int, device: torch.device) -> Tensor:
        """What the network is told of each row, float32 `[batch]`."""
        return told(self._told_guidance, batch, device)

    @property
    def _told_guidance(self) -> float:
        return self.usual_guidance if self.train_guidance_scale is None else self.train_guidance_scale


@functools.lru_cache(maxsize=64)
def told(guidance: float, batch: int, device: torch.device) -> Tensor:
    """The guidance for each row, float32 `[batch]`; kept, since both passes of every step ask for it."""
    with torch.inference_mode(False):
        return torch.full((batch,), guidance, dtype=torch.float32, device=device)
