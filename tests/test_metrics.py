"""Training metrics by hand, over batches of unequal size and over two processes."""

import math

import pytest
import torch
from accelerate import Accelerator

from tgo_trl.losses.likelihood import log_likelihood
from tgo_trl.trainer import metrics
from tgo_trl.trainer.metrics import (
    LossMetrics,
    MetricRows,
    MetricSums,
    add_drift_metrics,
    add_error_metrics,
    add_likelihood_metrics,
    add_reward_metrics,
    add_weight_metrics,
)


class TwoProcesses:
    """As an `Accelerator` whose other process holds `other`: reduces by adding both tensors."""

    def __init__(self, other):
        self.other = other

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor + self.other


class Capture:
    """As an `Accelerator` that only looks at what a process would send."""

    def reduce(self, tensor, reduction):
        self.sent = tensor.clone()
        return tensor


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def always(values):
    return torch.ones(len(values), dtype=torch.bool)


def tensors(*rows):
    return [torch.tensor(row) for row in rows]


def test_mean_over_unequal_batches(accelerator):
    sums = MetricSums()
    for batch in tensors([1.0, 2.0, 3.0], [10.0]):
        sums.add("loss", batch, always(batch))
    # (1 + 2 + 3 + 10) / 4; the mean of the batches' means would be (2 + 10) / 2 = 6
    assert sums.pop_means(accelerator) == {"loss": 4.0}


def test_masked_rows_do_not_count(accelerator):
    sums = MetricSums()
    sums.add("loss", torch.tensor([1.0, math.nan, 3.0, 100.0]), torch.tensor([True, False, True, False]))
    assert sums.pop_means(accelerator) == {"loss": 2.0}  # (1 + 3) / 2


def test_popping_starts_anew(accelerator):
    sums = MetricSums()
    assert sums.pop_means(accelerator) == {}
    sums.add("loss", torch.tensor([1.0]), torch.tensor([True]))
    sums.pop_means(accelerator)
    assert sums.pop_means(accelerator) == {}
    sums.add("loss", torch.tensor([5.0]), torch.tensor([True]))
    assert sums.pop_means(accelerator) == {"loss": 5.0}


def test_sums_are_float32_without_gradient(accelerator):
    # bfloat16 numbers above 256 are 2 apart: 256 + 1 would stay 256 in a bfloat16 sum.
    sums = MetricSums()
    values = torch.tensor([256.0, 1.0], dtype=torch.bfloat16, requires_grad=True)
    sums.add("loss", values, always(values))
    capture = Capture()
    assert sums.pop_means(capture) == {"loss": 257 / 2}
    assert (capture.sent.dtype, capture.sent.requires_grad) == (torch.float32, False)


def test_two_processes(accelerator):
    # Process 0 has rewards 1, 2, 3 (all positive), process 1 has 10 (positive) and -4 (negative).
    first, second, capture = MetricSums(), MetricSums(), Capture()
    add_reward_metrics(first, *tensors([1.0, 2.0, 3.0], [True, True, True], [True, True, True]))
    add_reward_metrics(second, *tensors([10.0, -4.0], [True, False], [True, True]))
    alone = second.pop_means(capture)
    assert (alone["rewards/chosen"], alone["rewards/margins"]) == (10.0, 14.0)
    means = first.pop_means(TwoProcesses(capture.sent))
    assert means["rewards/chosen"] == 4.0  # (1 + 2 + 3 + 10) / 4
    assert means["rewards/rejected"] == -4.0  # which process 0 had no row of
    assert means["rewards/margins"] == 8.0
    assert means["rewards/accuracies"] == 1.0


def test_reward_metrics_by_hand(accelerator):
    sums = MetricSums()
    # The last row is padding.
    reward, is_positive, valid = tensors(
        [2.0, -1.0, -3.0, 0.5, 99.0], [True, True, False, False, True], [True, True, True, True, False]
    )
    add_reward_metrics(sums, reward, is_positive, valid)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    assert sums.pop_means(accelerator) == pytest.approx(
        {
            "rewards/chosen": 0.5,  # (2 - 1) / 2
            "rewards/rejected": -1.25,  # (-3 + 0.5) / 2
            "rewards/margins": 1.75,  # 0.5 + 1.25
            "rewards/accuracies": 0.5,  # 2 > 0 and -3 < 0 are right, -1 and 0.5 are not
            "rewards/displaced": 0.5,  # -1 of 2 and -1
            "saturation/chosen": (sigmoid(2) + sigmoid(-1)) / 2,
            "saturation/rejected": (sigmoid(3) + sigmoid(-0.5)) / 2,
        },
        rel=1e-6,
    )


def test_metrics_at_the_start(accelerator):
    # All rewards are zero: no row counts as accurate, and the sigmoids are in the middle.
    sums = MetricSums()
    add_reward_metrics(sums, *tensors([0.0, 0.0], [True, False], [True, True]))
    means = sums.pop_means(accelerator)
    assert (means["rewards/accuracies"], means["rewards/margins"], means["rewards/displaced"]) == (0.0, 0.0, 0.0)
    assert (means["saturation/chosen"], means["saturation/rejected"]) == (0.5, 0.5)


@pytest.mark.parametrize(("label", "absent"), [(True, "rejected"), (False, "chosen")])
def test_one_sided_batches_leave_the_other_side_out(label, absent, accelerator):
    sums = MetricSums()
    reward, is_positive, valid = tensors([1.0, 2.0], [label, label], [True, True])
    add_reward_metrics(sums, reward, is_positive, valid)
    add_likelihood_metrics(sums, reward, is_positive, valid)
    add_drift_metrics(sums, reward, reward, torch.tensor([0.1, 0.2]), is_positive, valid)
    add_weight_metrics(sums, reward, is_positive, valid)
    means = sums.pop_means(accelerator)
    present = "chosen" if label else "rejected"
    of_positives = {"rewards/displaced", "drift/quartile_1", "weights/balance"} if label else set()
    assert set(means) == of_positives | {
        "rewards/accuracies", f"rewards/{present}", f"saturation/{present}", f"logps/{present}",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in means.values())
    assert not any(absent in name for name in means)


def test_batches_of_one_side_each_are_joined(accelerator):
    sums = MetricSums()
    add_reward_metrics(sums, *tensors([1.0, 2.0], [True, True], [True, True]))
    add_reward_metrics(sums, *tensors([-5.0], [False], [True]))
    means = sums.pop_means(accelerator)
    assert (means["rewards/chosen"], means["rewards/rejected"], means["rewards/margins"]) == (1.5, -5.0, 6.5)


def test_likelihood_metrics_by_hand(accelerator):
    sums = MetricSums()
    add_likelihood_metrics(sums, *tensors([-1.0, -2.0, -6.0, -9.0], [True, False, False, True], [True] * 3 + [False]))
    assert sums.pop_means(accelerator) == {"logps/chosen": -1.0, "logps/rejected": -4.0}  # (-2 - 6) / 2


def test_error_metrics_by_quartile_of_time(accelerator):
    sums = MetricSums()
    add_error_metrics(
        sums,
        difference=torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        quantile=torch.tensor([0.0, 0.2499, 0.25, 0.5, 1 - 2**-24, 0.6]),
        is_positive=torch.tensor([True, False, False, True, True, True]),
        valid=torch.tensor([True, True, True, True, True, False]),
    )
    assert sums.pop_means(accelerator) == {
        "error_difference/quartile_1": -0.5,  # (1 - 2) / 2
        "error_difference/quartile_2": -4.0,
        "error_difference/quartile_3": 8.0,  # the row at 0.6 is padding
        "error_difference/quartile_4": 16.0,
    }


def test_quartiles_without_draws_are_left_out(accelerator):
    sums = MetricSums()
    add_error_metrics(sums, *tensors([1.0, 3.0], [0.8, 0.9], [True, True], [True, True]))
    assert sums.pop_means(accelerator) == {"error_difference/quartile_4": 2.0}


def test_a_ratio_is_one_of_sums(accelerator):
    sums = MetricSums()
    sums.add_ratio("drift", *tensors([3.0, math.nan, 1.0], [1.0, 1.0, 4.0], [True, False, True]))
    sums.add_ratio("drift", *tensors([6.0], [3.0], [True]))
    sums.add_ratio("none", *tensors([6.0], [3.0], [False]))
    # (3 + 1 + 6) / (1 + 4 + 3); the mean of the rows' ratios would be (3 + 1 / 4 + 2) / 3 = 1.75
    assert sums.pop_means(accelerator) == {"drift": 1.25}


def test_drift_by_quartile_of_time(accelerator):
    sums = MetricSums()
    add_drift_metrics(
        sums,
        policy_error=torch.tensor([1.0, 3.0, 9.0, 2.0, 6.0, 99.0], requires_grad=True),
        reference_error=torch.tensor([2.0, 2.0, 1.0, 4.0, 0.5, 1.0]),
        quantile=torch.tensor([0.0, 0.2499, 0.25, 0.5, 1 - 2**-24, 0.6]),
        is_positive=torch.tensor([True, True, False, True, True, True]),
        valid=torch.tensor([True, True, True, True, True, False]),
    )
    assert sums.pop_means(accelerator) == {
        "drift/quartile_1": 1.0,  # (1 + 3) / (2 + 2)
        "drift/quartile_3": 0.5,  # quartile 2 has a negative row alone; the row at 0.6 is padding
        "drift/quartile_4": 12.0,
    }


def test_ratios_of_two_processes():
    # Process 0 has drifts of 4 / 1 and 1 / 1, process 1 of 1 / 8; weights 3 and 1 against 6, and 2.
    first, second, capture = MetricSums(), MetricSums(), Capture()
    add_drift_metrics(first, *tensors([4.0, 1.0, 7.0], [1.0, 1.0, 7.0], [0.9] * 3, [True, True, False], [True] * 3))
    add_weight_metrics(first, *tensors([3.0, 1.0, 6.0], [True, True, False], [True, True, True]))
    add_drift_metrics(second, *tensors([1.0, 50.0], [8.0, 1.0], [0.8, 0.8], [True, True], [True, False]))
    add_weight_metrics(second, *tensors([2.0, 100.0], [False, False], [True, False]))
    assert second.pop_means(capture) == {"drift/quartile_4": 0.125}  # no positive weight to divide by
    assert first.pop_means(TwoProcesses(capture.sent)) == {
        "drift/quartile_4": pytest.approx(0.6),  # (4 + 1 + 1) / (1 + 1 + 8)
        "weights/balance": 2.0,  # (6 + 2) / (3 + 1)
    }


def test_weights_of_both_sides_by_hand(accelerator):
    sums = MetricSums()
    add_weight_metrics(sums, *tensors([4.0, 1.0, 3.0, 9.0], [True, False, False, False], [True, True, True, False]))
    assert sums.pop_means(accelerator) == {"weights/balance": 1.0}  # (1 + 3) / 4


@pytest.mark.parametrize("most_kept", [2, 64])
def test_rows_that_are_kept_give_the_metrics_of_each_batch(most_kept, accelerator, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_KEPT", most_kept)
    generator = torch.Generator().manual_seed(0)
    kept, plain = LossMetrics(0.5, are_pairs=False, are_weighed=True), MetricSums()
    for num_rows in (3, 1, 4, 2, 2):
        policy, reference, quantile = torch.rand(3, 2, num_rows, generator=generator).unbind()  # of two draws
        reward, weight, loss = torch.randn(3, num_rows, generator=generator, requires_grad=True).unbind()
        is_positive, valid = torch.rand(2, num_rows, generator=generator).gt(0.3).unbind()
        kept.keep(MetricRows(valid, is_positive, weight, quantile, policy, reference, policy, reward, loss))
        add_likelihood_metrics(plain, log_likelihood(policy.mean(0), 0.5), is_positive, valid)
        add_reward_metrics(plain, reward, is_positive, valid)
        add_weight_metrics(plain, weight, is_positive, valid)
        for draw in range(2):
            add_error_metrics(plain, reference[draw] - policy[draw], quantile[draw], is_positive, valid)
            add_drift_metrics(plain, policy[draw], reference[draw], quantile[draw], is_positive, valid)
        plain.add("prediction_difference", policy.mean(0), valid)
        plain.add("loss", loss, valid)
    expected = plain.pop_means(accelerator)
    assert len(expected) > 15
    assert kept.pop_means(accelerator) == pytest.approx(expected, rel=1e-5)
    assert kept.pop_means(accelerator) == {}
