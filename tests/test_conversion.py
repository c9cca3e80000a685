"""What people said becomes scores: counts by hand, every layout, streams, killed runs, and the published split."""

import csv
import io
import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value, Video, load_dataset

from tgo_trl.cli import main
from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.convert.layouts import LAYOUTS, Layout, find_layout, layout_of_kind
from tgo_trl.commands.convert.run import convert, convert_dataset
from tgo_trl.commands.convert.tallies import Comparisons, Ratings, compare_all
from tgo_trl.data.rows import BadRowError
from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.media.videos import load_video

from .test_videos import film
from .tiny.data import picture


def jpeg(seed):
    """An encoded picture; two seeds are two files."""
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def pick_a_pic(pairs, **changes):
    """Rows as Pick-a-Pic v2 has them, of `(caption, uid 0, uid 1, label 0)`; a label of None is none."""
    features = {
        "are_different": Value("bool"), "best_image_uid": Value("string"), "caption": Value("string"),
        "has_label": Value("bool"), "image_0_uid": Value("string"), "image_1_uid": Value("string"),
        "jpg_0": Value("binary"), "jpg_1": Value("binary"), "label_0": Value("float64"), "label_1": Value("float64"),
        "user_id": Value("int64"),
    }  # fmt: skip
    rows = [
        {
            "are_different": first != second,
            "best_image_uid": first if label == 1 else second if label == 0 else "",
            "caption": caption,
            "has_label": label is not None,
            "image_0_uid": first,
            "image_1_uid": second,
            "jpg_0": changes.get("file", jpeg)(int(first[1:])),
            "jpg_1": changes.get("file", jpeg)(int(second[1:])),
            "label_0": 0.5 if label is None else label,
            "label_1": 0.5 if label is None else 1 - label,
            "user_id": 1,
        }
        for caption, first, second, label in pairs
    ]
    return Dataset.from_list(rows, features=Features(features))


PAIRS = [
    ("a fox", "u1", "u2", 1.0),  # u1 beats u2
    ("a fox", "u2", "u3", 0.5),  # a tie
    ("a fox", "u3", "u1", 0.0),  # u1 beats u3
    ("a fox", "u1", "u2", 0.0),  # u2 beats u1
    ("a fox", "u1", "u2", None),  # says nothing
    ("an owl", "u4", "u5", 0.5),  # a tie, and all there is
    ("an owl", "u6", "u6", 1.0),  # an image against itself
    ("an owl", "u1", "u7", 1.0),  # an image of another prompt with the name of one
]


def by_uid(dataset, *columns):
    return {
        (row["prompt"], row["image_uid"]): tuple(row[name] for name in columns)
        for row in dataset.remove_columns("image")
    }


def edits(sources, **columns):
    """Rankings of the same words for different sources, an image a row."""
    features = {"prompt": Value("string"), "image": Image(), "rank": Value("int64"), "source_image": Image()}
    given = {"prompt": ["brighten"] * 4, "image": [picture(i) for i in range(4)], "rank": [1, 2, 1, 2], **columns}
    return Dataset.from_dict({**given, "source_image": sources}, features=Features(features))


# ---- Counting ----


def test_win_rates_by_hand():
    # 2 wins, 1 tie, 2 losses
    said = Comparisons()
    for outcome in (1.0, 0.5, 0.0, 1.0, 0.0):
        said.add(outcome)
    assert (said.wins, said.ties, said.total) == (2, 1, 5)
    assert said.win_rate("half") == 2.5 / 5
    assert said.win_rate("drop") == 2 / 4
    assert said.win_rate("zero") == 2 / 5
    assert said.win_rate("half", 1.0) == 3.5 / 7
    assert said.win_rate("drop", 1.0) == 3 / 6
    assert said.win_rate("zero", 0.5) == 2.5 / 6
    assert Comparisons(ties=2, total=2).win_rate("drop", 1.0) is None  # no comparison is left
    assert Comparisons().win_rate("half", 1.0) is None


def test_means_of_ratings_by_hand():
    said = Ratings()
    said.add([[4.0], [1.0]])
    said.add([[5.0, 3.0], []])
    assert said.mean() == 4.0
    assert said.mean(1) == 1.0
    assert said.mean(0, prior=2.0, prior_mean=1.0) == (12 + 2) / 5
    assert Ratings().mean() is None


def test_each_is_compared_with_each():
    # 1 is best: the first beats both, the others tie
    outcomes = compare_all([1, 2, 2], lower_is_better=True)
    assert sorted(outcomes) == [(0, 1.0), (0, 1.0), (1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5)]
    assert sorted(compare_all([1, 0])) == [(0, 1.0), (1, 0.0)]


def test_an_image_is_not_compared_with_itself():
    assert compare_all([1, 1, 2], True, ["a", "a", "b"]) == [(0, 1.0), (1, 1.0), (2, 0.0), (2, 0.0)]
    assert compare_all([1, 3], True, ["a", "a"]) == []


# ---- Pairs ----


def test_pairs_become_counts_of_each_distinct_image():
    scored = convert_dataset(pick_a_pic(PAIRS))
    assert scored.features["image"] == Image()
    counts = by_uid(scored, "score", "wins", "ties", "comparisons", "win_rate", "smoothed_win_rate")
    assert counts == {
        ("a fox", "u1"): (2.0, 2, 0, 3, 2 / 3, 3 / 5),
        ("a fox", "u2"): (1.0, 1, 1, 3, 1.5 / 3, 2.5 / 5),
        ("a fox", "u3"): (0.0, 0, 1, 2, 0.5 / 2, 1.5 / 4),
        ("an owl", "u4"): (0.0, 0, 1, 1, 0.5, 0.5),
        ("an owl", "u5"): (0.0, 0, 1, 1, 0.5, 0.5),
        ("an owl", "u1"): (1.0, 1, 0, 1, 1.0, 2 / 3),
        ("an owl", "u7"): (0.0, 0, 0, 1, 0.0, 1 / 3),
    }


def test_a_tie_is_a_win_for_neither():
    # The first image of a tie is not the winner, whatever the option.
    for ties in ("half", "zero"):
        wins = by_uid(convert_dataset(pick_a_pic(PAIRS), ties=ties), "score")
        assert wins["an owl", "u4"] == wins["an owl", "u5"] == (0.0,)


def test_dropped_ties_drop_images_that_only_tied():
    rates = by_uid(convert_dataset(pick_a_pic(PAIRS), ties="drop", score_type="win_rate"), "score", "comparisons")
    assert ("an owl", "u4") not in rates
    assert rates["a fox", "u2"] == (1 / 2, 3)
    assert rates["a fox", "u3"] == (0.0, 2)


@pytest.mark.parametrize(("ties", "rate"), [("half", (1.5 + 2) / (3 + 4)), ("zero", (1 + 2) / (3 + 4))])
def test_the_prior_is_an_option(ties, rate):
    scored = convert_dataset(pick_a_pic(PAIRS), ties=ties, prior=2.0, score_type="smoothed_win_rate")
    assert by_uid(scored, "score")["a fox", "u2"] == (rate,)


def test_images_keep_their_bytes():
    scored = convert_dataset(pick_a_pic(PAIRS)).cast_column("image", Image(decode=False))
    assert scored[0]["image"]["bytes"] == jpeg(1)
    assert [row["image_uid"] for row in scored] == ["u1", "u2", "u3", "u4", "u5", "u1", "u7"]
    assert [row["image"]["bytes"] for row in scored] == [jpeg(i) for i in (1, 2, 3, 4, 5, 1, 7)]


def test_without_names_the_content_tells_images_apart():
    rows = pick_a_pic(PAIRS).remove_columns(["image_0_uid", "image_1_uid"])
    scored = convert_dataset(rows)
    assert "image_uid" not in scored.column_names
    assert [(row["prompt"], row["wins"], row["comparisons"]) for row in scored] == [
        ("a fox", 2, 3), ("a fox", 1, 3), ("a fox", 0, 2), ("an owl", 0, 1), ("an owl", 0, 1), ("an owl", 1, 1),
        ("an owl", 0, 1),
    ]  # fmt: skip


def test_pairs_without_labels_prefer_the_first_image():
    rows = Dataset.from_dict(
        {"prompt": ["a", "a"], "chosen": [picture(1), picture(2)], "rejected": [picture(2), picture(3)]},
        features=Features({"prompt": Value("string"), "chosen": Image(), "rejected": Image()}),
    )
    scored = convert_dataset(rows)
    assert [(row["wins"], row["comparisons"]) for row in scored] == [(1, 1), (1, 2), (0, 1)]
    assert scored[2]["image"].tobytes() == picture(3).tobytes()


@pytest.mark.parametrize("label_1", [1.0, 0.5, None])
def test_outcomes_that_cannot_be_are_refused_by_row(label_1):
    rows = pick_a_pic(PAIRS[:2]).to_dict()
    rows["label_1"][0] = label_1
    rows = Dataset.from_dict(rows, features=pick_a_pic(PAIRS[:2]).features)
    with pytest.raises(BadRowError, match=r"Row 0, .*the outcomes are 1(.0)? and"):
        convert_dataset(rows)
    assert len(convert_dataset(rows, on_bad_row="skip")) == 2


# ---- The published split ----


def preference_table(num_images, num_positive, seed):
    """Pairs in the proportions of Pick-a-Pic v2: the given number of images is preferred at least once, no other is.

    Each image that won has beaten two or three others of its prompt; some pairs are ties; some rows have no label.
    """
    generator = random.Random(seed)
    negatives = num_images - num_positive
    pairs, loser = [], num_positive
    for winner in range(num_positive):
        share = negatives // num_positive + (winner < negatives % num_positive)
        losers = [f"u{loser + i}" for i in range(share)]
        loser += share
        caption = f"prompt {winner}"
        for name in losers:
            first = generator.random() < 0.5
            pairs.append((caption, *((f"u{winner}", name) if first else (name, f"u{winner}")), float(first)))
        if len(losers) > 1 and generator.random() < 0.3:
            pairs.append((caption, losers[0], losers[1], 0.5))
        if generator.random() < 0.1:
            pairs.append((caption, losers[0], f"u{winner}", None))
    generator.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("ties", ["half", "zero"])
def test_half_a_win_reproduces_the_published_split_and_the_median_does_not(ties):
    # Published: 237,530 images that were preferred at least once, 690,538 that never were; here a thousandth of them.
    # 74 % never won, so the median is 0, and `s >= 0` is every image.
    pairs = preference_table(num_images=928, num_positive=238, seed=0)
    scored = convert_dataset(pick_a_pic(pairs, file=lambda seed: jpeg(0) + b"%d" % seed), ties=ties)
    scores, prompts = scored["score"][:], scored["prompt"][:]
    assert len(scores) == 928
    rule = fit_label_rule(scores, prompts, threshold_type="value", value=0.5)
    assert (rule.num_positive, rule.num_rows - rule.num_positive) == (238, 690)
    assert rule.num_positive / rule.num_rows == pytest.approx(237_530 / (237_530 + 690_538), abs=0.001)
    with pytest.raises(ValueError, match=r"threshold 0 makes all 928 rows positive.*`threshold_type='value'`"):
        fit_label_rule(scores, prompts)


# ---- Rankings ----


def test_preferences_in_lists(tmp_path):
    # HPDv2, `train.json`: two images a row, by path; 1 is the preferred one
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [
        {"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [1, 0]},
        {"prompt": "a", "file_path": ["2.png", "1.png"], "human_preference": [0, 1]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    output = convert(ConvertConfig(str(tmp_path / "train.json"), str(tmp_path / "out"), disable_tqdm=True))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert by_uid(scored, "score", "wins", "comparisons") == {
        ("a", "0.png"): (1.0, 1, 1),
        ("a", "1.png"): (0.5, 1, 2),
        ("a", "2.png"): (0.0, 0, 1),
    }
    assert scored[2]["image"].tobytes() == picture(2).tobytes()


def test_ranks_in_lists():
    # HPDv2, `test.json`: average ranks, 1 is the best. The second beats two of two; the others tie.
    rows = Dataset.from_dict(
        {"prompt": ["a"], "image_path": [["x", "y", "z"]], "rank": [[2.5, 1.0, 2.5]]},
    ).map(lambda row: {"image": [picture(0), picture(1), picture(2)]}, features=Features(
        {"prompt": Value("string"), "image_path": List(Value("string")), "rank": List(Value("float64")),
         "image": List(Image())}
    ))  # fmt: skip
    assert find_layout(["prompt", "image_path", "rank", "raw_annotations"])[0] == "hpdv2_test"
    layout = Layout("ranking", images=("image",), annotations=("rank",), uids=("image_path",), lower_is_better=True)
    scored = convert_dataset(rows, layout)
    assert by_uid(scored, "score", "wins", "ties", "comparisons") == {
        ("a", "x"): (0.25, 0, 1, 2),
        ("a", "y"): (1.0, 2, 0, 2),
        ("a", "z"): (0.25, 0, 1, 2),
    }


def image_reward_db(prompts, ids, ranks, ratings):
    number = Value("int8")
    return Dataset.from_dict(
        {
            "image": [{"bytes": jpeg(i), "path": None} for i in range(len(prompts))],
            "prompt_id": ids,
            "prompt": prompts,
            "rank": ranks,
            "overall_rating": ratings,
            "image_text_alignment_rating": [rating - 1 for rating in ratings],
            "fidelity_rating": [7] * len(ratings),
        },
        features=Features(
            {
                "image": Image(), "prompt_id": Value("string"), "prompt": Value("string"), "rank": number,
                "overall_rating": number, "image_text_alignment_rating": number, "fidelity_rating": number,
            }
        ),
    )  # fmt: skip


def test_a_ranking_in_several_rows():
    # The same prompt was ranked twice, under two ids: images of different rankings are not compared.
    rows = image_reward_db(["a"] * 5, ["1", "2", "1", "2", "1"], [1, 2, 3, 1, 2], [5, 4, 3, 2, 6])
    scored = convert_dataset(rows, "imagerewarddb_rank")
    assert scored["score"][:] == [1.0, 0.0, 0.0, 1.0, 0.5]
    assert scored["comparisons"][:] == [2, 1, 2, 1, 2]


def test_a_ranking_may_name_an_image_twice():
    # a beats b twice, and its ranks say nothing of each other
    in_rows = Dataset.from_dict({"prompt": ["p"] * 3, "image": [jpeg(0), jpeg(0), jpeg(1)], "rank": [1, 1, 2]})
    in_lists = Dataset.from_dict({"prompt": ["p"], "image": [[jpeg(0), jpeg(0), jpeg(1)]], "rank": [[1, 1, 2]]})
    for rows in (in_rows, in_lists):
        scored = convert_dataset(rows, "ranking")
        assert scored["win_rate"][:] == [1.0, 0.0]
        assert scored["comparisons"][:] == [2, 2]
    same = Dataset.from_dict({"prompt": ["p"], "image": [[jpeg(0), jpeg(0)]], "rank": [[1, 2]]})
    with pytest.raises(ValueError, match="1 compare an image with itself"):
        convert_dataset(same, "ranking")


# ---- Ratings ----


def test_image_reward_db_is_told_by_its_columns():
    rows = image_reward_db(["a", "b"], ["1", "2"], [1, 2], [5, 2])
    scored = convert_dataset(rows)
    assert scored["score"][:] == [5.0, 2.0]
    assert scored["mean_image_text_alignment_rating"][:] == [4.0, 1.0]
    assert scored["mean_fidelity_rating"][:] == [7.0, 7.0]
    assert scored["mean_rank"][:] == [1.0, 2.0]
    # one rating each, and one more of their mean, 3.5
    assert scored["bayesian"][:] == [(5 + 3.5) / 2, (2 + 3.5) / 2]


def test_image_reward_db_in_groups():
    rows = Dataset.from_dict(
        {
            "prompt": ["a"],
            "image": [[{"bytes": jpeg(0), "path": None}, {"bytes": jpeg(1), "path": None}]],
            "overall_rating": [[3, 5]],
            "image_text_alignment_rating": [[1, 2]],
            "fidelity_rating": [[6, 7]],
            "rank": [[2, 1]],
        },
        features=Features(
            {
                "prompt": Value("string"), "image": List(Image()), "rank": List(Value("int8")),
                "overall_rating": List(Value("int8")), "image_text_alignment_rating": List(Value("int8")),
                "fidelity_rating": List(Value("int8")),
            }
        ),
    )  # fmt: skip
    assert convert_dataset(rows)["score"][:] == [3.0, 5.0]
    assert convert_dataset(rows, "imagerewarddb_rank")["score"][:] == [0.0, 1.0]


def test_stars_of_several_raters_in_rows_and_in_lists():
    # image 0: 5, 4, 3 of three raters in two rows; image 1: 1 of one rater
    rows = Dataset.from_dict(
        {
            "prompt": ["a", "a", "a"],
            "image": [{"bytes": jpeg(i), "path": None} for i in (0, 1, 0)],
            "rating": [[5.0, 4.0], [1.0, None], [3.0]],
        },
        features=Features({"prompt": Value("string"), "image": Image(), "rating": List(Value("float64"))}),
    )
    scored = convert_dataset(rows, "ratings", score_type="bayesian", prior=2.0)
    assert scored["ratings"][:] == [3, 1]
    assert scored["mean_rating"][:] == [4.0, 1.0]
    # the mean of all four is 13 / 4
    assert scored["score"][:] == pytest.approx([(12 + 2 * 3.25) / 5, (1 + 2 * 3.25) / 3])


def test_ratings_in_lists_of_images_with_names():
    rows = Dataset.from_dict(
        {
            "prompt": ["a", "a"], "image": [[jpeg(0), jpeg(1)], [jpeg(1), jpeg(1)]], "name": [["x", "y"], ["y", "y"]],
            "rating": [[1.0, 2.0], [4.0, 6.0]],
        }
    )  # fmt: skip
    scored = convert_dataset(rows, Layout("ratings", annotations=("rating",), uids=("name",)))
    assert by_uid(scored, "score", "ratings") == {("a", "x"): (1.0, 1), ("a", "y"): (4.0, 3)}


def test_lists_of_ratings_must_be_equally_long():
    rows = Dataset.from_dict({"prompt": ["a"], "image": [["x", "y"]], "mine": [[1, 2]], "theirs": [[1]]})
    with pytest.raises(BadRowError, match="the lists of ratings have different lengths, 1, 2"):
        convert_dataset(rows, Layout("ratings", annotations=("mine", "theirs")))


def test_rich_human_feedback():
    rows = Dataset.from_dict(
        {
            "filename": ["train/0.png", "train/1.png"],
            "caption": ["a", "b"],
            "image": [jpeg(0), jpeg(1)],
            "aesthetics_score": [0.1, 0.2],
            "artifact_score": [0.3, 0.4],
            "misalignment_score": [0.5, 0.6],
            "overall_score": [0.25, 0.75],
        }
    )
    assert find_layout(rows.column_names)[0] == "richhf"
    scored = convert_dataset(rows)
    assert scored["score"][:] == [0.25, 0.75]
    assert scored["mean_misalignment_score"][:] == [0.5, 0.6]
    assert scored["image_uid"][:] == ["train/0.png", "train/1.png"]


# ---- Labels ----


@pytest.mark.parametrize("values", [[True, False, True, None], [1, 0, 1, None], [1, -1, 1, None]])
def test_boolean_labels(values):
    rows = Dataset.from_dict(
        {
            "prompt": ["a"] * 4,
            "image": [{"bytes": jpeg(i), "path": None} for i in (0, 1, 1, 2)],
            "label": values,
        }
    ).cast_column("image", Image())
    scored = convert_dataset(rows)
    assert scored["score"][:] == [1.0, 0.5]
    assert scored["comparisons"][:] == [1, 2]


def test_labels_in_words_as_diffusion_kto_has_them(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(2):
        (tmp_path / "train" / f"x{i}.jpg").write_bytes(jpeg(i))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["file_path", "caption", "label"], ["x0", "a", "exclusive_win"], ["x1", "a", "exclusive_lose"]]
        )
    config = ConvertConfig(
        str(tmp_path / "table.csv"), str(tmp_path / "out"), image_dir=str(tmp_path / "train"), image_suffix=".jpg",
        disable_tqdm=True,
    )  # fmt: skip
    scored = load_dataset(str(convert(config)), split="train", cache_dir=str(tmp_path / "cache"))
    assert by_uid(scored, "score") == {("a", "x0"): (1.0,), ("a", "x1"): (0.0,)}


def test_a_label_that_is_no_boolean_asks_which_is_good():
    rows = Dataset.from_dict({"prompt": ["a"], "image": ["0.png"], "label": ["fine"]})
    with pytest.raises(BadRowError, match=r"the label is 'fine', and neither 1 nor 0.*`positive_label`"):
        convert_dataset(rows)


def test_a_good_label_that_never_occurs_is_refused():
    rows = Dataset.from_dict({"prompt": ["a"] * 3, "image": [jpeg(i) for i in range(3)], "label": ["up", "down", "up"]})
    layout = Layout("labels", annotations=("label",), positive="Up")
    with pytest.raises(ValueError, match=r"No label is 'Up', .*; there are 'up', 'down'\. Set `positive_label`"):
        convert_dataset(rows, layout)
    many = Dataset.from_dict({"prompt": ["a"] * 9, "image": [jpeg(i) for i in range(9)], "label": list("123456789")})
    with pytest.raises(ValueError, match=r"there are '1', '2', '3', '4', '5' \.\.\.\. Set"):
        convert_dataset(many, layout)
    assert convert_dataset(many, replace(layout, positive="9"))["score"][:] == [0.0] * 8 + [1.0]


# ---- The command ----


def table(tmp_path, name="pairs.parquet"):
    path = tmp_path / name
    pick_a_pic(PAIRS).to_parquet(path)
    return str(path)


def config(tmp_path, output="out", **changes):
    settings = {"rows_per_shard": 3, "disable_tqdm": True, **changes}
    return ConvertConfig(table(tmp_path), str(tmp_path / output), **settings)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_becomes_a_folder_of_shards(tmp_path, capsys, streaming):
    output = convert(config(tmp_path, dataset_streaming=streaming))
    assert list(files(output)) == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    expected = convert_dataset(pick_a_pic(PAIRS))
    assert scored.features == expected.features
    decode = Image(decode=False)
    assert scored.cast_column("image", decode).to_list() == expected.cast_column("image", decode).to_list()
    found = json.loads((output / "conversion.json").read_text())["found"]
    assert found == {
        "rows": 8, "rows_without_label": 1, "rows_of_one_image": 1, "rows_skipped": 0, "images": 7,
        "images_without_score": 0, "images_skipped": 0, "prompts": 2, "images_that_won": 3, "images_that_never_won": 4,
    }  # fmt: skip
    card = (output / "README.md").read_text()
    assert "7 images of `pairs.parquet` (train)" in card
    assert "`score` is how often the image was preferred; a tie is no win." in card
    assert "num_examples: 7" in card
    printed = capsys.readouterr().out
    assert "8 rows" in printed


def test_streams_are_read_by_column(tmp_path, monkeypatch):
    # What makes 322 GB bearable: the first pass does not read the images.
    import tgo_trl.storage.sources as module

    read = []
    real = module.load_dataset_builder
    monkeypatch.setattr(
        module,
        "load_dataset_builder",
        lambda *args, **kwargs: (read.append(kwargs.get("columns")), real(*args, **kwargs))[1],
    )
    convert(config(tmp_path, dataset_streaming=True))
    assert read == [
        None,  # what columns there are
        ["caption", "label_0", "label_1", "image_0_uid", "image_1_uid", "has_label"],
        ["jpg_0", "jpg_1"],
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, streaming):
    whole = files(convert(config(tmp_path, "whole", dataset_streaming=streaming)))
    output = convert(config(tmp_path, dataset_streaming=streaming))
    kept = output / "data" / "train-00001-of-00003.parquet"
    before = kept.stat().st_mtime_ns
    for index in (0, 2):
        (output / "data" / f"train-0000{index}-of-00003.parquet").unlink()
    (output / "README.md").unlink()
    assert files(convert(config(tmp_path, dataset_streaming=streaming))) == whole
    assert kept.stat().st_mtime_ns == before
    assert (output / "README.md").is_file()


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_time_loses_nothing(tmp_path):
    arguments = [table(tmp_path), str(tmp_path / "killed")]
    code = """
import os, sys
from tgo_trl.commands.convert import ConvertConfig
from tgo_trl.commands.convert.run import convert
from tgo_trl.storage.parquet import ParquetFolder
real = ParquetFolder.write
def write(self, shard, rows, features, source):
    if shard == 1:
        os.kill(os.getpid(), 9)
    real(self, shard, rows, features, source)
ParquetFolder.write = write
convert(ConvertConfig(*sys.argv[1:], rows_per_shard=3, disable_tqdm=True))
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False)
    assert done.returncode == -9
    assert list(files(tmp_path / "killed")) == ["train-00000-of-00003.parquet"]
    assert files(convert(config(tmp_path, "killed"))) == files(convert(config(tmp_path, "whole")))


def test_other_settings_or_rows_are_not_mixed(tmp_path):
    convert(config(tmp_path))
    with pytest.raises(ValueError, match=r"other settings: .*`score_type` was 'wins', is 'win_rate'"):
        convert(config(tmp_path, score_type="win_rate"))
    pick_a_pic([*PAIRS, ("an owl", "u4", "u7", 0.0)]).to_parquet(tmp_path / "more.parquet")
    changed = ConvertConfig(str(tmp_path / "more.parquet"), str(tmp_path / "out"), rows_per_shard=3)
    with pytest.raises(ValueError, match=r"other settings: `annotations` are others"):
        convert(changed)


def test_other_images_under_the_same_votes_are_not_mixed(tmp_path):
    """Images that have no names are told apart by their content, and that of all rows is compared."""

    def rated(last):
        images = [picture(0), picture(1), picture(last)]
        return Dataset.from_dict({"prompt": ["a", "b", "c"], "image": images, "rating": [1, 2, 3]})

    settings = {"rows_per_shard": 1, "disable_tqdm": True}
    rated(2).to_parquet(tmp_path / "rows.parquet")
    output = convert(ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), **settings))
    (output / "data" / "train-00000-of-00003.parquet").unlink()  # to be made again
    rated(3).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="other settings: `annotations` are others"):
        convert(ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), **settings))


@pytest.mark.parametrize("streaming", [False, True])
def test_other_files_under_the_same_paths_are_not_mixed(tmp_path, streaming):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = [{"prompt": "a", "image": f"{i}.jpg", "rating": i} for i in (0, 1, 2, 3)]  # the last is not there
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"disable_tqdm": True, "layout": "ratings", "rows_per_shard": 2, "on_bad_row": "skip"}
    settings["dataset_streaming"] = streaming
    source, output = str(tmp_path / "rows.jsonl"), tmp_path / "out"
    convert(ConvertConfig(source, str(output), **settings))
    before = files(output)
    assert len(before) == 2
    (output / "data" / "train-00000-of-00002.parquet").unlink()  # to be made again
    convert(ConvertConfig(source, str(output), **settings))
    assert files(output) == before
    (tmp_path / "2.jpg").write_bytes(jpeg(7))
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet in .* holds rows of other prompts or images"):
        convert(ConvertConfig(source, str(output), **settings))


def test_a_folder_that_was_written_anew_is_read_anew(tmp_path):
    # The same numbers on both cards, and only the scores are another: 1 and 0, then 0 and 1.
    scores = []
    for label in (1.0, 0.0):
        pick_a_pic([("a fox", "u1", "u2", label)]).to_parquet(tmp_path / "pairs.parquet")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        output = convert(ConvertConfig(str(tmp_path / "pairs.parquet"), str(tmp_path / "out"), disable_tqdm=True))
        assert "configs:" not in (output / "README.md").read_text()
        scores.append(load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))["score"][:])
    assert scores == [[1.0, 0.0], [0.0, 1.0]]


def test_images_of_another_folder_are_not_mixed(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "image": "0", "rating": 1}))
    settings = {"layout": "ratings", "image_suffix": ".jpg", "disable_tqdm": True}
    source, output = str(tmp_path / "rows.jsonl"), str(tmp_path / "out")
    written = convert(ConvertConfig(source, output, image_dir=str(tmp_path / "one"), **settings))
    assert str(tmp_path) not in (written / "conversion.json").read_text()
    monkeypatch.chdir(tmp_path)
    convert(ConvertConfig(source, output, image_dir="one", **settings))  # the same folder
    for other in ({"image_dir": "two"}, {"image_dir": "one", "image_suffix": ".png"}):
        with pytest.raises(ValueError, match=r"other settings: `images` (was|are others)"):
            convert(ConvertConfig(source, output, **{**settings, **other}))


def test_images_in_the_data_set_are_the_same_everywhere(tmp_path, monkeypatch):
    output = convert(config(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somewhere").mkdir()
    assert convert(config(tmp_path, image_dir="somewhere")) == output


def test_a_missing_file_is_named_or_skipped(tmp_path):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    rows = [{"prompt": "a", "image": f"{i}.jpg", "rating": i} for i in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"disable_tqdm": True, "layout": "ratings"}
    source = str(tmp_path / "rows.jsonl")
    with pytest.raises(BadRowError, match=r"Row 1, column 'image': the image file cannot be read"):
        convert(ConvertConfig(source, str(tmp_path / "strict"), **settings))
    output = convert(ConvertConfig(source, str(tmp_path / "lenient"), on_bad_row="skip", **settings))
    found = json.loads((output / "conversion.json").read_text())["found"]
    assert (found["images"], found["images_skipped"]) == (1, 1)


def test_a_folder_and_other_columns(tmp_path):
    rows = Dataset.from_dict(
        {
            "text": ["a", "a"], "left": [jpeg(0), jpeg(1)], "right": [jpeg(1), jpeg(2)],
            "left_wins": [1, 0], "right_wins": [0, 1],
        }
    )  # fmt: skip
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "train.parquet")
    settings = {
        "layout": "pairs", "prompt_column": "text", "image_columns": ["left", "right"],
        "annotation_columns": ["left_wins", "right_wins"], "disable_tqdm": True,
    }  # fmt: skip
    for streaming in (False, True):
        output = tmp_path / f"out-{streaming}"
        convert(ConvertConfig(str(tmp_path / "rows"), str(output), dataset_streaming=streaming, **settings))
        scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
        assert scored["score"][:] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", ["json", "saved"])
def test_streams_of_other_files(tmp_path, kind):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = Dataset.from_dict({"prompt": ["a", "a"], "image": ["0.jpg", "1.jpg"], "label": [True, False]})
    source = tmp_path / "rows.jsonl" if kind == "json" else tmp_path / "rows"
    if kind == "json":
        rows.to_json(source)
    else:
        rows.save_to_disk(source)
    settings = {"dataset_streaming": True, "image_dir": str(tmp_path), "disable_tqdm": True, "layout": "labels"}
    output = convert(ConvertConfig(str(source), str(tmp_path / "out"), **settings))
    scored = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert scored["score"][:] == [1.0, 0.0]


def test_a_stream_of_pictures_in_memory():
    def generate():
        for i in range(3):
            yield {"prompt": "a", "image": picture(i), "rating": float(i)}

    scored = convert_dataset(IterableDataset.from_generator(generate))
    assert scored["score"][:] == [0.0, 1.0, 2.0]
    assert scored[1]["image"].tobytes() == picture(1).tobytes()


def test_the_command_uploads_what_it_wrote(tmp_path, hub):
    arguments = ["--dataset_name", table(tmp_path), "--output_dir", str(tmp_path / "out"), "--disable_tqdm"]
    assert main(["convert", *arguments, "--push_to_hub", "--hub_dataset_id", "me/rows", "--license", "mit"]) == 0
    [commit] = hub.dataset("me/rows").commits
    assert "license: mit" in commit.files["README.md"].decode()
    for name in ("conversion.json", "data/train-00000-of-00001.parquet"):
        assert commit.files[name] == (tmp_path / "out" / name).read_bytes()


# ---- What is refused ----


def test_columns_that_are_unknown_or_missing_are_named(tmp_path):
    rows = Dataset.from_dict({"prompt": ["a"], "picture": ["0.png"], "stars": [3]})
    with pytest.raises(ValueError, match=r"columns 'prompt', 'picture', 'stars' has no layout.*pairs, ranking"):
        convert_dataset(rows)
    with pytest.raises(ValueError, match=r"no column 'image', 'rating'; it has 'prompt', 'picture', 'stars'"):
        convert_dataset(rows, "ratings")


def test_what_a_row_is_may_be_said_where_its_columns_tell_it_too():
    shown = {"prompt": ["a"], "image1": [picture(0)], "image2": [picture(1)]}
    for said in ({"choice": ["image2"]}, {"votes_image1": [3], "votes_image2": [5]}, {"winner": ["image2"]}):
        rows = Dataset.from_dict({**shown, **said})
        told, found = convert_dataset(rows, "pairs"), convert_dataset(rows)
        assert told["score"][:] == found["score"][:]
        assert told["win_rate"][1] > told["win_rate"][0]
    rows = Dataset.from_dict({**shown, "verdict": ["image2"]})
    with pytest.raises(ValueError, match=r"no column 'label_0', 'label_1'; it has 'prompt', 'image1', 'image2'"):
        convert_dataset(rows, "pairs")
    layout = ConvertConfig("rows", "out", layout="pairs", annotation_columns=["verdict"]).adapt(
        layout_of_kind("pairs", rows.column_names)
    )
    assert (layout.images, layout.annotations) == (("image1", "image2"), ("verdict",))
    assert convert_dataset(rows, layout)["score"][:] == [0.0, 1.0]
    assert layout_of_kind("labels", ["caption", "other"]) == LAYOUTS["labels"]


def converted(tmp_path, columns, **settings):
    """Scores of one prompt's images in their order, of columns in a file beside pictures that its paths lead to."""
    for seed in range(4):
        picture(seed).save(tmp_path / f"{seed}.png")
    Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    given = ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), disable_tqdm=True, **settings)
    scored = load_dataset(str(convert(given)), split="train", cache_dir=str(tmp_path / "cache"))
    return dict(zip(scored["image_uid"], scored["score"], strict=True))


PATHS = [f"{seed}.png" for seed in range(4)]
RICH = {f"{name}_score": [9, 8, 7, 6] for name in ("overall", "aesthetics", "artifact", "misalignment")}
HPD = {"prompt": ["a"] * 2, "file_path": PATHS[:2], "human_preference": [0, 1]}
BOTH = {"caption": ["a"], "label_0": [1], "label_1": [0], "image_0_uid": ["u"], "image_1_uid": ["v"]}
TWO = {"image_0": [PATHS[0]], "image_1": [PATHS[1]]}


@pytest.mark.parametrize(
    ("layout", "columns", "settings", "scores", "read"),
    [
        (  # RichHF-18K's columns lie beside those that are meant
            "ratings", {"caption": ["a"] * 4, "image": PATHS, "rating": [1, 2, 3, 4], **RICH},
            {"prompt_column": "caption"}, [1, 2, 3, 4], "caption, image, rating.",
        ),
        ("ratings", {"caption": ["a"] * 4, "image": PATHS, "rating": [1, 2, 3, 4], **RICH}, {}, [1, 2, 3, 4],
         "caption, image, rating."),
        (  # of a column that is named, the best rank is 1, as of the kind; of HPDv2's own, it is not
            "ranking", {**HPD, "my_rank": [1, 2]}, {"annotation_columns": ["my_rank"]}, [1, 0],
            "prompt, file_path, my_rank, 1 the best.",
        ),
        ("ranking", HPD, {}, [0, 1], "prompt, file_path, human_preference, the highest the best."),
        ("ranking", HPD, {"prompt_column": "prompt", "annotation_columns": ["human_preference"]}, [0, 1],
         "human_preference, the highest the best."),
        (  # Diffusion-KTO's, whose good label is another
            "labels", {"caption": ["a"] * 2, "image": PATHS[:2], "file_path": ["x", "y"], "label": ["good", "bad"]},
            {"prompt_column": "caption"}, [1, 0], "caption, image, label.",
        ),
        # Pick-a-Pic's, where names are taken for paths
        ("pairs", {**BOTH, **TWO}, {"prompt_column": "caption"}, [1, 0], "caption, image_0, image_1, label_0, label_1"),
        ("pairs", {**BOTH, **TWO, "verdict": ["B"]}, {"annotation_columns": ["verdict"]}, [0, 1],
         "caption, image_0, image_1, verdict"),
        (  # names that are known tell the scale, under another prompt too
            "pairs",
            {"text": ["a"], "image1": PATHS[:1], "image2": PATHS[1:2], "votes_image1": [3], "votes_image2": [5]},
            {"prompt_column": "text"}, [3, 5], "text, image1, image2, votes_image1, votes_image2; ",
        ),
    ],
)  # fmt: skip
def test_columns_that_are_named_are_read_whatever_else_there_is(
    tmp_path, capsys, layout, columns, settings, scores, read
):
    told = converted(tmp_path, columns, layout=layout, **settings)
    assert told == dict(zip(PATHS[: len(scores)], scores, strict=True))
    printed = capsys.readouterr().out
    assert f"{len(scores)} images, 1 prompt, " in printed
    line = next(line for line in printed.splitlines() if line.startswith("Layout: "))
    assert line.startswith(f"Layout: {layout}, from ")
    assert read in line


def test_what_holds_for_a_published_set_alone_is_not_taken_under_other_names():
    # under the prompts' own name the highest is the best in HPDv2; nothing says so of another set's column
    columns = ["text", "file_path", "human_preference"]
    assert layout_of_kind("ranking", columns, {"prompt": "text"}).annotations == ("rank",)
    assert layout_of_kind("ranking", ["prompt", *columns]) == LAYOUTS["hpdv2_train"]
    of_votes = ConvertConfig("rows", "out", layout="pairs", annotation_columns=["choice_dist"])
    assert of_votes.adapt(LAYOUTS["hpdv3"]) == LAYOUTS["hpdv3"]  # whatever the order of its votes


def test_scores_need_no_conversion():
    rows = Dataset.from_dict({"prompt": ["a"], "image": [picture(0)], "score": [0.5]})
    with pytest.raises(ValueError, match=r"It has scores already: `tgo-trl inspect` and `tgo-trl train` take it as it"):
        convert_dataset(rows)


def test_rows_that_say_nothing_are_an_error():
    with pytest.raises(ValueError, match=r"None of the 1 rows says anything about an image: 1 have no label"):
        convert_dataset(pick_a_pic([PAIRS[4]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "stars"}, "`layout` is 'stars'; it must be one of 'auto', 'pickapic_v2'"),
        ({"ties": "coin"}, "`ties` is 'coin'; it must be one of 'half', 'drop', 'zero'"),
        ({"prior": 0.0}, "`prior` is 0.0; it must be greater than 0"),
        ({"prior": math.inf}, "`prior` is inf"),
        ({"on_bad_row": "mend"}, "`on_bad_row` is 'mend'"),
        ({"layout": "pairs", "score_type": "mean"}, "`score_type` is 'mean'; it must be one of 'wins', 'win_rate'"),
        ({"image_columns": ["a", "b"]}, "`image_columns` is set, but not what its rows are"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvertConfig("rows", "out", **settings)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("pairs", {"image_columns": ["a"]}, "`image_columns` are a, but pairs have 2"),
        ("ranking", {"annotation_columns": ["a", "b"]}, "`annotation_columns` are a, b, but ranking have 1"),
        ("pickapic_v2", {"uid_columns": ["a"]}, "one for each column of images, jpg_0, jpg_1"),
    ],
)
def test_columns_that_do_not_fit_the_kind(layout, settings, message):
    with pytest.raises(ValueError, match=message):
        ConvertConfig("rows", "out", layout=layout, **settings).adapt(LAYOUTS[layout])


def test_a_layouts_details_can_be_changed():
    config = ConvertConfig("rows", "out", layout="ranking", lower_is_better=False, annotation_columns=["votes"])
    assert config.adapt(LAYOUTS["ranking"]) == Layout("ranking", annotations=("votes",), lower_is_better=False)
    config = ConvertConfig("rows", "out", layout="labels", positive_label="up", uid_columns=["name"])
    assert config.adapt(LAYOUTS["labels"]) == Layout("labels", annotations=("label",), uids=("name",), positive="up")
    # other columns of images have no names, unless they are said
    config = ConvertConfig("rows", "out", layout="pickapic_v2", image_columns=["a", "b"])
    assert config.adapt(LAYOUTS["pickapic_v2"]).uids == ()


def test_a_single_value_is_a_list_of_one():
    config = ConvertConfig("rows", "out", layout="labels", image_columns="a", annotation_columns="b", uid_columns="c")
    assert (config.image_columns, config.annotation_columns, config.uid_columns) == (["a"], ["b"], ["c"])
    assert ConvertConfig("rows", "out", layout="labels", positive_label=1).positive_label == "1"


def test_lists_must_be_as_long_as_their_images():
    rows = Dataset.from_dict({"prompt": ["a"], "image_path": [["x", "y"]], "rank": [[1, 2, 3]]})
    with pytest.raises(BadRowError, match="there are 2 images and 3 annotations of them"):
        convert_dataset(rows)


def test_an_image_without_its_name_is_refused():
    rows = pick_a_pic(PAIRS[:1]).to_dict()
    rows["image_1_uid"] = [None]
    with pytest.raises(BadRowError, match="an image has no name"):
        convert_dataset(Dataset.from_dict(rows, features=pick_a_pic(PAIRS[:1]).features))


def test_a_score_of_another_kind_is_refused_once_the_kind_is_known():
    with pytest.raises(ValueError, match="`score_type` is 'mean', but pairs can become 'wins', 'win_rate'"):
        convert_dataset(pick_a_pic(PAIRS), score_type="mean")


# ---- Videos, and what is neither ----


def video_pairs(kind, first=None):
    """Two pairs of clips, in columns of a kind."""
    clips = [first or film(2), film(3), film(4), film(5)]
    feature = {"video": Video(decode=False), "binary": Value("binary"), "image": Image(decode=False)}[kind]
    cells = clips if kind == "binary" else [{"bytes": clip, "path": None} for clip in clips]
    features = Features({"prompt": Value("string"), "one": feature, "two": feature})
    return Dataset.from_dict({"prompt": ["a", "b"], "one": cells[::2], "two": cells[1::2]}, features=features)


VIDEO_PAIRS = Layout("pairs", images=("one", "two"))


@pytest.mark.parametrize("kind", ["video", "binary"])
@pytest.mark.parametrize("streaming", [False, True])
def test_videos_become_a_column_of_videos(tmp_path, kind, streaming):
    rows = video_pairs(kind)
    scored = convert_dataset(rows.to_iterable_dataset() if streaming else rows, VIDEO_PAIRS)
    assert isinstance(scored.features["video"], Video)
    assert "image" not in scored.column_names
    rows.to_parquet(tmp_path / "rows.parquet")
    folder = convert(ConvertConfig(str(tmp_path / "rows.parquet"), str(tmp_path / "out"), layout="pairs",
                                   image_columns=["one", "two"], annotation_columns=[], disable_tqdm=True,
                                   dataset_streaming=streaming))  # fmt: skip
    written = load_dataset(str(folder), split="train")
    assert isinstance(written.features["video"], Video)
    cells = written.cast_column("video", Video(decode=False))["video"][:]
    assert [cell["bytes"] for cell in cells] == [film(count) for count in (2, 3, 4, 5)]
    assert len(load_video(cells[0], 2, 24)) == 2
    assert written["score"][:] == scored["score"][:] == [1.0, 0.0, 1.0, 0.0]
    card = (folder / "README.md").read_text()
    assert "text-to-video" in card
    assert "4 videos of" in card


@pytest.mark.parametrize("kind", ["video", "binary"])
@pytest.mark.parametrize("wrong", [b"<html>404</html>", b"plain words", b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_what_is_no_video_is_a_bad_row(kind, wrong):
    rows = video_pairs(kind, wrong)
    if kind == "binary" and wrong.startswith(b"\x89"):  # the first file tells what the column holds
        rows = rows.select([1, 0])
    with pytest.raises(BadRowError, match=r"^Row [01], .*the video cannot be read: this is (an HTML|text|an image)"):
        convert_dataset(rows, VIDEO_PAIRS)
    assert len(convert_dataset(rows, VIDEO_PAIRS, on_bad_row="skip")) == 2


@pytest.mark.parametrize("wrong", [film(2), b"<html>404 Not Found</html>", b"", b"plain words"])
@pytest.mark.parametrize("feature", [Value("binary"), Image(decode=False)])
def test_what_is_no_image_is_a_bad_row(wrong, feature):
    files = [jpeg(0), wrong]
    cells = files if isinstance(feature, Value) else [{"bytes": file, "path": None} for file in files]
    features = Features({"prompt": Value("string"), "image": feature, "rating": Value("int64")})
    rows = Dataset.from_dict({"prompt": ["a", "b"], "image": cells, "rating": [1, 5]}, features=features)
    with pytest.raises(BadRowError, match=r"^Row 1, .*the image cannot be read \(UnidentifiedImageError: this is"):
        convert_dataset(rows, "ratings")
    scored = convert_dataset(rows, "ratings", on_bad_row="skip")
    assert scored["score"][:] == [1.0]
    assert scored[0]["image"].size == picture(0).size
    if not (isinstance(feature, Value) and wrong == film(2)):  # a video alone is a data set of videos
        with pytest.raises(ValueError, match="None of the 1 rows says anything about an image"):
            convert_dataset(rows.select([1]), "ratings", on_bad_row="skip")


def test_a_data_set_of_which_no_image_can_be_read_is_not_written(tmp_path):
    rows = Dataset.from_dict({"prompt": ["a"], "image": ["../secret.png"], "rating": [1]})
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "rows.parquet")
    settings = ConvertConfig(str(tmp_path / "data" / "rows.parquet"), str(tmp_path / "out"), layout="ratings",
                             on_bad_row="skip", disable_tqdm=True)  # fmt: skip
    with pytest.raises(ValueError, match=r"No image of the data set can be read.*Row 0, .*leads outside"):
        convert(settings)
    assert not (tmp_path / "out" / "README.md").exists()


# ---- Edits ----


def test_edits_are_compared_with_others_of_the_same_source():
    # Of one source or none, all four are one ranking: 1, 1, 2, 2. Of two, there are two, with a winner each.
    one = convert_dataset(edits([picture(9)] * 4), "ranking")
    assert one["win_rate"][:] == pytest.approx([2.5 / 3, 0.5 / 3] * 2)
    sources = [picture(8), picture(8), picture(9), picture(9)]
    two = convert_dataset(edits(sources), "ranking")
    assert two["win_rate"][:] == [1, 0, 1, 0]
    for image, source in zip(two["source_image"], sources, strict=True):
        assert image.tobytes() == source.tobytes()
    without = convert_dataset(edits(sources).remove_columns("source_image"), "ranking")
    assert without["win_rate"][:] == one["win_rate"][:]
    same = convert_dataset(edits(sources, image=[picture(0), picture(1)] * 2), "ranking")
    assert len(same) == 4, "an image of two sources is one of each"


@pytest.mark.parametrize("is_list", [False, True])
def test_sources_of_pairs_go_with_their_images(tmp_path, is_list):
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    before = [["0.png"], ["1.png"]] if is_list else ["0.png", "1.png"]
    row = {"prompt": "brighten", "image_0": "2.png", "image_1": "3.png", "choice": "B"}
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({**row, "before": it}) for it in before))
    out = tmp_path / "out"
    arguments = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--output_dir", str(out), "--disable_tqdm", "true"]
    assert main(["convert", *arguments, "--source_column", "before"]) == 0
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["wins"] == [0, 1, 0, 1]
    for i, row in enumerate(rows):
        [source] = row["source_image"] if is_list else [row["source_image"]]
        assert source.tobytes() == picture(i // 2).tobytes()
    assert json.loads((out / "conversion.json").read_text())["found"]["prompts"] == 2
    with pytest.raises(ValueError, match=r"no column 'after'.*`source_column`"):
        convert(ConvertConfig(str(tmp_path / "pairs.jsonl"), str(tmp_path / "other"), source_column="after"))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(BadRowError, match=r"Row 1, column '.*before'"):
        convert(ConvertConfig(str(tmp_path / "pairs.jsonl"), str(tmp_path / "other"), source_column="before"))
