"""Thresholds: the data-driven stand-ins for the intractable baseline `tau*(x) = beta log Z(x)`.

Each function takes the scores of the whole data set and returns `tau`, in score units: one number, or one per row for
the per-prompt baseline. Source: arXiv 2605.04653, section on threshold estimation; the percentile is the paper's
choice, the per-prompt baseline is the Monte-Carlo estimate of `tau*(x)` that its analysis starts from.
"""

import math

import torch
from torch import Tensor


def percentile_threshold(scores: Tensor, percentile: float) -> Tensor:
    """`tau = Percentile({s_i}, p)`, linearly interpolated between neighbours as NumPy does.

    `torch.quantile` stops at 16 million numbers; this sorts instead.

    Args:
        scores: float `[N]`, in score units.
        percentile: `p` in percent, 0 to 100; 50 is the median.

    Returns:
        A scalar tensor in the dtype of `scores`.

    Raises:
        ValueError: if `percentile` lies outside 0 to 100.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"`percentile` is {percentile}, but it is counted in percent: pass a number from 0 to 100.")
    ordered = scores.sort().values
    position = percentile / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)


def mean_threshold(scores: Tensor) -> Tensor:
    """`tau = mean of the scores`, float `[N]` to a scalar tensor, in score units."""
    return scores.mean()


def prompt_mean(scores: Tensor, prompts: Tensor) -> Tensor:
    """`tau(x) = mean_k s_k` per prompt: the per-prompt baseline for `beta -> inf`, which noise in scores does not bias.

    Not in the paper. Subtracts what makes a prompt easy or hard, as group-relative advantages do.

    Args:
        scores: float `[N]`, in score units.
        prompts: int64 `[N]`, the prompt's index of each row, from 0 to `P - 1`.

    Returns:
        float `[N]`, the mean of each row's prompt, in score units.
    """
    num_prompts = int(prompts.max()) + 1
    # The peak is taken out, so that a prompt with equal scores gets exactly that score.
    peak = scores.new_full((num_prompts,), -math.inf).scatter_reduce(0, prompts, scores, "amax")
    total = scores.new_zeros(num_prompts).index_add(0, prompts, scores - peak[prompts])
    count = scores.new_zeros(num_prompts).index_add(0, prompts, torch.ones_like(scores))
    return (peak + total / count)[prompts]


def prompt_baseline(scores: Tensor, prompts: Tensor, beta: float) -> Tensor:
    """Monte-Carlo estimate of `tau*(x) = beta log Z(x)` per prompt, `beta log mean_k exp(s_k / beta)`.

    Meant for data with several images per prompt drawn from the reference: with a single image the baseline of a row
    is its own score, and tells nothing.

    Args:
        scores: float `[N]`, in score units.
        prompts: int64 `[N]`, the prompt's index of each row, from 0 to `P - 1`.
        beta: `beta > 0`, in score units.

    Returns:
        float `[N]`, the baseline of each row's prompt, in score units.
    """
    num_prompts = int(prompts.max()) + 1
    # The peak is taken out in score units, so that a prompt with equal scores gets exactly that score.
    peak = scores.new_full((num_prompts,), -math.inf).scatter_reduce(0, prompts, scores, "amax")
    total = scores.new_zeros(num_prompts).index_add(0, prompts, ((scores - peak[prompts]) / beta).exp())
    count = scores.new_zeros(num_prompts).index_add(0, prompts, torch.ones_like(scores))
    return (peak + beta * (total / count).log())[prompts]
