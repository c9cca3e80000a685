"""Switching between policy and reference: as peft does, but for the weights, which stay trained."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from tgo_trl.policy.adapter_switch import AdapterSwitch

from .tiny import stable_diffusion

WAYS = {"plain": {}, "dora": {"use_dora": True}, "dropout": {"lora_dropout": 0.5}}


def network(way):
    """A UNet in training with two adapters that both do something, of which `mine` is on."""
    torch.manual_seed(0)
    unet = stable_diffusion().unet.requires_grad_(False).train()
    for name in ("ref", "mine"):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False, **way), name)
    unet.set_adapter("mine")
    return unet


def switch(unet, reference, by_peft=False):
    made = AdapterSwitch([it for it in unet.modules() if isinstance(it, BaseTunerLayer)], "mine", reference)
    assert made._attributes is not None
    if by_peft:  # as where peft's switch did more than set attributes
        made._attributes = None
    return made


@torch.no_grad()
def predict(unet):
    generator = torch.Generator().manual_seed(1)
    latents, prompt = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    torch.manual_seed(2)  # for dropout
    return unet(latents, torch.tensor([30, 700]), prompt, return_dict=False)[0]


def flags(unet):
    return {name: weight.requires_grad for name, weight in unet.named_parameters()}


@pytest.mark.parametrize("by_peft", [False, True], ids=["attributes", "peft"])
@pytest.mark.parametrize("reference", [None, "ref"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_switches_as_peft_does_and_the_weights_stay_trained(way, reference, by_peft):
    plain = network(way)
    mine, before = predict(plain), flags(plain)
    assert {name for name, is_trained in before.items() if is_trained} == {it for it in before if ".mine." in it}
    if reference is None:
        plain.disable_adapters()
    else:
        plain.set_adapter(reference)
    theirs = predict(plain)
    assert not torch.allclose(mine, theirs, atol=1e-3)

    unet = network(way)
    switched = switch(unet, reference, by_peft)
    for _ in range(2):
        switched.to_reference()
        assert torch.equal(predict(unet), theirs)
        assert flags(unet) == before
        switched.to_trained()
        assert torch.equal(predict(unet), mine)
        assert flags(unet) == before


def test_what_a_pipeline_has_switched_since_is_put_right():
    unet = network({})
    mine, before = predict(unet), flags(unet)
    switched = switch(unet, None)
    unet.disable_adapters()  # also freezes all factors
    switched.to_trained()
    assert torch.equal(predict(unet), mine)
    assert flags(unet) == before
    unet.set_adapter("ref")
    switched.to_reference()
    switched.to_trained()
    assert torch.equal(predict(unet), mine)
    assert flags(unet) == before


def test_an_adapter_that_came_since_is_put_off_again():
    unet = network({})
    mine, before = predict(unet), flags(unet)
    switched = switch(unet, None)
    unet.set_adapters(["mine", "ref"], [1.0, 1.0])  # as a callback may, to draw in two styles at once
    assert not torch.equal(predict(unet), mine)
    switched.to_reference()
    switched.to_trained()
    assert torch.equal(predict(unet), mine)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "later")  # and on
    switched.to_reference()
    switched.to_trained()
    assert torch.equal(predict(unet), mine)
    now = flags(unet)
    assert {name: now[name] for name in before} == before
    assert not any(is_trained for name, is_trained in now.items() if ".later." in name)


def test_what_is_frozen_in_the_last_of_several_networks_is_put_right():
    first, last = network({}), network({})
    layers = [it for unet in (first, last) for it in unet.modules() if isinstance(it, BaseTunerLayer)]
    switched, before = AdapterSwitch(layers, "mine", None), flags(last)
    last.disable_adapters()
    assert flags(last) != before
    switched.to_reference()
    switched.to_trained()
    assert flags(last) == before
