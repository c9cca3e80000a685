"""Layers that are meant to be trained and get no gradient are named before the first step."""

import logging

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import TrainerControl, TrainerState

from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy.replication import Replication
from tgo_trl.trainer.untrained import UntrainedLayersCallback, untrained_layers

from . import tiny
from .cases import KINDS_THAT_TAKE_LONG
from .runs import config, make_trainer, trained_weights

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


class Deaf(StableDiffusionFamily):
    """Calls a network whose first attention reads nothing through `to_q`."""

    def predict(self, networks, corrupted, time, conditions):
        layer = networks["unet"].get_submodule(f"{BLOCK}.attn1.to_q")
        handle = layer.register_forward_hook(lambda module, given, output: output.detach())
        try:
            return super().predict(networks, corrupted, time, conditions)
        finally:
            handle.remove()


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}])
def test_layers_without_gradient_are_named_before_the_first_step(tmp_path, settings):
    trainer = make_trainer(config(tmp_path, save_strategy="steps", save_steps=1, **settings), family=Deaf())
    before = trained_weights(trainer)
    with pytest.raises(
        ValueError, match=rf"1 of 32 trained layers of `unet` got no gradient .*: {BLOCK}\.attn1\.to_q\."
    ):
        trainer.train()
    after = trained_weights(trainer)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_weights_without_gradient_are_named_when_all_are_trained(tmp_path):
    trainer = make_trainer(config(tmp_path, use_peft=False), family=Deaf())
    with pytest.raises(ValueError, match=rf"1 of \d+ trained layers .*: {BLOCK}\.attn1\.to_q\.weight\. Nothing that"):
        trainer.train()


@pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)
def test_all_linear_layers_of_every_family_are_trained_and_load(tmp_path, case):
    pipeline = case.build()
    args = case.config(tmp_path, max_steps=1, lora_target_modules="all-linear", num_likelihood_samples=4)
    trainer = make_trainer(args, model=pipeline, train_dataset=case.rows(8))
    trainer.train()
    trainer.save_model()
    factors = {name: weight for name, weight in trained_weights(trainer).items() if "lora_B" in name}
    assert all(weight.any() for weight in factors.values())
    stock = case.build()
    case.family(stock).attach_adapter(stock, str(tmp_path / "out"))
    loaded = {
        f"networks.{name}.{key.replace(f'.{adapter}.', '.default.')}": weight
        for name, network in case.family(stock).networks(stock).items()
        for adapter in network.peft_config
        for key, weight in network.named_parameters()
        if "lora_B" in key
    }
    assert loaded.keys() == factors.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in factors.items())


# ---- One network at a time ----


class Two(nn.Module):
    """A policy of two networks."""

    def __init__(self):
        super().__init__()
        self.adapter_name = "default"
        self.networks = nn.ModuleDict({"first": adapted(), "second": adapted()})


def adapted():
    """Two layers with adapters, of which nothing else is trained."""
    network = tiny.stable_diffusion().unet.requires_grad_(False)
    network.add_adapter(LoraConfig(r=2, target_modules=[f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k"]))
    return network


def give_gradients(network, *layers):
    for name, weight in network.named_parameters():
        weight.grad = None
        if weight.requires_grad:
            acts = "lora_B" in name and any(layer in name for layer in layers)
            weight.grad = torch.full_like(weight, float(acts))


@pytest.fixture
def two():
    class Trainer:
        policy, strategy = Two(), Replication(None)

    callback = UntrainedLayersCallback(Trainer)
    callback.on_train_begin(None, TrainerState(), TrainerControl())
    return callback, Trainer.policy.networks


def look(callback, step):
    callback.on_pre_optimizer_step(None, TrainerState(global_step=step), TrainerControl())


def test_a_network_that_has_no_row_yet_is_looked_at_when_it_has_some(two, caplog):
    callback, networks = two
    give_gradients(networks["first"], "to_q", "to_k")
    give_gradients(networks["second"])
    look(callback, 0)
    look(callback, 1)
    give_gradients(networks["second"], "to_k")
    with pytest.raises(ValueError, match="1 of 2 trained layers of `second` got no gradient"):
        look(callback, 2)
    give_gradients(networks["second"], "to_k", "to_q")
    look(callback, 3)
    give_gradients(networks["second"])  # once is enough
    look(callback, 4)
    callback.on_train_end(None, TrainerState(), TrainerControl())
    assert caplog.messages == []


def test_a_network_that_never_had_a_row_is_named_at_the_end(two, caplog):
    callback, networks = two
    give_gradients(networks["first"], "to_q", "to_k")
    look(callback, 0)
    with caplog.at_level(logging.WARNING):
        callback.on_train_end(None, TrainerState(), TrainerControl())
    assert caplog.messages == ["No row of this run had a gradient for `second`, which is as it was before."]


def test_no_gradient_at_all_stops_a_fresh_run_and_not_a_resumed_one(two):
    callback, networks = two
    give_gradients(networks["first"])
    give_gradients(networks["second"])
    look(callback, 7)  # all rows may be saturated
    with pytest.raises(ValueError, match="2 of 2 trained layers of `first`"):
        look(callback, 0)


def test_a_layer_whose_first_factor_alone_has_a_gradient_acts():
    """Of an adapter that was trained, either factor will do; that of NaN is no zero."""
    network = adapted()
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            weight.grad = torch.full_like(weight, float("nan") if "to_q.lora_A" in name else 0.0)
    assert untrained_layers(network, is_adapter=True) == {
        f"{BLOCK}.attn1.to_k": True,
        f"{BLOCK}.attn1.to_q": False,
    }
