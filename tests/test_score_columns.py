"""Several columns of scores: what they make of a row by hand, and that it stays what it is whatever the layout."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from tgo_trl.data.columns import Columns
from tgo_trl.data.rows import BadRowError
from tgo_trl.labels.combination import TIE, CombinedRule, combine, rule_from_dict
from tgo_trl.labels.fitting import fit_combined_rule, fit_label_rule
from tgo_trl.labels.rule import LabelRule
from tgo_trl.trainer import checkpoints
from tgo_trl.trainer.pair_sources import check_all_columns

from . import tiny
from .runs import assert_equal, config, make_trainer, streamed, trained_weights

PROMPTS = ["a", "b", "c", "d"]
GAMED = {"gamed": [0.0, 2.0, 4.0, 6.0], "honest": [10.0, 30.0, 0.0, 20.0]}
"""Of four rows; the medians are 3 and 15."""


def rows_of(scores):
    """The scores of each row in the order of the columns' names."""
    return list(zip(*(scores[name] for name in sorted(scores)), strict=True))


def random_scores(num_rows, *names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num_rows, dtype=torch.float64, generator=generator).tolist() for name in names}


def two_columns(num_rows=8):
    """Rows with scores 0, 1, 2, ... in `score`, and others in `other`, of other units."""
    rows = tiny.scored_rows(num_rows)
    other = [100.0 * score for score in tiny.scored_rows(num_rows, seed=5)["score"]]
    return rows.add_column("other", other)


# ---- By hand ----


def test_a_sum_of_distances_by_hand():
    # distances -3 -1 1 3 and -5 15 -15 5: sums -8 14 -14 8; weighted 1 and 1/5: -4 2 -2 4
    rule = fit_combined_rule(GAMED, PROMPTS, confidence_coef=2.0)
    labels = rule.apply(rows_of(GAMED), PROMPTS)
    assert labels.scores.tolist() == [-8, 14, -14, 8]
    assert labels.is_positive.tolist() == [False, True, False, True]
    assert labels.weights.tolist() == [17, 29, 29, 17]  # 1 + 2 |sum|
    assert (rule.threshold, rule.num_rows, rule.num_positive, rule.num_disagreeing) == (0, 4, 2, 2)
    assert {name: column.threshold for name, column in rule.columns.items()} == {"gamed": 3, "honest": 15}
    weighted = fit_combined_rule(GAMED, PROMPTS, weights={"honest": 0.2})
    assert weighted.apply(rows_of(GAMED), PROMPTS).scores.tolist() == [-4, 2, -2, 4]


def test_a_sum_of_normalised_distances_by_hand():
    # standard deviations of 0 2 4 6 and of 10 30 0 20: sqrt 5 and sqrt 125 = 5 sqrt 5
    rule = fit_combined_rule(GAMED, PROMPTS, normalization="zscore")
    expected = [(d + e / 5) / math.sqrt(5) for d, e in zip((-3, -1, 1, 3), (-5, 15, -15, 5), strict=True)]
    assert rule.apply(rows_of(GAMED), PROMPTS).scores.tolist() == pytest.approx(expected, rel=1e-14)


def test_a_vote_by_hand():
    # Three columns: -1 counts against a row, 0 and 1 for it.
    distances = torch.tensor([[1, 1, 1], [1, 0, -1], [-1, -1, 9], [-1, -1, -1]], dtype=torch.float64)
    assert combine("vote", distances, [1, 1, 1]).tolist() == pytest.approx([1, 1 / 3, -1 / 3, -1])
    assert combine("vote", distances, [1, 1, 3]).tolist() == pytest.approx([1, -1 / 5, 1 / 5, -1])


def test_a_tie_goes_by_the_sum_and_weighs_nothing():
    # 0.1 + 0.2 against 0.3, which differ in the last bit
    distances = torch.tensor([[1.0, 1.0, -9.0], [9.0, 1.0, -1.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
    weights = (0.1, 0.2, 0.3)
    assert combine("vote", distances, weights).tolist() == [-TIE, TIE, TIE]  # sums -2.4, 0.8 and (nearly) 0
    rule = fit_combined_rule(GAMED, PROMPTS, combination="vote")
    labels = rule.apply(rows_of(GAMED), PROMPTS)
    # rows 0 and 3 are agreed on; 1 and 2 are ties, of sums 14 and -14
    assert labels.is_positive.tolist() == [False, True, False, True]
    assert labels.weights.tolist() == [6, 1, 1, 6]
    assert labels.scores.float().sign().tolist() == [-1, 1, -1, 1]  # also where a batch has them


def test_a_threshold_of_each_prompt_in_each_column():
    scores, prompts = {"x": [1.0, 3.0, 10.0, 14.0], "y": [0.0, 4.0, 2.0, 0.0]}, ["a", "a", "b", "b"]
    rule = fit_combined_rule(scores, prompts, threshold_type="prompt_mean")
    # means 2 and 12, 2 and 1
    labels = rule.apply(rows_of(scores), prompts)
    assert labels.scores.tolist() == [-3, 3, -1, 1]
    # of which the threshold is 0, of all prompts: what is relative to a prompt is in the scores
    assert labels.is_positive.tolist() == [False, True, False, True]
    assert labels.weights.tolist() == [16, 16, 6, 6]
    assert rule.apply([(5.0, 2.0)], ["a"]).is_positive.tolist() == [True]  # one image of a prompt that is known
    assert rule.is_per_prompt
    new = rule.apply([(5.0, 0.0), (7.0, 0.0)], ["new", "new"])
    assert new.scores.tolist() == [-1, 1]
    with pytest.raises(ValueError, match="1 of 1 prompts have a single image"):
        rule.apply([(5.0, 0.0)], ["new"])


# ---- What does not matter ----


@pytest.mark.parametrize("combination", ["sum", "vote"])
def test_neither_order_nor_layout_changes_a_bit(combination):
    scores = random_scores(37, "b", "c", "a")
    prompts = [str(i) for i in range(37)]
    weights = {"a": 0.1, "b": 0.7, "c": 1 / 3}
    fit = {"combination": combination, "normalization": "zscore", "weights": weights}
    rule = fit_combined_rule(scores, prompts, **fit)
    assert list(rule.columns) == ["a", "b", "c"]
    for order in itertools.permutations(scores):
        assert fit_combined_rule({name: scores[name] for name in order}, prompts, **fit) == rule
    together = rule.apply(rows_of(scores), prompts)
    apart = [rule.apply([row], [prompt]) for row, prompt in zip(rows_of(scores), prompts, strict=True)]
    assert together.scores.tolist() == [labels.scores.item() for labels in apart]
    assert together.weights.tolist() == [labels.weights.item() for labels in apart]


def test_a_rule_survives_json_and_tells_another():
    rule = fit_combined_rule(random_scores(9, "a", "b"), ["x"] * 9, combination="vote", threshold_type="mean")
    copy = rule_from_dict(json.loads(json.dumps(rule.to_dict(), sort_keys=True)))
    assert copy == rule
    assert isinstance(copy, CombinedRule)
    assert copy.equals(rule)
    for other in (
        {"weights": {"a": 2.0}},
        {"combination": "sum"},
        {"percentile": 49.0, "threshold_type": "percentile"},
    ):
        settings = {"combination": "vote", "threshold_type": "mean", **other}
        assert not fit_combined_rule(random_scores(9, "a", "b"), ["x"] * 9, **settings).equals(rule)
    plain = fit_label_rule([0.0, 1.0], ["a", "b"])
    assert rule_from_dict(plain.to_dict()) == plain
    assert not rule.equals(plain)


def test_tables_say_the_threshold_of_each_column():
    rule = fit_combined_rule(GAMED, PROMPTS, weights={"honest": 2.0})
    assert rule.describe() == "0 (of the sum of 2 columns)"
    assert rule.details() == {
        "threshold of gamed": "3 (median of the scores), 50.0 % positive",
        "threshold of honest": "15 (median of the scores), 50.0 % positive, counts 2 times",
        "rows that columns disagree on": "2 (50.0 %)",
    }


# ---- What is refused ----


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": [1.0, 2.0, 3.0], "b": [5.0] * 3}, "Of the scores in 'b': All 3 scores equal 5"),
        (
            {"a": [1.0, 2.0, 3.0], "b": [0.0, 0.0, 1.0]},
            "The threshold of 'b' 0 makes all 3 rows positive .*`threshold_va",
        ),
        (
            {"a": [-1.0, 0.0, 1.0], "b": [1.0, 0.0, -1.0]},
            "The sum of 'a', 'b', with the threshold 0 makes all 3 rows posi",
        ),
        ({"a": [], "b": []}, "There is no scored row"),
    ],
)
def test_columns_that_say_nothing_are_named(scores, message):
    with pytest.raises(ValueError, match=message):
        fit_combined_rule(scores, PROMPTS[: len(scores["a"])])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_weights": [1.0]}, r"`score_weights` is \[1.0\], which is of several columns"),
        ({"score_combination": "vote", "score_columns": ["a"]}, "`score_combination` is 'vote', which is of several"),
        ({"score_combination": "product"}, "`score_combination` is 'product'; it must be one of 'sum', 'vote'"),
        ({"score_columns": "ab"}, "`score_columns` is 'ab'; it must be a list"),
        ({"score_columns": ["a", "a"]}, "`score_columns` has 'a' more than once"),
        ({"score_columns": ["a", "b"], "score_column": "c"}, "`score_column` is 'c' and `score_columns` is"),
        ({"score_columns": ["a", "b"], "score_weights": [1.0]}, "a list of 2 numbers, one for each .* 'a', 'b'"),
        ({"score_columns": ["a", "b"], "score_weights": [1.0, 0.0]}, "they must be greater than 0"),
        ({"score_columns": ["a", "b"], "threshold_value": 1.0, "threshold_type": "value"}, "Set `threshold_values`"),
        ({"score_columns": ["a", "b"], "threshold_type": "value"}, "`threshold_values` is None. Set both"),
        ({"score_columns": ["a", "b"], "threshold_values": [1.0, 2.0]}, "Set both `threshold_type='value'`"),
        ({"score_columns": ["a", "b"], "threshold_values": [1.0, math.nan], "threshold_type": "value"}, "2 numbers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_units_are_those_of_each_column_unless_someone_says_otherwise(tmp_path):
    several = {"score_columns": ["b", "a"]}
    assert config(tmp_path, **several).score_normalization == "zscore"
    assert config(tmp_path, **several, score_normalization="none").score_normalization == "none"
    assert config(tmp_path, score_columns=["a"]).score_normalization == "none"
    assert config(tmp_path, **several, loss_type="qrpo").score_names == ["a", "b"]


def test_missing_columns_and_classes_are_named_before_a_model_is_loaded(tmp_path):
    args = config(tmp_path, score_columns=["other", "third", "second"])
    with pytest.raises(ValueError, match=r"has no column 'second', 'third'; it has .*set `score_columns`"):
        check_all_columns(args, two_columns(), None)
    classes = two_columns().class_encode_column("prompt").rename_columns({"prompt": "label"})
    with pytest.raises(ValueError, match="`score_columns` is 'label', a column of classes"):
        Columns("other", scores=("label", "score")).check(classes, "training")


# ---- In a run ----


SEVERAL = {"score_columns": ["score", "other"], "score_weights": [1.0, 0.5]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    args = config(folder, **SEVERAL, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    trainer = make_trainer(args, train_dataset=two_columns(), eval_dataset=two_columns(4))
    trainer.train()
    return trainer


def test_a_run_labels_by_the_rule_of_its_columns(trained):
    rows = two_columns()
    scores = {name: rows[name][:] for name in ("score", "other")}
    fit = {"weights": {"score": 1.0, "other": 0.5}, "normalization": "zscore"}
    rule = fit_combined_rule(scores, rows["prompt"][:], **fit)
    assert trained.label_rule == rule
    labels = rule.apply(rows_of(scores), rows["prompt"][:])
    assert_equal(vars(trained.train_labels), vars(labels))
    assert trained.train_dataset[3]["score"] == labels.scores[3].float()
    held_out = rule.apply(rows_of({name: two_columns(4)[name][:] for name in scores}), rows["prompt"][:4])
    assert torch.equal(trained.eval_dataset.labels.weights, held_out.weights)
    assert checkpoints.read_label_rule(trained.args.output_path / "checkpoint-2") == rule
    assert trained.hyperparameters()["score columns"] == "sum of 0.5 other, score"
    trained.create_model_card()
    card = (trained.args.output_path / "README.md").read_text()
    assert "| threshold of other | 350 (median of the scores), 50.0 % positive, counts 0.5 times |" in card
    assert f"| rows that columns disagree on | {rule.num_disagreeing} (" in card


def test_columns_in_another_order_and_a_stream_train_the_same(trained, tmp_path):
    turned = {"score_columns": ["other", "score"], "score_weights": [0.5, 1.0], "lr_scheduler_type": "constant"}
    trainer = make_trainer(config(tmp_path, **turned), train_dataset=two_columns())
    assert trainer.label_rule == trained.label_rule
    assert trainer._course == trained._course
    for num_shards in (1, 2):  # in the stream's order, and in lanes
        rows = two_columns().to_iterable_dataset(num_shards)
        stream = make_trainer(config(tmp_path, **turned), train_dataset=rows)
        assert stream.train_dataset.num_lanes == num_shards
        assert stream.label_rule == trained.label_rule
        for row in itertools.islice(stream.train_dataset, 8):
            for name in ("score", "is_positive", "weight"):
                assert torch.equal(row[name], trained.train_dataset[row["row"]][name])
    trainer.train()
    assert_equal(trained_weights(trainer), trained_weights(trained))


def test_rows_are_told_apart_by_the_raw_scores_of_all_columns(trained, tmp_path):
    moved = two_columns().map(lambda row: {"other": row["other"] + 1.0})  # with its threshold, so that labels stay
    trainer = make_trainer(config(tmp_path, **SEVERAL), train_dataset=moved)
    assert torch.equal(trainer.train_labels.scores, trained.train_labels.scores)
    assert trainer.train_dataset.fingerprint != trained.train_dataset.fingerprint


def test_one_column_in_a_list_is_that_column(tmp_path):
    one, listed = (
        make_trainer(config(tmp_path / str(i), **settings), train_dataset=two_columns())
        for i, settings in enumerate(({"score_column": "other"}, {"score_columns": ["other"]}))
    )
    assert type(listed.label_rule) is LabelRule
    assert listed.label_rule == one.label_rule
    assert listed._course == one._course
    assert_equal([listed.train_dataset[i] for i in range(8)], [one.train_dataset[i] for i in range(8)])


def test_what_columns_count_is_of_the_run_and_their_order_is_not(trained):
    folder = trained.args.output_path.parent
    turned = {"score_columns": ["other", "score"], "score_weights": [0.5, 1.0], "lr_scheduler_type": "constant"}
    for changes in ({"score_weights": [0.6, 1.0]}, {"score_combination": "vote"}):
        trainer = make_trainer(config(folder, **turned | changes, max_steps=3), train_dataset=two_columns())
        with pytest.raises(ValueError, match="of a run with other settings or data"):
            trainer.train(resume_from_checkpoint=True)
    trainer = make_trainer(config(folder, **turned, max_steps=3), train_dataset=two_columns())
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_row_without_one_of_its_scores_stops_the_run_or_is_left_out(tmp_path, as_stream):
    rows = two_columns()
    other = [None if i == 2 else value for i, value in enumerate(rows["other"])]
    rows = rows.remove_columns("other").add_column("other", other)
    dataset = streamed(rows) if as_stream else rows
    with pytest.raises(BadRowError, match="Row 2, column 'other': the score is missing"):
        make_trainer(config(tmp_path, **SEVERAL), train_dataset=dataset)
    trainer = make_trainer(config(tmp_path, **SEVERAL, on_bad_row="skip"), train_dataset=dataset)
    assert trainer.label_rule.num_rows == 7


def test_pairs_are_made_of_the_signed_scores(tmp_path):
    # Prompts 0 to 3 of two rows each, i and i + 4; the sum decides which of them is better.
    rows = two_columns()
    settings = {"loss_type": "diffusion_dpo", "score_columns": ["score", "other"]}
    trainer = make_trainer(config(tmp_path, **settings), train_dataset=rows, eval_dataset=rows)
    scores = {name: rows[name][:] for name in ("score", "other")}
    rule = fit_combined_rule(scores, rows["prompt"][:], normalization="zscore")
    signed = rule.apply(rows_of(scores), rows["prompt"][:]).scores
    better, worse = trainer.train_labels.scores.view(-1, 2).unbind(1)
    assert (better > worse).all()
    expected = {frozenset((signed[i].item(), signed[i + 4].item())) for i in range(4)}
    assert {frozenset(pair) for pair in zip(better.tolist(), worse.tolist(), strict=True)} <= expected
    assert torch.equal(trainer.eval_dataset.labels.scores, trainer.train_labels.scores)
    assert trainer.hyperparameters()["score columns"] == "sum of other, score"
    # what they are compared by stays with the weights
    trainer.save_model()
    read = checkpoints.read_label_rule(tmp_path / "out")
    assert torch.equal(read.apply(rows_of(scores), rows["prompt"][:]).scores, signed)
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| compared by | the sum of 2 columns |" in card
    assert f"| threshold of other | {rule.columns['other'].describe()}, " in card


@pytest.mark.parametrize("loss_type", ["nft", "qrpo"])
def test_losses_read_the_signed_score(tmp_path, loss_type):
    args = config(tmp_path, **SEVERAL, loss_type=loss_type, quantile_scope="dataset" if loss_type == "qrpo" else "auto")
    trainer = make_trainer(args, train_dataset=two_columns())
    signed, rule = trainer.train_labels.scores, trainer.label_rule
    if loss_type == "nft":
        expected = signed / rule.score_std
    else:
        expected = torch.tensor([((signed < s).sum() + (signed <= s).sum()) / 16 for s in signed])
    torch.testing.assert_close(trainer.train_labels.relative_scores, expected.float())


# ---- The page ----


def test_the_example_of_the_page_is_what_the_settings_give():
    page = (Path(__file__).parents[1] / "docs" / "score_columns.md").read_text()
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| a ")]
    cells = [[cell.strip() for cell in line] for line in lines]
    scores = {name: [float(row[i]) for row in cells] for i, name in ((1, "aesthetic"), (2, "clip"))}
    prompts = ["a red fox in the snow"] * len(cells)
    for i, combination in ((5, "sum"), (6, "vote")):
        rule = fit_combined_rule(scores, prompts, combination=combination, normalization="zscore")
        labels = rule.apply(rows_of(scores), prompts)
        signed = labels.scores.tolist()
        side = [f"tie, {'positive' if score > 0 else 'negative'}" if abs(score) == TIE else "" for score in signed]
        assert [row[i] for row in cells] == [tie or f"{score:.2f}" for tie, score in zip(side, signed, strict=True)]
        for j, (name, column) in enumerate(rule.columns.items(), 3):
            assert [row[j] for row in cells] == [f"{d:.2f}" for d in column.distances(scores[name], prompts).tolist()]
        if combination == "sum":
            assert [f"{weight:.1f}" for weight in labels.weights.tolist()] == [
                "5.3",
                "8.2",
                "1.2",
                "1.5",
                "3.4",
                "11.8",
            ]
