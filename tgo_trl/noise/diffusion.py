"""Discrete-time Gaussian diffusion (DDPM), epsilon- and v-prediction: Stable Diffusion 1.x, 2.x and XL."""

import torch
from torch import Tensor

from .base import NoiseProcess

PAPER_TEMPERATURE = 0.001
PAPER_NUM_ELEMENTS = 4 * 64 * 64  # the latents of Stable Diffusion 1.5 at 512 pixels


class DiffusionProcess(NoiseProcess):
    """`x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps` with `t` uniform over the training timesteps.

    The error is the mean squared error in the network's own regression target: `eps`, or
    `v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0`. The paper writes the clean-sample form of the surrogate; its
    baselines, and this process, use the native target.

    Args:
        alphas_cumprod: float32 `[num_timesteps]`, `abar_t`, decreasing.
        prediction_type: `"epsilon"` or `"v_prediction"`.

    Raises:
        ValueError: for any other `prediction_type`.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"The scheduler's `prediction_type` is {prediction_type!r}, which has no log-likelihood surrogate "
                "here. Use a scheduler with `prediction_type='epsilon'` or `'v_prediction'`."
            )
        self.alphas_cumprod = alphas_cumprod.to(torch.float32)
        self.prediction_type = prediction_type

    def time(self, quantile: Tensor) -> Tensor:
        """Timestep `t = floor(u * num_timesteps)`, int64 `[B]`."""
        num_timesteps = len(self.alphas_cumprod)
        return (quantile * num_timesteps).long().clamp(max=num_timesteps - 1)

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`x_t`, float32 `[B, ...]`."""
        signal, spread = self._coefficients(clean, time)
        return signal * clean + spread * noise

    def error(self, prediction: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean squared error to the native target over all non-batch dimensions, float32 `[B]`.

        Subtracted and reduced in float32, whatever dtype `prediction` has: `1/T` multiplies the rounding.
        """
        return (prediction.float() - self.target(clean, noise, time)).square().flatten(1).mean(1)

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network is trained to predict, float32 `[B, ...]`."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._coefficients(clean, time)
        return signal * noise - spread * clean

    def conflict(self, other: NoiseProcess) -> str | None:
        """Another target, or another `abar_t`; both in float32, but for rounding."""
        if not isinstance(other, DiffusionProcess):
            return super().conflict(other)
        if other.prediction_type != self.prediction_type:
            return f"`prediction_type` is {other.prediction_type!r}, not {self.prediction_type!r}"
        mine, others = self.alphas_cumprod.cpu(), other.alphas_cumprod.cpu()
        if len(mine) != len(others):
            return f"schedule has {len(others)} timesteps, not {len(mine)}"
        if not torch.allclose(mine, others, rtol=1e-3, atol=1e-5):
            return f"schedule is another one (it ends at abar = {others[-1]:.3g}, not {mine[-1]:.3g})"
        return None

    def temperature(self, num_elements: int) -> float:
        """`T = 0.001 * 16384 / D`, see [`scaled_temperature`]."""
        return scaled_temperature(num_elements)

    def _coefficients(self, like: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        self.alphas_cumprod = self.alphas_cumprod.to(like.device)
        abar = self.alphas_cumprod[time].reshape(-1, *[1] * (like.dim() - 1))
        return abar.sqrt(), (1 - abar).sqrt()


def scaled_temperature(num_elements: int) -> float:
    """`T = 0.001 * 16384 / D`: the paper's value at its latent size, moved with the size.

    A Gaussian log-likelihood is a sum of squares over `2 sigma^2`; the surrogate is a mean of squares over `T`. They
    agree when `T = 2 sigma^2 / D`, so keeping the paper's `sigma` moves `T` with `1 / D`.
    """
    return PAPER_TEMPERATURE * PAPER_NUM_ELEMENTS / num_elements
