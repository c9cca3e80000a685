"""How sure a mean over prompts is: drawn anew from the same prompts, how far would it move?"""

import torch
from torch import Tensor

NUM_RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100
TAILS = (0.025, 0.975)


def resampled_means(values: Tensor, seed: int = 0) -> Tensor:
    """Means over prompts that are drawn anew with replacement, float64 `[S, R]`: the bootstrap (Efron 1979).

    All rows have the same prompts in a draw, so that two of them can be compared prompt by prompt.

    Args:
        values: float64 `[S, P]`, a number of each prompt, such as the mean reward at each of some scales.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    num_prompts = values.shape[1]
    means = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        chosen = torch.randint(num_prompts, (RESAMPLES_AT_ONCE, num_prompts), generator=generator)
        means.append(values[:, chosen].mean(-1))
    return torch.cat(means, 1)


def interval(means: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of resampled means `[R]`."""
    low, high = torch.quantile(means, torch.tensor(TAILS, dtype=means.dtype)).tolist()
    return low, high
