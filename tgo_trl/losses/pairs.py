"""What losses of pairs share: rows that come in turns, the better one first."""

from torch import Tensor

PAIR_TEMPERATURE = 2.0
"""`T` of the published losses of pairs: `log p = -e / 2`, a Gaussian of variance 1 whose numbers are averaged."""


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the better and those of the worse rows, `[..., 2 P]` to `[..., P]` each."""
    return values[..., ::2], values[..., 1::2]


def pair_margin(reward: Tensor) -> Tensor:
    """`u = r_better - r_worse` of each pair, `[2 P]` to `[P]`."""
    better, worse = split_pairs(reward)
    return better - worse


def to_rows(values: Tensor) -> Tensor:
    """What is one for both rows of a pair, once for each, `[P]` to `[2 P]`: the mean over rows is that over pairs."""
    return values.repeat_interleave(2)
