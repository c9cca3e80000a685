"""Rounds of drawing, scoring and training: each begins where the last one ended, and what is done is not done again."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .runs import assert_equal, config
from .tiny import PROMPTS, stable_diffusion

spec = importlib.util.spec_from_file_location("iterate", Path(__file__).parents[1] / "examples" / "iterate.py")
iterate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(iterate)

REWARD = """
def brightness(prompts, images):
    return [sum(image.convert("L").tobytes()) / 1e4 for image in images]
"""


@pytest.fixture
def rounds(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "reward.py").write_text(REWARD)
    return iterate.RoundArguments(
        model_name_or_path=str(tmp_path / "model"),
        prompts=str(tmp_path / "prompts.txt"),
        reward=f"{tmp_path / 'reward.py'}:brightness",
        num_rounds=2,
        num_images_per_prompt=2,
        num_inference_steps=2,
        guidance_scale=1.0,
    )


def weights(folder):
    return load_file(folder / "pytorch_lora_weights.safetensors")


def record(folder, name):
    return json.loads((folder / name).read_text())


def test_each_round_goes_on_from_the_last(rounds, tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=1)
    first, second = iterate.run_rounds(rounds, args)
    assert [path.parent.name for path in (first, second)] == ["round-0", "round-1"]
    drawn = [record(path.parent / "drawn", "generation.json")["settings"] for path in (first, second)]
    assert [settings["adapter"] for settings in drawn] == [None, "adapter"]
    assert drawn[1]["seed"] == drawn[0]["seed"] + 1
    assert drawn[0]["fingerprints"]["unet"] != drawn[1]["fingerprints"]["unet"]
    thresholds = [record(path, "tgo_config.json")["label_rule"]["threshold"] for path in (first, second)]
    assert thresholds[0] != thresholds[1]  # fitted anew
    states = [record(path / "checkpoint-2", "trainer_state.json")["log_history"] for path in (first, second)]
    for history in states:  # the reference is the policy that drew
        assert next(entry for entry in history if "loss" in entry)["rewards/margins"] == 0
    assert any((weights(second)[name] != value).any() for name, value in weights(first).items())
    assert args.output_dir == str(tmp_path / "out")  # the caller's settings are left alone


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_what_is_missing_comes_out_the_same(rounds, tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=1)
    first, second = iterate.run_rounds(rounds, args)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    expected = weights(second)
    iterate.run_rounds(rounds, args)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == before

    # as a run leaves it that was killed after the first update of the second round
    (second / "tgo_config.json").unlink()
    shutil.rmtree(second / "checkpoint-2")
    iterate.run_rounds(rounds, args)
    assert_equal(weights(second), expected)
    assert weights(first).keys() == expected.keys()
