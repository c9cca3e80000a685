"""How often one model beats another: sample by sample, on the same prompts and seeds."""

from torch import Tensor


def wins(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 where we score higher, 0 where they do, 0.5 of a tie: float64, as the scores.

    The mean is the win rate: 0.5 says nothing, and that of the other side is 1 less it.

    Args:
        ours: scores, float `[..., K]`.
        theirs: of the samples with the same prompts and seeds, in the same order.
    """
    return (ours > theirs).double() + (ours == theirs).double() / 2
