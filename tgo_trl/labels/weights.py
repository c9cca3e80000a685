"""Confidence weights: how much a row counts, by how far its score lies from the threshold."""

from torch import Tensor


def confidence_weights(scores: Tensor, threshold: Tensor, coefficient: float) -> Tensor:
    """Confidence weight of each row, `w(s) = 1 + c |s - tau|` (arXiv 2605.04653).

    Args:
        scores: float `[N]`, in score units.
        threshold: float, a scalar `tau` or one per row `[N]`, in score units.
        coefficient: `c >= 0`, per score unit; 0 gives every row the weight 1.

    Returns:
        `[N]` in the dtype of `scores`, at least 1.

    Raises:
        ValueError: if `coefficient` is negative.
    """
    if coefficient < 0:
        raise ValueError(
            f"`coefficient` is {coefficient}: a negative one gives rows far from the threshold a weight below 1, and "
            "at last below 0. Pass a number >= 0."
        )
    return 1 + coefficient * (scores - threshold).abs()


def weight_balance(is_positive: Tensor, weights: Tensor) -> float:
    """`W+ / W-`, the weight of all positive rows over that of all negative ones.

    Below 1 the negative ones win at the start, where the curvature of the loss has the sign of `W+ - W-`.

    Args:
        is_positive: bool `[N]`, with rows on both sides.
        weights: float `[N]`.
    """
    return (weights[is_positive].double().sum() / weights[~is_positive].double().sum()).item()
