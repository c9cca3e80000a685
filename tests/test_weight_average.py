"""The average of the weights: by hand, and in runs, where everything that looks at the weights sees it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from schedulefree import AdamWScheduleFree
from torch import nn

from tgo_trl.families import StableDiffusionFamily
from tgo_trl.losses import LOSSES
from tgo_trl.trainer import checkpoints
from tgo_trl.trainer.weight_average import WeightAverage

from . import tiny
from .marks import some_slow
from .runs import Stop, StopAt, assert_equal, config, logged, make_trainer, metrics, trained_weights
from .test_losses import KTO
from .test_nonfinite import order_of, poisoned
from .test_optimizer_modes import Watch, saved

pytestmark = pytest.mark.usefixtures("undrawn")

DECAY = 0.3
STEPS = {"save_strategy": "steps", "save_steps": 2}
LOOKING = {
    **STEPS, "eval_strategy": "steps", "eval_steps": 2, "sample_prompts": ["a cat"], "sample_steps": 1,
    "sample_num_inference_steps": 1,
}  # fmt: skip
"""A run whose weights are looked at after every update, and in two ways after every second one."""


def averaged_trainer(tmp_path, *, ema_decay=DECAY, **settings):
    names = ("callbacks", "eval_dataset", "train_dataset", "family")
    arguments = {name: settings.pop(name) for name in names if name in settings}
    args = config(tmp_path, ema_decay=ema_decay, **{"lr_scheduler_type": "constant", **settings})
    return make_trainer(args, **arguments)


def average_of(updates, decay=DECAY):
    """Of the raw weights after each update, by names: the shares that all of them have in it, summed up in float64.

    The share of one is `1 - d` at its update, times `d` at each later one.
    """
    decays = [min(decay, n / (n + 9)) if n > 1 else 0.0 for n in range(1, len(updates) + 1)]
    shares = [1 - d for d in decays]
    for i, d in enumerate(decays):
        shares[:i] = [share * d for share in shares[:i]]
    assert sum(shares) == pytest.approx(1)
    return {
        name: sum(share * weights[name].double() for share, weights in zip(shares, updates, strict=True))
        for name in updates[0]
    }


def assert_average(actual, watch, updates, decay=DECAY):
    expected = average_of([watch.weights[n] for n in updates], decay)
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name].double(), weight, rtol=1e-5, atol=1e-7)
    raw = watch.weights[updates[-1]]
    assert max((actual[name] - raw[name]).abs().max() for name in raw) > 1e-4, "the average is not the raw weights"


def named(weights):
    """As an adapter is saved."""
    return {name.replace(".default", "").removeprefix("networks."): weight for name, weight in weights.items()}


# ---- The average itself ----


def test_the_average_by_hand():
    weight = nn.Parameter(torch.tensor([8.0]))
    average = WeightAverage([weight], decay=0.25, finish=lambda: None)
    seen = []
    for value in (1.0, 12.0, 9.0, 5.0, 21.0):
        weight.data.fill_(value)
        average.update()
        average.eval()
        seen.append(weight.item())
        average.train()
        assert weight.item() == value
    # d is 0 after the first update, 2 / 11 after the second, and then 0.25: 3 / 12 and 4 / 13 are no less.
    expected = [1.0, 1 * 2 / 11 + 12 * 9 / 11, 9.25, 6.0625, 17.265625]
    assert seen == pytest.approx(expected)
    assert average.num_updates == 5


def test_it_begins_with_the_weights_and_goes_on_counting():
    weight = nn.Parameter(torch.tensor([4.0]))
    average = WeightAverage([weight], decay=0.9, finish=lambda: None, num_updates=1)
    weight.data.fill_(15.0)
    average.update()
    average.eval()
    assert weight.item() == pytest.approx(4 * 2 / 11 + 15 * 9 / 11)
    with average.raw():
        assert weight.item() == 15
    assert weight.item() == pytest.approx(13)


def test_to_look_at_it_twice_is_to_look_once_and_the_last_update_is_finished_first():
    weight, calls, held = nn.Parameter(torch.tensor([1.0])), [], []
    average = WeightAverage(
        [weight], 0.9, finish=lambda: calls.append(average.update()), release=lambda: held.append(weight.item())
    )
    weight.data.fill_(3.0)
    average.eval()
    average.eval()
    assert (weight.item(), len(calls)) == (3, 1)
    average.train()
    average.train()
    assert (weight.item(), average.num_updates) == (3, 1)
    weight.data.fill_(14.0)
    average.eval()
    assert weight.item() == pytest.approx(3 * 2 / 11 + 14 * 9 / 11)
    average.train()
    assert weight.item() == 14
    # what is gathered is let go before each change: of the raw ones, and of the average
    assert held == pytest.approx([3, 3, 14, 12])


def test_each_tensor_keeps_its_dtype():
    """A frozen part in bfloat16 is not averaged, and trained parts of several dtypes are, each in its own."""
    weights = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    average = WeightAverage(weights, decay=0.5, finish=lambda: None)
    for value in (2.0, 13.0):
        for weight in weights:
            weight.data.fill_(value)
        average.update()
    average.eval()
    assert [weight.dtype for weight in weights] == [torch.float32, torch.bfloat16, torch.float64]
    for weight in weights:
        torch.testing.assert_close(weight.detach().double(), torch.full((2,), 11.0).double(), rtol=1e-2, atol=0)
    assert weights[2][0].item() == pytest.approx(2 * 2 / 11 + 13 * 9 / 11, rel=1e-15)


# ---- In a run ----

RUNS = {
    "lora": {},
    "all weights": {"use_peft": False, "learning_rate": 1e-3},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "bfloat16": {"bf16": True},
    "a statistic of the update": {"loss_type": "kto"},
}


@dataclass(frozen=True)
class Counting(KTO):
    """Of which every row counts its policy's error, before the update's first step."""

    def row_statistic(self, errors):
        return errors.policy.mean(0)


@pytest.mark.parametrize("settings", some_slow(RUNS, {"accumulated", "bfloat16", "a statistic of the update"}))
def test_what_is_left_is_the_average_and_training_is_of_the_raw_weights(tmp_path, settings, monkeypatch):
    monkeypatch.setitem(LOSSES, "kto", Counting)
    plain, watch = Watch(), Watch()
    averaged_trainer(tmp_path / "plain", ema_decay=None, max_steps=4, callbacks=[plain], **settings).train()
    rows = tiny.scored_rows(4, seed=1)
    trainer = averaged_trainer(tmp_path, max_steps=4, callbacks=[watch], eval_dataset=rows, **LOOKING, **settings)
    trainer.train()
    assert_equal(watch.weights, plain.weights)  # to average and to look change nothing of the course
    left = named(trained_weights(trainer))
    assert {weight.dtype for weight in left.values()} == {torch.float32}
    assert_average(left, watch, [1, 2, 3, 4])
    evaluated = trainer.evaluate()
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-2:]
    assert evaluated["eval_loss"] == last[0]["eval_loss"] == last[1]["eval_loss"]


def test_what_is_saved_is_the_average_and_stock_diffusers_loads_it(tmp_path):
    watch = Watch()
    trainer = averaged_trainer(tmp_path, max_steps=3, callbacks=[watch], **STEPS)
    trainer.train()
    trainer.save_model()
    out, checkpoint = tmp_path / "out", tmp_path / "out" / "checkpoint-2"
    assert_average(saved(out), watch, [1, 2, 3])
    assert_average(saved(checkpoint), watch, [1, 2])
    assert_equal(saved(checkpoint / "raw_weights"), watch.weights[2])
    assert not (out / "raw_weights").exists()
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(out)
    loaded = {f"unet.{n.replace('.default_0', '')}": w for n, w in stock.unet.named_parameters() if "lora" in n}
    assert_equal({name: loaded[name].data for name in saved(out)}, saved(out))


def test_all_weights_are_saved_averaged_and_stock_diffusers_loads_them(tmp_path):
    watch = Watch()
    settings = {"use_peft": False, "learning_rate": 1e-3, "max_steps": 3}
    trainer = averaged_trainer(tmp_path, callbacks=[watch], **STEPS, **settings)
    trainer.train()
    trainer.save_model()
    stock = type(trainer.pipeline).from_pretrained(tmp_path / "out")
    assert_average({f"unet.{n}": w.detach() for n, w in stock.unet.named_parameters()}, watch, [1, 2, 3])
    raw = tmp_path / "out" / "checkpoint-2" / "raw_weights" / "unet" / "diffusion_pytorch_model.safetensors"
    assert_equal({f"unet.{name}": weight for name, weight in load_file(raw).items()}, watch.weights[2])


def test_samples_are_drawn_from_the_average(tmp_path):
    watch, drawn = Watch(), []

    class Watched(StableDiffusionFamily):
        def sample(self, pipeline, *args, **kwargs):
            drawn.append({n: w.detach().clone() for n, w in pipeline.unet.named_parameters() if ".default." in n})
            return super().sample(pipeline, *args, **kwargs)

    sampled = {"sample_prompts": ["a cat"], "sample_steps": 2, "sample_num_inference_steps": 1}
    trainer = averaged_trainer(tmp_path, max_steps=3, callbacks=[watch], family=Watched(), **sampled)
    trainer.train()
    trainer.sample(["a cat"], [0], num_inference_steps=1)
    grids = [{f"unet.{n.replace('.default', '')}": w for n, w in weights.items()} for weights in drawn]
    # each grid has a row of the reference and one of the policy
    assert_average(grids[1], watch, [1, 2])
    assert_average(grids[3], watch, [1, 2, 3])
    assert_equal(grids[4], grids[3])


def test_the_reference_moves_to_the_average(tmp_path):
    watch = Watch()
    settings = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 2}
    trainer = averaged_trainer(tmp_path, max_steps=3, callbacks=[watch], **settings)
    trainer.train()
    assert_average(dict(trainer.reference.state()), watch, [1, 2])


def test_the_best_model_is_the_average_that_was_evaluated(tmp_path):
    settings = {
        **LOOKING, "eval_steps": 1, "save_steps": 1, "max_steps": 4, "load_best_model_at_end": True,
        "metric_for_best_model": "rewards/margins", "greater_is_better": True, "learning_rate": 0.1,
    }  # fmt: skip
    rows = tiny.scored_rows(8, seed=1)
    watch = Watch()
    trainer = averaged_trainer(tmp_path, eval_dataset=rows, callbacks=[watch], **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    step = checkpoints.checkpoint_step(best)
    assert 1 < step < 4, "or the test says little"
    assert_average(saved(best), watch, range(1, step + 1))
    trainer.save_model()
    assert_equal(saved(tmp_path / "out"), saved(best))
    assert trainer.evaluate()["eval_rewards/margins"] == trainer.state.best_metric


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
@pytest.mark.parametrize("looking", [{}, {**LOOKING, "eval_strategy": "no", "save_steps": 1}], ids=["", "looked at"])
def test_an_update_that_is_left_out_does_not_count(tmp_path, optim, looking):
    settings = {"max_steps": 4, "optim": optim, "lr_scheduler_type": "constant", "on_bad_row": "skip", **looking}
    rows = order_of(max_steps=4)
    watch = Watch()
    trainer = poisoned(tmp_path / "skip", {2: rows[2][:1]}, ema_decay=DECAY, **settings)
    trainer.add_callback(watch)
    trainer.train()
    assert_equal(watch.weights[2], watch.weights[1])
    assert trainer.optimizer_mode.average.num_updates == 3
    assert_average(named(trained_weights(trainer)), watch, [1, 3, 4])


def test_a_second_training_averages_anew(tmp_path):
    trainer = averaged_trainer(tmp_path, max_steps=3)
    trainer.train()
    left = trained_weights(trainer)
    watch = Watch()
    trainer.add_callback(watch)
    trainer.args.learning_rate = 0.0  # a step from the average is then none
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.0
    trainer.train()
    assert_equal(watch.weights[3], named(left))


# ---- Going on ----

RESUMES = {
    "lora": {"max_steps": 4},
    "looked at": {"max_steps": 5, **LOOKING},
    "all weights, reference moved": {
        "max_steps": 4, "use_peft": False, "learning_rate": 1e-3, "sync_ref_model": True, "ref_model_sync_steps": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", some_slow(RESUMES, {"lora"}))
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings):
    settings = {**STEPS, **settings}
    rows = tiny.scored_rows(8, seed=1)
    whole = averaged_trainer(tmp_path / "whole", eval_dataset=rows, **settings)
    whole.train()
    with pytest.raises(Stop):
        averaged_trainer(tmp_path / "cut", eval_dataset=rows, **settings, callbacks=[StopAt(3)]).train()
    resumed = averaged_trainer(tmp_path / "cut", eval_dataset=rows, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 2
    assert_equal(trained_weights(resumed), trained_weights(whole))
    assert_equal(resumed.reference.state(), whole.reference.state())
    steps = [[entry for entry in run.state.log_history if entry.keys() & {"loss", "eval_loss"}]
             for run in (whole, resumed)]  # fmt: skip
    assert_equal(metrics(steps[1]), metrics(steps[0]))
    folders = [tmp_path / name / "out" / "checkpoint-4" for name in ("cut", "whole")]
    for path in folders[1].rglob("*.safetensors"):
        assert_equal(load_file(folders[0] / path.relative_to(folders[1])), load_file(path))
    assert_equal(*(json.loads((folder / "tgo_config.json").read_text()) for folder in folders))
    assert json.loads((folders[0] / "tgo_config.json").read_text())["averaged_updates"] == 4


def test_a_run_that_is_at_its_end_has_the_average(tmp_path):
    first = averaged_trainer(tmp_path, max_steps=4, **STEPS)
    first.train()
    again = averaged_trainer(tmp_path, max_steps=4, **STEPS)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert_equal(trained_weights(again), trained_weights(first))


def test_a_checkpoint_without_an_average_is_refused_or_begins_one(tmp_path):
    watch = Watch()
    averaged_trainer(tmp_path, ema_decay=None, max_steps=4, **STEPS).train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"of a run with other settings or data: `ema_decay` was None, is 0\.3"):
        averaged_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    trainer = averaged_trainer(tmp_path, max_steps=5, resume_with_changes=True, callbacks=[watch])
    trainer.train(resume_from_checkpoint=True)
    assert_average(named(trained_weights(trainer)), watch, [3, 4, 5])
    assert "from update 3 on: `ema_decay` was None" in trainer.hyperparameters()["changed on the way"]


def test_a_run_whose_average_is_taken_off_goes_on_from_the_raw_weights(tmp_path):
    averaged_trainer(tmp_path, max_steps=2, **STEPS).train()
    rest = averaged_trainer(tmp_path, ema_decay=None, max_steps=4, resume_with_changes=True)
    rest.train(resume_from_checkpoint=True)
    plain = averaged_trainer(tmp_path / "plain", ema_decay=None, max_steps=4)
    plain.train()
    assert_equal(trained_weights(rest), trained_weights(plain))


def test_raw_weights_of_an_earlier_run_are_not_taken(tmp_path):
    """A run without an average that saves over the checkpoints of one with it."""
    averaged_trainer(tmp_path, max_steps=2, **STEPS).train()
    averaged_trainer(tmp_path, ema_decay=None, max_steps=2, learning_rate=1e-3, **STEPS).train()
    rest = averaged_trainer(tmp_path, ema_decay=None, max_steps=4, learning_rate=1e-3)
    rest.train(resume_from_checkpoint=True)
    plain = averaged_trainer(tmp_path / "plain", ema_decay=None, max_steps=4, learning_rate=1e-3)
    plain.train()
    assert_equal(trained_weights(rest), trained_weights(plain))


def test_a_checkpoint_of_the_model_alone_has_the_average_alone(tmp_path):
    watch = Watch()
    averaged_trainer(tmp_path, max_steps=2, save_only_model=True, callbacks=[watch], **STEPS).train()
    folder = tmp_path / "out" / "checkpoint-2"
    assert_average(saved(folder), watch, [1, 2])
    assert not (folder / "raw_weights").exists()
    with pytest.raises(ValueError, match="holds no state of the optimizer"):
        averaged_trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)


# ---- Off, and refused ----


def _names_in(path):
    values = json.loads(path.read_text())
    return {*values, *values["config"], *values["course"]["settings"]}


def test_without_it_nothing_is_kept_or_written(tmp_path, monkeypatch):
    def step(*args):
        raise AssertionError

    monkeypatch.setattr(EMAModel, "step", step)
    trainer = averaged_trainer(tmp_path, ema_decay=None, **STEPS)
    trainer.train()
    assert trainer.optimizer_mode.average is None
    assert not (tmp_path / "out" / "checkpoint-2" / "raw_weights").exists()
    assert not {"ema_decay", "averaged_updates"} & _names_in(tmp_path / "out" / "checkpoint-2" / "tgo_config.json")
    assert not any("EMA" in name for name in trainer.hyperparameters())
    assert all(loss > 0 for loss in logged(trainer))


def test_the_card_tells_of_it(tmp_path):
    assert averaged_trainer(tmp_path, ema_decay=0.999).hyperparameters()["EMA of the weights"] == "decay 0.999"


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_decay_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"`ema_decay` is .*; it must be between 0 and 1.*Leave it out for no average"):
        config(tmp_path, ema_decay=value)


def test_two_averages_are_refused(tmp_path):
    message = r"`ema_decay` is 0.3, and AdamWScheduleFree stands for an average of its own.*Leave `ema_decay` out"
    args = config(tmp_path, ema_decay=DECAY)
    with pytest.raises(ValueError, match=message):
        make_trainer(args, model="nowhere", optimizer_cls_and_kwargs=(AdamWScheduleFree, {"lr": 1e-2}))
    with pytest.raises(ValueError, match=message):
        make_trainer(args, model="nowhere", optimizers=(AdamWScheduleFree([nn.Parameter(torch.ones(1))]), None))
    with pytest.raises(ValueError, match=message):
        make_trainer(config(tmp_path, ema_decay=DECAY, optim="schedule_free_adamw"), model="nowhere")
