"""Scored data sets: the right score in the right row, files left as they were, the same bytes however it is run."""

import gc
import io
import json
import logging
import weakref
from dataclasses import asdict
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from tgo_trl.commands.score import rows as unscored
from tgo_trl.commands.score.config import ScoreConfig
from tgo_trl.commands.score.run import describe_reward, score, score_dataset
from tgo_trl.media import readers
from tgo_trl.rewards import load_reward

from .test_parquet import files, run_and_kill, run_two_processes
from .tiny import picture, scored_videos

REWARDS = '''
"""Rewards that are worked out by hand."""
import time

import numpy as np


def brightness(prompts, images):
    return [np.asarray(image, dtype=float).mean() for image in images]


def length(prompts, images):
    return [len(prompt) for prompt in prompts]


def num_frames(prompts, videos):
    return [len(frames) for frames in videos]


def seconds(prompts, videos, fps):
    return [len(frames) / fps for frames in videos]


def slow(prompts, images):
    time.sleep(0.05 * len(images))
    return brightness(prompts, images)


def broken(prompts, images):
    return [float("nan")] * len(images)


class Scaled:
    version, license = "2", "mit"

    def __init__(self, factor=1):
        self.factor = factor

    def __call__(self, prompts, images):
        return [self.factor * score for score in brightness(prompts, images)]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 11 JPEG files and prompts in `rows`, rewards in `rewards.py`."""
    folder = tmp_path_factory.mktemp("scoring")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "rows").mkdir()
    rows(11).to_parquet(folder / "rows" / "train.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def jpeg(seed):
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def rows(count, bad=()):
    images = [{"bytes": b"no image" if i in bad else jpeg(i), "path": None} for i in range(count)]
    features = Features({"id": Value("int64"), "prompt": Value("string"), "image": ImageFeature()})
    prompts = ["word " * (i % 4 + 1) for i in range(count)]
    return Dataset.from_dict({"id": list(range(count)), "prompt": prompts, "image": images}, features=features)


def brightness(seed):
    return float(np.asarray(Image.open(io.BytesIO(jpeg(seed))), dtype=float).mean())


def config(folder, out, *names, **settings):
    defaults = {
        "dataset_name": str(folder / "rows"),
        "output_dir": str(out),
        "rewards": [f"{folder / 'rewards.py'}:{name}" for name in names or ("brightness",)],
        "batch_size": 2,
        "rows_per_shard": 3,
        "disable_tqdm": True,
    }
    return ScoreConfig(**{**defaults, **settings})


def load(path):
    return load_dataset(str(path), split="train")


def stored_images(dataset):
    return [image["bytes"] for image in dataset.cast_column("image", ImageFeature(decode=False))["image"]]


# ---- Scores ----


def test_every_row_gets_its_score_and_keeps_the_rest(folder, tmp_path):
    out = score(config(folder, tmp_path / "out"))
    scored = load(out)
    assert scored.column_names == ["id", "prompt", "image", "score"]
    assert scored["id"] == list(range(11))
    assert scored["score"] == [brightness(i) for i in range(11)]
    assert scored["prompt"] == rows(11)["prompt"]
    assert stored_images(scored) == [jpeg(i) for i in range(11)]  # not compressed a second time
    assert scored.features["image"] == ImageFeature()
    record = json.loads((out / "scoring.json").read_text())
    assert record["settings"]["num_rows"] == 11
    assert record["num_left_out"] == 0
    [reward] = record["settings"]["rewards"]
    assert reward["name"] == "brightness"
    assert reward["version"].startswith("rewards.py:brightness@sha256:")
    assert str(tmp_path.parent) not in (out / "scoring.json").read_text() + (out / "README.md").read_text()


def test_several_rewards_and_their_weighted_sum(folder, tmp_path):
    settings = {"ensemble_weights": [1.0, -0.5]}
    scored = load(score(config(folder, tmp_path / "out", "brightness", "length", **settings)))
    bright, length = np.array([brightness(i) for i in range(11)]), np.array([5.0 * (i % 4 + 1) for i in range(11)])
    assert scored["length"] == length.tolist()
    expected = (bright - bright.mean()) / bright.std() - 0.5 * (length - length.mean()) / length.std()
    assert scored["score"] == pytest.approx(expected.tolist(), abs=1e-12)
    record = json.loads((tmp_path / "out" / "scoring.json").read_text())
    assert record["ensemble"].startswith(
        f"1 * (brightness - {bright.mean():.6g}) / {bright.std():.6g} + -0.5 * (length"
    )

    settings |= {"ensemble_normalization": "none", "ensemble_column": "sum", "score_columns": ["b", "l"]}
    scored = load(score(config(folder, tmp_path / "raw", "brightness", "length", **settings)))
    assert scored.column_names[-3:] == ["b", "l", "sum"]
    assert scored["sum"] == pytest.approx((bright - 0.5 * length).tolist(), abs=1e-12)


def test_a_part_of_a_split_is_scored_under_its_name(folder, tmp_path):
    (tmp_path / "rows").mkdir()
    rows(5).to_parquet(tmp_path / "rows" / "test.parquet")
    out = score(config(folder, tmp_path / "out", dataset_name=str(tmp_path / "rows"), dataset_split="test[1:3]"))
    assert load_dataset(str(out), split="test")["id"] == [1, 2]


def test_a_reward_has_its_settings(folder, tmp_path):
    spec = f"{folder / 'rewards.py'}:Scaled"
    out = score(config(folder, tmp_path / "out", "Scaled", reward_kwargs=json.dumps({spec: {"factor": 3}})))
    assert load(out)["score"] == pytest.approx([3 * brightness(i) for i in range(11)])
    [reward] = json.loads((out / "scoring.json").read_text())["settings"]["rewards"]
    described = {"column": "score", "name": "Scaled", "version": "2", "license": "mit"}
    assert {name: reward[name] for name in described} == described
    assert list(reward["settings"]) == ["digest"]
    with pytest.raises(ValueError, match=r"made with other settings: `rewards\[0\].settings.digest` are others"):
        score(config(folder, out, "Scaled", reward_kwargs={spec: {"factor": 4}}))
    assert score(config(folder, out, "Scaled", reward_kwargs={spec: {"factor": 3, "device": "cpu"}}),
                 rewards={spec: load_reward(spec, factor=3)}) == out  # fmt: skip


def test_settings_are_recorded_without_keys_and_paths(folder, tmp_path):
    secret = {"api_key": "sk-12345", "paths": [{"weights": str(tmp_path)}]}
    mine, known = f"{folder / 'rewards.py'}:brightness", "pickscore"
    kwargs = {mine: secret, known: {"model_id": str(tmp_path), "batch_size": 3, "device": "cpu", "x": [[str(folder)]]}}
    rewards = {mine: load_reward(mine), known: lambda prompts, images: [0.0] * len(prompts)}
    settings = {"rewards": [mine, known], "reward_kwargs": kwargs}
    out = score(config(folder, tmp_path / "out", **settings), rewards=rewards)
    written = (out / "scoring.json").read_text() + (out / "README.md").read_text()
    assert "sk-12345" not in written
    assert str(tmp_path) not in written
    recorded = json.loads((out / "scoring.json").read_text())["settings"]["rewards"][1]["settings"]
    assert recorded == {"model_id": tmp_path.name, "batch_size": 3, "x": [[folder.name]]}


def test_a_stream_gives_the_same_files(folder, tmp_path):
    weights = {"ensemble_weights": [1.0, 1.0]}
    score(config(folder, tmp_path / "map", "brightness", "length", **weights))
    settings = config(folder, tmp_path / "stream", "brightness", "length", dataset_streaming=True, **weights)
    score(settings)
    assert files(tmp_path / "map" / "data") == files(tmp_path / "stream" / "data")
    before = files(tmp_path / "stream")
    score(settings)  # finds all of it, under the final names
    assert files(tmp_path / "stream") == before


def test_a_stream_of_unknown_columns(folder, tmp_path):
    def images():
        for i in range(5):
            yield {"prompt": f"prompt {i}", "image": picture(i)}

    stream = IterableDataset.from_generator(images)
    assert stream.features is None
    scored = load(score(config(folder, tmp_path / "out", dataset_name="a stream"), stream))
    assert scored["score"] == [float(np.asarray(picture(i), dtype=float).mean()) for i in range(5)]
    assert [image.tobytes() for image in scored["image"]] == [picture(i).tobytes() for i in range(5)]


def test_what_a_transform_returns_is_scored(folder, tmp_path):
    table = Dataset.from_dict({"text": ["a", "b"]})
    table.set_transform(lambda batch: {"prompt": batch["text"], "image": [picture(ord(t)) for t in batch["text"]]})
    scored = load(score(config(folder, tmp_path / "out", dataset_name="mine"), table))
    assert scored["score"] == [float(np.asarray(picture(ord(t)), dtype=float).mean()) for t in "ab"]


def test_videos_are_lists_of_frames(folder, tmp_path):
    videos = scored_videos(5, num_frames=4).remove_columns("score")
    settings = {"dataset_name": "videos", "rows_per_shard": None}
    scored = load(score(config(folder, tmp_path / "out", "num_frames", **settings), videos))
    assert scored["score"] == [4.0] * 5
    assert scored.features["video"] == List(ImageFeature())
    shorter = score(config(folder, tmp_path / "short", "num_frames", num_frames=3, **settings), videos)
    assert load(shorter)["score"] == [3.0] * 5
    features = Features({"prompt": Value("string"), "video": List(ImageFeature())})
    missing = Dataset.from_dict({"prompt": ["a"], "video": [None]}, features=features)
    with pytest.raises(ValueError, match=r"Row 0, column 'video': the video is missing \(None\)"):
        score(config(folder, tmp_path / "none", "num_frames", dataset_name="none"), missing)
    files = Dataset.from_dict({"prompt": ["a"], "video": ["clip.mp4"]})
    with pytest.raises(ValueError, match="the video is a file, of which `num_frames` and `fps` say what is scored"):
        score(config(folder, tmp_path / "files", "num_frames", dataset_name="files"), files)


def test_scores_in_memory(folder):
    reward = load_reward(f"{folder / 'rewards.py'}:brightness")
    scored = score_dataset(rows(11), reward, batch_size=4)
    assert scored["score"] == [brightness(i) for i in range(11)]
    several = {"bright": reward, "words": lambda prompts, images: [len(prompt.split()) for prompt in prompts]}
    scored = score_dataset(rows(6, bad=(2, 3)), several, on_bad_row="skip")
    assert scored["id"] == [0, 1, 4, 5]
    assert scored["bright"] == [brightness(i) for i in (0, 1, 4, 5)]
    assert scored["words"] == [1.0, 2.0, 1.0, 2.0]
    with pytest.raises(TypeError, match="`dataset` is a `IterableDataset`, which has no rows in memory"):
        score_dataset(rows(2).to_iterable_dataset(), reward)
    with pytest.raises(ValueError, match="has a column 'id' already"):
        score_dataset(rows(2), {"id": reward})


# ---- Bad rows ----


def test_a_bad_row_stops_the_run_and_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"Row 7, column 'image': the image cannot be read .*on_bad_row='skip'"):
        score(config(folder, tmp_path / "out", dataset_name="bad"), rows(11, bad=(7,)))
    without = rows(3).map(lambda row: {"prompt": "" if row["id"] == 1 else row["prompt"]})
    with pytest.raises(ValueError, match="Row 1, column 'prompt': the prompt is empty"):
        score(config(folder, tmp_path / "other", dataset_name="bad"), without)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_left_out_and_told(folder, tmp_path, caplog, streaming):
    bad = (0, 3, 4, 5, 10)  # 3 to 5 are a whole shard
    dataset = rows(11, bad).to_iterable_dataset() if streaming else rows(11, bad)
    with caplog.at_level(logging.WARNING, logger="tgo_trl.data.rows"):
        out = score(config(folder, tmp_path / "out", dataset_name="bad", on_bad_row="skip"), dataset)
    scored = load(out)
    good = [i for i in range(11) if i not in bad]
    assert scored["id"] == good
    assert scored["score"] == [brightness(i) for i in good]
    assert "Skipped 5 of 11 rows" in caplog.text
    assert "Row 3, column 'image'" in caplog.text
    assert json.loads((out / "scoring.json").read_text())["num_left_out"] == (None if streaming else 5)


def test_a_data_set_of_bad_rows_is_none(folder, tmp_path):
    with pytest.raises(ValueError, match="No row of 'bad' could be scored"):
        score(config(folder, tmp_path / "out", dataset_name="bad", on_bad_row="skip"), rows(2, bad=(0, 1)))


def test_a_reward_that_fails_fails_before_anything_is_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"'broken', row 0 .*the score is nan, not a finite number"):
        score(config(folder, tmp_path / "out", "broken"))
    assert not (tmp_path / "out").exists()


def test_a_reward_that_fails_later_names_its_rows(folder, tmp_path):
    def picky(prompts, images):
        return [0.0 if prompt.count("word") < 4 else "bad" for prompt in prompts]

    with pytest.raises(ValueError, match=r"Rows 2 to 2: The reward 'picky', row 0|Rows 3 to 4: The reward 'picky'"):
        score(config(folder, tmp_path / "out", rewards=["picky"]), rewards={"picky": picky})


# ---- Resuming ----


@pytest.mark.parametrize("streaming", [False, True])
def test_an_interrupted_run_goes_on_byte_for_byte(folder, tmp_path, streaming):
    settings = {"dataset_streaming": streaming, "ensemble_weights": [1.0, 2.0]}
    names = [f"{folder / 'rewards.py'}:{name}" for name in ("brightness", "length")]
    bright, length = map(load_reward, names)
    calls = []

    def stops(prompts, images):
        calls.append(len(prompts))
        if len(calls) == 6:  # in the third shard; the first call tries the reward
            raise KeyboardInterrupt
        return length(prompts, images)

    with pytest.raises(KeyboardInterrupt):
        score(config(folder, tmp_path / "out", "brightness", "length", **settings),
              rewards={names[0]: bright, names[1]: stops_as(length, stops)})  # fmt: skip
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2
    assert not (tmp_path / "out" / "README.md").exists()
    score(config(folder, tmp_path / "out", "brightness", "length", **settings))
    score(config(folder, tmp_path / "whole" / "out", "brightness", "length", **settings))
    assert files(tmp_path / "out") == files(tmp_path / "whole" / "out")


def test_sums_are_of_the_scores_that_are_there(folder, tmp_path):
    """Also of a shard that was there before another one was lost, and scored anew by a server that changed its mind."""
    settings = config(folder, tmp_path / "out", "brightness", "length", ensemble_weights=[1.0, 2.0])
    out = score(settings)
    first = load(out)["score"]
    (out / "data" / sorted(path.name for path in (out / "data").iterdir())[0]).unlink()
    bright, length = map(load_reward, settings.rewards)
    other = stops_as(length, lambda prompts, images: [50.0 + value for value in length(prompts, images)])
    rows = load(score(settings, rewards=dict(zip(settings.rewards, (bright, other), strict=True))))
    columns = settings.reward_columns()
    scores = {name: np.array(rows[name]) for name in columns}
    by_hand = sum(
        weight * (scores[name] - scores[name].mean()) / scores[name].std()
        for name, weight in zip(columns, (1, 2), strict=True)
    )
    assert rows["score"] == pytest.approx(by_hand)
    assert rows["score"] != pytest.approx(first)


def stops_as(reward, function):
    """The function under another reward's name, version and license."""
    for name in ("name", "version", "license"):
        setattr(function, name, getattr(reward, name))
    return function


@pytest.mark.slow
def test_a_killed_run_goes_on_byte_for_byte(folder, tmp_path):
    interrupted, whole = (config(folder, tmp_path / name / "out", "slow") for name in ("killed", "whole"))
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tgo_trl.commands.score import ScoreConfig\n"
        "from tgo_trl.commands.score.run import score\n"
        f"score(ScoreConfig(**{asdict(interrupted)!r}))"
    )
    killed = tmp_path / "killed" / "out"
    run_and_kill(code, killed)
    assert 1 <= len(list((killed / "data").glob("train-*"))) < 4
    score(interrupted)
    score(whole)
    assert files(killed) == files(tmp_path / "whole" / "out")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_write_what_one_writes(folder, tmp_path, streaming):
    settings = {"dataset_streaming": streaming, "ensemble_weights": [1.0, 2.0]}
    together, alone = (
        config(folder, tmp_path / name / "out", "brightness", "length", **settings) for name in ("two", "one")
    )
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tgo_trl.commands.score import ScoreConfig\n"
        "from tgo_trl.commands.score.run import score\n"
        f"score(ScoreConfig(**{asdict(together)!r}))"
    )
    run_two_processes(code, tmp_path)
    score(alone)
    assert files(tmp_path / "two" / "out") == files(tmp_path / "one" / "out")


def test_other_settings_are_refused(folder, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    spec = f"{tmp_path / 'rewards.py'}:brightness"
    out = score(config(folder, tmp_path / "out", rewards=[spec]))
    with pytest.raises(ValueError, match=r"other settings: `batch_size` was 2, is 4"):
        score(config(folder, out, rewards=[spec], batch_size=4))
    with pytest.raises(ValueError, match=r"other settings: `content` are others; .*`num_rows` was 11, is 10"):
        score(config(folder, out, rewards=[spec]), rows(11).select(range(1, 11)))
    (tmp_path / "rewards.py").write_text(REWARDS + "\n# edited")
    with pytest.raises(ValueError, match=r"other settings: `rewards\[0\].version` was"):
        score(config(folder, out, rewards=[spec]))


def test_a_stream_that_has_become_shorter_is_another(folder, tmp_path):
    settings = config(folder, tmp_path / "out", rows_per_shard=4, dataset_name="a stream")
    score(settings, rows(12).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"train-00002-of-00003\.parquet in .* holds rows of other prompts or images"):
        score(settings, rows(8).to_iterable_dataset())
    assert len(load(score(settings, rows(12).to_iterable_dataset()))) == 12


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("changed", [0, 4, 10])
def test_every_shard_is_compared_with_its_rows(folder, tmp_path, changed, streaming):
    """Not the first alone: the rows are those of each written shard, or the run is another."""
    dataset = rows(11)
    given = dataset.to_iterable_dataset() if streaming else dataset
    out = score(config(folder, tmp_path / "out", rows_per_shard=4), given)
    last = sorted((out / "data").iterdir())[-1]
    last.unlink()  # to be made again
    prompts = [f"{prompt}!" if row == changed else prompt for row, prompt in enumerate(dataset["prompt"])]
    other = dataset.remove_columns("prompt").add_column("prompt", prompts).select_columns(dataset.column_names)
    given = other.to_iterable_dataset() if streaming else other
    if changed == 10:  # its shard is the one that is made again
        assert load(score(config(folder, out, rows_per_shard=4), given))["prompt"][10].endswith("!")
        return
    message = "`content` are others" if changed == 0 else r"train-00001.*\.parquet in .* holds rows of other prompts"
    with pytest.raises(ValueError, match=message):
        score(config(folder, out, rows_per_shard=4), given)


def test_a_scored_data_set_is_scored_again(folder, tmp_path):
    first = score(config(folder, tmp_path / "first"))
    with pytest.raises(ValueError, match=r"has a column 'score' already\. Name the new one with `score_columns`"):
        score(config(folder, tmp_path / "second", dataset_name=str(first)))
    settings = {"dataset_name": str(first), "score_columns": ["length"]}
    second = score(config(folder, tmp_path / "second", "length", **settings))
    scored = load(second)
    assert scored.column_names[-2:] == ["score", "length"]
    assert scored["score"] == [brightness(i) for i in range(11)]
    record = json.loads((second / "scoring.json").read_text())["settings"]
    assert [reward["column"] for reward in record["earlier_rewards"]] == ["score"]
    assert "| `score` | brightness |" in (second / "README.md").read_text()


# ---- Settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": []}, "`rewards` is empty"),
        ({"rewards": ["a", "b"], "score_columns": ["x"]}, "`score_columns` has 1 entries for 2 rewards"),
        ({"rewards": ["a"], "ensemble_weights": [1, 2]}, "`ensemble_weights` has 2 entries for 1 rewards"),
        ({"rewards": ["m:f", "n:f"]}, "Two columns of scores would be called 'f'"),
        ({"rewards": ["a", "b", "a"], "score_columns": ["x", "y", "z"]}, "`rewards` has 'a' twice, and settings of a"),
        ({"rewards": ["a", "score"], "ensemble_weights": [1, 2]}, "called 'score'.*or the sum with `ensemble_column`"),
        ({"rewards": ["a"], "reward_kwargs": {"b": {}}}, "`reward_kwargs` has 'b', but `rewards` are a"),
        ({"rewards": ["a"], "reward_kwargs": {"a": [1]}}, r"`reward_kwargs\['a'\]` is a `list`"),
        ({"on_bad_row": "drop"}, "`on_bad_row` is 'drop'; it must be one of 'error', 'skip'"),
        ({"ensemble_normalization": "rank"}, "`ensemble_normalization` is 'rank'"),
        ({"fps": 0.0}, r"`fps` is 0\.0"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path / "out", **settings)


@pytest.mark.parametrize(("is_drawn", "fps"), [(False, 8.0), (True, None), (True, 16.0)])
def test_a_reward_of_videos_at_another_rate_is_refused(tmp_path, is_drawn, fps):
    """Frames that are read at 8 a second, or, whatever `fps` is, were drawn for 24, and a reward that is told 16."""
    (tmp_path / "rows").mkdir()
    scored_videos(2).remove_columns("score").to_parquet(tmp_path / "rows" / "train.parquet")
    if is_drawn:
        record = {"settings": {"family": {"num_frames": 5, "fps": 24.0}}}
        (tmp_path / "rows" / "generation.json").write_text(json.dumps(record))
        (tmp_path / "rows" / "README.md").touch()
    rate = 24 if is_drawn else 8
    settings = {"rewards": ["videoreward"], "reward_kwargs": {"videoreward": {"fps": 16}}}
    settings |= {} if fps is None else {"fps": fps}
    message = rf"'videoreward' has `fps=16`, and .* {rate} a second. Set its `fps` to {rate}\."
    with pytest.raises(ValueError, match=message):
        score(config(tmp_path, tmp_path / "out", **settings))


@pytest.mark.parametrize(
    ("is_drawn", "fps", "seconds"), [(False, 8.0, 5 / 8), (True, None, 5 / 24), (True, 8.0, 5 / 24)]
)
def test_a_reward_that_asks_is_told_the_rate_of_videos(folder, tmp_path, monkeypatch, is_drawn, fps, seconds):
    monkeypatch.setattr("tgo_trl.commands.score.run.build_card", lambda *_: "card")  # of a whole record
    (tmp_path / "rows").mkdir()
    scored_videos(2).remove_columns("score").to_parquet(tmp_path / "rows" / "train.parquet")
    if is_drawn:
        record = {"settings": {"family": {"num_frames": 5, "fps": 24.0}}}
        (tmp_path / "rows" / "generation.json").write_text(json.dumps(record))
        (tmp_path / "rows" / "README.md").touch()
    settings = {"dataset_name": str(tmp_path / "rows"), "fps": fps}
    scored = score(config(folder, tmp_path / "out", "seconds", **settings))
    assert load(scored)["score"] == [pytest.approx(seconds)] * 2
    assert json.loads((scored / "scoring.json").read_text())["settings"]["reader"]["rate"] == (
        24.0 if is_drawn else 8.0
    )


def test_the_precision_of_a_reward_model_is_recorded():
    """Whose usual one is another on a GPU: a run that goes on elsewhere would mix both."""
    model = SimpleNamespace(name="model", version="1", license="mit", dtype=torch.bfloat16)
    assert describe_reward("pickscore", "score", model, {"batch_size": 2})["settings"] == {
        "batch_size": 2, "dtype": "bfloat16",
    }  # fmt: skip


def test_a_rate_that_nobody_knows_is_asked_for(folder, tmp_path):
    settings = {"dataset_name": "videos", "rows_per_shard": None}
    with pytest.raises(ValueError, match=r"rewards\.py:seconds' asks for `fps`, .*not known here\. Set `fps` beside"):
        score(config(folder, tmp_path / "out", "seconds", **settings), scored_videos(2).remove_columns("score"))
    with pytest.raises(ValueError, match="asks for `fps`, the frames per second of videos"):
        score(config(folder, tmp_path / "images", "seconds", fps=8.0))


def test_a_reward_scores_with_other_settings_what_it_has_scored(folder, tmp_path):
    spec = f"{folder / 'rewards.py'}:Scaled"
    score(config(folder, tmp_path / "once", "Scaled", score_columns=["once"]))
    twice = {"score_columns": ["twice"], "reward_kwargs": {spec: {"factor": 2}}}
    score(config(folder, tmp_path / "both", "Scaled", dataset_name=str(tmp_path / "once"), **twice))
    scored = load(tmp_path / "both")
    assert scored["twice"] == [2 * value for value in scored["once"]]


def test_columns_are_named_after_their_rewards():
    def columns(rewards, **settings):
        return ScoreConfig("rows", "out", rewards, **settings).new_columns()

    assert columns("pickscore") == ["score"]
    assert columns(["hpsv2.1", "f.py:mine"]) == ["hpsv2.1", "mine"]
    assert columns(["pickscore"], ensemble_weights=[2.0]) == ["pickscore", "score"]


def test_a_list_of_one_needs_no_brackets():
    config = ScoreConfig("rows", "out", "pickscore", score_columns="reward", ensemble_weights=1)
    assert (config.rewards, config.score_columns, config.ensemble_weights) == (["pickscore"], ["reward"], [1])
    assert config.new_columns() == ["reward", "score"]


def test_settings_of_a_reward_are_text_or_left_out():
    given = '{"a": null, "b": "{\\"fps\\": 8}", "c": {"x": 1}}'
    config = ScoreConfig("rows", "out", ["a", "b", "c"], reward_kwargs=given)
    assert config.reward_kwargs == {"a": {}, "b": {"fps": 8}, "c": {"x": 1}}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["image"], "has no column 'prompt'; it has 'image'. Set `prompt_column`"),
        (["prompt"], "has neither a column 'image' nor 'video'; it has 'prompt'"),
    ],
)
def test_missing_columns_are_told(folder, tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        score(config(folder, tmp_path / "out", dataset_name="mine"), rows(2).select_columns(columns))


def test_the_data_set_is_not_overwritten(folder, tmp_path):
    with pytest.raises(ValueError, match="where the data set itself is"):
        score(config(folder, folder / "rows"))
    with pytest.raises(ValueError, match="where the data set itself is"):
        score(config(folder, folder / "rows", dataset_name=str(folder / "rows" / "train.parquet")))


def test_rewards_are_given_by_name(folder, tmp_path):
    with pytest.raises(ValueError, match="`rewards` has no 'mine', which the settings name; it has other"):
        score(config(folder, tmp_path / "out", rewards=["mine"]), rewards={"other": len})


def test_torch_tensors_are_scores(folder, tmp_path):
    settings = config(folder, tmp_path / "out", rewards=["mine"])
    scored = load(score(settings, rewards={"mine": lambda prompts, images: torch.arange(float(len(prompts)))}))
    assert scored["score"] == [0.0, 1.0, 0.0] * 3 + [0.0, 1.0]


# ---- Memory ----


class Decoded:
    """Counts the pixels of the images that are decoded and not yet given up."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        load = readers.load_image

        def count(value):
            image = load(value)
            self.now += image.width * image.height
            self.most = max(self.most, self.now)
            weakref.finalize(image, self.drop, image.width * image.height)
            return image

        monkeypatch.setattr(readers, "load_image", count)

    def drop(self, num_pixels):
        self.now -= num_pixels


def photos(sides):
    images = [picture(i, (side, side)) for i, side in enumerate(sides)]
    return Dataset.from_dict({"prompt": ["a"] * len(images), "image": images})


@pytest.mark.parametrize(("ahead", "per_call"), [(4_000, 8_000), (1_000, 2_500), (1, 1)])
def test_what_is_decoded_is_limited_by_its_pixels(monkeypatch, ahead, per_call):
    # 1,600 pixels each: 5 fit into a call of 8,000, and 1 into one of 2,500. Beside a call, and what waits for the
    # next, there is one image that has just been read.
    monkeypatch.setattr(unscored, "PIXELS_AHEAD", ahead)
    monkeypatch.setattr("tgo_trl.commands.score.run.PIXELS_PER_CALL", per_call)
    decoded, calls = Decoded(monkeypatch), []

    def brightness(prompts, images):
        calls.append(len(images))
        return [np.asarray(image, dtype=float).mean() for image in images]

    scored = score_dataset(photos([40] * 24), brightness, batch_size=8)
    most = max(1, per_call // 1_600)
    assert calls == [most] * (24 // most) + [24 % most] * (24 % most > 0)
    gc.collect()
    assert decoded.now == 0
    assert decoded.most <= max(per_call, 1_600) + max(ahead, 1_600) + 1_600
    assert scored["score"][:] == [np.asarray(picture(i, (40, 40)), dtype=float).mean() for i in range(24)]


def test_usual_images_are_given_in_whole_batches(monkeypatch):
    decoded, calls = Decoded(monkeypatch), []
    score_dataset(photos([16, 40, 8] * 7), lambda prompts, images: calls.append(len(images)) or [0.0] * len(images),
                  batch_size=8)  # fmt: skip
    assert calls == [8, 8, 5]
    assert decoded.most > 0


def test_an_image_larger_than_all_limits_is_scored_alone(monkeypatch):
    monkeypatch.setattr(unscored, "PIXELS_AHEAD", 500)
    monkeypatch.setattr("tgo_trl.commands.score.run.PIXELS_PER_CALL", 500)
    calls = []
    scored = score_dataset(photos([16, 40, 16, 10]), lambda prompts, images: calls.append(len(images)) or [
        float(image.width) for image in images], batch_size=8)  # fmt: skip
    assert scored["score"][:] == [16, 40, 16, 10]
    assert calls == [1, 1, 2]


def test_frames_of_videos_count(monkeypatch):
    monkeypatch.setattr(
        "tgo_trl.commands.score.run.PIXELS_PER_CALL", 2 * 5 * 256
    )  # two clips of five frames of 16 x 16
    calls = []
    rows = scored_videos(5).remove_columns("score")
    score_dataset(rows, lambda prompts, videos: calls.append(len(videos)) or [0.0] * len(videos), batch_size=4)
    assert calls == [2, 2, 1]


def test_source_images_count(monkeypatch):
    monkeypatch.setattr("tgo_trl.commands.score.run.PIXELS_PER_CALL", 2 * (100 + 1_600))
    rows = photos([10] * 5).add_column("source_image", [{"path": None, "bytes": png(40)}] * 5)
    calls = []

    def reward(prompts, images, sources):
        calls.append([image.width for row in sources for image in row])
        return [0.0] * len(images)

    score_dataset(rows, reward, batch_size=4)
    assert calls == [[40, 40], [40, 40], [40]]
    score_dataset(rows, lambda prompts, images: calls.append(len(images)) or [0.0] * len(images), batch_size=4)
    assert calls[3:] == [4, 1]  # which are then not read


def png(side):
    file = io.BytesIO()
    picture(0, (side, side)).save(file, "PNG")
    return file.getvalue()
