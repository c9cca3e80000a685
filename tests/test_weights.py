"""Confidence weights by hand."""

import pytest
import torch

from tgo_trl.labels.weights import confidence_weights


def test_by_hand():
    scores = torch.tensor([0.5, 2.0, 2.25, 4.0])
    # 1 + 5 |s - 2|:  1 + 5 * 1.5,  1,  1 + 5 * 0.25,  1 + 5 * 2
    assert confidence_weights(scores, torch.tensor(2.0), 5.0).tolist() == [8.5, 1.0, 2.25, 11.0]


def test_threshold_per_row():
    # 1 + 2 |1 - 0| = 3,  1 + 2 |1 - 3| = 5
    assert confidence_weights(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 3.0]), 2.0).tolist() == [3.0, 5.0]


def test_coefficient_zero_weighs_every_row_1():
    weights = confidence_weights(torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64), torch.tensor(0.5), 0.0)
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert weights.dtype == torch.float64


def test_negative_coefficient():
    with pytest.raises(ValueError, match=r"`coefficient` is -0\.1.*Pass a number >= 0"):
        confidence_weights(torch.tensor([1.0]), torch.tensor(0.0), -0.1)
