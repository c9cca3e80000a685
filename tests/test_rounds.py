"""Rounds of drawing, scoring and training: each begins where the last one ended, and what is done is not done again."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tgo_trl import RoundsConfig, rounds
from tgo_trl.commands.evaluate.report import Estimate
from tgo_trl.commands.rounds.report import Limits, Measurement, Round, best_round
from tgo_trl.commands.rounds.text import print_round
from tgo_trl.trainer.selection import OutsideBoundsError

from .runs import assert_close, assert_equal, config
from .test_parquet import run_two_processes
from .tiny import PROMPTS, stable_diffusion, wan

pytestmark = pytest.mark.usefixtures("on_cpu", "undrawn")

REWARD = """
def brightness(prompts, images):
    return [sum(image.convert("L").tobytes()) / 1e4 for image in images]


def redness(prompts, images):
    return [image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images]


def nothing(prompts, images):
    return [0.5] * len(images)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, `prompts.txt`, and rewards in `reward.py`."""
    folder = tmp_path_factory.mktemp("rounds")
    stable_diffusion().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "reward.py").write_text(REWARD)
    return folder


def settings(folder, reward="brightness", **changes):
    defaults = {
        "model_name_or_path": str(folder / "model"),
        "prompts": str(folder / "prompts.txt"),
        "rewards": [f"{folder / 'reward.py'}:{reward}"],
        "num_rounds": 2,
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
    }
    return RoundsConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """The folder of a whole run of two rounds that are measured, and its report."""
    path = tmp_path_factory.mktemp("measured")
    report = rounds(measuring(folder), config(path))
    return path / "out", report


def measuring(folder, **changes):
    held_out = {"held_out_rewards": [f"{folder / 'reward.py'}:redness"], "held_out_images_per_prompt": 2}
    return settings(folder, **{**held_out, **changes})


def weights(folder):
    return load_file(folder / "pytorch_lora_weights.safetensors")


def record(folder, name):
    return json.loads((folder / name).read_text())


# ---- What a round is ----


def test_each_round_goes_on_from_the_last(folder, tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=1)
    report = rounds(settings(folder), args)
    first, second = (tmp_path / "out" / f"round-{number}" for number in (1, 2))
    drawn = [record(path / "drawn", "generation.json")["settings"] for path in (first, second)]
    assert [given["adapter"] for given in drawn] == [None, "adapter"]
    assert [given["seed"] for given in drawn] == [args.seed, args.seed + 1]
    assert drawn[0]["fingerprints"]["unet"] != drawn[1]["fingerprints"]["unet"]
    rules = [record(path / "adapter", "tgo_config.json")["label_rule"] for path in (first, second)]
    assert rules[0]["threshold"] != rules[1]["threshold"]  # fitted anew
    assert [entry.threshold for entry in report.rounds] == [rule["threshold"] for rule in rules]
    assert [entry.score for entry in report.rounds] == pytest.approx([rule["score_mean"] for rule in rules])
    assert margins_at_the_start(first) == margins_at_the_start(second) == 0  # the reference is the policy that drew
    before, after = weights(first / "adapter"), weights(second / "adapter")
    assert any((after[name] != value).any() for name, value in before.items())
    assert args.output_dir == str(tmp_path / "out")  # the caller's settings are left alone

    assert report.kept == 2  # the last: nothing was measured
    assert_equal(weights(tmp_path / "out" / "adapter"), after)
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "trained in 2 rounds of drawing" in card
    assert "the policy before it as the reference" in card
    assert "round-2" not in card  # the code loads the copy
    assert (tmp_path / "out" / "rounds.png").is_file()


def margins_at_the_start(path):
    history = record(path / "adapter" / "checkpoint-2", "trainer_state.json")["log_history"]
    return next(entry for entry in history if "loss" in entry)["rewards/margins"]


def test_the_reference_can_be_the_base(folder, tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=2)
    rounds(settings(folder, reference="base"), args)
    first, second = (tmp_path / "out" / f"round-{number}" for number in (1, 2))
    assert margins_at_the_start(first) == 0
    assert margins_at_the_start(second) != 0  # the policy is away from it already


# ---- What is measured ----


def test_every_round_is_measured_on_the_same_samples(measured):
    out, report = measured
    models = out / "held_out" / "models"
    drawn = [record(models / name / "drawn", "generation.json")["settings"] for name in ("base", "round-1", "round-2")]
    assert len({given["seed"] for given in drawn}) == 1
    assert drawn[0]["seed"] not in (42, 43)  # of no round
    found = [entry.measurement for entry in report.rounds]
    assert found[0].base_rewards == found[1].base_rewards
    assert list(found[0].rewards) == ["redness", "brightness"]
    assert all(len(it.drift) == 4 and min(it.drift) > 0 and it.variety > 0 for it in found)
    redness = [it.rewards["redness"].value for it in found]
    assert report.kept == 1 + redness.index(max(redness))
    assert_equal(weights(out / "adapter"), weights(out / f"round-{report.kept}" / "adapter"))


def test_what_is_done_is_not_done_again_and_bounds_may_change(folder, measured, capsys):
    out, report = measured
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = rounds(measuring(folder), config(out.parent))
    assert again == report
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before
    printed = capsys.readouterr().out
    assert printed.count("Next: ") == 1
    assert "Next: load the adapter" in printed
    assert "wins against base" not in printed, "measurements are a line each, and the table of rounds"
    with pytest.raises(OutsideBoundsError, match=r"Round 1 ended the run: the variety is .* None is within the bounds"):
        rounds(measuring(folder, stop_below_variety=1.0), config(out.parent))


def test_other_settings_are_refused_by_name(folder, measured):
    out, _ = measured
    with pytest.raises(ValueError, match=r"`learning_rate` was 0.01, is 0.1"):
        rounds(measuring(folder), config(out.parent, learning_rate=0.1))
    with pytest.raises(ValueError, match=r"`guidance_scale` was 1.0, is 2.0"):
        rounds(measuring(folder, guidance_scale=2.0), config(out.parent))
    with pytest.raises(ValueError, match=r"`held_out_images_per_prompt` was 2, is 3"):
        rounds(measuring(folder, held_out_images_per_prompt=3), config(out.parent))


def measurement(reward, variety=0.9, drift=(1.0, 1.0, 1.0, 1.1)):
    return Measurement({"r": Estimate(reward, None)}, {"r": Estimate(0.0, None)}, variety, list(drift))


def test_a_round_is_a_line(capsys):
    print_round(Round(2, 43, 8, 0.5, 0.5, measurement(1.25, variety=None)), 4)
    assert capsys.readouterr().out == "round 2/4  r 1.25 (base 0)  variety -  drift 1.1\n"


def test_the_best_round_is_that_of_the_highest_reward_within_the_limits():
    found = [measurement(1.0), measurement(3.0, variety=0.6), measurement(2.0), measurement(4.0, drift=(1, 1, 1, 1.3))]
    done = [Round(number, 42, 8, 0.0, 0.0, it) for number, it in enumerate(found, 1)]
    assert best_round(done, Limits(None, None)).number == 4
    assert best_round(done, Limits(1.2, None)).number == 2
    assert best_round(done, Limits(1.2, 0.7)).number == 3
    assert best_round(done, Limits(1.05, 0.7)) is None
    assert best_round([Round(1, 42, 8, 0.0, 0.0), Round(2, 43, 8, 0.0, 0.0)], Limits(None, None)).number == 2
    assert Limits(1.2, 0.95).broken(found[3]) == [
        "the drift is 1.3 in quartile 4, above `stop_above_drift` (1.2)",
        "the variety is 0.9 of the base's, below `stop_below_variety` (0.95)",
    ]
    assert Limits(1.2, None).broken(measurement(0.0, drift=(1, float("nan"), 1, 1)))
    with pytest.raises(ValueError, match="same picture from every seed"):
        Limits(None, 0.5).broken(measurement(0.0, variety=None))


# ---- What is refused ----


def test_scores_that_are_all_the_same_end_a_run(folder, tmp_path):
    with pytest.raises(ValueError, match=r"Round 1 has nothing to train on\. All 8 scores equal 0.5"):
        rounds(settings(folder, "nothing"), config(tmp_path))
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_later_round_without_a_difference_leaves_what_there_is(folder, tmp_path):
    (tmp_path / "reward.py").write_text(
        "from pathlib import Path\n\ndef told(prompts, images):\n"
        f"    done = Path({str(tmp_path / 'out' / 'round-1' / 'round.json')!r}).is_file()\n"
        "    return [0.0 if done else float(sum(image.convert('L').tobytes())) for image in images]\n"
    )
    report = rounds(settings(folder, rewards=[f"{tmp_path / 'reward.py'}:told"]), config(tmp_path))
    assert (report.kept, len(report.rounds)) == (1, 1)
    assert report.reason.startswith("The run ended before round 2 trained. All 8 scores equal 0, so no threshold")
    assert "trained in 1 round of drawing" in (tmp_path / "out" / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rounds": 0}, "`num_rounds` is 0; it must be at least 1"),
        ({"num_rounds": "many"}, "`num_rounds` is 'many'; it must be a whole number"),
        ({"reference": "next"}, "`reference` is 'next'; it must be one of 'previous', 'base'"),
        ({"rewards": []}, "`rewards` is empty"),
        ({"rewards": [7]}, "`rewards` has 7; write names of reward models"),
        ({"generate_settings": {"seed": 3}}, "`generate_settings` has 'seed'; write some of dtype, "),
        ({"generate_settings": '{"dtype": 3}'}, "`dtype` is 3; it must be text"),
        ({"generate_settings": {"call_kwargs": {"height": 8}}}, "`call_kwargs` has 'height'"),
        ({"score_settings": {"batch_size": 3}}, "`score_settings` has 'batch_size'; write some of reward_kwargs"),
        ({"held_out_rewards": []}, "`held_out_rewards` is empty"),
        ({"held_out_prompts": "p.txt"}, "nothing is measured on them"),
        ({"held_out_rewards": ["hpsv2.1"], "rewards": ["hpsv2.1"]}, "which `rewards` has too"),
        ({"stop_above_drift": 1.0}, "`stop_above_drift` is 1.0; it must be above 1"),
        ({"stop_below_variety": 1.5}, "`stop_below_variety` is 1.5"),
        ({"stop_below_variety": 0.5, "held_out_images_per_prompt": 1}, "Set it to 2 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_peft": False}, "`use_peft` is False"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "`eval_strategy` is "),
        ({"push_to_hub": True}, "rounds upload nothing"),
        ({"resume_from_checkpoint": "somewhere"}, "each round goes on from its own checkpoint"),
        ({"image_column": "picture"}, "`image_column` is 'picture'"),
        (
            {"score_columns": ["score", "other"]},
            "`score_columns` is ['score', 'other'], and rounds are compared by one",
        ),
        ({"score_column": "hpsv2.1"}, "`rewards` give the columns score, and `score_column`"),
        # what only the pipeline tells
        ({"fps": 16.0}, "`fps`"),
        ({"resolution": 20}, "needs a multiple of 8"),
        ({"lora_target_modules": ["nothing"]}, "nothing"),
        ({"train_guidance_scale": 2.0}, "`train_guidance_scale`"),
    ],
)
def test_settings_of_training_that_rounds_cannot_have_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rounds(settings(folder), config(tmp_path, **changes))
    assert not list((tmp_path / "out").glob("round-*"))


def test_what_a_later_step_would_refuse_is_refused_before_the_first(folder, tmp_path):
    wan.build().save_pretrained(tmp_path / "videos")
    videos = {"model_name_or_path": str(tmp_path / "videos"), "rewards": ["videoreward"]}
    for given, message in (
        ({**videos, "score_settings": {"reward_kwargs": {"videoreward": {"fps": 7.0}}}},
         r"The reward 'videoreward' has `fps=7`, and the videos are drawn for 16 a second"),
        ({"generate_settings": {"call_kwargs": {"true_cfg_scale": 2}}}, "cannot be called with 'true_cfg_scale'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            rounds(settings(folder, **given), config(tmp_path, num_frames=5 if "rewards" in given else None))
    assert not list((tmp_path / "out").glob("round-*"))


def test_a_base_that_is_no_reference_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`loss_type='sft'` has none"):
        rounds(settings(folder, reference="base"), config(tmp_path, loss_type="sft"))
    with pytest.raises(ValueError, match="`sync_ref_model` moves it"):
        rounds(settings(folder, reference="base"), config(tmp_path, sync_ref_model=True))


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'thesis.txt' and no rounds.json"):
        rounds(settings(folder), config(tmp_path))


def test_several_rewards_need_a_sum(folder, tmp_path):
    both = [f"{folder / 'reward.py'}:{name}" for name in ("brightness", "redness")]
    with pytest.raises(ValueError, match="give the columns brightness, redness"):
        rounds(settings(folder, rewards=both), config(tmp_path))
    assert settings(folder, rewards=both, score_settings={"ensemble_weights": [1, 1]})


# ---- Going on ----


@pytest.mark.slow
def test_another_base_of_the_same_name_is_refused(folder, tmp_path):
    rounds(settings(folder, num_rounds=1), config(tmp_path))
    other = stable_diffusion()
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has other weights than in round 1"):
        rounds(settings(folder, model_name_or_path=str(tmp_path / "model")), config(tmp_path))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder, measured, tmp_path):
    out, report = measured
    given = {**vars(measuring(folder)), "generate_settings": None, "score_settings": None}
    code = (
        "from pathlib import Path\n"
        "from tests.runs import config\n"
        "from tgo_trl import RoundsConfig, rounds\n"
        f"args = config(Path({str(tmp_path)!r}), per_device_train_batch_size=2)\n"
        f"rounds(RoundsConfig(**{given!r}), args)\n"
    )
    run_two_processes(code, tmp_path)
    found = record(tmp_path / "out", "rounds.json")["report"]
    assert found["kept"] == report.kept
    for ours, theirs in zip(found["rounds"], report.rounds, strict=True):
        assert ours["score"] == pytest.approx(theirs.score, rel=1e-4)
        assert ours["measurement"]["drift"] == pytest.approx(theirs.measurement.drift, rel=1e-4)
    assert_close(weights(tmp_path / "out" / "adapter"), weights(out / "adapter"), 1e-3)
