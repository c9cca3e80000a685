"""The two floors under `TGOTrainer` know no loss: a trainer that climbs a reward's gradient stands on them as well."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.utils.data import Dataset

from tgo_trl.data.collator import RowCollator
from tgo_trl.data.sampler import RowSampler, padding_like
from tgo_trl.policy.draws import draw_rows
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.trainer.arguments import training_dtype
from tgo_trl.trainer.base_trainer import BaseTrainer
from tgo_trl.trainer.nonfinite import UpdateGuard

from . import tiny
from .runs import Stop, StopAt, assert_equal, config, logged, trained_weights

PROMPTS = ["a cat", "two birds", "a red cube", "the sea"]


class Prompts(Dataset):
    """Rows of a prompt, for a trainer without images and scores."""

    def __len__(self):
        return len(PROMPTS)

    def __getitem__(self, index):
        epoch, position = index
        row = position if position >= 0 else padding_like(position)
        return {"row": row, "epoch": epoch, "valid": position >= 0, "prompt_text": PROMPTS[row]}


class BrightnessTrainer(BaseTrainer):
    """Makes images brighter: the gradient of a reward, through the decoder and one step of denoising."""

    loss_is_scaled_for_ga = True
    method = "the gradient of their brightness"

    def __init__(self, model, args, callbacks=None):
        dtype = training_dtype(args)
        self._open_repository(args)
        self._load_pipeline(model, args, dtype, None, None, None)
        self.encoders = FrozenEncoders(self.family, self.pipeline, args.device, dtype)
        policy, was_trained = self._build_policy(args, dtype, None, None, needs_reference=False)
        self._course = self._describe_course(policy, was_trained, args, {"reward": "brightness"}, "four prompts")
        self._prepare_run(args)
        super().__init__(
            model=policy, args=args, train_dataset=Prompts(), data_collator=RowCollator(), callbacks=callbacks
        )
        self._guard = UpdateGuard(self.accelerator, skip=False)
        self._add_own_callbacks()

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["row", "epoch", "valid", "prompt_text"]

    def _get_train_sampler(self, train_dataset=None):
        self._row_sampler = RowSampler(len(self.train_dataset), self.args.seed)
        return self._row_sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.encoders.summon()
        rows = inputs["row"]  # with the same noise in every epoch
        noise = draw_rows(self.args.seed, [0] * len(rows), rows, (4, 8, 8), 1, inputs["valid"].device).noise
        conditions = self.encoders.prompts(inputs["prompt_text"])
        process = self.denoiser.noise_process
        time = process.time(torch.full((len(noise),), 0.5))
        signal, spread = process._coefficients(noise, time)
        latents = (noise - spread * model(noise, time, conditions)) / signal
        reward = self.pipeline.vae.decode(latents, return_dict=False)[0].mean((1, 2, 3))
        self._guard.add(rows, -reward, inputs["valid"])
        loss = -reward.where(inputs["valid"], 0).sum() / num_items_in_batch
        return (loss, None) if return_outputs else loss


def settings(folder, **changes):
    return config(folder, **{"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **changes})


def test_a_reward_is_climbed_and_the_adapter_loads_in_stock_diffusers(tmp_path):
    trainer = BrightnessTrainer(tiny.stable_diffusion(), settings(tmp_path, max_steps=16, learning_rate=1e-2))
    trainer.train()
    losses = logged(trainer)
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.01  # an epoch's two updates
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with the gradient of their brightness." in card
    assert "## Scores" not in card
    record = json.loads((tmp_path / "out" / "tgo_config.json").read_text())
    assert (record["label_rule"], record["temperature"]) == (None, None)
    stock = tiny.stable_diffusion()
    assert type(stock) is StableDiffusionPipeline
    stock.load_lora_weights(tmp_path / "out")
    call = {"num_inference_steps": 2, "output_type": "np", "height": 16, "width": 16}
    ours = trainer.pipeline("a cat", generator=torch.Generator().manual_seed(0), **call).images
    theirs = stock("a cat", generator=torch.Generator().manual_seed(0), **call).images
    assert abs(ours - theirs).max() < 1e-5
    base = tiny.stable_diffusion()("a cat", generator=torch.Generator().manual_seed(0), **call).images
    assert abs(ours - base).max() > 1e-5


def test_a_run_that_is_cut_goes_on_bit_for_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = BrightnessTrainer(tiny.stable_diffusion(), settings(tmp_path / "whole", **saving))
    whole.train()
    with pytest.raises(Stop):
        BrightnessTrainer(tiny.stable_diffusion(), settings(tmp_path / "cut", **saving), [StopAt(3)]).train()
    resumed = BrightnessTrainer(tiny.stable_diffusion(), settings(tmp_path / "cut", **saving))
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))


def test_samples_stand_beside_those_of_before(tmp_path):
    trainer = BrightnessTrainer(tiny.stable_diffusion(), settings(tmp_path, sample_prompts=["a cat"], sample_steps=2))
    trainer.train()
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 2
    with pytest.raises(ValueError, match="There is no reference to synchronise"):
        trainer.sync_reference(1.0)
