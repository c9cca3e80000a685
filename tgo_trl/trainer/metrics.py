"""Training metrics as TRL names them, gathered on the device without waiting for it."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from ..losses.likelihood import toward_label
from ..losses.pairs import pair_margin, to_rows

QUARTILES = 4


class MetricSums:
    """Sums of per-row values, and of what they are divided by; that is done once, over all rows of all processes.

    A mean of means would weigh rows by the size of the batch they came in, and a mean of ratios those most whose
    denominator is next to 0; a side without rows logs nothing instead of NaN.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the values `[B]` of the rows where `mask` `[B]` is True. Every process must add the same names."""
        self._add(name, _sum_over(values, mask), mask.sum().float())

    def add_ratio(self, name: str, numerator: Tensor, denominator: Tensor, mask: Tensor) -> None:
        """As [`add`], for the sum of the numerators `[B]` over that of the denominators `[B]`, which are at least 0."""
        self._add(name, _sum_over(numerator, mask), _sum_over(denominator, mask))

    def _add(self, name: str, total: Tensor, divisor: Tensor) -> None:
        pair = torch.stack([total, divisor])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop_means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean or ratio of each name over all processes; names without rows are left out. Starts anew."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        totals: Tensor = accelerator.reduce(sums, "sum")
        self._sums = {}
        pairs = zip(names, totals.tolist(), strict=True)
        means = {name: total / divisor for name, (total, divisor) in pairs if divisor > 0}
        if "rewards/chosen" in means and "rewards/rejected" in means:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


def add_likelihood_metrics(sums: MetricSums, log_likelihood: Tensor, is_positive: Tensor, valid: Tensor) -> None:
    """Adds `logps/chosen` and `logps/rejected`, the policy's log-likelihood surrogate of positive and negative rows."""
    sums.add("logps/chosen", log_likelihood, valid & is_positive)
    sums.add("logps/rejected", log_likelihood, valid & ~is_positive)


def add_reward_metrics(
    sums: MetricSums, reward: Tensor, is_positive: Tensor, valid: Tensor, are_pairs: bool = False
) -> None:
    """Adds what tells whether rewards move, and whether the sigmoid still passes gradient.

    - `rewards/chosen`, `rewards/rejected`: mean implicit reward of positive and negative rows.
    - `rewards/accuracies`: share of rows whose reward has the sign of their label; of pairs, share of those whose
      better row has the higher reward.
    - `rewards/displaced`: share of positive rows whose reward is negative: less likely than under the reference.
    - `saturation/chosen`, `saturation/rejected`: mean of `sigmoid(+-r)`: 0.5 at the start, 1 where the loss is spent;
      of pairs, `sigmoid(r_better - r_worse)` in both.

    Args:
        sums: what to add to.
        reward: `[B]`.
        is_positive: bool `[B]`, the labels.
        valid: bool `[B]`, False for padding.
        are_pairs: whether the loss is one of pairs, which come in turns.
    """
    toward = to_rows(pair_margin(reward)) if are_pairs else toward_label(reward, is_positive)
    sums.add("rewards/accuracies", (toward > 0).float(), valid)
    sums.add("rewards/displaced", (reward < 0).float(), valid & is_positive)
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
    for name, mask in _by_quartile("error_difference", quantile, valid):
        sums.add(name, toward, mask)


def add_drift_metrics(
    sums: MetricSums,
    policy_error: Tensor,
    reference_error: Tensor,
    quantile: Tensor,
    is_positive: Tensor,
    valid: Tensor,
) -> None:
    """Adds `drift/quartile_1..4`: policy error over reference error of positive rows, by quartile of time.

    A ratio of sums, exactly 1 at the start. The temperature is one number for all times, but the reference's error is
    not: late, where it is small, the same reward allows a change that is large beside it.

    Args:
        sums: what to add to.
        policy_error: `e_theta` `[B]`, of each draw.
        reference_error: `e_ref` `[B]`, of each draw.
        quantile: `[B]`, the draw's quantile of time in [0, 1).
        is_positive: bool `[B]`, the labels.
        valid: bool `[B]`, False for padding.
    """
    for name, mask in _by_quartile("drift", quantile, valid & is_positive):
        sums.add_ratio(name, policy_error, reference_error, mask)


def add_weight_metrics(sums: MetricSums, weight: Tensor, is_positive: Tensor, valid: Tensor) -> None:
    """Adds `weights/balance`: the total weight of negative rows over that of positive rows.

    Above 1, the loss begins on a hill: near the reference its curvature has the sign of the positives' weight less the
    negatives'.

    Args:
        sums: what to add to.
        weight: `[B]`, the confidence weight `w >= 1`.
        is_positive: bool `[B]`, the labels.
        valid: bool `[B]`, False for padding.
    """
    sums.add_ratio("weights/balance", weight.where(~is_positive, 0), weight.where(is_positive, 0), valid)


def _by_quartile(name: str, quantile: Tensor, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
    quartile = (quantile * QUARTILES).long()
    for i in range(QUARTILES):
        yield f"{name}/quartile_{i + 1}", mask & (quartile == i)


def _sum_over(values: Tensor, mask: Tensor) -> Tensor:
    return values.detach().float().where(mask, 0).sum()
