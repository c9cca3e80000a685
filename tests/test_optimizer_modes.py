"""Optimizers that stand for other weights than those that they take their steps from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from schedulefree import AdamWScheduleFree
from transformers import TrainerCallback

from tgo_trl.families import StableDiffusionFamily

from . import tiny
from .runs import Stop, StopAt, assert_equal, config, make_trainer, trained_weights

pytestmark = pytest.mark.usefixtures("undrawn")


class Doubling(torch.optim.SGD):
    """Stands for twice the weights that it takes its steps from: doubling and halving are exact."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group["train_mode"] = False

    def _move(self, train_mode):
        for group in self.param_groups:
            if group["train_mode"] != train_mode:
                for weight in group["params"]:
                    weight.data.mul_(0.5 if train_mode else 2)
                group["train_mode"] = train_mode

    def train(self):
        self._move(True)

    def eval(self):
        self._move(False)

    def step(self, closure=None):
        assert all(group["train_mode"] for group in self.param_groups)
        return super().step(closure)


def modal_trainer(tmp_path, optimizer=(Doubling, {"lr": 0.1}), **settings):
    names = ("callbacks", "eval_dataset", "family")
    arguments = {name: settings.pop(name) for name in names if name in settings}
    args = config(tmp_path, **{"lr_scheduler_type": "constant", **settings})
    return make_trainer(args, optimizer_cls_and_kwargs=optimizer, **arguments)


class Watch(TrainerCallback):
    """Keeps the weights after every step, as the optimizer takes its steps from them."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {
            name.replace(".default", "").removeprefix("networks."): weight.detach().clone()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }


def saved(folder):
    return load_file(Path(folder) / "pytorch_lora_weights.safetensors")


def doubled(weights):
    return {name: 2 * weight for name, weight in weights.items()}


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_what_is_saved_is_what_the_optimizer_stands_for(tmp_path, save_strategy):
    watch = Watch()
    trainer = modal_trainer(tmp_path, max_steps=3, save_strategy=save_strategy, save_steps=2, callbacks=[watch])
    trainer.train()
    trainer.save_model()
    assert_equal(saved(tmp_path / "out"), doubled(watch.weights[3]))
    settled = {
        name.replace(".default", "").removeprefix("networks."): w for name, w in trained_weights(trainer).items()
    }
    assert_equal(settled, doubled(watch.weights[3]))
    if save_strategy == "steps":
        assert_equal(saved(tmp_path / "out" / "checkpoint-2"), doubled(watch.weights[2]))


def test_to_look_at_the_weights_changes_nothing_of_the_course(tmp_path):
    plain, watched = Watch(), Watch()
    modal_trainer(tmp_path / "plain", max_steps=3, callbacks=[plain]).train()
    looking = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "sample_prompts": ["a cat"], "sample_steps": 1, "sample_num_inference_steps": 1,
    }  # fmt: skip
    held_out = tiny.scored_rows(4, seed=1)
    trainer = modal_trainer(tmp_path / "looking", max_steps=3, eval_dataset=held_out, callbacks=[watched], **looking)
    trainer.train()
    assert_equal(watched.weights, plain.weights)


def test_samples_and_evaluations_are_of_what_the_optimizer_stands_for(tmp_path):
    watch, drawn = Watch(), []

    class Watched(StableDiffusionFamily):
        def sample(self, pipeline, *args, **kwargs):
            drawn.append({n: w.detach().clone() for n, w in pipeline.unet.named_parameters() if "lora" in n})
            return super().sample(pipeline, *args, **kwargs)

    sampled = {"sample_prompts": ["a cat"], "sample_steps": 1, "sample_num_inference_steps": 1}
    trainer = modal_trainer(tmp_path, loss_type="sft", callbacks=[watch], family=Watched(), **sampled)
    trainer.train()
    grids = [
        {f"unet.{n.replace('.default', '')}": w for n, w in weights.items() if ".default." in n} for weights in drawn
    ]
    assert_equal(grids[-1], doubled(watch.weights[2]))
    assert_equal(grids[1], doubled(watch.weights[1]))
    rows = tiny.scored_rows(8, seed=1)
    evaluated = trainer.evaluate(rows)
    trainer.save_model()
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(tmp_path / "out")
    again = make_trainer(config(tmp_path / "again", loss_type="sft"), model=stock).evaluate(rows)
    assert evaluated["eval_loss"] == again["eval_loss"]


def test_the_reference_moves_to_what_the_optimizer_stands_for(tmp_path):
    watch = Watch()
    settings = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 2}
    trainer = modal_trainer(tmp_path, max_steps=3, callbacks=[watch], **settings)
    trainer.train()
    assert_equal(dict(trainer.reference.state()), doubled(watch.weights[2]))


def test_the_best_model_is_the_one_that_was_evaluated(tmp_path):
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3,
        "load_best_model_at_end": True, "metric_for_best_model": "rewards/margins", "greater_is_better": False,
        "sample_prompts": ["a cat"], "sample_num_inference_steps": 1,
    }  # fmt: skip
    trainer = modal_trainer(tmp_path, eval_dataset=tiny.scored_rows(8, seed=1), **settings)
    trainer.train()
    best = saved(trainer.state.best_model_checkpoint)
    trainer.save_model()
    assert_equal(saved(tmp_path / "out"), best)


@pytest.mark.parametrize("optimizer", [(Doubling, {"lr": 0.1}), (AdamWScheduleFree, {"lr": 1e-2})])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, optimizer):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = modal_trainer(tmp_path / "whole", optimizer, **settings)
    whole.train()
    with pytest.raises(Stop):
        modal_trainer(tmp_path / "parts", optimizer, **settings, callbacks=[StopAt(3)]).train()
    resumed = modal_trainer(tmp_path / "parts", optimizer, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))
    whole.save_model()
    resumed.save_model()
    assert_equal(saved(tmp_path / "parts" / "out"), saved(tmp_path / "whole" / "out"))


def test_a_schedule_free_optimizer_saves_its_average(tmp_path):
    trainer = modal_trainer(tmp_path, (AdamWScheduleFree, {"lr": 1e-2}), max_steps=6)
    trainer.train()
    trainer.save_model()
    first = saved(tmp_path / "out")
    trainer.optimizer.eval()  # as its authors ask for before saving
    trainer.save_model()
    assert_equal(saved(tmp_path / "out"), first)
    trainer.optimizer.train()
    stepped_from = {
        name.replace(".default", "").removeprefix("networks."): weight
        for name, weight in trained_weights(trainer).items()
    }
    assert any(not torch.equal(stepped_from[name], weight) for name, weight in first.items())
