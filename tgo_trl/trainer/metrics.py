"""Training metrics as TRL names them, gathered on the device without waiting for it."""

import torch
from accelerate import Accelerator
from torch import Tensor

from ..losses.likelihood import toward_label

QUARTILES = 4


class MetricSums:
    """Sums and counts of per-row values; means are taken once, over all rows of all processes.

    A mean of means would weigh rows by the size of the batch they came in; a side without rows logs nothing instead of
    NaN.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the values `[B]` of the rows where `mask` `[B]` is True. Every process must add the same names."""
        pair = torch.stack([values.detach().float().where(mask, 0).sum(), mask.sum().float()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop_means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of each name over all processes; names without rows are left out. Starts anew."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        totals: Tensor = accelerator.reduce(sums, "sum")
        self._sums = {}
        means = {name: total / count for name, (total, count) in zip(names, totals.tolist(), strict=True) if count > 0}
        if "rewards/chosen" in means and "rewards/rejected" in means:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


def add_likelihood_metrics(sums: MetricSums, log_likelihood: Tensor, is_positive: Tensor, valid: Tensor) -> None:
    """Adds `logps/chosen` and `logps/rejected`, the policy's log-likelihood surrogate of positive and negative rows."""
    sums.add("logps/chosen", log_likelihood, valid & is_positive)
    sums.add("logps/rejected", log_likelihood, valid & ~is_positive)


def add_reward_metrics(sums: MetricSums, reward: Tensor, is_positive: Tensor, valid: Tensor) -> None:
    """Adds what tells whether rewards move, and whether the sigmoid still passes gradient.

    - `rewards/chosen`, `rewards/rejected`: mean implicit reward of positive and negative rows.
    - `rewards/accuracies`: share of rows whose reward has the sign of their label.
    - `saturation/chosen`, `saturation/rejected`: mean of `sigmoid(+-r)`: 0.5 at the start, 1 where the loss is spent.

    Args:
        sums: what to add to.
        reward: `[B]`.
        is_positive: bool `[B]`, the labels.
        valid: bool `[B]`, False for padding.
    """
    toward = toward_label(reward, is_positive)
    sums.add("rewards/accuracies", (toward > 0).float(), valid)
    for side, mask in (("chosen", valid & is_positive), ("rejected", valid & ~is_positive)):
        sums.add(f"rewards/{side}", reward, mask)
        sums.add(f"saturation/{side}", toward.sigmoid(), mask)


def add_error_metrics(
    sums: MetricSums, difference: Tensor, quantile: Tensor, is_positive: Tensor, valid: Tensor
) -> None:
    """Adds `error_difference/quartile_1..4`: the mean of `+-(e_ref - e_theta)`, signed by label, by quartile of time.

    Positive where the policy moves as the labels ask; quartile 1 has the least noise.

    Args:
        sums: what to add to.
        difference: `e_ref - e_theta` `[B]`, of each draw.
        quantile: `[B]`, the draw's quantile of time in [0, 1).
        is_positive: bool `[B]`, the labels.
        valid: bool `[B]`, False for padding.
    """
    toward = toward_label(difference, is_positive)
    quartile = (quantile * QUARTILES).long()
    for i in range(QUARTILES):
        sums.add(f"error_difference/quartile_{i + 1}", toward, valid & (quartile == i))
