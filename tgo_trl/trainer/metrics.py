"""Training metrics as TRL names them, gathered on the device without waiting for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from ..losses.likelihood import log_likelihood, over_draws, toward_label
from ..losses.pairs import pair_margin, to_rows

QUARTILES = 4


MOST_KEPT = 64
"""Batches whose rows are kept, on the device, before their sums take their place."""


_Added = tuple[str, Tensor, Tensor | None, Tensor]


class MetricSums:
    """Sums of per-row values, and of what they are divided by; that is done once, over all rows of all processes.

    A mean of means would weigh rows by the size of the batch they came in, and a mean of ratios those most whose
    denominator is next to 0; a side without rows logs nothing instead of NaN. What is added is kept, and summed in one
    go for all names: a kernel for each of them in each step would take longer than the step of a small batch.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._added: list[_Added] = []

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the values `[B]` of the rows where `mask` `[B]` is True. Every process must add the same names."""
        self._added.append((name, values.detach(), None, mask))

    def add_ratio(self, name: str, numerator: Tensor, denominator: Tensor, mask: Tensor) -> None:
        """As [`add`], for the sum of the numerators `[B]` over that of the denominators `[B]`, which are at least 0."""
        self._added.append((name, numerator.detach(), denominator.detach(), mask))

    def sum_up(self) -> None:
        """Puts sums in the place of what was added."""
        added, self._added = self._added, []
        by_length: dict[int, list[_Added]] = {}
        for it in added:
            by_length.setdefault(it[1].shape[0], []).append(it)
        for alike in by_length.values():
            ones = torch.ones_like(alike[0][1], dtype=torch.float32)
            numerators = [values.float() for _, values, _, _ in alike]
            denominators = [ones if below is None else below.float() for _, _, below, _ in alike]
            masks = torch.stack([mask for _, _, _, mask in alike]).repeat(2, 1)
            totals = torch.stack([*numerators, *denominators]).where(masks, 0).sum(1)
            pairs = totals.reshape(2, -1).T.unbind()
            for (name, *_), pair in zip(alike, pairs, strict=True):
                self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop_means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean or ratio of each name over all processes; names without rows are left out. Starts anew."""
        self.sum_up()
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


@dataclass(frozen=True)
class MetricRows:
    """What the metrics of `B` rows are made of.

    Attributes:
        valid: bool `[B]`, False for padding.
        is_positive: bool `[B]`, the labels.
        weight: float32 `[B]`, the confidence weight.
        quantile: float32 `[K, B]`, of the time of each draw, on the CPU.
        policy_error: float32 `[K, B]`.
        reference_error: float32 `[K, B]`; None without a reference.
        prediction_difference: float32 `[K, B]`; None where predictions cannot be subtracted.
        reward: float32 `[B]`, the implicit reward; None without a reference.
        loss: float32 `[B]`; None where it is logged in another way, as in training.
    """

    valid: Tensor
    is_positive: Tensor
    weight: Tensor
    quantile: Tensor
    policy_error: Tensor
    reference_error: Tensor | None
    prediction_difference: Tensor | None
    reward: Tensor | None
    loss: Tensor | None

    def detached(self) -> "MetricRows":
        """The same values without gradient."""
        return replace(self, **{name: value.detach() for name, value in vars(self).items() if value is not None})

    @staticmethod
    def joined(parts: Sequence["MetricRows"]) -> "MetricRows":
        """The rows of several batches of one run, one batch after the other."""
        if len(parts) == 1:
            return parts[0]
        names = [name for name, value in vars(parts[0]).items() if value is not None]
        return replace(parts[0], **{name: torch.cat([vars(part)[name] for part in parts], -1) for name in names})


class LossMetrics(MetricSums):
    """Metrics of what a loss is made of, of many batches at once, whose rows are kept until somebody asks.

    Args:
        temperature: `T` of the log-likelihood surrogate, in error units.
        are_pairs: whether the loss is one of pairs, which come in turns.
        are_weighed: whether rows have a confidence weight.
    """

    def __init__(self, temperature: float, are_pairs: bool, are_weighed: bool) -> None:
        super().__init__()
        self._temperature = temperature
        self._are_pairs = are_pairs
        self._are_weighed = are_weighed
        self._kept: list[MetricRows] = []

    def keep(self, rows: MetricRows) -> None:
        """Adds the rows of a batch, without computing anything yet. Every process must do so with the same fields."""
        self._kept.append(rows.detached())
        if len(self._kept) == MOST_KEPT:
            self.sum_up()

    def sum_up(self) -> None:
        """Makes the metrics of the rows, and their sums."""
        kept, self._kept = self._kept, []
        if kept:
            self._add_rows(MetricRows.joined(kept))
        super().sum_up()

    def _add_rows(self, rows: MetricRows) -> None:
        is_positive, valid = rows.is_positive, rows.valid
        likelihood = log_likelihood(over_draws(rows.policy_error), self._temperature)
        add_likelihood_metrics(self, likelihood, is_positive, valid)
        if rows.reward is not None:
            add_reward_metrics(self, rows.reward, is_positive, valid, self._are_pairs)
            if self._are_weighed:
                add_weight_metrics(self, rows.weight, is_positive, valid)
        if rows.reference_error is not None:
            policy, reference = rows.policy_error.flatten(), rows.reference_error.flatten()
            quantile, num_samples = rows.quantile.flatten().to(policy.device), len(rows.quantile)
            positives, valids = is_positive.repeat(num_samples), valid.repeat(num_samples)
            add_error_metrics(self, reference - policy, quantile, positives, valids)
            add_drift_metrics(self, policy, reference, quantile, positives, valids)
        if rows.prediction_difference is not None:
            self.add("prediction_difference", over_draws(rows.prediction_difference), valid)
        if rows.loss is not None:
            self.add("loss", rows.loss, valid)


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
    quartiles = torch.arange(QUARTILES, device=mask.device)[:, None]
    for i, is_in in enumerate((mask & ((quantile * QUARTILES).long() == quartiles)).unbind()):
        yield f"{name}/quartile_{i + 1}", is_in
