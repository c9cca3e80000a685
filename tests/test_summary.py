"""The table printed before training."""

import pytest
import torch

from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.trainer.summary import print_summary, summary_rows


def summary(scores, prompts, beta=1.0, temperature=0.001, with_labels=True, **kwargs):
    rule = fit_label_rule(scores, prompts, **kwargs)
    labels = rule.apply(scores, prompts) if with_labels else None
    return summary_rows(rule, labels, beta, temperature)


def test_rows_by_hand():
    # The median of 0, 1, 2, 4, 8 is 2, so 3 of 5 rows are positive (2 counts). |s - 2| is 2, 1, 0, 2, 6, sorted
    # 0, 1, 2, 2, 6, whose quartiles are 1, 2 and 2; the weights are 1 + 5 times that. beta / T = 2 / 0.004 = 500.
    rows = summary([0.0, 1.0, 2.0, 4.0, 8.0], ["a", "b", "a", "b", "c"], beta=2.0, temperature=0.004)
    assert rows == [
        ("rows", "5"),
        ("prompts", "3"),
        ("threshold", "2 (median of the scores)"),
        ("positive rows", "3 (60.0 %)"),
        ("weight min / 25 % / 50 % / 75 % / max", "1 / 6 / 11 / 11 / 31"),
        ("effective scale beta / T", "500 (beta 2, T 0.004)"),
    ]


def test_a_stream_has_no_weights_yet():
    names = [name for name, _ in summary([0.0, 1.0], ["a", "b"], with_labels=False)]
    assert names == ["rows", "prompts", "threshold", "positive rows", "effective scale beta / T"]


def test_large_numbers_have_separators():
    scores = torch.arange(12_000, dtype=torch.float64)
    rows = dict(summary(scores, [str(i) for i in range(12_000)]))
    assert (rows["rows"], rows["prompts"], rows["positive rows"]) == ("12,000", "12,000", "6,000 (50.0 %)")


def test_normalised_scores_show_the_weights_in_use():
    # zscore: mean 0, variance 1, so tau = 0 and w = 1 + 5 |s| for scores of -1 and 1; 100 times the scores is the same.
    for unit in (1.0, 100.0):
        scores = [-unit, -unit, unit, unit]
        rows = dict(summary(scores, list("abcd"), normalization="zscore"))
        assert rows["weight min / 25 % / 50 % / 75 % / max"] == "6 / 6 / 6 / 6 / 6"


@pytest.mark.parametrize(("threshold_type", "phrase"), [("mean", "mean of"), ("value", "given value")])
def test_threshold_says_where_it_comes_from(threshold_type, phrase):
    value = 0.5 if threshold_type == "value" else None
    rows = dict(summary([0.0, 1.0], ["a", "b"], threshold_type=threshold_type, value=value))
    assert rows["threshold"].startswith("0.5 (")
    assert phrase in rows["threshold"]


def test_printed_table_holds_every_line(capsys):
    rows = summary([0.0, 1.0, 2.0, 4.0, 8.0], ["a", "b", "a", "b", "c"])
    print_summary(rows)
    lines = capsys.readouterr().out.splitlines()
    assert "TGO training data" in lines[0]
    for name, value in rows:
        assert any(name in line and value in line for line in lines)
