"""Flow matching on straight paths (rectified flow): Stable Diffusion 3, FLUX, Wan, Qwen-Image, Z-Image, Sana."""

from collections.abc import Callable

import torch
from torch import Tensor

from .base import NoiseProcess
from .densities import uniform
from .diffusion import scaled_temperature


class FlowMatchingProcess(NoiseProcess):
    """`x_sigma = (1 - sigma) x_0 + sigma eps`, with `sigma` from the scheduler's training grid.

    The error is the mean squared error of the velocity `v = eps - x_0`, the network's own regression target, which
    stands for the log-likelihood as in diffusion: `log pi(x_0) ~= -error / T`. Not weighted over `sigma`, and not
    converted to an error of `x_0`: policy and reference would both be scaled by a factor of the drawn time.

    Args:
        sigmas: float32 `[num_timesteps]`, decreasing, any static shift already in it.
        num_train_timesteps: the time that stands for `sigma = 1`.
        density: increasing quantile function of the position on the grid, counted from its clean end.
    """

    def __init__(self, sigmas: Tensor, num_train_timesteps: int, density: Callable[[Tensor], Tensor] = uniform) -> None:
        self.timesteps = sigmas.to(torch.float32) * num_train_timesteps
        self.num_train_timesteps = num_train_timesteps
        self.density = density

    def time(self, quantile: Tensor) -> Tensor:
        """`1000 sigma_i` with `i = floor((1 - u) * num_timesteps)`, float32 `[B]`; grows with the quantile."""
        self.timesteps = self.timesteps.to(quantile.device)
        num_timesteps = len(self.timesteps)
        index = ((1 - self.density(quantile)) * num_timesteps).long()
        return self.timesteps[index.clamp(0, num_timesteps - 1)]

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`x_sigma`, float32 `[B, ...]`."""
        sigma = (time / self.num_train_timesteps).reshape(-1, *[1] * (clean.dim() - 1))
        return (1 - sigma) * clean + sigma * noise

    def error(self, prediction: Tensor, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean squared error of the velocity over all non-batch dimensions, in float32, `[B]`."""
        return (prediction.float() - self.target(clean, noise, time)).square().flatten(1).mean(1)

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The velocity `eps - x`, float32 `[B, ...]`."""
        return noise - clean

    def conflict(self, other: NoiseProcess) -> str | None:
        """Another unit of time; a shift or a density moves what is asked, not what the answer means."""
        if isinstance(other, FlowMatchingProcess) and other.num_train_timesteps != self.num_train_timesteps:
            return f"`num_train_timesteps` is {other.num_train_timesteps}, not {self.num_train_timesteps}"
        return super().conflict(other)

    def temperature(self, num_elements: int) -> float:
        """`T = 0.001 * 16384 / D`, as for diffusion."""
        return scaled_temperature(num_elements)
