"""The trainer against the same training written out in plain PyTorch, on diffusers' and transformers' public parts."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from tgo_trl.policy.draws import draw_rows
from tgo_trl.policy.errors import row_errors

from . import tiny
from .runs import config, first_log, logged, make_trainer, trained_weights

SEED = 42  # the default of TrainingArguments
TEMPERATURE = 0.001 * 16384 / 256  # the paper's, moved from its latents to ours of 4 x 8 x 8
SEQUENTIAL = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


class PlainTraining:
    """TGO without this package, but for the noise, which is part of what is compared."""

    def __init__(self, data, prediction_type="epsilon", num_samples=1):
        self.data, self.prediction_type, self.num_samples = data, prediction_type, num_samples
        self.pipeline = tiny.stable_diffusion(prediction_type)
        scores = torch.tensor(data["score"])
        # Scores are 0, 1, ..., n - 1: their median lies in the middle.
        threshold = (len(data) - 1) / 2
        self.is_positive = scores >= threshold
        self.weight = 1 + 5 * (scores - threshold).abs()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas = torch.cumprod(1 - betas, 0)

    @torch.no_grad()
    def inputs(self, rows, epoch):
        pictures = [np.array(self.data[row]["image"], dtype=np.float32) for row in rows]
        pixels = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1 for picture in pictures])
        posterior = self.pipeline.vae.encode(pixels).latent_dist
        prompts = [self.data[row]["prompt"] for row in rows]
        tokens = self.pipeline.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        embeds = self.pipeline.text_encoder(tokens).last_hidden_state
        k = self.num_samples
        draw = draw_rows(SEED, [epoch] * len(rows), rows, (4, 8, 8), k, torch.device("cpu"))
        clean = posterior.mean.repeat(k, 1, 1, 1) + posterior.std.repeat(k, 1, 1, 1) * draw.posterior_noise
        time = (draw.quantile.double() * 1000).long()
        return clean * self.pipeline.vae.config.scaling_factor, draw.noise, time, embeds.repeat(k, 1, 1)

    def errors(self, unet, clean, noise, time, embeds):
        alpha = self.alphas[time][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = noise if self.prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        squares = (unet(noisy, time, encoder_hidden_states=embeds).sample - target) ** 2
        return squares.mean((1, 2, 3)).reshape(self.num_samples, -1).mean(0)

    def rewards(self, unet, reference, rows, epoch=0):
        inputs = self.inputs(rows, epoch)
        with torch.no_grad():
            reference_errors = self.errors(reference, *inputs)
        return (reference_errors - self.errors(unet, *inputs)) / TEMPERATURE

    def loss(self, unet, reference, rows, epoch=0):
        reward = self.rewards(unet, reference, rows, epoch)
        sign = self.is_positive[rows] * 2.0 - 1
        return (self.weight[rows] * softplus(-sign * reward)).mean()


class GradientRecorder(TrainerCallback):
    """Keeps the gradient of every parameter that has one, update by update."""

    def __init__(self):
        self.updates = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.named_parameters()
        self.updates.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})


def with_trained_adapter(pipeline, name="mine"):
    """The pipeline with an adapter whose two factors are both far from zero."""
    torch.manual_seed(7)
    pipeline.unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_v"]), adapter_name=name)
    with torch.no_grad():
        for key, weight in pipeline.unet.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.3)
    return pipeline


@pytest.mark.parametrize(
    ("prediction_type", "num_samples"),
    [("epsilon", 1), ("v_prediction", 1), ("epsilon", 3)],
)
def test_four_updates_equal_plain_pytorch(tmp_path, prediction_type, num_samples):
    data = tiny.scored_rows(8)
    plain = PlainTraining(data, prediction_type, num_samples)
    recorder = GradientRecorder()
    args = config(tmp_path, max_steps=4, num_likelihood_samples=num_samples, **SEQUENTIAL)
    pipeline = tiny.stable_diffusion(prediction_type)
    trainer = make_trainer(args, model=pipeline, train_dataset=data, callbacks=[recorder])
    unet = copy.deepcopy(pipeline.unet)
    trainer.train()

    parameters = {f"networks.unet.{name}": weight for name, weight in unet.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0)
    schedule = [(range(4), 0), (range(4, 8), 0), (range(4), 1), (range(4, 8), 1)]
    for update, (rows, epoch) in enumerate(schedule):
        loss = plain.loss(unet, plain.pipeline.unet, list(rows), epoch)
        assert logged(trainer)[update] == pytest.approx(loss.item(), rel=1e-4)
        loss.backward()
        assert recorder.updates[update].keys() == parameters.keys()
        for name, weight in parameters.items():
            torch.testing.assert_close(recorder.updates[update][name], weight.grad, rtol=1e-3, atol=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    # Adam divides by the size of the gradient, so that rounding moves weights whose gradient is near zero.
    differences = [(weight - trained_weights(trainer)[name]).abs().max() for name, weight in parameters.items()]
    assert max(differences) < 1e-3
    rewards = logged(trainer, "rewards/margins")
    assert rewards[0] == 0
    assert abs(rewards[-1]) > 1e-2, "later updates must test rewards other than zero"


def test_metrics_are_the_means_of_plain_pytorch(tmp_path):
    data = tiny.scored_rows(8)
    plain = PlainTraining(data)
    pipeline = with_trained_adapter(tiny.stable_diffusion())
    reference = copy.deepcopy(pipeline.unet)
    trainer = make_trainer(config(tmp_path, max_steps=1, **SEQUENTIAL), model=pipeline, train_dataset=data)
    with torch.no_grad():
        for name, weight in trainer.policy.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 if "lora_B" in name else 0.02)
    unet = copy.deepcopy(pipeline.unet)
    unet.set_adapter("mine")
    trainer.train()

    rows = [0, 1, 2, 3]
    with torch.no_grad():
        reward = plain.rewards(unet, reference, rows)
        clean, noise, time, embeds = plain.inputs(rows, 0)
        likelihood = -plain.errors(unet, clean, noise, time, embeds) / TEMPERATURE
        alpha = plain.alphas[time][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        told = [network(noisy, time, encoder_hidden_states=embeds).sample for network in (unet, reference)]
    positive = plain.is_positive[rows]
    assert positive.any()
    assert not positive.all()
    first = first_log(trainer)
    expected = {
        "rewards/chosen": reward[positive].mean(),
        "rewards/rejected": reward[~positive].mean(),
        "rewards/margins": reward[positive].mean() - reward[~positive].mean(),
        "rewards/accuracies": ((reward > 0) == positive).float().mean(),
        "rewards/displaced": (reward[positive] < 0).float().mean(),
        "prediction_difference": ((told[0] - told[1]) ** 2).mean(),
        "weights/balance": plain.weight[rows][~positive].sum() / plain.weight[rows][positive].sum(),
        "logps/chosen": likelihood[positive].mean(),
        "logps/rejected": likelihood[~positive].mean(),
        "saturation/chosen": reward[positive].sigmoid().mean(),
        "saturation/rejected": (-reward[~positive]).sigmoid().mean(),
    }
    for name, value in expected.items():
        assert first[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name


FIRST_STEPS = {
    "lora": {},
    "lora in bfloat16": {"bf16": True},
    "trained adapter": {"adapter": True},
    "trained adapter in bfloat16": {"adapter": True, "bf16": True},
    "moving reference": {"sync_ref_model": True},
    "full": {"use_peft": False},
    "full in bfloat16": {"use_peft": False, "bf16": True},
    "v-prediction": {"prediction_type": "v_prediction"},
    "three draws": {"num_likelihood_samples": 3},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "dropout in the network": {"dropout": 0.5},
}


@pytest.mark.parametrize("settings", FIRST_STEPS.values(), ids=FIRST_STEPS)
def test_first_loss_is_ln_2_times_the_mean_weight(tmp_path, settings):
    settings = dict(settings)
    unet_kwargs = {"dropout": settings.pop("dropout")} if "dropout" in settings else {}
    pipeline = tiny.stable_diffusion(settings.pop("prediction_type", "epsilon"), **unet_kwargs)
    if settings.pop("adapter", False):
        pipeline = with_trained_adapter(pipeline)
    args = config(tmp_path, max_steps=1, per_device_train_batch_size=8, **settings)
    trainer = make_trainer(args, model=pipeline)
    trainer.train()
    # |s - 3.5| over the scores 0 to 7 is 2 on average, so the mean weight is 1 + 5 * 2.
    first = first_log(trainer)
    assert first["loss"] == pytest.approx(math.log(2) * 11, rel=1e-6)
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0
    assert first["saturation/chosen"] == first["saturation/rejected"] == 0.5
    assert first["prediction_difference"] == first["rewards/displaced"] == 0
    assert {value for name, value in first.items() if name.startswith("drift/")} == {1.0}
    assert first["weights/balance"] == 1
    assert first["grad_norm"] > 0


def test_first_loss_with_a_reference_model_of_equal_weights(tmp_path):
    for reference in (tiny.stable_diffusion(), tiny.stable_diffusion().unet):
        trainer = make_trainer(config(tmp_path, max_steps=1, per_device_train_batch_size=8), ref_model=reference)
        trainer.train()
        assert logged(trainer) == pytest.approx([math.log(2) * 11], rel=1e-6)
        assert logged(trainer, "rewards/margins") == [0]


def test_a_reference_model_of_other_weights_gives_other_rewards(tmp_path):
    data = tiny.scored_rows(8)
    other = tiny.stable_diffusion(seed=5)
    plain = PlainTraining(data)
    args = config(tmp_path, max_steps=1, **SEQUENTIAL)
    trainer = make_trainer(args, train_dataset=data, ref_model=copy.deepcopy(other))
    trainer.train()
    expected = plain.loss(plain.pipeline.unet, other.unet, [0, 1, 2, 3]).item()
    assert abs(expected - math.log(2) * plain.weight[:4].mean().item()) > 1e-2
    assert logged(trainer)[0] == pytest.approx(expected, rel=1e-4)


def test_a_ragged_update_is_the_mean_over_its_rows(tmp_path):
    data = tiny.scored_rows(11)
    args = config(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4, **SEQUENTIAL)
    trainer = make_trainer(args, train_dataset=data)
    plain = PlainTraining(data)
    trainer.train()
    # 8 rows, then the 3 that are left, in micro-batches of 2 and 1.
    first = math.log(2) * plain.weight[:8].mean().item()
    assert logged(trainer)[0] == pytest.approx(first, rel=1e-5)
    # One small update later, the loss is still near ln 2 * mean(w) of these 3 rows, and far from a mean of means.
    slow = config(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4,
                  **{**SEQUENTIAL, "learning_rate": 1e-9})  # fmt: skip
    trainer = make_trainer(slow, train_dataset=data)
    trainer.train()
    second = math.log(2) * plain.weight[8:].mean().item()
    assert abs(second - math.log(2) * (plain.weight[8:10].mean() + plain.weight[10]).item() / 2) > 0.1
    assert logged(trainer)[1] == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("adapter", [False, True])
def test_only_the_adapter_gets_gradient(tmp_path, adapter):
    pipeline = tiny.stable_diffusion()
    if adapter:
        pipeline = with_trained_adapter(pipeline)
    frozen = {key: value.clone() for key, value in tiny.stable_diffusion().unet.state_dict().items()}
    recorder = GradientRecorder()
    trainer = make_trainer(config(tmp_path), model=pipeline, callbacks=[recorder])
    name = "mine" if adapter else "default"
    reference = trainer.reference.state()
    trainer.train()
    for gradients in recorder.updates:
        assert gradients
        assert all(f".lora_A.{name}." in key or f".lora_B.{name}." in key for key in gradients)
        assert all(gradient.abs().max() > 0 for key, gradient in gradients.items() if "lora_B" in key)
    for part in (pipeline.vae, pipeline.text_encoder):
        assert all(weight.grad is None and not weight.requires_grad for weight in part.parameters())
    after = {key.replace(".base_layer", ""): value for key, value in pipeline.unet.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    assert bool(reference) == adapter
    assert all(torch.equal(trainer.reference.state()[key], value) for key, value in reference.items())


@pytest.mark.parametrize("settings", [{}, {"adapter": True}, {"use_peft": False}, {"sync_ref_model": True}])
def test_errors_of_the_reference_hold_no_gradient(tmp_path, settings):
    settings = dict(settings)
    pipeline = tiny.stable_diffusion()
    pipeline = with_trained_adapter(pipeline) if settings.pop("adapter", False) else pipeline
    trainer = make_trainer(config(tmp_path, **settings), model=pipeline)
    batch = next(iter(trainer.get_train_dataloader()))
    draw = draw_rows(SEED, batch["epoch"], batch["row"], (4, 8, 8), 2, torch.device("cpu"))
    corrupted = trainer.denoiser.corrupt(batch["image"], batch["prompt"], draw)
    errors = row_errors(trainer.model, trainer.reference, corrupted)
    assert errors.policy.shape == errors.reference.shape == (2, 4)
    assert errors.policy.requires_grad
    assert not errors.reference.requires_grad
    assert torch.equal(errors.policy, errors.reference)


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"use_peft": False}])
def test_errors_are_the_same_bits_with_and_without_predictions(tmp_path, settings):
    trainer = make_trainer(config(tmp_path, **settings))
    with torch.no_grad():
        for weight in trainer.policy.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    batch = next(iter(trainer.get_train_dataloader()))
    draw = draw_rows(SEED, batch["epoch"], batch["row"], (4, 8, 8), 2, torch.device("cpu"))
    corrupted = trainer.denoiser.corrupt(batch["image"], batch["prompt"], draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(settings.get("bf16"))):
        errors = row_errors(trainer.model, trainer.reference, corrupted)
        kept = row_errors(trainer.model, trainer.reference, corrupted, with_predictions=True)
        assert torch.equal(errors.reference, trainer.reference.errors(trainer.model, corrupted))
    assert torch.equal(errors.policy, kept.policy)
    assert torch.equal(errors.reference, kept.reference)
    assert not torch.equal(errors.policy, errors.reference)
    difference = (kept.predictions.policy - kept.predictions.reference).float().square().mean((2, 3, 4))
    torch.testing.assert_close(errors.prediction_difference, difference.detach())
    assert torch.equal(errors.prediction_difference, kept.prediction_difference)
    assert errors.prediction_difference.shape == (2, 4)
    assert not errors.prediction_difference.requires_grad
    assert row_errors(trainer.model, None, corrupted).prediction_difference is None


def test_full_fine_tuning_gives_every_weight_of_the_network_gradient(tmp_path):
    recorder = GradientRecorder()
    trainer = make_trainer(config(tmp_path, use_peft=False, max_steps=1), callbacks=[recorder])
    before = trainer.reference.state()
    before = {key: value.clone() for key, value in before.items()}
    trainer.train()
    assert recorder.updates[0].keys() == {
        f"networks.unet.{n}" for n, _ in tiny.stable_diffusion().unet.named_parameters()
    }
    assert all(torch.equal(trainer.reference.state()[key], value) for key, value in before.items())


@pytest.mark.parametrize("use_peft", [True, False])
def test_synchronised_reference_is_the_mix_of_itself_and_the_policy(tmp_path, use_peft):
    args = config(tmp_path, max_steps=2, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.25,
                  use_peft=use_peft)  # fmt: skip
    trainer = make_trainer(args)
    before = {key: value.clone() for key, value in trainer.reference.state().items()}
    trainer.train()
    name = trainer.policy.adapter_name
    policy = trainer.policy.state_dict() if name is None else trainer.policy.adapter_state(name)
    moved = 0.0
    for key, value in trainer.reference.state().items():
        torch.testing.assert_close(value, 0.25 * policy[key] + 0.75 * before[key])
        moved = max(moved, (value - before[key]).abs().max().item())
    assert moved > 1e-4


def test_a_replaced_reference_gives_rewards_of_zero_again(tmp_path):
    args = config(tmp_path, max_steps=3, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=1.0)
    trainer = make_trainer(args)
    trainer.train()
    margins = logged(trainer, "rewards/margins")
    assert margins[0] == 0
    assert margins[1] != 0
    assert margins[2] == 0


def test_reference_by_epoch_is_replaced_at_the_start_of_every_epoch_but_the_first(tmp_path):
    args = config(
        tmp_path, max_steps=6, sync_ref_model=True, ref_model_sync_strategy="epoch", ref_model_mixup_alpha=1.0
    )
    trainer = make_trainer(args)
    trainer.train()
    assert [margin == 0 for margin in logged(trainer, "rewards/margins")] == [True, False] * 3


# ---- Supervised fine-tuning, and how often the network is called ----


class Calls:
    """Counts the calls of a network, and the rows in them."""

    def __init__(self, network):
        self.rows = []
        network.register_forward_hook(lambda module, args, output: self.rows.append(len(args[0])))


def test_tgo_calls_the_network_twice_for_each_micro_batch(tmp_path):
    pipeline = tiny.stable_diffusion()
    calls = Calls(pipeline.unet)
    args = config(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    make_trainer(args, model=pipeline).train()
    assert calls.rows == [2] * 8


def test_several_draws_share_one_forward_pass(tmp_path):
    pipeline = tiny.stable_diffusion()
    calls = Calls(pipeline.unet)
    make_trainer(config(tmp_path, max_steps=1, num_likelihood_samples=3), model=pipeline).train()
    assert calls.rows == [12, 12]


def test_sft_is_the_plain_denoising_error_of_the_positive_rows(tmp_path):
    data = tiny.scored_rows(8)
    pipeline = tiny.stable_diffusion()
    calls = Calls(pipeline.unet)
    plain = PlainTraining(data)
    args = config(tmp_path, max_steps=1, loss_type="sft", **SEQUENTIAL)
    trainer = make_trainer(args, model=pipeline, train_dataset=data)
    trainer.train()
    positive = [row for row in range(8) if data[row]["score"] >= 3.5]
    assert len(positive) == 4
    expected = plain.errors(plain.pipeline.unet, *plain.inputs(positive, 0)).mean().item()
    assert logged(trainer)[0] == pytest.approx(expected, rel=1e-4)
    assert calls.rows == [4], "one forward pass, and none of a reference"
    first = first_log(trainer)
    assert first["logps/chosen"] == pytest.approx(-expected / TEMPERATURE, rel=1e-4)
    assert not any("rejected" in name or "rewards" in name or "saturation" in name for name in first)


def test_sft_of_a_stream_takes_the_same_rows(tmp_path):
    data = tiny.scored_rows(8)
    args = config(tmp_path, max_steps=3, loss_type="sft", **SEQUENTIAL)
    mapped = make_trainer(args, train_dataset=data)
    mapped.train()
    stream = make_trainer(args, train_dataset=data.to_iterable_dataset())
    stream.train()
    assert logged(stream) == pytest.approx(logged(mapped), rel=1e-5)


# ---- The device is not waited for ----


class HostReads(TorchDispatchMode):
    """Notes operators whose result depends on values, for which a host must wait until its device has them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"loss_type": "sft"}, {"num_likelihood_samples": 2}, {"bf16": True}])
def test_a_micro_step_reads_no_tensor_on_the_host(tmp_path, monkeypatch, settings):
    trainer = make_trainer(config(tmp_path, **settings))
    batch = next(iter(trainer.get_train_dataloader()))
    num_rows = torch.tensor(4)
    read = []
    for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, _name=name, _to=original: (read.append(_name), _to(self, *args))[1]
        )
    assert torch.tensor(1).item() == 1
    assert read == ["item"], "the counter must count"
    read.clear()
    trainer.model.train()
    with HostReads() as reads:
        torch.tensor([1.0]).nonzero()
        assert reads.found.pop() == "nonzero"
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_rows)
    assert read == []
    assert reads.found == []
    assert loss.requires_grad
