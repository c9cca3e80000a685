"""Where on the way from noise to data training looks: quantile functions of the usual timestep densities.

The densities of diffusers' `compute_density_for_timestep_sampling`, as functions of a uniform quantile instead of a
random generator, so that a row's time is a pure function of its draw. All of them increase.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

DENSITIES = ("uniform", "logit_normal", "mode")


def build_density(name: str, logit_mean: float, logit_std: float, mode_scale: float) -> Callable[[Tensor], Tensor]:
    """The quantile function of a density, float32 `[B]` in [0, 1] to the same.

    Args:
        name: one of `DENSITIES`.
        logit_mean: of `"logit_normal"`.
        logit_std: of `"logit_normal"`.
        mode_scale: of `"mode"`.

    Raises:
        ValueError: for another name.
    """
    if name == "uniform":
        return uniform
    if name == "logit_normal":
        return partial(logit_normal, mean=logit_mean, std=logit_std)
    if name == "mode":
        return partial(mode, scale=mode_scale)
    raise ValueError(f"`timestep_density` is {name!r}; it must be one of {', '.join(map(repr, DENSITIES))}.")


def uniform(quantile: Tensor) -> Tensor:
    """`u = q`."""
    return quantile


def logit_normal(quantile: Tensor, mean: float, std: float) -> Tensor:
    """`u = sigmoid(mean + std * Phi^-1(q))`: mostly in the middle (arXiv 2403.03206, equation 19)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(quantile))


def mode(quantile: Tensor, scale: float) -> Tensor:
    """`u = q - scale * (sin^2(pi q / 2) - q)`: heavier tails than the logit-normal (arXiv 2403.03206, equation 20).

    The paper's function of `1 - q`, which has the same distribution and increases.
    """
    return quantile - scale * (torch.sin(math.pi / 2 * quantile).square() - quantile)
