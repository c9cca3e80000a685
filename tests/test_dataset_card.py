"""Cards of drawn and scored data sets."""

import shutil

import datasets
import pytest
import yaml
from datasets import load_dataset

from tgo_trl.cards.dataset_card import license_note, sampling_rows
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import generate
from tgo_trl.commands.score.config import ScoreConfig
from tgo_trl.commands.score.run import score

from . import tiny

REWARD = """
def length(prompts, images):
    return [len(prompt) for prompt in prompts]
length.license = "cc-by-4.0 | see there"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def drawn(folder, **settings):
    pipeline = tiny.stable_diffusion()
    (folder / "prompts.txt").write_text("a cat\na small dog\n")
    arguments = {"num_images_per_prompt": 3, "num_inference_steps": 1, "disable_tqdm": True, "rows_per_shard": 4}
    config = GenerateConfig("owner/model", str(folder / "prompts.txt"), str(folder / "drawn"), **arguments, **settings)
    return generate(config, pipeline)


def scored(folder, reward=REWARD, **settings):
    (folder / "rewards.py").write_text(reward)
    rewards = [f"{folder / 'rewards.py'}:length"]
    return score(ScoreConfig(str(folder / "drawn"), str(folder / "scored"), rewards, disable_tqdm=True, **settings))


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_card_says_how_the_images_were_drawn(tmp_path):
    folder = drawn(tmp_path, license="cc0-1.0")
    metadata = front(folder)
    assert metadata["license"] == "cc0-1.0"
    assert metadata["task_categories"] == ["text-to-image"]
    assert metadata["size_categories"] == "n<1K"
    assert metadata["tags"] == ["tgo_trl", "synthetic"]
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 6
    features = {feature["name"]: feature["dtype"] for feature in metadata["dataset_info"]["features"]}
    assert features == {
        "prompt": "string", "image": "image", "prompt_index": "int64", "sample_index": "int64", "seed": "int64",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    for line in ("# drawn", "6 images drawn with `owner/model`. Made with tgo_trl.", "| model | owner/model |",
                 "| size | 16 x 16 |", "| guidance scale | 7.5 |", "| num inference steps | 1 |", "| seed | 42 |",
                 "| scheduler | DDIMScheduler |", "| prompts | 2 of prompts.txt |", "| samples per prompt | 3 |",
                 "| `image` | Image | the image |"):  # fmt: skip
        assert line in card.splitlines(), line
    assert "`owner/model`, whose terms may bind their use" in card


def test_other_data_in_the_same_folder_is_not_taken_from_the_cache(tmp_path):
    drawn(tmp_path)
    for prefix in ("", "1 + "):  # files of the same size
        folder = scored(tmp_path, reward=REWARD.replace("[len", f"[{prefix}len"))
        assert load_dataset(str(folder), split="train")["score"] == [len(prefix[:1]) + n for n in (5, 5, 5, 11, 11, 11)]
        shutil.rmtree(folder)


def test_missing_shards_are_noticed_by_the_card(tmp_path):
    folder = drawn(tmp_path)
    assert load_dataset(str(folder), split="train").num_rows == 6
    next((folder / "data").glob("train-00001*")).unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        load_dataset(str(folder), split="train")


def test_the_card_says_who_scored(tmp_path):
    drawn(tmp_path)
    folder = scored(tmp_path)
    assert front(folder)["tags"] == ["tgo_trl", "synthetic", "reward"]
    card = (folder / "README.md").read_text()
    assert "6 images drawn with `owner/model`, scored by `length`. Made with tgo_trl." in card.splitlines()
    assert "| model | owner/model |" in card  # copied from the data set that was scored
    [line] = [line for line in card.splitlines() if line.startswith("| `score` | length |")]
    assert "rewards.py:length@sha256:" in line
    assert line.endswith(r"| cc-by-4.0 \| see there |")
    assert "The terms of the reward models are in the table of scores." in card


def test_terms_of_data_that_others_made():
    scoring = {"settings": {"dataset": "owner/rows", "rewards": []}}
    assert license_note(None, scoring, None) == (
        "None is claimed for this data set. The rows are those of `owner/rows`; its terms apply. The terms of the "
        "reward models are in the table of scores."
    )
    settings = {"model": "owner/model", "task": "text-to-image", "prompts": {"source": "owner/edits"}}
    generation = {"settings": settings, "model_license": "openrail"}
    assert "`owner/model` (license: openrail)" in license_note(generation, None, "mit")
    assert "owner/edits" not in license_note(generation, None, "mit")
    settings["task"] = "image-to-image"
    assert "The source images are those of `owner/edits`; their terms apply" in license_note(generation, None, "mit")


def test_what_is_not_set_is_not_in_the_table():
    settings = {
        "model": "m", "adapter": None, "pipeline": "P", "scheduler": "S", "dtype": "float32", "width": 32, "height": 16,
        "family": {"num_frames": 5}, "call": {"guidance_scale": None}, "prompts": {"number": 1200, "source": "p.txt"},
        "num_images_per_prompt": 1, "seed": 0, "batch_size": 1, "versions": {"torch": "2"},
    }  # fmt: skip
    table = dict(sampling_rows(settings))
    assert "adapter" not in table
    assert "guidance scale" not in table
    assert (table["size"], table["num frames"], table["prompts"]) == ("32 x 16", 5, "1,200 of p.txt")
