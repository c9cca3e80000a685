"""Which checkpoint is kept: the best one inside the bounds, and a run ends at the first evaluation outside of them."""

import json
import logging
import math
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from tgo_trl.cli import main
from tgo_trl.trainer.evaluations import Choice, Evaluation, choose, comparable_evaluations, read_evaluations
from tgo_trl.trainer.selection import Bounds, OutsideBoundsError

from . import tiny
from .marks import some_slow
from .runs import Stop, StopAt, assert_equal, config, logged, make_trainer, metrics, trained_weights
from .test_cli import TRAIN
from .test_evaluation import held_out

pytestmark = pytest.mark.usefixtures("undrawn")

PROMPTS = ["a red cat", "a blue dog"]
RISING = '''
class Rising:
    """One more at each call; the reference, which is scored first, has 0."""

    def __init__(self):
        self.calls = -1

    def __call__(self, prompts, images):
        self.calls += 1
        return [float(self.calls)] * len(prompts)


def redness(prompts, images):
    return [float(image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0]) for image in images]
'''
CHOOSING = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
            "load_best_model_at_end": True}  # fmt: skip
"""A run that drifts: unbounded negatives, a high learning rate."""
DRIFTING = {**CHOOSING, "max_steps": 5, "learning_rate": 3e-2, "eval_prompts": PROMPTS, "eval_samples_per_prompt": 2,
            "sample_num_inference_steps": 2, "per_device_eval_batch_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(RISING)
    return {name: [f"{path}:{name}"] for name in ("Rising", "redness")}


@pytest.fixture(scope="module")
def free(tmp_path_factory, rewards, undrawn):
    """What the run measures at each of its five evaluations without bounds, and its weights after each."""
    folder = tmp_path_factory.mktemp("free")
    trainer = run(folder, eval_rewards=rewards["Rising"])
    found = read_evaluations(trainer.state.log_history)
    assert [evaluation.step for evaluation in found] == [1, 2, 3, 4, 5]
    drifts = [max(evaluation.drifts.values()) for evaluation in found]
    assert [1, *drifts[:4]] == sorted({1, *drifts[:4]}), "the tests below put bounds between them"
    return found


def run(folder, start=True, sets=None, **settings):
    arguments = {"callbacks": settings.pop("callbacks", None), "train_dataset": settings.pop("train_dataset", None)}
    args = config(folder, **{**DRIFTING, **settings})
    trainer = make_trainer(args, eval_dataset=sets or held_out(16), **arguments)
    if start:
        trainer.train()
    return trainer


def between(free, step):
    """A bound that the evaluation after an update is inside of, and the next one is not."""
    found = {evaluation.step: max(evaluation.drifts.values()) for evaluation in free}
    return math.sqrt(found[step] * found[step + 1])


# ---- Bounds by hand ----


def test_bounds_by_hand():
    measured = {"eval_drift/quartile_1": 1.0, "eval_far_drift/quartile_4": 1.5, "eval_samples/variety": 0.5,
                "eval_error_difference/quartile_4": 9.0}  # fmt: skip
    assert not Bounds()
    assert Bounds().broken(measured) == []
    assert Bounds(1.5, 0.5).broken(measured) == []
    assert Bounds(max_drift=1.4).broken(measured) == [
        "the largest drift is 1.5 (eval_far_drift/quartile_4), above `max_drift` (1.4)"
    ]
    assert len(Bounds(1.4, 0.6).broken(measured)) == 2
    undefined = {**measured, "eval_drift/quartile_2": math.nan, "eval_samples/variety": math.nan}
    assert len(Bounds(9.0, 0.1).broken(undefined)) == 2
    with pytest.raises(ValueError, match=r"`max_drift` is 1.4, and the evaluation has no `drift/quartile"):
        Bounds(max_drift=1.4).broken({"eval_loss": 1.0})


def test_a_drift_of_few_rows_is_warned_of(tmp_path, caplog):
    settings = {"start": False, "max_drift": 1.2}
    run(tmp_path, sets=held_out(120), **settings)
    assert "chance decides" not in caplog.text
    trainer = run(tmp_path, sets=held_out(16), **settings)
    num_positive = int(trainer.eval_dataset.labels.is_positive.sum())
    assert 0 < num_positive < 16
    assert f"has {num_positive} positive rows for all four:" in caplog.text


def test_evaluations_are_read_from_a_log():
    history = [
        {"loss": 1.0, "step": 1},
        {
            "eval_a_drift/quartile_1": 1.0,
            "eval_samples/r": 2.0,
            "eval_samples/r_reference": 1.0,
            "step": 1,
            "epoch": 0.1,
        },
        {"eval_b_drift/quartile_1": 1.2, "eval_samples/variety": 0.75, "step": 1, "epoch": 0.1},
        {"eval_a_drift/quartile_1": 7.0, "step": 1},  # evaluated again, of other weights
        {"eval_loss": 1.0, "step": 3},
    ]
    first, second = read_evaluations(history)
    assert (first.step, first.rewards, first.variety, first.drifts) == (1, {"r": (2.0, 1.0)}, 0.75, {1: 1.2})
    assert (second.step, second.rewards, second.variety, second.drifts) == (3, {}, None, {})
    assert first.rows(Bounds(1.5, 0.7)) == {
        "r, mean over samples": "2 (reference: 1)",
        "variety of samples, as a share of the reference's": "0.75 (bound: 0.7)",
        "largest drift of a quartile of time": "1.2 (bound: 1.5)",
    }
    assert Evaluation(4).rows(Bounds()) == {}


# ---- Runs ----


def test_the_best_is_inside_the_bounds_although_a_later_one_has_more_reward(tmp_path, rewards, free, capsys):
    bound = between(free, 2)
    trainer = run(tmp_path, eval_rewards=rewards["Rising"], max_drift=bound)
    state = trainer.state
    # rewards are 1, 2, 3: the third is outside
    assert logged(trainer, "eval_samples/Rising") == [1, 2, 3]
    assert (state.global_step, state.best_global_step, state.best_metric) == (3, 2, 2)
    trainer.save_model()
    saved, kept = (
        load_file(tmp_path / folder / "pytorch_lora_weights.safetensors") for folder in ("out", "out/checkpoint-2")
    )
    assert_equal(saved, kept)
    said = capsys.readouterr().out
    assert f"The run was ended after update 3: the largest drift is {max(free[2].drifts.values()):.4g}" in said
    assert f"above `max_drift` ({bound:g})" in said
    assert "Kept is checkpoint-2, whose 'samples/Rising' is 2, of 3 updates." in said
    assert str(tmp_path / "out" / "evaluations.png") in said
    assert Image.open(tmp_path / "out" / "evaluations.png").size[0] > 1000
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "After update 2, whose weights these are:" in card
    assert "| Rising, mean over samples | 2 (reference: 0) |" in card
    assert f"| largest drift of a quartile of time | {max(free[1].drifts.values()):.4g} (bound: {bound:g}) |" in card
    assert "](evaluations.png)" in card


def test_bounds_that_are_kept_change_nothing(tmp_path, rewards, free):
    trainer = run(tmp_path, eval_rewards=rewards["Rising"], max_drift=1e6, min_variety=1e-6)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (5, 5)
    measured = [evaluation.metrics for evaluation in read_evaluations(trainer.state.log_history)]
    assert_equal(metrics(measured), metrics([evaluation.metrics for evaluation in free]))


def test_variety_ends_a_run_too(tmp_path):
    settings = {"learning_rate": 0.1, "lr_scheduler_type": "constant"}
    varieties = logged(run(tmp_path / "free", **settings), "eval_samples/variety")
    bound = (varieties[1] + min(1, varieties[0])) / 2
    assert varieties[1] < bound, "the second evaluation is outside"
    trainer = run(tmp_path / "bound", min_variety=bound, **settings)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (2, 1)


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_a_run_without_an_evaluation_inside_the_bounds_is_an_error(tmp_path, free, strategy):
    bound = (1 + max(free[0].drifts.values())) / 2
    trainer = run(tmp_path, start=False, max_drift=bound, save_strategy=strategy)
    for resume in (False, True) if strategy == "steps" else (False,):
        with pytest.raises(
            OutsideBoundsError, match=r"No evaluation was inside the bounds.*update 1.*`max_drift`"
        ) as error:
            trainer.train(resume_from_checkpoint=resume)
        assert "recipe='robust'" in str(error.value)
        assert len(str(error.value)) < 1000
    assert trainer.state.global_step == 1
    assert (tmp_path / "out" / "checkpoint-1").is_dir() == (strategy == "steps")
    assert not (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()


def test_a_run_that_was_never_evaluated_is_an_error(tmp_path):
    with pytest.raises(OutsideBoundsError, match=r"`max_drift` is set, and in 2 updates there was no evaluation"):
        run(tmp_path, max_steps=2, max_drift=2.0, eval_delay=10)


def test_epochs_end_a_run_too(tmp_path):
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}
    free = read_evaluations(run(tmp_path / "free", **epochs).state.log_history)
    first, second, _ = (max(evaluation.drifts.values()) for evaluation in free)
    assert 1 < first < second
    trainer = run(tmp_path / "bound", max_drift=(first + second) / 2, **epochs)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (4, 2)  # an epoch has two updates


@pytest.mark.parametrize("stop", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, rewards, free, stop):
    settings = {"eval_rewards": rewards["redness"], "max_drift": between(free, 3)}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(tmp_path / "cut", callbacks=[StopAt(stop)], **settings)
    cut = run(tmp_path / "cut", start=False, **settings)
    cut.train(resume_from_checkpoint=True)
    assert (whole.state.global_step, cut.state.global_step) == (4, 4)
    assert cut.state.best_global_step == whole.state.best_global_step < 4
    assert_equal(metrics(cut.state.log_history[:-1]), metrics(whole.state.log_history[:-1]))
    assert_equal(trained_weights(cut), trained_weights(whole))


def test_a_run_that_was_ended_does_nothing_more(tmp_path, rewards, free, capsys):
    settings = {"eval_rewards": rewards["redness"], "max_drift": between(free, 2)}
    first = run(tmp_path, **settings)
    capsys.readouterr()
    again = run(tmp_path, start=False, **settings)
    again.train(resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert "Nothing to do: the run was ended after update 3: the largest drift" in said
    assert again.state.global_step == 3
    assert_equal(trained_weights(again), trained_weights(first))
    # with another bound it goes on
    further = run(tmp_path, start=False, **{**settings, "max_drift": 1e6})
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 5
    for folder in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(tmp_path / "out" / folder)
    slower = run(tmp_path, start=False, **{**settings, "learning_rate": 1e-4, "resume_with_changes": True})
    with pytest.raises(ValueError, match=r"The run was ended after update 3.*`learning_rate`.*Set other bounds"):
        slower.train(resume_from_checkpoint=True)


def test_several_data_sets_are_all_held_to_the_bounds(tmp_path, free, rewards):
    bound = between(free, 2)
    sets = {"low": tiny.scored_rows(4, seed=3).map(lambda row: {"score": row["score"] - 100}), "all": held_out(16)}
    trainer = run(tmp_path, sets=sets, eval_rewards=rewards["Rising"], max_drift=bound)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (3, 2)
    assert len(logged(trainer, "eval_samples/Rising")) == 3


def test_a_checkpoint_outside_of_the_bounds_is_not_pushed(tmp_path, free, hub):
    run(tmp_path, max_drift=between(free, 2), push_to_hub=True, hub_model_id="me/mine", hub_always_push=True)
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    pushed = [commit.message for commit in hub.model("me/mine").commits]
    assert pushed == ["Training in progress, step 1", "Training in progress, step 2"]


# ---- Early stopping ----

FALLING = """
import json
from pathlib import Path

class Falling:
    calls = 0

    def __call__(self, prompts, images):
        Falling.calls += 1
        return [float(json.loads(Path(__file__).with_suffix(".json").read_text())[Falling.calls])] * len(prompts)
"""


@pytest.fixture
def scripted(tmp_path):
    def write(values, comment=""):
        path = tmp_path / "scripted.py"
        path.write_text(FALLING + comment)
        path.with_suffix(".json").write_text(json.dumps([0, 0, *values]))
        return [f"{path}:Falling"]

    return write


def test_patience_ends_a_run_by_its_reward(tmp_path, scripted, capsys, caplog):
    sets = {"near": held_out(4, 1), "far": held_out(4, 2)}
    with caplog.at_level(logging.WARNING):
        trainer = run(
            tmp_path,
            sets=sets,
            eval_rewards=scripted([1, 3, 2, 3, 9]),
            early_stopping_patience=2,
            learning_rate=1e-3,
        )
    assert (trainer.state.global_step, trainer.state.best_global_step) == (4, 2)
    assert (
        "The run was ended after update 4: 2 evaluations in a row had no better 'samples/Falling'"
        in capsys.readouterr().out
    )
    assert "early stopping" not in caplog.text


@pytest.mark.parametrize("restore", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_patience_counts_on_after_a_resume(tmp_path, scripted, capsys, restore):
    settings = {"early_stopping_patience": 2, "learning_rate": 1e-3, "eval_on_start": True,
                "restore_callback_states_from_checkpoint": restore}  # fmt: skip
    # the reference; at the start; then updates 1 to 4
    with pytest.raises(Stop):
        run(tmp_path, eval_rewards=scripted([7, 3, 2, 9, 9]), callbacks=[StopAt(3)], **settings)
    # the policy at the start, in the order of calls: policy (1, 2 were made), then update 3
    rest = scripted([8, 1, 1, 9, 9])
    trainer = run(tmp_path, start=False, eval_rewards=rest, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3, "update 2 had less than update 1, and so had update 3"
    capsys.readouterr()
    again = run(tmp_path, start=False, eval_rewards=rest, **settings)
    again.train(resume_from_checkpoint=True)
    assert "Nothing to do: the run was ended after update 3: 2 evaluations in a row" in capsys.readouterr().out


# ---- Going on with other settings ----


def test_the_choice_by_hand():
    drifts, values = [1.1, 1.3, 1.1, 1.2], [5.0, 9.0, 6.0, 6.0]
    found = [
        Evaluation(i + 1, {"eval_r": value, "eval_drift/quartile_1": drift})
        for i, (drift, value) in enumerate(zip(drifts, values, strict=True))
    ]
    kept = [1, 2, 3, 4]
    assert choose(found, "r", True, Bounds(), kept) == Choice(9.0, 2, 2)
    assert choose(found, "eval_r", True, Bounds(max_drift=1.25), kept) == Choice(6.0, 3, 1)
    assert choose(found, "r", True, Bounds(max_drift=1.25), [1, 4]) == Choice(6.0, 4, 0)
    assert choose(found, "r", False, Bounds(), kept) == Choice(5.0, 1, 3)
    assert choose(found, "r", True, Bounds(max_drift=1.05), kept) == Choice()
    assert choose(found, "r", True, Bounds(min_variety=0.5), kept) == Choice(), "which was not measured"
    assert choose(found, "other", True, Bounds(), kept) == Choice()
    undefined = [Evaluation(0, {"eval_r": 9.0}), Evaluation(1, {"eval_r": math.nan}), Evaluation(2, {"eval_r": 1.0})]
    assert choose(undefined[:2], "r", True, Bounds(), kept) == Choice(-math.inf)
    assert choose(undefined, "r", True, Bounds(), kept) == Choice(1.0, 2)


def test_samples_that_were_measured_otherwise_are_not_compared():
    entry = {"eval_samples/r": 1.0, "eval_samples/r_reference": 1.0, "eval_samples/variety": 1.0, "eval_loss": 1.0}
    history = [{**entry, "step": step} for step in (1, 2, 3)]
    way = {"samples/r": "a", "samples/variety": "v"}
    ways = [(0, {**way, "samples/r": "b"}), (1, way), (2, way)]
    names = [set(it.metrics) for it in comparable_evaluations(history, ways)]
    assert names == [{"eval_samples/variety", "eval_loss"}, set(entry), set(entry)]
    assert [set(it.metrics) for it in comparable_evaluations(history, [])] == [set(entry)] * 3


def test_a_tighter_bound_drops_a_best_checkpoint_that_is_outside(tmp_path, rewards, free):
    settings = {"eval_rewards": rewards["Rising"], "learning_rate": DRIFTING["learning_rate"]}
    first = run(tmp_path, max_drift=between(free, 3), **settings)
    assert (first.state.global_step, first.state.best_global_step) == (4, 3)
    again = run(tmp_path, start=False, max_drift=between(free, 1), **settings)
    again.train(resume_from_checkpoint=True)
    assert (again.state.best_global_step, again.state.best_metric, again.kept_step) == (1, 1, 1)
    nothing = run(tmp_path, start=False, max_drift=(1 + max(free[0].drifts.values())) / 2, **settings)
    with pytest.raises(OutsideBoundsError, match="No evaluation was inside the bounds, so that"):
        nothing.train(resume_from_checkpoint=True)
    assert nothing.state.best_metric is None


def test_a_looser_bound_keeps_what_was_outside(tmp_path, rewards, free):
    with pytest.raises(OutsideBoundsError):
        run(tmp_path, eval_rewards=rewards["Rising"], max_drift=(1 + max(free[0].drifts.values())) / 2)
    again = run(tmp_path, start=False, eval_rewards=rewards["Rising"], max_drift=between(free, 1))
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.state.best_global_step, again.kept_step) == (2, 1, 1)


def test_another_metric_chooses_anew(tmp_path, scripted):
    settings = {"learning_rate": 1e-3, "eval_rewards": scripted([1, 3, 2, 3, 9])}
    run(tmp_path, max_steps=3, **settings)
    trainer = run(
        tmp_path, start=False, max_steps=3, metric_for_best_model="loss", early_stopping_patience=9, **settings
    )
    trainer.train(resume_from_checkpoint=True)
    losses = logged(trainer, "eval_loss")[:3]
    best = losses.index(min(losses))
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (losses[best], best + 1)
    assert trainer._early_stopping.early_stopping_patience_counter == 2 - best


OTHERS = {
    "the rewards": ({}, "# another", True),
    "the prompts": ({"eval_prompts": PROMPTS[:1]}, "", True),
    "samples of a prompt": ({"eval_samples_per_prompt": 3}, "", True),
    "denoising steps": ({"sample_num_inference_steps": 1}, "", True),
    "nothing": ({}, "", False),
}


@pytest.mark.parametrize("other", some_slow(OTHERS, {"the prompts", "samples of a prompt", "denoising steps"}))
def test_other_samples_begin_the_best_anew(tmp_path, scripted, capsys, other):
    changed, comment, is_anew = other
    settings = {"learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    run(tmp_path, max_steps=2, eval_rewards=scripted([9, 8]), **settings)
    capsys.readouterr()
    # the policy at update 3, as the reference is measured by the first call
    rest = scripted([1, 1])
    if comment:
        rest = scripted([1, 1], comment)
    trainer = run(tmp_path, start=False, max_steps=3, eval_rewards=rest, **{**settings, **changed})
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == ((3, 1) if is_anew else (1, 9))
    said = "otherwise than before update 3: the best checkpoint is chosen anew" in capsys.readouterr().out
    assert said == is_anew


def test_a_plateau_schedule_follows_the_reward_upwards(tmp_path, rewards):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_rewards": rewards["Rising"], "learning_rate": 1e-3}
    patience = {"patience": 0}
    trainer = run(tmp_path, max_steps=3, lr_scheduler_kwargs=patience, **settings)
    assert logged(trainer, "eval_samples/Rising") == [1, 2, 3]
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3, "it is not cut because the reward rises"
    own = config(tmp_path, **{**DRIFTING, **settings, "lr_scheduler_kwargs": {"mode": "min"}})
    assert own.lr_scheduler_kwargs == {"mode": "min"}
    of_loss = config(tmp_path, **{**DRIFTING, **settings, "metric_for_best_model": "loss"})
    assert not of_loss.lr_scheduler_kwargs


# ---- Refusals ----

ONE = {"eval_rewards": ["clip_score"], "eval_prompts": PROMPTS}
REFUSED = {
    "no list of rewards": ({"eval_rewards": "clip_score"}, "`eval_rewards` is 'clip_score'; it must be a list"),
    "no rewards": ({"eval_rewards": []}, "`eval_rewards` is .*Leave it out"),
    "an unknown reward": ({**ONE, "eval_rewards": ["clipscore"]}, "'clipscore', which is none of .*clip_score"),
    "a file without a function": ({**ONE, "eval_rewards": ["a.py:"]}, "'a.py:', which is none of"),
    "two rewards of a name": ({**ONE, "eval_rewards": ["a.py:r", "b.py:r"]}, "`eval_rewards` has 'r', and metrics"),
    "a reward called variety": ({**ONE, "eval_rewards": ["a.py:variety"]}, "`eval_rewards` has 'variety'"),
    "a reward called like a reference": (
        {**ONE, "eval_rewards": ["a.py:r", "a.py:r_reference"]}, "`eval_rewards` has 'r_reference'",
    ),
    "no list of prompts": ({"eval_prompts": "a cat"}, "`eval_prompts` is 'a cat'; it must be a list"),
    "an empty prompt": ({"eval_prompts": ["a", " "]}, "`eval_prompts` is .*it must be a list of prompts"),
    "no prompts": ({**CHOOSING, "eval_rewards": ["clip_score"]}, "`eval_rewards` is .*no prompts to draw.*`eval_pr"),
    "variety without prompts": ({**CHOOSING, "min_variety": 0.5}, "`min_variety` is 0.5, .*no prompts to draw"),
    "a prompt twice": ({**CHOOSING, "eval_prompts": ["a", "b", "a"]}, "`eval_prompts` has 'a' twice"),
    "a sample prompt twice": (
        {**CHOOSING, "eval_rewards": ["clip_score"], "sample_prompts": ["a", "a"]}, "`sample_prompts` has 'a' twice",
    ),
    "samples without evaluations": (ONE, "`eval_rewards` is .*nothing is evaluated. Set `eval_strategy='steps'`"),
    "samples of nothing": ({"eval_samples_per_prompt": 3}, "`eval_samples_per_prompt` is 3, and .* draw no samples"),
    "no samples": ({**CHOOSING, **ONE, "eval_samples_per_prompt": 0}, "`eval_samples_per_prompt` is 0"),
    "nothing to measure": (
        {**CHOOSING, "eval_prompts": PROMPTS, "eval_samples_per_prompt": 1},
        "`eval_samples_per_prompt` is 1, and there are no `eval_rewards`: nothing would be measured",
    ),
    "variety of one sample": (
        {**CHOOSING, "eval_prompts": PROMPTS, "min_variety": 0.5, "eval_samples_per_prompt": 1},
        "`min_variety` is 0.5, and `eval_samples_per_prompt` is 1",
    ),
    "a drift that no run has": ({**CHOOSING, "max_drift": 1.0}, "`max_drift` is 1.0; it must be above 1"),
    "a variety above the reference's": (
        {**CHOOSING, "eval_prompts": PROMPTS, "min_variety": 1.1}, "`min_variety` is 1.1, a share",
    ),
    "a variety of nothing": ({**CHOOSING, "eval_prompts": PROMPTS, "min_variety": 0.0}, "`min_variety` is 0.0"),
    "drift of sft": ({**CHOOSING, "max_drift": 1.2, "loss_type": "sft"}, "`max_drift` is 1.2, and `loss_type='sft'`"),
    "a bound without evaluations": ({"max_drift": 1.2}, "`max_drift` is 1.2, and nothing is evaluated"),
    "a bound without the best": (
        {"max_drift": 1.2, "eval_strategy": "steps", "eval_steps": 1},
        "`max_drift` is 1.2, and `load_best_model_at_end` is False",
    ),
    "patience without the best": (
        {"early_stopping_patience": 2, "eval_strategy": "steps", "eval_steps": 1},
        "`early_stopping_patience` is 2, and `load_best_model_at_end` is False",
    ),
    "no patience": ({**CHOOSING, "early_stopping_patience": 0}, "`early_stopping_patience` is 0"),
    "a bound without its checkpoints": (
        {**CHOOSING, "max_drift": 1.2, "save_steps": 2}, "`save_steps` is 2 and `eval_steps` 1: the best eval",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        config(tmp_path, **settings)
    assert len(str(error.value)) < 1000


OF_THE_TRAINER = {
    "a metric of no reward": (
        {**CHOOSING, **ONE, "metric_for_best_model": "samples/clipscore"},
        {"eval_dataset": held_out()},
        "'samples/clipscore', and an evaluation has no such metric.*Set it to 'samples/clip_score'",
    ),
    "a reference as the best": (
        {**CHOOSING, **ONE, "metric_for_best_model": "samples/clip_score_reference"},
        {"eval_dataset": {"a": held_out()}},
        "'samples/clip_score_reference', and an evaluation has no such metric",
    ),
    "the variety of one sample": (
        {**CHOOSING, **ONE, "eval_samples_per_prompt": 1, "metric_for_best_model": "samples/variety"},
        {"eval_dataset": held_out()},
        "'samples/variety', and an evaluation has no such metric",
    ),
    "drift without positives": (
        {**CHOOSING, "max_drift": 1.2},
        {"eval_dataset": tiny.scored_rows(4).map(lambda row: {"score": row["score"] - 100})},
        "`max_drift` is 1.2, and `eval_dataset` has no positive row",
    ),
    "no data set": ({**CHOOSING, "max_drift": 1.2}, {"eval_dataset": None}, "there is no `eval_dataset`"),
    "patience twice": (
        {**CHOOSING, "early_stopping_patience": 1},
        {"eval_dataset": held_out(), "callbacks": [EarlyStoppingCallback()]},
        "`early_stopping_patience` is 1, and `callbacks` has an `EarlyStoppingCallback` too",
    ),
}


@pytest.mark.parametrize(("settings", "arguments", "message"), OF_THE_TRAINER.values(), ids=OF_THE_TRAINER)
def test_what_cannot_work_is_refused_when_the_trainer_is_made(tmp_path, settings, arguments, message):
    model = None if "positive" in message else "no/such-model"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_trainer(config(tmp_path, **settings), model=model, **arguments)


def test_a_stream_without_positive_rows_is_named_at_the_first_evaluation(tmp_path):
    low = tiny.scored_rows(4).map(lambda row: {"score": row["score"] - 100}).to_iterable_dataset()
    with pytest.raises(ValueError, match="the evaluation has no `drift/quartile_"):
        run(tmp_path, sets=low, max_drift=1.2)


def test_a_bound_on_the_distance_to_a_moving_reference_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(tmp_path, start=False, max_drift=1.2, sync_ref_model=True)
    assert "`sync_ref_model=True` moves" in caplog.text


# ---- The command ----


@pytest.mark.parametrize("has_best", [True, False])
def test_the_command_ends_well_only_with_a_model_inside_the_bounds(tmp_path, rewards, free, capsys, has_best):
    (tmp_path / "rows").mkdir()
    tiny.stable_diffusion().save_pretrained(tmp_path / "model")
    tiny.scored_rows(8).to_parquet(tmp_path / "rows" / "train.parquet")
    held_out(16).to_parquet(tmp_path / "rows" / "test.parquet")
    first = max(free[0].drifts.values())
    bound = between(free, 2) if has_best else (1 + first) / 2
    settings = {
        **TRAIN, **DRIFTING, "lora_alpha": 8, "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "rows", "output_dir": tmp_path / "out", "encoding_cache_dir": tmp_path / "cache",
        "eval_rewards": rewards["Rising"], "max_drift": bound, "early_stopping_patience": 4, "min_variety": 0.0001,
    }  # fmt: skip
    arguments = ["train"]
    for name, value in settings.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert main(arguments) == (0 if has_best else 1)
    said = capsys.readouterr()
    weights = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    if has_best:
        assert "Kept is checkpoint-2" in said.out
        assert_equal(load_file(weights), load_file(tmp_path / "out" / "checkpoint-2" / weights.name))
        assert json.loads((tmp_path / "out" / "tgo_config.json").read_text())["updates"] == 3
    else:
        assert "error: No evaluation was inside the bounds" in said.err
        assert not weights.exists()
