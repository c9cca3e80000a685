"""Label rules: what they fit, how they apply to other rows, and what they refuse."""

import dataclasses
import json
import logging
import math

import pytest
import torch

from tgo_trl.labels.checks import check_finite, list_rows
from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.labels.rule import LabelRule


def prompts_of(scores):
    return [f"prompt {i}" for i in range(len(scores))]


def fit(scores, **kwargs):
    return fit_label_rule(scores, prompts_of(scores), **kwargs)


# ---- Thresholds, labels and weights ----


def test_median_by_default():
    scores = [0.5, 3.0, 1.0, 2.0]
    rule = fit(scores)
    # sorted 0.5, 1, 2, 3: the median is 1.5, half-way between 1 and 2
    assert (rule.threshold_type, rule.percentile, rule.threshold) == ("percentile", 50.0, 1.5)
    assert (rule.num_rows, rule.num_positive, rule.num_prompts) == (4, 2, 4)
    # mean 6.5 / 4 = 1.625; variance (1.125^2 + 1.375^2 + 0.625^2 + 0.375^2) / 4 = 3.6875 / 4
    assert (rule.score_mean, rule.score_std) == (1.625, pytest.approx(math.sqrt(3.6875 / 4)))
    labels = rule.apply(scores, prompts_of(scores))
    assert labels.is_positive.tolist() == [False, True, False, True]
    # 1 + 5 |s - 1.5|
    assert labels.weights.tolist() == [6.0, 8.5, 3.5, 3.5]
    assert labels.scores.tolist() == scores
    assert (labels.scores.dtype, labels.weights.dtype) == (torch.float64, torch.float32)


@pytest.mark.parametrize(
    ("kwargs", "threshold", "labels"),
    [
        # position 0.25 * 4 = 1 of the sorted scores 0, 1, 2, 3, 10
        ({"percentile": 25}, 1.0, [True, True, True, False, True]),
        ({"threshold_type": "mean"}, 3.2, [False, False, False, False, True]),  # 16 / 5
        ({"threshold_type": "value", "value": 2.5}, 2.5, [True, False, False, False, True]),
    ],
)
def test_threshold_types(kwargs, threshold, labels):
    scores = [3.0, 1.0, 2.0, 0.0, 10.0]
    rule = fit(scores, **kwargs)
    assert rule.threshold == pytest.approx(threshold, rel=1e-15)
    assert rule.num_positive == sum(labels)
    assert rule.apply(scores, prompts_of(scores)).is_positive.tolist() == labels


def test_score_equal_to_the_threshold_is_positive():
    scores = [1.0, 2.0, 3.0]
    rule = fit(scores)
    labels = rule.apply([2.0, math.nextafter(2.0, 0.0)], ["a", "b"])
    assert labels.is_positive.tolist() == [True, False]
    assert labels.weights[0].item() == 1.0
    assert rule.num_positive == 2  # 2 and 3


@pytest.mark.parametrize("normalization", ["none", "zscore", "robust"])
@pytest.mark.parametrize("seed", range(10))
def test_rule_labels_its_own_rows_as_it_counted_them(normalization, seed):
    # The score just below the threshold is negative, whatever the normalisation rounds.
    scores = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    threshold = scores[3]
    scores.append(math.nextafter(threshold, -math.inf))
    rule = fit(scores, threshold_type="value", value=threshold, normalization=normalization)
    assert rule.num_positive == sum(score >= threshold for score in scores)
    labels = rule.apply(scores, prompts_of(scores))
    assert labels.is_positive.tolist() == [score >= threshold for score in scores]


def test_confidence_coef_zero_is_unweighted():
    assert fit([1.0, 2.0, 4.0], confidence_coef=0.0).apply([1.0, 4.0], ["a", "b"]).weights.tolist() == [1.0, 1.0]


def test_wins_of_pick_a_pic():
    # 74 % of the images never won, so the median is 0 and `s >= 0` is everything; 0.5 wins separates them.
    scores = [0.0] * 74 + [1.0] * 20 + [2.0] * 6
    with pytest.raises(ValueError, match=r"makes all 100 rows positive.*`threshold_type='value'`"):
        fit(scores)
    rule = fit(scores, threshold_type="value", value=0.5)
    assert rule.num_positive == 26
    labels = rule.apply(scores, prompts_of(scores))
    assert labels.is_positive.tolist() == [False] * 74 + [True] * 26
    # 1 + 5 * |0 - 0.5|,  1 + 5 * |1 - 0.5|,  1 + 5 * |2 - 0.5|
    assert labels.weights.unique().tolist() == [3.5, 8.5]
    assert labels.weights[73:75].tolist() == [3.5, 3.5]


# ---- Normalisation ----


def test_zscore_scales_weights_and_keeps_labels():
    scores = [1.0, 1.0, 5.0, 9.0]
    # mean 4, variance (9 + 9 + 1 + 25) / 4 = 11; the median is 3, so tau in standard deviations is (3 - 4) / sqrt 11,
    # and |z - tau| = |s - 3| / sqrt 11 = (2, 2, 2, 6) / sqrt 11
    rule = fit(scores, normalization="zscore")
    assert (rule.center, rule.scale) == (4.0, pytest.approx(math.sqrt(11)))
    assert rule.threshold == 3.0  # in score units all the same
    labels = rule.apply(scores, prompts_of(scores))
    expected = [1 + 5 * distance / math.sqrt(11) for distance in (2, 2, 2, 6)]
    assert labels.weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert labels.is_positive.tolist() == [False, False, True, True]
    assert labels.scores.tolist() == scores


def test_robust_scales_weights_and_keeps_labels():
    scores = [0.0, 1.0, 2.0, 4.0, 100.0]
    # quartiles at positions 1, 2 and 3: 1, 2 and 4; |z - tau| = |s - 2| / (4 - 1)
    rule = fit(scores, normalization="robust", confidence_coef=3.0)
    assert (rule.center, rule.scale, rule.threshold) == (2.0, 3.0, 2.0)
    labels = rule.apply(scores, prompts_of(scores))
    assert labels.weights.tolist() == pytest.approx([3.0, 2.0, 1.0, 3.0, 99.0], rel=1e-6)  # 1 + 3 |s - 2| / 3
    assert labels.is_positive.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("normalization", ["zscore", "robust"])
def test_normalised_weights_do_not_depend_on_units(normalization):
    scores = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [
        fit(units, normalization=normalization).apply(units, prompts_of(units)).weights
        for units in (scores, 0.01 * scores + 0.25)
    ]
    torch.testing.assert_close(*weights)


# ---- The per-prompt baseline ----


def test_prompt_baseline_by_hand():
    # beta = 1: "a" has exp(s) = 1 and 3, tau = ln 2; "b" has 4, 5 and 6, tau = ln 5, which is a score of its own.
    scores = [0.0, math.log(4), math.log(3), math.log(5), math.log(6)]
    prompts = ["a", "b", "a", "b", "b"]
    rule = fit_label_rule(scores, prompts, threshold_type="prompt_baseline")
    assert rule.prompt_thresholds == pytest.approx({"a": math.log(2), "b": math.log(5)})
    assert rule.threshold == pytest.approx((2 * math.log(2) + 3 * math.log(5)) / 5)  # mean over rows
    assert (rule.num_prompts, rule.percentile) == (2, None)
    labels = rule.apply(scores, prompts)
    assert labels.is_positive[[0, 1, 2, 4]].tolist() == [False, False, True, True]
    expected = [1 + 5 * math.log(ratio) for ratio in (2, 5 / 4, 3 / 2, 1, 6 / 5)]  # 1 + 5 |s - tau|
    assert labels.weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_prompt_baseline_in_normalised_units():
    # center and scale are 4 and sqrt 11 (above). In z the baseline is log mean exp(z) of each prompt.
    scores, prompts = [1.0, 1.0, 5.0, 9.0], ["a", "b", "a", "b"]
    rule = fit_label_rule(scores, prompts, threshold_type="prompt_baseline", normalization="zscore")
    scale = math.sqrt(11)
    z = [(score - 4) / scale for score in scores]
    low = math.log((math.exp(z[0]) + math.exp(z[2])) / 2)
    high = math.log((math.exp(z[1]) + math.exp(z[3])) / 2)
    assert rule.prompt_thresholds == pytest.approx({"a": low * scale + 4, "b": high * scale + 4})
    weights = [1 + 5 * abs(value - tau) for value, tau in zip(z, (low, high, low, high), strict=True)]
    assert rule.apply(scores, prompts).weights.tolist() == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize("normalization", ["none", "zscore"])
@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0])
def test_prompt_with_equal_scores_is_positive(normalization, beta):
    # tau equals the scores of prompts 0 to 99, and s == tau is positive.
    equal = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    scores = [*equal, *equal, -3.0, 3.0]
    prompts = [*map(str, range(100)), *map(str, range(100)), "other", "other"]
    rule = fit_label_rule(scores, prompts, threshold_type="prompt_baseline", beta=beta, normalization=normalization)
    labels = rule.apply(scores, prompts)
    assert labels.is_positive.tolist() == [True] * 200 + [False, True]
    assert labels.weights[:200].tolist() == [1.0] * 200
    assert rule.num_positive == 201


def test_unseen_prompts_get_the_baseline_of_their_own_rows():
    rule = fit_label_rule([0.0, math.log(3)], ["a", "a"], threshold_type="prompt_baseline")
    scores, prompts = [0.5, math.log(4), 0.9, math.log(6)], ["a", "new", "a", "new"]
    labels = rule.apply(scores, prompts)
    # "a" keeps tau = ln 2 = 0.69 of the rows it was fitted on; "new" gets ln((4 + 6) / 2) = ln 5
    assert labels.is_positive.tolist() == [False, False, True, True]
    expected = [
        1 + 5 * abs(score - tau)
        for score, tau in zip(scores, (math.log(2), math.log(5), math.log(2), math.log(5)), strict=True)
    ]
    assert labels.weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert set(rule.prompt_thresholds) == {"a"}  # the rule itself does not change


def test_seen_and_unseen_prompts_get_the_same_baseline():
    scores, prompts = [1.0, 1.0, 5.0, 9.0], ["a", "b", "a", "b"]
    rule = fit_label_rule(scores, prompts, threshold_type="prompt_baseline", normalization="zscore", beta=0.5)
    seen, unseen = rule.apply(scores, prompts), rule.apply(scores, ["c", "d", "c", "d"])
    assert torch.equal(seen.weights, unseen.weights)
    assert torch.equal(seen.is_positive, unseen.is_positive)


def test_single_images_under_the_prompt_baseline():
    with pytest.raises(ValueError, match=r"2 of 3 prompts have a single image \(rows 1, 3\).*'percentile'"):
        fit_label_rule([1.0, 2.0, 3.0, 4.0], ["a", "b", "a", "c"], threshold_type="prompt_baseline")


def test_unseen_single_images_are_named_by_their_row():
    rule = fit_label_rule([0.0, 1.0], ["a", "a"], threshold_type="prompt_baseline")
    with pytest.raises(ValueError, match=r"1 of 2 prompts have a single image \(row 3\)"):
        rule.apply([1.0, 2.0, 3.0, 4.0], ["a", "b", "b", "c"])


# ---- Other rows ----


def test_other_rows_get_the_fitted_threshold():
    rule = fit([0.0, 1.0, 2.0, 3.0])
    labels = rule.apply([100.0, 200.0, 1.0], ["x", "y", "z"])
    assert labels.is_positive.tolist() == [True, True, False]  # tau is 1.5, not their median
    assert labels.weights.tolist() == [1 + 5 * 98.5, 1 + 5 * 198.5, 1 + 5 * 0.5]


def test_one_row_at_a_time_gives_the_same_labels():
    scores, prompts = [0.0, 2.0, 5.0, 1.0], ["a", "a", "b", "b"]
    for threshold_type in ("percentile", "prompt_baseline"):
        rule = fit_label_rule(scores, prompts, threshold_type=threshold_type)
        together = rule.apply(scores, prompts)
        apart = [rule.apply([score], [prompt]) for score, prompt in zip(scores, prompts, strict=True)]
        assert together.is_positive.tolist() == [labels.is_positive.item() for labels in apart]
        assert together.weights.tolist() == [labels.weights.item() for labels in apart]


def test_apply_refuses_scores_that_are_not_finite():
    with pytest.raises(ValueError, match=r"1 of 2 scores are NaN or infinite: row 1"):
        fit([0.0, 1.0]).apply([0.0, math.nan], ["a", "b"])


# ---- JSON ----


@pytest.mark.parametrize(
    "kwargs",
    [
        {"percentile": 30.0, "normalization": "robust"},
        {"threshold_type": "mean"},
        {"threshold_type": "value", "value": 0.1, "normalization": "zscore"},
        {"threshold_type": "prompt_baseline", "beta": 0.3},
    ],
)
def test_json_round_trip(kwargs):
    scores = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompts = [f'a "{i % 5}" é' for i in range(20)]
    rule = fit_label_rule(scores, prompts, **kwargs)
    copy = LabelRule.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False)))
    assert copy == rule
    assert torch.equal(copy.apply(scores, prompts).weights, rule.apply(scores, prompts).weights)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "1.5 (median of the scores)"),
        ({"percentile": 25.0}, "0.75 (percentile 25 of the scores)"),
        ({"threshold_type": "mean"}, "1.5 (mean of the scores)"),
        ({"threshold_type": "value", "value": 2.0}, "2 (given value)"),
    ],
)
def test_describe(kwargs, text):
    assert fit([0.0, 1.0, 2.0, 3.0], **kwargs).describe() == text


def test_describe_prompt_baseline():
    # beta = 1, exp(s) is 1 and 3 for either prompt: tau = ln 2 = 0.693147
    scores = [0.0, 0.0, math.log(3), math.log(3)]
    rule = fit_label_rule(scores, ["a", "b", "a", "b"], threshold_type="prompt_baseline")
    assert rule.describe() == f"{math.log(2):.6g} (per-prompt baseline, mean over rows)"


# ---- Errors ----


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"2 of 5 scores are NaN or infinite: rows 1, 4\..*`on_bad_row='skip'`"):
        fit([0.0, bad, 1.0, 2.0, bad])


def test_many_bad_rows_are_not_all_named():
    with pytest.raises(ValueError, match=r"12 of 13 scores .*: rows 1, 2, 3, .*, 10, \.\.\. and 2 more\."):
        check_finite([0.0] + [math.nan] * 12)


def test_list_rows():
    assert list_rows([4]) == "row 4"
    assert list_rows([4, 7]) == "rows 4, 7"
    assert list_rows(range(5), most=3) == "rows 0, 1, 2, ... and 2 more"


def test_check_finite_returns_float64():
    scores = check_finite([1, 0.1])
    assert scores.dtype == torch.float64
    assert scores.tolist() == [1.0, 0.1]


def test_no_rows():
    with pytest.raises(ValueError, match="There is no scored row"):
        fit([])


@pytest.mark.parametrize("scores", [[0.25, 0.25, 0.25], [0.25]])
def test_constant_scores(scores):
    with pytest.raises(ValueError, match=rf"All {len(scores)} scores equal 0\.25.*`score_column`"):
        fit(scores)


@pytest.mark.parametrize(("value", "side"), [(5.0, "negative"), (-5.0, "positive"), (0.0, "positive")])
def test_one_sided_split(value, side):
    message = rf"The threshold {value:g} makes all 3 rows {side} \(scores run from 0 to 2, .*`threshold_value` between"
    with pytest.raises(ValueError, match=message):
        fit([0.0, 1.0, 2.0], threshold_type="value", value=value)


def test_value_is_missing():
    with pytest.raises(ValueError, match="`threshold_type='value'` needs `threshold_value`"):
        fit([0.0, 1.0], threshold_type="value")


def test_robust_without_an_interquartile_range():
    with pytest.raises(ValueError, match=r"interquartile range, which is 0 here.*Use 'zscore' or 'none'"):
        fit([0.0, 1.0, 1.0, 1.0, 5.0], normalization="robust")


def test_percentile_out_of_range():
    with pytest.raises(ValueError, match="`percentile` is 101"):
        fit([0.0, 1.0], percentile=101)


@pytest.mark.parametrize("name", ["threshold_type", "normalization"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=f"`{name}` is 'medain'; it must be one of"):
        fit([0.0, 1.0], **{name: "medain"})


# ---- The warning of a lopsided split ----


@pytest.mark.parametrize("num_positive", [1, 99, 4, 96])
def test_lopsided_split_warns(num_positive, caplog):
    scores = list(range(100))
    with caplog.at_level(logging.WARNING, "tgo_trl.labels.fitting"):
        fit(scores, threshold_type="value", value=100.0 - num_positive)
    (record,) = caplog.records
    assert f"makes {num_positive} of 100 rows positive ({num_positive}.0 %)" in record.getMessage()


@pytest.mark.parametrize("num_positive", [5, 50, 95])
def test_split_within_5_percent_of_the_edges_does_not_warn(num_positive, caplog):
    with caplog.at_level(logging.WARNING, "tgo_trl.labels.fitting"):
        rule = fit(list(range(100)), threshold_type="value", value=100.0 - num_positive)
    assert rule.num_positive == num_positive
    assert caplog.records == []


def test_rules_are_equal_up_to_rounding():
    rule = fit_label_rule([1.0, 2.0, 4.0], ["a", "b", "c"], threshold_type="mean")
    rounded = dataclasses.replace(rule, threshold=rule.threshold * (1 + 1e-14), score_mean=rule.score_mean + 1e-15)
    assert rounded != rule
    assert rounded.equals(rule)
    for changes in ({"threshold": rule.threshold * (1 + 1e-6)}, {"num_rows": 4}, {"percentile": 10.0}):
        assert not dataclasses.replace(rule, **changes).equals(rule)
    by_prompt = fit_label_rule([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], threshold_type="prompt_baseline")
    assert not dataclasses.replace(by_prompt, prompt_thresholds={"a": 1.0, "b": 3.0}).equals(by_prompt)


# ---- The per-prompt mean ----


def test_the_mean_of_each_prompt_labels_its_rows():
    scores, prompts = [1.0, 3.0, 10.0, 14.0, 12.0], ["a", "a", "b", "b", "b"]
    rule = fit_label_rule(scores, prompts, threshold_type="prompt_mean", confidence_coef=2.0)
    labels = rule.apply(scores, prompts)
    assert rule.prompt_thresholds == {"a": 2.0, "b": 12.0}
    assert labels.is_positive.tolist() == [False, True, False, True, True]
    assert labels.weights.tolist() == [3, 3, 5, 5, 1]  # 1 + 2 |s - tau|
    assert rule.describe() == "8 (per-prompt mean, mean over rows)"  # (2 * 2 + 3 * 12) / 5
    assert LabelRule.from_dict(rule.to_dict()).equals(rule)


def test_a_single_image_has_no_mean_but_its_own():
    with pytest.raises(ValueError, match=r"`threshold_type='prompt_mean'` estimates a threshold from several images"):
        fit_label_rule([1.0, 2.0, 3.0], ["a", "a", "b"], threshold_type="prompt_mean")


# ---- Arithmetic alone ----


def test_a_rule_at_a_threshold_by_hand():
    scores = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    rule = LabelRule.at(torch.tensor(2.0, dtype=torch.float64), scores, confidence_coef=3.0, center=1.0, scale=2.0)
    assert (rule.threshold_type, rule.threshold, rule.num_rows, rule.num_positive) == ("value", 2, 3, 2)
    assert not rule.is_one_sided
    labels = rule.labels(scores, [""] * 3)
    assert labels.is_positive.tolist() == [False, True, True]
    assert labels.weights.tolist() == [2.5, 1, 4]  # 1 + 3 |s - 2| / 2
    assert LabelRule.at(torch.tensor(5.0, dtype=torch.float64), scores).is_one_sided


def test_a_rule_at_a_threshold_neither_warns_nor_refuses(caplog):
    scores = torch.tensor([0.0] * 99 + [1e300], dtype=torch.float64)
    rule = LabelRule.at(torch.tensor(1.0, dtype=torch.float64), scores)
    assert rule.labels(scores, [""] * 100).weights[-1] == math.inf
    assert not caplog.records
    with pytest.raises(ValueError, match="infinite"):
        rule.apply(scores, [""] * 100)
