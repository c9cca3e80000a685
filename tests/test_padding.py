"""Padding rows of evaluated batches: told by a score of NaN."""

import numpy as np
from transformers import EvalPrediction

from tgo_trl.trainer.padding import drop_padding, without_padding

NAN = float("nan")


def test_rows_whose_score_is_nan_are_dropped_from_both():
    predictions, scores = drop_padding(np.array([0.5, NAN, 2.0, 0.0]), np.array([1.0, 3.0, NAN, 0.0]))
    np.testing.assert_array_equal(predictions, [0.5, NAN, 0.0])
    np.testing.assert_array_equal(scores, [1.0, 3.0, 0.0])


def test_batches_that_are_not_joined_stay_apart():
    predictions, scores = drop_padding(
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])], [np.array([5.0, 6.0]), np.array([7.0, NAN])]
    )
    assert [batch.tolist() for batch in predictions] == [[1.0, 2.0], [3.0]]
    assert [batch.tolist() for batch in scores] == [[5.0, 6.0], [7.0]]


def test_a_metric_sees_no_padding_and_gets_its_other_arguments():
    def total(evaluated: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """The sum of what it is told."""
        return {"total": float(evaluated.predictions.sum()), "is_last": float(compute_result)}

    wrapped = without_padding(total)
    evaluated = EvalPrediction(np.array([1.0, 2.0, 40.0]), np.array([0.0, 0.0, NAN]))
    assert wrapped(evaluated, compute_result=True) == {"total": 3.0, "is_last": 1.0}
    assert wrapped.__name__ == "total"
