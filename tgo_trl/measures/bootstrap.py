"""How far a statistic of some prompts may be off: the percentile bootstrap (Efron 1979), over prompts.

Samples of a prompt are alike, so that prompts are drawn anew, not samples. Whatever is compared gets the same prompts
in a draw: two models are then compared prompt by prompt.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .estimates import Estimate

NUM_RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100
FEW_PROMPTS = 20
"""Below which the intervals are too narrow."""
TAILS = (0.025, 0.975)


def resampled_means(values: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Tensor:
    """Means over prompts that are drawn anew with replacement, float64 `[S, R]`.

    Args:
        values: float64 `[S, P]`, of each prompt, the mean over its samples for instance.
        num_resamples: `R`.
        seed: of the draws.
    """
    return torch.cat([values[:, chosen].mean(-1) for chosen in _draws(values.shape[1], num_resamples, seed)], 1)


def resampled_medians(values: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Tensor:
    """Medians over all samples of prompts that are drawn anew, in the draws of [`resampled_means`], float64 `[S, R]`.

    Args:
        values: float64 `[S, P, K]`, of each sample.
        num_resamples: `R`.
        seed: of the draws.
    """
    num_models, num_prompts, num_samples = values.shape
    ordered, order = values.flatten(1).sort(1)
    prompts = order // num_samples
    count = num_prompts * num_samples
    middle = torch.tensor([(count - 1) // 2 + 1, count // 2 + 1])  # of the drawn samples in order, counted from 1
    medians = []
    for chosen in _draws(num_prompts, num_resamples, seed):
        times = torch.zeros_like(chosen).scatter_add_(1, chosen, torch.ones_like(chosen))  # each prompt is drawn
        rows = []
        for i in range(num_models):  # without sorting every draw: how many of it are below each sample
            places = torch.searchsorted(times[:, prompts[i]].cumsum(1), middle.expand(len(chosen), 2).contiguous())
            rows.append(ordered[i][places].mean(1))
        medians.append(torch.stack(rows))
    return torch.cat(medians, 1)


def ratio(numerators: Tensor, denominators: Tensor) -> Estimate:
    """`sum(numerators) / sum(denominators)`, such as a share of verdicts, with its interval over prompts.

    Args:
        numerators: float64 `[P]`, of each prompt.
        denominators: float64 `[P]`, each above 0.
    """
    value = (numerators.sum() / denominators.sum()).item()
    if len(numerators) == 1:
        return Estimate(value, None)
    above, below = resampled_means(torch.stack([numerators, denominators]))
    return Estimate(value, interval(above / below))


def interval(resampled: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of a resampled statistic `[R]`."""
    low, high = torch.quantile(resampled, torch.tensor(TAILS, dtype=resampled.dtype)).tolist()
    return low, high


def _draws(num_prompts: int, num_resamples: int, seed: int) -> Iterator[Tensor]:
    """Indices of prompts, int64 `[up to 100, P]`, so that no draw needs much memory."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, num_resamples - start)
        yield torch.randint(num_prompts, (count, num_prompts), generator=generator)
