"""Where scores lie among others: quantiles of prompts and of data sets, and distances to the threshold."""

import numpy as np
import pytest
import torch

from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.labels.quantiles import ScoreQuantiles, mid_quantiles


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_quantiles_by_hand():
    # of 1, 2, 2, 5: below 2 lies 1, and half of the two that equal it
    assert mid_quantiles(tensor(1, 2, 5, 0, 3, 9), tensor(1, 2, 2, 5)).tolist() == [
        1 / 8, 2 / 4, 7 / 8, 0, 3 / 4, 1
    ]  # fmt: skip


def test_quantiles_are_the_mean_of_both_empirical_distributions():
    scores = np.random.default_rng(0).integers(0, 9, 50).astype(float)
    quantiles = mid_quantiles(torch.from_numpy(scores), torch.from_numpy(np.sort(scores)))
    expected = [((scores < score).mean() + (scores <= score).mean()) / 2 for score in scores]
    assert quantiles.tolist() == pytest.approx(expected)
    assert quantiles.mean().item() == pytest.approx(0.5)


def test_each_prompt_has_its_own_where_every_prompt_has_several():
    scores, prompts = tensor(1, 10, 3, 30, 2, 20), ["a", "b", "a", "b", "a", "b"]
    quantiles = ScoreQuantiles.fit(scores, prompts, "auto")
    assert quantiles.scope == "prompt"
    assert quantiles(scores, prompts).tolist() == pytest.approx([1 / 6, 1 / 6, 5 / 6, 5 / 6, 3 / 6, 3 / 6])
    assert quantiles(scores, prompts).dtype == torch.float32
    # a known prompt's scores are found among those of training, a new prompt's among its own
    assert quantiles(tensor(2.5, 100, 200), ["a", "c", "c"]).tolist() == pytest.approx([2 / 3, 1 / 4, 3 / 4])


def test_all_rows_share_one_where_a_prompt_has_a_single_row_or_the_user_says_so():
    scores = tensor(1, 10, 3, 30)
    for prompts, scope in ((["a", "b", "a", "c"], "auto"), (["a", "b", "a", "b"], "dataset")):
        quantiles = ScoreQuantiles.fit(scores, prompts, scope)
        assert quantiles.scope == "dataset"
        assert quantiles(scores, prompts).tolist() == [1 / 8, 5 / 8, 3 / 8, 7 / 8]
        assert quantiles(tensor(5), ["new"]).tolist() == [1 / 2]


def test_a_prompt_of_one_row_is_refused_where_quantiles_are_of_prompts():
    message = r"1 of 2 prompts have a single image \(row 1\), whose quantile says nothing. .*`quantile_scope='dataset'`"
    with pytest.raises(ValueError, match=message):
        ScoreQuantiles.fit(tensor(1, 2, 3), ["a", "b", "a"], "prompt")
    quantiles = ScoreQuantiles.fit(tensor(1, 2), ["a", "a"], "prompt")
    with pytest.raises(ValueError, match=r"1 of 1 prompts outside the training set have a single image \(row 2\)"):
        quantiles(tensor(1, 2, 3), ["a", "a", "b"])


def test_advantages_by_hand():
    # the median of 0, 2, 4, 10 is 3, their standard deviation sqrt((16 + 4 + 0 + 36) / 4)
    scores = [0.0, 2.0, 4.0, 10.0]
    rule = fit_label_rule(scores, ["a"] * 4)
    expected = (np.array(scores) - 3) / np.std(scores)
    assert rule.advantages(tensor(*scores), ["a"] * 4).tolist() == pytest.approx(expected.tolist())
    rule = fit_label_rule(scores, ["a", "b", "a", "b"], threshold_type="prompt_mean")
    expected = (np.array(scores) - [2, 6, 2, 6]) / np.std(scores)
    assert rule.advantages(tensor(*scores), ["a", "b", "a", "b"]).tolist() == pytest.approx(expected.tolist())
