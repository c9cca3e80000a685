"""A trainer that climbs a reward's gradient: its runs, its settings, and what it refuses before anything is loaded."""

import json

import pytest
import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline

from tgo_trl import AlignPropConfig, AlignPropTrainer

from . import tiny
from .runs import Stop, StopAt, assert_close, assert_equal, logged, trained_weights

PROMPTS = Dataset.from_dict({"prompt": ["a cat", "two birds", "a red cube", "the sea"]})


class Brightness:
    """Mean of the pixels."""

    name, version, differentiable = "brightness", "1", True

    def score_pixels(self, prompts, pixels):
        return pixels.mean((1, 2, 3))


def settings(folder, **changes):
    defaults = {
        "output_dir": str(folder / "out"),
        "encoding_cache_dir": str(folder / "cache"),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "lora_r": 4,
        "resolution": 16,
        "sample_num_steps": 3,
        "sample_guidance_scale": 2.0,
        "learning_rate": 1e-2,
    }
    return AlignPropConfig(**{**defaults, **changes})


def make_trainer(folder, pipeline=None, reward=None, dataset=PROMPTS, callbacks=None, **changes):
    pipeline = pipeline or tiny.stable_diffusion()
    return AlignPropTrainer(pipeline, reward or Brightness(), settings(folder, **changes), dataset, callbacks=callbacks)


def test_a_reward_is_climbed_and_the_adapter_loads_in_stock_diffusers(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=12)
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.02  # an epoch's two updates
    assert rewards == pytest.approx([-loss for loss in logged(trainer)], abs=1e-4)
    assert all(value > 0 for name in ("reward_std", "variety") for value in logged(trainer, name))
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with reward backpropagation (AlignProp)." in card
    assert "papers/2310.03739" in card
    assert "2605.04653" not in card
    assert "| reward | `brightness`, 1 |" in card
    assert "| steps with a gradient | the last 1 to 3, drawn for each sample |" in card
    record = json.loads((tmp_path / "out" / "tgo_config.json").read_text())
    assert (record["label_rule"], record["temperature"]) == (None, None)
    assert "beta" not in record["config"]
    stock = tiny.stable_diffusion()
    assert type(stock) is StableDiffusionPipeline
    stock.load_lora_weights(tmp_path / "out")
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np", "height": 16, "width": 16}
    ours, theirs, base = (
        pipeline("a cat", generator=torch.Generator().manual_seed(0), **call).images
        for pipeline in (trainer.pipeline, stock, tiny.stable_diffusion())
    )
    assert abs(ours - theirs).max() < 1e-5
    assert theirs.mean() > base.mean() + 0.01


def test_a_run_that_is_cut_goes_on_bit_for_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **saving)
    whole.train()
    with pytest.raises(Stop):
        make_trainer(tmp_path / "cut", callbacks=[StopAt(3)], **saving).train()
    resumed = make_trainer(tmp_path / "cut", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))
    other = make_trainer(tmp_path / "cut", sample_num_steps=2, **saving)
    with pytest.raises(ValueError, match=r"other settings or data: .*samples"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_results_do_not_depend_on_how_an_update_is_laid_out(tmp_path, eta):
    runs = []
    for name, batch, accumulated, recompute in (("one", 4, 1, True), ("two", 2, 2, False)):
        trainer = make_trainer(
            tmp_path / name, max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
            gradient_checkpointing=recompute, optim="sgd", learning_rate=1.0, sample_eta=eta,
        )  # fmt: skip
        trainer.train()
        runs.append((trained_weights(trainer), logged(trainer, "reward"), logged(trainer, "variety")))
    assert_close(runs[0][0], runs[1][0], 1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-6)
    assert runs[0][2] == pytest.approx(runs[1][2], abs=1e-6)
