"""Reports on scored data sets: numbers by hand, suggestions that `TGOConfig` takes, pictures, and the docs' example."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from tgo_trl import TGOConfig
from tgo_trl.cli import main
from tgo_trl.commands.ending import ending
from tgo_trl.commands.inspect.config import InspectConfig
from tgo_trl.commands.inspect.images import summarize_images
from tgo_trl.commands.inspect.plots import NEUTRAL, _threshold_lines, plot_baselines, plot_thresholds, plot_weights
from tgo_trl.commands.inspect.run import inspect
from tgo_trl.commands.inspect.scores import (
    even_threshold,
    summarize_prompts,
    summarize_scores,
    threshold_rows,
    weight_rows,
)
from tgo_trl.commands.inspect.suggestions import (
    suggest_balance,
    suggest_image_size,
    suggest_prompt_mean,
    suggest_threshold,
    suggest_weights,
)
from tgo_trl.plots import NEGATIVE, POSITIVE

from .tiny.data import picture

DOCS = Path(__file__).parent.parent / "docs"


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(count, seed=0):
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- Scores and thresholds ----


def test_scores_by_hand():
    summary = summarize_scores(tensor([4.0, 0.0, 0.0, 2.0, 4.0, 0.0]))
    assert (summary.minimum, summary.maximum, summary.num_distinct) == (0.0, 4.0, 3)
    assert (summary.most_common, summary.most_common_share) == (0.0, 0.5)
    # mean 10 / 6, squares 36 / 6 - (10 / 6)^2; sorted 0 0 0 2 4 4: half-way between 0 and 2; position 1.25, 3.75
    assert summary.mean == pytest.approx(10 / 6)
    assert summary.std == pytest.approx(math.sqrt(6 - 100 / 36))
    assert summary.percentiles == pytest.approx({10: 0, 25: 0, 50: 1, 75: 3.5, 90: 4})


def test_thresholds_by_hand():
    rows = threshold_rows(tensor([0.0, 1.0, 2.0, 3.0, 10.0]), 2.5)
    assert [(row.name, pytest.approx(row.threshold), row.positive_share) for row in rows] == [
        ("percentile 10", 0.4, 0.8),
        ("percentile 25", 1.0, 0.8),
        ("median", 2.0, 0.6),
        ("percentile 75", 3.0, 0.4),
        ("percentile 90", 7.2, 0.2),
        ("mean", 3.2, 0.2),
        ("given", 2.5, 0.4),
    ]


def test_the_most_even_split_lies_between_two_scores():
    assert even_threshold(tensor([0.0] * 74 + [1.0] * 20 + [2.0] * 6)) == 0.5
    assert even_threshold(tensor([1.0] * 2 + [2.0] * 3 + [4.0] * 4)) == 3.0
    assert even_threshold(tensor([5.0, 7.0])) == 6.0


def test_win_counts_get_half_a_win():
    scores = tensor([0.0] * 690 + [1.0] * 200 + [2.0] * 38)
    suggestion = suggest_threshold(scores, threshold_rows(scores))
    assert suggestion.settings == {"threshold_type": "value", "threshold_value": 0.5}
    assert "The median, 0, makes every row positive, which training refuses" in suggestion.reason
    assert "0.5 makes 25.6 % positive" in suggestion.reason


def test_ties_at_the_median_get_a_more_even_split():
    # 30 % at 1, 65 % at 2, 5 % at 3: the median, 2, makes 70 % positive; 2.5 would make 5 %, 1.5 makes 70 % as well
    scores = tensor([1.0] * 30 + [2.0] * 65 + [3.0] * 5)
    assert suggest_threshold(scores, threshold_rows(scores)) is None
    # 10 % at 1, 50 % at 2, 40 % at 3: 90 % against 40 %
    scores = tensor([1.0] * 10 + [2.0] * 50 + [3.0] * 40)
    suggestion = suggest_threshold(scores, threshold_rows(scores))
    assert suggestion.settings["threshold_value"] == 2.5
    assert "Many scores equal the median, 2: 90 % are positive" in suggestion.reason
    assert suggest_threshold(normal(100), threshold_rows(normal(100))) is None


# ---- Weights ----


def test_weights_by_hand():
    # |s - 1| = 1, 0, 2
    (row,) = weight_rows(tensor([0.0, 1.0, 3.0]), 1.0, [1.0], ["none"])
    assert row.quartiles == (1.0, 1.5, 2.0, 2.5, 3.0)  # of 2, 1, 3
    assert row.effective_share == pytest.approx(36 / (3 * 14))
    assert row.top_share == pytest.approx(3 / 6)  # of one row
    assert row.positive_share == pytest.approx((1 + 3) / 6)


def test_a_hundredth_of_the_rows_is_the_largest():
    # 200 rows: weights 1 + c |s| with s = -1 everywhere but for two of 9 and 11
    (row,) = weight_rows(tensor([-1.0] * 198 + [9.0, 11.0]), 0.0, [2.0], ["none"])
    assert row.top_share == pytest.approx((19 + 23) / (198 * 3 + 19 + 23))


def test_every_combination_that_the_scores_allow():
    rows = weight_rows(normal(50), 0.0)
    assert [(row.normalization, row.coefficient) for row in rows] == [
        (kind, c) for kind in ("none", "zscore", "robust") for c in (0.0, 1.0, 5.0, 10.0)
    ]
    assert all(row.effective_share == pytest.approx(1) for row in rows if row.coefficient == 0)
    mostly_equal = tensor([0.0] * 9 + [1.0])  # no interquartile range
    assert {row.normalization for row in weight_rows(mostly_equal, 0.5)} == {"none", "zscore"}
    assert weight_rows(mostly_equal, 2.0) == []  # no positive row


def test_normal_scores_with_a_lopsided_threshold_warn_nobody(caplog):
    weight_rows(normal(1000), 3.0)
    assert caplog.records == []


def suggested_weights(scores):
    return suggest_weights(scores, summarize_scores(scores), scores.median().item())


def test_scores_in_small_units_are_standardised():
    scores = 0.25 + 0.03 * normal(2000)
    suggestion = suggested_weights(scores)
    assert suggestion.settings == {"score_normalization": "zscore"}
    (coefficient,) = re.findall(r"`confidence_coef=([\d.]+)`", suggestion.reason)
    assert float(coefficient) == pytest.approx(5 / scores.std(correction=0).item(), rel=0.01)
    threshold = scores.median().item()
    (plain,) = weight_rows(scores, threshold, [float(coefficient)], ["none"])
    (standard,) = weight_rows(scores, threshold, [5.0], ["zscore"])
    assert plain.quartiles == pytest.approx(standard.quartiles, rel=0.01)


def test_scores_in_large_units_are_standardised():
    suggestion = suggested_weights(50 + 20 * normal(2000))
    assert suggestion.settings == {"score_normalization": "zscore"}
    assert "multiply the loss" in suggestion.reason


def test_scores_of_unit_spread_are_left_alone():
    assert suggested_weights(normal(2000)) is None


def test_long_tails_get_the_largest_coefficient_that_leaves_enough_rows():
    scores = -(normal(2000).abs() ** 3)
    suggestion = suggested_weights(scores)
    assert suggestion.settings["score_normalization"] == "robust"
    coefficient = suggestion.settings["confidence_coef"]
    tried = [5.0, 2.0, 1.0, 0.5, 0.2, 0.1]
    rows = weight_rows(scores, scores.median().item(), tried, ["robust"])
    enough = [row.coefficient for row in rows if row.effective_share >= 0.6]
    even = [row.coefficient for row in rows if row.positive_share >= 0.4]
    assert coefficient == max(set(enough) & set(even)) < max(enough) < 5
    assert "Negative rows have 78.9 % of the weight, and win at the start" in suggestion.reason
    assert suggest_balance(scores, scores.median().item(), suggestion.settings) is None  # said once
    # a long upper tail: positives have most of the weight already, and nothing is said of it
    suggestion = suggested_weights(-scores)
    assert suggestion.settings["confidence_coef"] == max(enough)
    assert "Negative rows" not in suggestion.reason
    mostly_equal = torch.cat([torch.zeros(1800, dtype=torch.float64), normal(200).abs() ** 6])
    suggestion = suggest_weights(mostly_equal, summarize_scores(mostly_equal), 1e-9)
    assert suggestion.settings["score_normalization"] == "zscore"  # no interquartile range


def test_a_smaller_coefficient_is_suggested_where_negatives_win():
    # Around 0, weights 1 + c s: positives 2 (1 + 0.1 c), negatives 1 + 2 c and 1 + 0.6 c.
    scores = tensor([-2.0, -0.6, 0.1, 0.1])
    suggestion = suggest_balance(scores, 0.0, {})
    # c = 5: 3 of 18, c = 1: 2.2 of 6.8, c = 0.5: 2.1 of 5.4, c = 0.2: 2.04 of 4.56, which is more than 0.4
    assert suggestion.settings == {"confidence_coef": 0.2}
    assert "With `confidence_coef=5` for each score unit, negative rows have 83.3 % of the weight" in suggestion.reason
    assert "the loss begins on a hill" in suggestion.reason
    assert suggestion.reason.endswith("0.2 leaves them 55.3 %.")
    assert suggest_balance(-scores, 0.0, {}) is None
    assert suggest_balance(scores, 0.0, {"score_normalization": "zscore", "confidence_coef": 0.1}) is None
    # Standard deviations, 0.857, are smaller than score units here.
    standard = suggest_balance(scores, 0.0, {"score_normalization": "zscore"})
    assert standard.settings == {"confidence_coef": 0.2}
    assert "for each standard deviation, negative rows" in standard.reason


def test_few_positive_rows_are_no_matter_of_the_coefficient():
    # 1 + 5 |s - 0.5| = 3.5, 3.5, 8.5: 200 * 3.5 + 38 * 8.5 = 1023 of 3438
    wins = tensor([0.0] * 690 + [1.0] * 200 + [2.0] * 38)
    suggestion = suggest_balance(wins, 0.5, {})
    assert suggestion.settings == {"negative_weight": "balanced"}
    assert "negative rows have 70.2 % of the weight" in suggestion.reason
    # 1023 over 2415; at the mean, 276 / 928: 1 + 5 |s - mean| = 2.487, 4.513, 9.513; 690 * 2.487 = 1716 of 2980
    assert suggestion.reason.endswith(
        "With 25.6 % of the rows positive, no `confidence_coef` mends that. Balanced, a negative row counts "
        "0.42 times, and both sides weigh the same; `recipe='robust'` does that too. A threshold at the mean, "
        "`threshold_type='mean'`, would leave them 57.6 % without."
    )
    assert suggest_balance(wins, 0.5, {}, are_leads=True).reason.endswith("`recipe='robust'` does that too.")
    # One good row of ten, in small units: 1.25 of 12.5, and at the mean 1.45 of 10.9.
    few = suggest_balance(tensor([0.0] * 9 + [0.1]), 0.05, {})
    assert few.reason.endswith("counts 0.11 times, and both sides weigh the same; `recipe='robust'` does that too.")


@pytest.mark.parametrize("combination", ["sum", "vote"])
def test_leads_of_votes_say_nothing_of_a_mean(tmp_path, combination):
    rows = dataset([1.0] * 3 + [0.0] * 9).remove_columns("image")
    rows = rows.add_column("other", rows["score"])
    settings = {"score_columns": ["score", "other"], "score_combination": combination, "threshold_values": [0.5, 0.5]}
    report = report_on(rows, tmp_path, skip_images=True, **settings)
    (balance,) = (found.reason for found in report.suggestions if found.settings == {"negative_weight": "balanced"})
    assert ("`threshold_type='mean'`" in balance) == (combination == "sum")


def test_the_balance_is_in_the_report_once(tmp_path):
    scores = [-(score**2) for score in (0.2, 0.4, 0.5, 0.6, 0.7, 0.9, 1.1, 1.6, 1.9, 2.2)]
    report = report_on(dataset(scores).remove_columns("image"), tmp_path, skip_images=True)
    said = [found for found in report.suggestions if "on a hill" in found.reason]
    assert len(said) == 1
    assert as_arguments(report.settings, tmp_path).confidence_coef == said[0].settings["confidence_coef"] < 5


# ---- Prompts ----


def test_prompts_by_hand():
    scores = tensor([0.0, 4.0, 2.0, 6.0, 8.0, 50.0])
    prompts = ["a", "b", "a", "b", "b", "alone"]
    found = summarize_prompts(scores, prompts, threshold=4.0, beta=1.0)
    assert (found.num_prompts, found.num_single, found.images) == (3, 1, (1, 2.0, 3))
    # without the single image: means 1 and 6; squares within 2 + 8, over 5 - 2
    assert found.within_std == pytest.approx(math.sqrt(10 / 3))
    # mean of all 4; mean square between 2 * 9 + 3 * 4, over 1; (5 - (4 + 9) / 5) / 1 images
    between = (30 - 10 / 3) / 2.4
    assert found.between_share == pytest.approx(between / (between + 10 / 3))
    assert found.mean_percentiles == pytest.approx({10: 1.5, 25: 2.25, 50: 3.5, 75: 4.75, 90: 5.5})
    a = math.log((1 + math.exp(2)) / 2)
    b = math.log((math.exp(4) + math.exp(6) + math.exp(8)) / 3)  # 7.04
    assert found.baseline_percentiles[50] == pytest.approx((a + b) / 2)
    # labels by 4: - + - + +; by the means: - - + + +; by the baselines 1.43 and 7.04: - - + - +
    assert found.flipped_by_mean == pytest.approx(2 / 5)
    assert found.flipped_by_baseline == pytest.approx(3 / 5)
    assert found.baseline_positive_share == pytest.approx(2 / 5)


def test_equal_scores_of_a_prompt_are_all_positive():
    # 0.1 three times has a mean above 0.1 in binary
    scores = tensor([0.1] * 3 + [0.7] * 3)
    found = summarize_prompts(scores, ["a"] * 3 + ["b"] * 3, threshold=0.05, beta=1.0)
    assert found.flipped_by_mean == 0
    assert found.between_share == pytest.approx(1)


@pytest.mark.parametrize("prompts", [["a", "b", "c", "d"], ["a", "a", "b", "c"]])
def test_a_single_repeated_prompt_tells_nothing(prompts):
    assert summarize_prompts(tensor([1.0, 2.0, 3.0, 4.0]), prompts, 2.5, 1.0) is None


def scores_of_prompts(share, images=8, prompts=400):
    """Standard normal scores, a share of whose variance lies between prompts."""
    shared, own = normal(prompts, 1).repeat_interleave(images), normal(prompts * images, 2)
    names = [f"prompt {i}" for i in range(prompts) for _ in range(images)]
    return math.sqrt(share) * shared + math.sqrt(1 - share) * own, names


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_variance_between_prompts_is_found(share):
    scores, prompts = scores_of_prompts(share)
    found = summarize_prompts(scores, prompts, scores.median().item(), 1.0)
    assert found.between_share == pytest.approx(share, abs=0.04)


def test_chance_flips_as_many_labels_as_unrelated_scores_would():
    # Two images of each prompt: labels by their mean are always + and -, so half of them differ, if neighbours do not
    # straddle the median, and a quarter overall.
    scores, prompts = scores_of_prompts(0.0, images=2, prompts=2000)
    found = summarize_prompts(scores, prompts, scores.median().item(), 1.0)
    assert found.flipped_by_chance == pytest.approx(0.25, abs=0.01)
    assert found.flipped_by_mean == pytest.approx(0.25, abs=0.02)
    assert suggest_prompt_mean(found) is None


def test_a_baseline_for_each_prompt_is_suggested_where_labels_depend_on_it():
    scores, prompts = scores_of_prompts(0.6)
    found = summarize_prompts(scores, prompts, scores.median().item(), 1.0)
    assert found.excess_flips > 0.15
    assert suggest_prompt_mean(found).settings == {"threshold_type": "prompt_mean"}


def test_a_beta_below_the_spread_puts_the_baseline_near_the_best_image():
    scores, prompts = scores_of_prompts(0.6)
    found = summarize_prompts(20 * scores, prompts, 0.0, 1.0)
    assert found.baseline_positive_share < 0.25  # of eight
    standard = summarize_prompts(scores, prompts, 0.0, 1.0)
    assert standard.baseline_positive_share > 0.4


@pytest.mark.parametrize(("images", "single"), [(3, 0), (8, 1)])
def test_prompts_with_too_few_images_get_a_note(images, single):
    scores, prompts = scores_of_prompts(0.8, images)
    scores, prompts = torch.cat([scores, tensor([0.1] * single)]), prompts + ["alone"] * single
    found = summarize_prompts(scores, prompts, 0.0, 1.0)
    suggestion = suggest_prompt_mean(found)
    assert suggestion.settings == {}
    assert f"{single} of {400 + single} have one, the fewest is {1 if single else images}" in suggestion.reason


# ---- Images ----


def test_sizes_by_hand():
    summary = summarize_images([(100, 100), (100, 100), (100, 200), (300, 100)])  # height, width
    assert summary.num_sizes == 3
    assert summary.sizes == {"100 x 100": 2, "200 x 100": 1, "100 x 300": 1}
    assert summary.shorter_side == (100, 100, 100, 100)
    assert summary.aspect_ratio == pytest.approx((1 / 3, 1.0, 2.0))
    assert summary.square_loss == pytest.approx((0 + 0 + 1 / 2 + 2 / 3) / 4)
    assert summary.elongation == pytest.approx(2 + 0.97)  # position 2.97 of 1, 1, 2, 3
    assert summary.single_size is None


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ([(768, 768)] * 3, [{"resolution": 768}]),
        ([(768, 1344)] * 3, [{"height": 768, "width": 1344}]),
        ([(768, 768), (760, 768)], []),
        ([(768, 1024), (1024, 768)], [{"aspect_ratio_buckets": True}]),
        ([(512, 1536), (1024, 768)], [{"aspect_ratio_buckets": True, "max_aspect_ratio": 3.0}]),
        ([(100, 1000), (1024, 768)], [{"aspect_ratio_buckets": True, "max_aspect_ratio": 4.0}]),
    ],
)
def test_sizes_become_settings(sizes, settings):
    assert [found.settings for found in suggest_image_size(summarize_images(sizes))] == settings


def test_without_images_nothing_is_said_of_them():
    assert suggest_image_size(None) == []


# ---- The report ----


def dataset(scores, prompts=None, images=None):
    count = len(scores)
    return Dataset.from_dict(
        {
            "prompt": prompts or [f"prompt {i}" for i in range(count)],
            "image": images or [picture(i) for i in range(count)],
            "score": scores,
        },
        features=Features({"prompt": Value("string"), "image": ImageFeature(), "score": Value("float64")}),
    )


def beside(rows, name, cells, feature):
    column = Dataset.from_dict({name: cells}, features=Features({name: feature}))
    return concatenate_datasets([rows, column], axis=1)


def report_on(rows, tmp_path, **settings):
    rows.to_parquet(tmp_path / "rows.parquet")
    settings = {"output_dir": str(tmp_path / "out"), "disable_tqdm": True, **settings}
    return inspect(InspectConfig(str(tmp_path / "rows.parquet"), **settings))


def as_arguments(settings, tmp_path):
    """The settings as `TGOConfig` takes them."""
    return TGOConfig(str(tmp_path / "run"), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_report_from_rows_to_files(tmp_path, capsys, monkeypatch, streaming):
    monkeypatch.setenv("COLUMNS", "160")  # of the terminal
    images = [picture(i, (16, 32) if i % 2 else (32, 16)) for i in range(12)]
    images[5] = images[3]  # the same prompt, another score
    images[6] = images[0]  # another prompt
    images[11] = None
    scores = [float(i) for i in range(12)]
    scores[8] = math.nan
    prompts = ["a"] * 6 + ["b"] * 6
    prompts[9] = " "
    report = report_on(dataset(scores, prompts, images), tmp_path, dataset_streaming=streaming)
    assert (report.dataset, report.num_rows, report.num_usable, report.num_prompts) == ("rows.parquet", 12, 9, 2)
    assert report.problems == {"bad score": 1, "bad prompt": 1, "bad image": 1}
    assert report.first_reasons["bad image"] == "row 11: the image is missing (None)"
    assert (report.duplicates.images, report.duplicates.rows, report.duplicates.contradictions) == (2, 1, 1)
    # rows 0 to 7 and 10
    assert report.scores.mean == pytest.approx(38 / 9)
    assert report.threshold == 4.0
    assert report.images.sizes == {"32 x 16": 5, "16 x 32": 4}  # upright: 1, 3, 5, 7
    assert report.lengths.words == (1, 1, 1, 1)
    written = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert written["settings"] == report.settings
    assert written["scores"]["mean"] == report.scores.mean
    assert written["weights"][0]["quartiles"] == [1, 1, 1, 1, 1]
    for name in ("thresholds.png", "weights.png", "prompts.png"):
        assert Image.open(tmp_path / "out" / name).format == "PNG"
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("rows with a bad score", "1 (row 8: the score is nan, not a finite number)", "on_bad_row: skip",
                 "3 of 12 rows cannot be trained on", "aspect_ratio_buckets: True", "prompts.png"):  # fmt: skip
        assert text in printed, text
    assert as_arguments(report.settings, tmp_path).on_bad_row == "skip"


def test_the_same_words_for_another_source_are_another_prompt(tmp_path, capsys):
    # six rows of each source, which the scores depend on and the words do not
    before = [picture(i // 6) for i in range(24)]
    scores = [float(10 * (i // 6 % 2) + i % 6) for i in range(24)]
    rows = dataset(scores, ["brighten"] * 24)
    images = [rows[0]["image"], *rows[:23]["image"]]  # the first image comes again with its source
    rows = dataset(scores, ["brighten"] * 24, images)
    assert report_on(rows, tmp_path).prompts is None, "of one prompt there is nothing to compare"
    edits = beside(rows, "before", before, ImageFeature())
    report = report_on(edits, tmp_path, source_column="before")
    assert (report.num_prompts, report.num_tasks, report.prompts.num_prompts) == (1, 4, 4)
    assert report.prompts.images == (6, 6, 6)
    assert report.prompts.within_std == pytest.approx(math.sqrt(17.5 / 5))  # of 0 to 5 in each
    assert (report.duplicates.images, report.duplicates.rows) == (1, 1)
    assert report.settings["threshold_type"] == "prompt_mean"
    assert as_arguments(report.settings, tmp_path).source_column == "before"
    assert "4, each compared by itself" in " ".join(capsys.readouterr().out.split())


def test_sources_that_cannot_be_trained_on_are_counted(tmp_path):
    rows = dataset([0.0, 1.0, 2.0, 3.0])
    before = [[picture(0)], [picture(1)], [picture(0), picture(1)], []]
    edits = beside(rows, "source_image", before, List(ImageFeature()))
    report = report_on(edits, tmp_path)
    assert report.problems == {"bad source": 1}
    assert report.first_reasons["bad source"] == "row 3: the source image is missing"
    [note] = [found.reason for found in report.suggestions if "source images" in found.reason]
    assert note.startswith("Rows have 1 or 2 source images, and those of a batch must have as many")
    with pytest.raises(ValueError, match=r"no column 'before'; .*`source_column`"):
        report_on(edits, tmp_path, source_column="before")


def test_the_suggested_settings_train(tmp_path):
    # What is suggested together, `TGOConfig` takes together, and the label rule accepts.
    from tgo_trl.labels.fitting import fit_label_rule

    shared = [0.0] * 5 + [1.0] * 3
    scores = [20 * shared[i // 8] + 2 * (i % 8 % 3) for i in range(64)]
    prompts = [f"prompt {i // 8}" for i in range(64)]
    report = report_on(dataset(scores, prompts), tmp_path)
    assert report.settings == {
        "threshold_type": "prompt_mean", "score_normalization": "zscore", "resolution": 16,
    }  # fmt: skip
    args = as_arguments(report.settings, tmp_path)
    rule = fit_label_rule(
        scores, prompts, threshold_type=args.threshold_type, normalization=args.score_normalization, beta=args.beta
    )
    assert 0 < rule.num_positive < 64


def test_the_command(tmp_path, capsys):
    dataset([0.0, 1.0, 2.0, 4.0]).to_parquet(tmp_path / "rows.parquet")
    arguments = ["--dataset_name", str(tmp_path / "rows.parquet"), "--output_dir", str(tmp_path / "out")]
    assert main(["inspect", *arguments, "--disable_tqdm"]) == 0
    assert "median" in capsys.readouterr().out
    assert (tmp_path / "out" / "inspection.json").is_file()


def test_text_of_the_data_is_printed_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png"), "no[/bold]:fox:.png"]
    rows = [{"prompt": "a", "image": file, "score": float(i)} for i, file in enumerate(files)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inspect(InspectConfig(str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out[/x]"), disable_tqdm=True))
    printed = capsys.readouterr().out
    for text in ("no[/bold]:fox:.png", f"Written to {tmp_path / 'out[/x]'}: inspection.json"):
        assert text in printed, text


def test_only_the_main_process_inspects(tmp_path, capsys, monkeypatch):
    waited = []
    other = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(True))
    monkeypatch.setattr("tgo_trl.commands.inspect.run.process_state", lambda: other)
    assert report_on(dataset([0.0, 1.0]), tmp_path) is None
    assert waited == [True]
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_a_threshold_of_ones_own(tmp_path):
    report = report_on(dataset([float(i) for i in range(10)]), tmp_path, threshold_value=6.5)
    assert report.threshold == 6.5
    assert report.settings["threshold_value"] == 6.5
    assert report.thresholds[-1].positive_share == pytest.approx(0.3)


def test_images_can_be_left_alone(tmp_path):
    rows = dataset([0.0, 1.0, 2.0, 4.0]).remove_columns("image")
    report = report_on(rows, tmp_path, skip_images=True)
    assert report.images is None
    assert report.duplicates is None
    assert report.num_usable == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "inspection.json", "thresholds.png", "weights.png",
    ]  # fmt: skip


def test_only_the_first_rows(tmp_path):
    report = report_on(dataset([float(i) for i in range(10)]), tmp_path, max_rows=4)
    assert (report.num_rows, report.scores.maximum) == (4, 3.0)


def test_several_columns_are_looked_at_as_training_takes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = dataset([0.0, 2.0, 4.0, math.nan, 6.0]).add_column("other", [10.0, 30.0, 0.0, 5.0, 20.0])
    settings = {"score_columns": ["score", "other"], "score_weights": [1.0, 2.0]}
    report = report_on(rows, tmp_path, **settings, skip_images=True)
    assert (report.num_usable, report.problems) == (4, {"bad score": 1})
    # medians 15 and 3; distances -5 15 -15 5 and -3 -1 1 3; standard deviations 5 sqrt 5 and sqrt 5: the sums are
    # (2 (-1 3 -3 1) + (-3 -1 1 3)) / sqrt 5 = (-5 5 -5 5) / sqrt 5
    other, score = report.columns.columns
    assert (other.name, other.weight, other.threshold, other.scale) == ("other", 2, 15, pytest.approx(5 * 5**0.5))
    assert (score.name, score.weight, score.threshold, score.scale) == ("score", 1, 3, pytest.approx(5**0.5))
    assert (other.positive_share, other.overruled_share, score.overruled_share) == (0.5, 0, 0.5)
    assert report.columns.disagreeing_share == 0.5
    assert (report.threshold, report.scores.maximum) == (0, pytest.approx(5**0.5))
    assert [(row.name, row.positive_share) for row in report.thresholds] == [("of all columns", 0.5)]
    assert [row.coefficient for row in report.weights] == [0, 1, 5, 10]
    assert settings.items() <= report.settings.items()
    printed = capsys.readouterr().out
    assert "The sum of 2 columns, which disagree on 50.0 % of the rows" in printed
    args = as_arguments({"score_columns": report.settings["score_columns"]}, tmp_path)
    assert args.score_normalization == "zscore"
    words = ending("inspect", [InspectConfig("rows.parquet")], report)[0]
    assert "--score_columns score other --score_weights 1 2 " in words
    with pytest.raises(ValueError, match="The data set has no column 'third'"):
        report_on(rows, tmp_path, score_columns=["other", "third"])
    with pytest.raises(ValueError, match="Of the scores in 'other': All 5 scores equal 1"):
        report_on(
            dataset([0.0, 1.0, 2.0, 3.0, 4.0]).add_column("other", [1.0] * 5),
            tmp_path,
            score_columns=["other", "score"],
        )


def test_other_columns_are_among_the_settings(tmp_path):
    rows = dataset([0.0, 1.0, 2.0, 3.5]).rename_columns({"prompt": "caption", "score": "hps"})
    report = report_on(rows, tmp_path, prompt_column="caption", score_column="hps")
    assert {"prompt_column": "caption", "score_column": "hps"}.items() <= report.settings.items()
    assert as_arguments(report.settings, tmp_path).score_column == "hps"


def test_scores_that_are_all_equal_teach_nothing(tmp_path, capsys):
    report = report_on(dataset([3.0] * 4), tmp_path)
    assert report.weights == []
    assert report.prompts is None
    assert "All scores equal 3: there is nothing to learn." in capsys.readouterr().out


def test_long_prompts_are_counted(tmp_path):
    report = report_on(dataset([0.0, 1.0, 2.5], ["a", " ".join(["word"] * 56), "b c"]), tmp_path)
    assert report.lengths.words == (1, 2, 45, 56)  # 90 % is at position 1.8 of 1, 2, 56: 2 + 0.8 * 54
    assert report.lengths.num_long == 1
    assert any("1 prompts have more than 55 words" in found.reason for found in report.suggestions)


def test_good_data_gets_no_suggestion_but_its_size(tmp_path, capsys):
    report = report_on(dataset(normal(40).tolist()).remove_columns("image"), tmp_path, skip_images=True)
    assert report.suggestions == []
    assert "Nothing speaks against training with the defaults" in capsys.readouterr().out


def test_what_cannot_be_inspected(tmp_path):
    rows = dataset([math.nan, math.nan])
    with pytest.raises(ValueError, match=r"None of the 2 rows can be used. bad score: row 0: the score is nan"):
        report_on(rows, tmp_path)
    stars = rows.remove_columns("score").add_column("score", ["4 stars", "1 star"])
    with pytest.raises(
        ValueError, match=r"Column 'score' holds text.*convert --layout ratings --annotation_columns score`"
    ):
        report_on(stars, tmp_path)
    with pytest.raises(ValueError, match=r"no column 'hps'; it has 'prompt', 'image', 'score'. Set `prompt_column`"):
        report_on(rows, tmp_path, score_column="hps")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_rows": 0}, "`max_rows` is 0"), ({"beta": 0.0}, "`beta` is 0.0"), ({"beta": math.inf}, "`beta` is inf")],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        InspectConfig("rows", **settings)


# ---- Pictures ----


def pixels_of(path, colour):
    """Rows and columns of the pixels of a colour, half transparent over white or not."""
    drawn = np.asarray(Image.open(path).convert("RGB")).astype(int)
    full = np.array(ImageColor.getrgb(colour))
    pale = np.round(0.55 * full + 0.45 * 255)
    return np.nonzero((abs(drawn - full) < 3).all(-1) | (abs(drawn - pale) < 3).all(-1))


@pytest.mark.parametrize("scores", [[0.0] * 6 + [1.0] * 3 + [2.0], normal(300).tolist()])
def test_bars_are_coloured_by_the_threshold(tmp_path, scores):
    scores = tensor(scores)
    plot_thresholds(scores, threshold_rows(scores), 0.5, tmp_path / "a.png")
    left, right = pixels_of(tmp_path / "a.png", NEGATIVE), pixels_of(tmp_path / "a.png", POSITIVE)
    below = 120  # of the legend's patches, which are beside the axes
    negative, positive = (columns[(columns < 660) & (rows > below)] for rows, columns in (left, right))
    assert negative.max() <= positive.min() + 12  # a bar may have both
    shares = len(negative) / (len(negative) + len(positive))
    assert shares == pytest.approx((scores < 0.5).double().mean().item(), abs=0.07)


def test_thresholds_that_coincide_are_one_line_with_all_their_names():
    axes = Figure().subplots()
    _threshold_lines(axes, threshold_rows(tensor([0.0] * 6 + [1.0] * 5)))  # the 10th, 25th and 50th percentiles are 0
    labels = [" ".join(line.get_label().split()) for line in axes.lines]
    assert labels == [
        "percentile 10, percentile 25, median: 0 (100 % positive)", "percentile 75, percentile 90: 1 (45 % positive)",
        "mean: 0.4545 (45 % positive)",
    ]  # fmt: skip
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", ":"]


def test_no_dot_is_coloured_where_no_label_flips(tmp_path):
    # Every prompt has the same scores, so its baseline is everyone's.
    scores, prompts = tensor([0.0, 1.0] * 6), [f"prompt {i // 2}" for i in range(12)]
    plot_baselines(scores, prompts, 0.5, 1.0, tmp_path / "same.png")
    in_axes = lambda path, colour: sum(pixels_of(path, colour)[0] < 430)  # noqa: E731
    assert in_axes(tmp_path / "same.png", NEGATIVE) == in_axes(tmp_path / "same.png", POSITIVE) == 0
    shifted = scores + tensor([0.0] * 6 + [2.0] * 6)
    plot_baselines(shifted, prompts, 1.5, 1.0, tmp_path / "shifted.png")
    assert in_axes(tmp_path / "shifted.png", NEGATIVE) > 10
    assert in_axes(tmp_path / "shifted.png", POSITIVE) > 10
    assert in_axes(tmp_path / "shifted.png", NEUTRAL) > 10


def test_many_prompts_are_thinned_out(tmp_path):
    scores, prompts = scores_of_prompts(0.5, images=2, prompts=300)
    plot_baselines(scores, prompts, 0.0, 1.0, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").size[0] == 1100


def test_a_panel_for_each_normalisation(tmp_path):
    scores = tensor([0.0] * 9 + [1.0, 3.0])
    plot_weights(scores, 0.5, weight_rows(scores, 0.5), tmp_path / "two.png")
    plot_weights(normal(30), 0.0, weight_rows(normal(30), 0.0), tmp_path / "three.png")
    widths = [Image.open(tmp_path / name).size[0] for name in ("two.png", "three.png")]
    assert widths == [round(110 * (3.6 * panels + 0.6)) for panels in (2, 3)]


# ---- The docs ----


@pytest.mark.slow
def test_the_example_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "inspect.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1], {})
    report = inspect(InspectConfig("scored.parquet", disable_tqdm=True))
    quoted = re.findall(r"```text\n(.*?)```", page, re.DOTALL)[-1]
    assert [" ".join(found.reason.split()) in " ".join(quoted.split()) for found in report.suggestions] == [True] * 4
    assert as_arguments(report.settings, tmp_path).threshold_type == "prompt_mean"
    shown = set(re.findall(r"\(inspect/(.*?)\)", page))
    assert shown == {path.name for path in (DOCS / "inspect").iterdir()} == {
        path.name for path in (tmp_path / "inspection").iterdir() if path.suffix == ".png"
    }  # fmt: skip


def test_weights_that_training_would_refuse_are_refused(tmp_path):
    rows = Dataset.from_dict({"prompt": ["a", "b", "c", "d"], "score": [-1e38, -1e37, 1e37, 1e38]})
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    settings = {"output_dir": str(tmp_path / "out"), "skip_images": True, "disable_tqdm": True}
    with pytest.raises(ValueError, match="The weight of rows 0, 3 is not finite in float32"):
        inspect(InspectConfig(str(tmp_path / "rows.parquet"), **settings))
    assert not (tmp_path / "out" / "inspection.json").exists()
