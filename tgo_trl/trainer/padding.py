"""Padding rows of evaluated batches, which neither a caller nor a metric of the user's is to see."""

import functools
from collections.abc import Callable
from typing import Any

from transformers import EvalPrediction


def drop_padding(predictions: Any, scores: Any) -> tuple[Any, Any]:
    """Predictions and scores of the rows that are no padding: a padding row's score is NaN, a real one's never.

    accelerate drops the padding of data sets that have a length; that of a stream comes through.
    """
    if isinstance(scores, list):  # `eval_do_concat_batches=False`: one entry per batch
        batches = [drop_padding(*batch) for batch in zip(predictions, scores, strict=True)]
        return [batch[0] for batch in batches], [batch[1] for batch in batches]
    is_row = scores == scores
    return predictions[is_row], scores[is_row]


def without_padding(compute_metrics: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """A metric of evaluated rows as one that is never told of padding rows."""

    @functools.wraps(compute_metrics)
    def wrapped(evaluated: EvalPrediction, **kwargs: Any) -> dict[str, float]:
        evaluated.predictions, evaluated.label_ids = drop_padding(evaluated.predictions, evaluated.label_ids)
        return compute_metrics(evaluated, **kwargs)

    return wrapped
