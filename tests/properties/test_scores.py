"""Labels and weights of any scores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tgo_trl.data.rows import check_score
from tgo_trl.labels import NORMALIZATIONS
from tgo_trl.labels.checks import MAX_FLOAT32, check_finite
from tgo_trl.labels.fitting import THRESHOLD_TYPES, fit_label_rule
from tgo_trl.labels.rule import LabelRule
from tgo_trl.labels.thresholds import percentile_threshold

scores_of_any_size = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20)
scores = st.one_of(scores_of_any_size, st.lists(st.integers(-8, 8).map(lambda k: k / 4), min_size=2, max_size=20))
not_finite = st.sampled_from([math.nan, math.inf, -math.inf, 1e39, -1e39, 3.5e38])


@st.composite
def rules(draw):
    """Scores, prompts, and how a rule is fitted on them."""
    values = draw(scores)
    prompts = draw(st.lists(st.sampled_from("ab"), min_size=len(values), max_size=len(values)))
    kind = draw(st.sampled_from(THRESHOLD_TYPES))
    settings = {
        "threshold_type": kind,
        "percentile": draw(st.floats(0, 100)) if kind == "percentile" else 50.0,
        "value": draw(st.floats(-2, 2, width=32)) if kind == "value" else None,
        "beta": draw(st.floats(2**-10, 16, width=32)),
        "confidence_coef": draw(st.floats(0, 64, width=32)),
        "normalization": draw(st.sampled_from(NORMALIZATIONS)),
    }
    return values, prompts, settings


def fitted(values, prompts, settings):
    """The rule and its labels, or None where they are refused."""
    try:
        rule = fit_label_rule(values, prompts, **settings)
        return rule, rule.apply(values, prompts)
    except ValueError:
        return None


@given(rules())
@example(([0.0, 1e-320], ["a", "a"], {"normalization": "zscore"}))
@example(([3e38, -3e38, 3e38], ["a"] * 3, {"normalization": "robust", "confidence_coef": 64.0}))
def test_labels_are_whole_or_refused(case):
    values = case[0]
    found = fitted(*case)
    if found is None:
        return
    rule, labels = found
    assert labels.weights.isfinite().all()
    assert labels.weights.dtype == torch.float32
    assert (labels.weights >= 1).all()
    assert 0 < rule.num_positive < rule.num_rows == len(values)
    assert rule.num_positive == labels.is_positive.sum()
    if rule.threshold_type != "value":
        rounding = 1e-12 * max(map(abs, values))
        assert min(values) - rounding <= rule.threshold <= max(values) + rounding
    again = LabelRule.from_dict(rule.to_dict())
    assert again == rule
    assert again.equals(rule)


@given(rules(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    values, prompts, settings = case
    order = list(range(len(values)))
    random.shuffle(order)
    found = fitted(*case)
    shuffled = fitted([values[i] for i in order], [prompts[i] for i in order], settings)
    assume(found is not None and shuffled is not None)  # rounding may decide which of both
    (rule, labels), (other_rule, other) = found, shuffled
    spread = max(values) - min(values)
    assert other_rule.threshold == pytest.approx(rule.threshold, rel=1e-9, abs=1e-9 * spread)
    assert other.weights.tolist() == pytest.approx(labels.weights[order].tolist(), rel=1e-5)
    tau = torch.tensor([(rule.prompt_thresholds or {}).get(prompts[i], rule.threshold) for i in order])
    clear = (labels.scores[order] - tau).abs() > 1e-9 * spread  # of ties, rounding decides
    assert torch.equal(other.is_positive[clear], labels.is_positive[order][clear])


@given(scores_of_any_size, st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values, percentile):
    expected = np.percentile(np.array(values, dtype=np.float64), percentile)
    actual = percentile_threshold(torch.tensor(values, dtype=torch.float64), percentile).item()
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12 * max(map(abs, values)))


@given(
    st.lists(st.integers(-8, 8).map(float), min_size=3, max_size=20),
    st.integers(-64, 64).map(float),
    st.sampled_from([0.25, 2.0, 64.0]),
    st.sampled_from(["zscore", "robust"]),
    st.sampled_from(["percentile", "mean", "prompt_mean"]),
)
def test_normalised_scores_have_no_units(values, shift, scale, normalization, threshold_type):
    settings = {"normalization": normalization, "threshold_type": threshold_type}
    prompts = ["a"] * len(values)
    one, other = fitted(values, prompts, settings), fitted([scale * v + shift for v in values], prompts, settings)
    assert (one is None) == (other is None)
    assume(one is not None)
    assert other[1].weights.tolist() == pytest.approx(one[1].weights.tolist(), rel=1e-5)
    assert other[0].threshold == pytest.approx(scale * one[0].threshold + shift, abs=1e-9)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8), not_finite, st.integers(0, 8))
def test_what_is_not_finite_in_float32_is_refused(values, bad, position):
    position = min(position, len(values))
    with pytest.raises(ValueError, match=rf"row {position}\b"):
        check_finite([*values[:position], bad, *values[position:]])
    with pytest.raises(ValueError, match="not a finite number"):
        check_score(bad)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3), st.binary(max_size=3),
                 st.complex_numbers(), st.lists(st.floats(), max_size=2)))  # fmt: skip
def test_a_score_is_a_number_or_refused(value):
    try:
        score = check_score(value)
    except ValueError:
        return
    assert isinstance(score, float)
    assert abs(score) <= MAX_FLOAT32
