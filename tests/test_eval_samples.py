"""Samples that evaluations draw and score: their seeds, their metrics, and that training does not notice."""

import numpy as np
import pytest
import torch
from PIL import Image

from tgo_trl.measures import thumbnails, variety
from tgo_trl.rewards.base import ModelReward
from tgo_trl.trainer.eval_samples import sample_seed

from .runs import assert_equal, config, logged, make_trainer, metrics, trained_weights
from .test_evaluation import held_out, perturbed

pytestmark = pytest.mark.usefixtures("undrawn")

PROMPTS = ["a red cat", "a blue dog", "a green bird"]
REWARD = """
import numpy as np
import torch

def brightness(prompts, images):
    torch.rand(3)  # as a model that is loaded
    return [float(np.asarray(image.convert("L")).mean()) for image in images]

def length(prompts, images):
    return [len(prompt) for prompt in prompts]

def neg_loss(prompts, images):
    return [-1.0 for prompt in prompts]

def variety(prompts, images):
    return [0.0 for prompt in prompts]

def nothing(prompts, images):
    return [float("nan")] * len(prompts)
"""
SAMPLING = {"sample_num_inference_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture
def rewards(tmp_path):
    """Writes the file of rewards, and says what one of its functions is called in settings."""
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARD)
    return lambda *names: [f"{path}:{name}" for name in names]


def brightness(samples):
    return [float(np.asarray(image.convert("L")).mean()) for image in samples]


def test_metrics_by_hand(tmp_path, rewards):
    args = config(
        tmp_path, eval_rewards=rewards("brightness", "length"), eval_prompts=PROMPTS, eval_samples_per_prompt=3,
        per_device_eval_batch_size=4, sample_guidance_scale=3.0, seed=5, **SAMPLING,
    )  # fmt: skip
    trainer = perturbed(make_trainer(args, eval_dataset=held_out()))
    evaluation = trainer.evaluate()
    drawn = [prompt for prompt in PROMPTS for _ in range(3)]
    seeds = [sample_seed(5, prompt, i) for prompt in PROMPTS for i in range(3)]
    kwargs = {"num_inference_steps": 2, "guidance_scale": 3.0}
    policy = trainer.sample(drawn, seeds, batch_size=4, **kwargs)
    reference = trainer.sample(drawn, seeds, from_reference=True, batch_size=4, **kwargs)
    assert evaluation["eval_samples/brightness"] == pytest.approx(np.mean(brightness(policy)))
    assert evaluation["eval_samples/brightness_reference"] == pytest.approx(np.mean(brightness(reference)))
    assert np.mean(brightness(policy)) != np.mean(brightness(reference))
    # 9, 10 and 12 letters, three times each
    assert evaluation["eval_samples/length"] == evaluation["eval_samples/length_reference"] == pytest.approx(31 / 3)
    share = variety(thumbnails(policy), drawn) / variety(thumbnails(reference), drawn)
    assert evaluation["eval_samples/variety"] == pytest.approx(share)
    assert share != 1
    names = [name for name in trainer.state.log_history[-1] if name.startswith("eval_samples/")]
    assert len(names) == 5, "logged with the rest of the evaluation"
    assert trainer.evaluate()["eval_samples/brightness"] == evaluation["eval_samples/brightness"]


def test_a_seed_is_a_function_of_seed_prompt_and_number():
    keys = [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    assert len({sample_seed(*key) for key in keys}) == 4
    assert sample_seed(0, "a red cat", 1) == sample_seed(0, "a red cat", 1)
    assert all(0 <= sample_seed(*key) < 2**63 for key in keys)


def test_samples_in_batches_are_those_of_one_call(tmp_path):
    trainer = make_trainer(config(tmp_path))
    one, parts = (trainer.sample(PROMPTS, [3, 4, 5], batch_size=size, num_inference_steps=2) for size in (None, 2))
    for image, other in zip(one, parts, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1
    assert trainer.sample([], []) == []


def test_without_settings_nothing_is_drawn(tmp_path, monkeypatch):
    trainer = make_trainer(
        config(tmp_path, eval_strategy="steps", eval_steps=1, sample_prompts=None), eval_dataset=held_out()
    )
    monkeypatch.setattr(trainer, "sample", None)
    trainer.train()
    assert not [name for entry in trainer.state.log_history for name in entry if "samples/" in name]
    assert not (tmp_path / "out" / "evaluations.png").exists()


def test_of_several_data_sets_samples_are_drawn_once(tmp_path, rewards, monkeypatch):
    sets = {"near": held_out(5, 1), "far": held_out(5, 2)}
    args = config(
        tmp_path, eval_rewards=rewards("brightness"), sample_prompts=PROMPTS, max_steps=4, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="samples/brightness", **SAMPLING,
    )  # fmt: skip
    trainer = make_trainer(args, eval_dataset=sets)
    calls = []
    draw = trainer._eval_samples.trainer.sample
    monkeypatch.setattr(trainer, "sample", lambda *a, **k: calls.append(k["from_reference"]) or draw(*a, **k)
                        if "batch_size" in k else draw(*a, **k))  # fmt: skip
    trainer.train()
    assert calls == [True, False, False], "the reference once, the policy at each of two evaluations"
    values = logged(trainer, "eval_samples/brightness")
    assert len(values) == 2
    assert trainer.state.best_metric == max(values)
    assert trainer.state.best_global_step == 2 * (1 + values.index(max(values)))


def test_another_data_set_has_no_samples(tmp_path, rewards):
    trainer = make_trainer(
        config(tmp_path, eval_rewards=rewards("length"), eval_prompts=PROMPTS, **SAMPLING), eval_dataset=held_out()
    )
    assert not [name for name in trainer.evaluate(held_out(4, 2)) if "samples/" in name]
    assert not [name for name in trainer.predict(held_out(4, 2)).metrics if "samples/" in name]
    assert "final_samples/length" in trainer.evaluate(metric_key_prefix="final")


def test_one_sample_per_prompt_has_rewards_and_no_variety(tmp_path, rewards):
    args = config(tmp_path, eval_rewards=rewards("length"), eval_prompts=PROMPTS, eval_samples_per_prompt=1, **SAMPLING)
    evaluation = make_trainer(args, eval_dataset=held_out()).evaluate()
    assert {name for name in evaluation if "samples/" in name} == {
        "eval_samples/length",
        "eval_samples/length_reference",
    }


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.3, "disable_dropout": False}, {"loss_type": "sft", "use_peft": False}]
)
def test_training_is_the_same_with_and_without_samples(tmp_path, rewards, settings):
    runs = []
    for own in ({}, {"eval_rewards": rewards("brightness"), "eval_prompts": PROMPTS, "eval_samples_per_prompt": 2}):
        args = config(tmp_path / str(len(runs)), max_steps=4, **{**SAMPLING, "eval_steps": 1}, **settings, **own)
        trainer = make_trainer(args, eval_dataset=held_out())
        trainer.train()
        runs.append((trained_weights(trainer), logged(trainer)))
    assert_equal(runs[1], runs[0])
    assert logged(trainer, "eval_samples/variety")[-1] != 1


def test_the_reference_is_the_one_that_the_run_begins_with(tmp_path, rewards):
    args = config(
        tmp_path, max_steps=4, learning_rate=5e-2, sync_ref_model=True, ref_model_mixup_alpha=1.0,
        ref_model_sync_steps=1, eval_rewards=rewards("brightness"), eval_prompts=PROMPTS, **SAMPLING,
    )  # fmt: skip
    trainer = make_trainer(args, eval_dataset=held_out())
    before = trainer.evaluate()
    trainer.train()
    levels = logged(trainer, "eval_samples/brightness_reference")
    assert set(levels) == {before["eval_samples/brightness"]}
    assert len(levels) == 2
    assert logged(trainer, "eval_samples/brightness")[-1] != levels[0]


def test_a_reward_that_does_not_work_says_so_before_the_first_update(tmp_path, rewards):
    args = config(tmp_path, eval_rewards=rewards("nothing"), eval_prompts=PROMPTS, **SAMPLING)
    trainer = make_trainer(args, eval_dataset=held_out())
    with pytest.raises(ValueError, match=r"The reward 'nothing', row 0 .*nan"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_reward_that_cannot_be_had_is_refused_before_a_model_is_loaded(tmp_path, rewards):
    args = config(tmp_path, eval_rewards=rewards("colour"), eval_prompts=PROMPTS, **SAMPLING)
    with pytest.raises(ValueError, match=r"`eval_rewards`: .* has no function 'colour'"):
        make_trainer(args, model="no/such-model", eval_dataset=held_out())


def test_a_reference_without_variety_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(config(tmp_path, eval_prompts=PROMPTS, **SAMPLING), eval_dataset=held_out())
    monkeypatch.setattr(trainer, "sample", lambda prompts, *_, **__: [Image.new("RGB", (8, 8))] * len(prompts))
    with pytest.raises(ValueError, match="draws the same picture from every seed"):
        trainer.evaluate()


class Linear(ModelReward):
    """A reward whose network notes where it is."""

    name = "linear"
    license = "none"

    def _load(self):
        self._network = torch.nn.Linear(1, 1).to(self.device)

    def _score_batch(self, prompts, images):
        return torch.full((len(prompts),), float(self._network.weight.device.type == "meta"))


def test_a_reward_model_is_on_the_device_only_while_it_scores():
    reward = Linear("folder", device="cpu")
    assert reward(["a"], [None]) == [0.0]
    places = []
    reward._network.to = lambda device: places.append(str(device))
    reward.release()
    reward.device = torch.device("meta")
    reward(["a"], [None])
    assert places == ["cpu", "meta"]


@pytest.mark.parametrize("metric", [None, "samples/neg_loss", "eval_samples/neg_loss"])
def test_of_a_reward_more_is_better_whatever_its_name(tmp_path, rewards, metric):
    args = config(
        tmp_path, eval_rewards=rewards("neg_loss", "length"), eval_prompts=PROMPTS, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model=metric, **SAMPLING,
    )  # fmt: skip
    assert (args.metric_for_best_model, args.greater_is_better) == (metric or "samples/neg_loss", True)
    make_trainer(args, eval_dataset=held_out())


def test_what_the_record_of_a_run_says_names_no_file(tmp_path, rewards):
    trainer = make_trainer(
        config(tmp_path, eval_rewards=rewards("length"), eval_prompts=PROMPTS, **SAMPLING), eval_dataset=held_out()
    )
    trainer.save_model()
    assert str(tmp_path) not in (tmp_path / "out" / "tgo_config.json").read_text()


@pytest.mark.slow
def test_resumed_metrics_are_those_of_an_uninterrupted_run(tmp_path, rewards):
    from .runs import Stop, StopAt

    histories = []
    for stop in (None, 3):
        args = config(
            tmp_path / str(stop), max_steps=4, sync_ref_model=True, ref_model_sync_steps=1,
            eval_rewards=rewards("brightness"), eval_prompts=PROMPTS, save_strategy="steps", save_steps=2, **SAMPLING,
        )  # fmt: skip
        if stop is not None:
            with pytest.raises(Stop):
                make_trainer(args, eval_dataset=held_out(), callbacks=[StopAt(stop)]).train()
        trainer = make_trainer(args, eval_dataset=held_out())
        trainer.train(resume_from_checkpoint=stop is not None)
        histories.append([entry for entry in metrics(trainer.state.log_history) if "eval_loss" in entry])
    assert len(histories[0]) == 2
    assert_equal(histories[1], histories[0])


def test_videos_are_scored_as_lists_of_frames(tmp_path):
    from .cases import CASES

    (case,) = [case for case in CASES if case.name == "wan"]
    path = tmp_path / "my_rewards.py"
    path.write_text("def frames(prompts, videos):\n    return [len(video) for video in videos]\n")
    args = case.config(
        tmp_path, eval_rewards=[f"{path}:frames"], eval_prompts=["a red cat"], eval_samples_per_prompt=2, **SAMPLING
    )
    trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(), eval_dataset=case.rows(4, 1))
    evaluation = trainer.evaluate()
    assert evaluation["eval_samples/frames"] == case.num_frames
    assert evaluation["eval_samples/variety"] == 1
