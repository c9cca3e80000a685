"""The reference: what the policy is compared with, and that comparing leaves the policy as it was."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file

from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy.policy import Policy, build_policy
from tgo_trl.policy.reference import AdapterReference, ModelReference, Reference

from .runs import assert_equal, config, logged, make_trainer, trained_weights
from .tiny import stable_diffusion

FAMILY = StableDiffusionFamily()


def build(folder, pipeline, dtype=torch.float32, **settings):
    """A policy with an adapter whose `lora_alpha` is not its rank."""
    settings = {"lora_r": 2, "lora_alpha": 3, **settings}
    return build_policy(pipeline, FAMILY, config(folder, **settings), None, dtype)[0]


def randomize(policy, seed=0):
    """Gives every trained weight a value far from its first one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def trained_policy(folder, pipeline, dtype=torch.float32):
    """A policy on a pipeline with an adapter trained before."""
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"]), adapter_name="mine")
    policy = build(folder, pipeline, dtype)
    randomize(policy)
    return policy


def inputs():
    generator = torch.Generator().manual_seed(1)
    corrupted = torch.randn(2, 4, 8, 8, generator=generator)
    return corrupted, torch.tensor([30, 700]), {"embeds": torch.randn(2, 77, 32, generator=generator)}


@torch.no_grad()
def predict(model):
    return model(*inputs())


@torch.no_grad()
def predict_reference(reference, policy):
    with reference.acting(policy) as acting:
        return acting(*inputs())


def base_prediction(**pipeline):
    return predict(Policy(FAMILY, {"unet": stable_diffusion(**pipeline).unet}, None))


def flags(policy):
    return {name: parameter.requires_grad for name, parameter in policy.named_parameters()}


def draw(pipeline):
    """An image of the pipeline, as numbers."""
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 2, "output_type": "np", "height": 16, "width": 16}
    return pipeline("a red cat", generator=generator, **arguments).images


# ---- The adapter off ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_fresh_adapter_the_reference_is_the_base_network(tmp_path, dtype):
    policy = build(tmp_path, stable_diffusion(), dtype)
    reference = AdapterReference(policy, keep_copy=False)
    base = stable_diffusion().unet.to(dtype)
    expected = predict(Policy(FAMILY, {"unet": base}, None))
    assert torch.equal(predict(policy), expected)  # the first log-ratio is zero
    randomize(policy)
    assert torch.equal(predict_reference(reference, policy), expected)
    assert not torch.allclose(predict(policy), expected, atol=0.1)
    assert reference.state() == {}


# ---- A frozen copy ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_adapter_has_a_frozen_copy_as_its_reference(tmp_path, dtype):
    policy = trained_policy(tmp_path, stable_diffusion(), dtype)
    initial = predict(policy)
    reference = AdapterReference(policy, keep_copy=True)
    assert torch.equal(predict(policy), initial)
    assert torch.equal(predict_reference(reference, policy), initial)  # to the last bit, in any dtype
    randomize(policy, seed=1)
    assert torch.equal(predict_reference(reference, policy), initial)
    assert not torch.allclose(predict(policy), initial, atol=0.1)


def test_the_copy_is_no_part_of_what_is_trained(tmp_path):
    policy = trained_policy(tmp_path, stable_diffusion())
    before = {name for name, trained in flags(policy).items() if trained}
    reference = AdapterReference(policy, keep_copy=True)
    predict_reference(reference, policy)
    policy(*inputs()).sum().backward()
    assert {name for name, trained in flags(policy).items() if trained} == before
    assert {name for name, parameter in policy.named_parameters() if parameter.grad is not None} == before
    assert not any(".ref." in name for name in before)


@pytest.mark.parametrize("keep_copy", [False, True])
def test_acting_leaves_adapter_and_gradient_flags_as_they_were(tmp_path, keep_copy):
    policy = trained_policy(tmp_path, stable_diffusion())
    reference = AdapterReference(policy, keep_copy)
    before, prediction = flags(policy), predict(policy)
    assert any(before.values())
    predict_reference(reference, policy)
    assert flags(policy) == before
    assert torch.equal(predict(policy), prediction)
    with pytest.raises(RuntimeError, match="out of memory"), reference.acting(policy):
        raise RuntimeError("out of memory")
    assert flags(policy) == before
    assert torch.equal(predict(policy), prediction)


def test_the_policy_gets_its_gradient_after_the_reference_has_acted(tmp_path):
    policy = trained_policy(tmp_path, stable_diffusion())
    policy(*inputs()).square().sum().backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.requires_grad
    }
    policy.zero_grad()
    reference = AdapterReference(policy, keep_copy=True)
    predict_reference(reference, policy)
    policy(*inputs()).square().sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == (name in expected)
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])


# ---- A second model ----


def test_a_second_model_is_the_reference_and_is_frozen(tmp_path):
    policy = build(tmp_path, stable_diffusion())
    second = stable_diffusion(seed=1).unet.train()
    reference = ModelReference({"unet": second}, policy)
    assert torch.equal(predict_reference(reference, policy), base_prediction(seed=1))
    assert not any(parameter.requires_grad for parameter in second.parameters())
    assert not any(module.training for module in second.modules())
    assert all(parameter.dtype == torch.float32 for parameter in second.parameters())


def test_a_second_model_has_the_dtype_of_the_policys_weights(tmp_path):
    policy = build(tmp_path, stable_diffusion(), torch.bfloat16)
    reference = ModelReference({"unet": stable_diffusion().unet}, policy)
    assert {parameter.dtype for parameter in reference.model.parameters()} == {torch.bfloat16}
    assert torch.equal(predict_reference(reference, policy), predict(policy))


def test_acting_of_a_second_model_leaves_the_policy_alone(tmp_path):
    policy = build(tmp_path, stable_diffusion())
    reference = ModelReference({"unet": stable_diffusion(seed=1).unet}, policy)
    before = flags(policy)
    with pytest.raises(RuntimeError), reference.acting(policy):
        raise RuntimeError
    assert flags(policy) == before
    assert torch.equal(predict(policy), base_prediction())


# ---- Synchronising ----


def fill(state, values):
    for (_, tensor), value in zip(sorted(state.items()), values, strict=True):
        tensor.fill_(value)


@torch.no_grad()
def test_synchronising_mixes_the_adapters_parameter_by_parameter(tmp_path):
    policy = trained_policy(tmp_path, stable_diffusion())
    reference = AdapterReference(policy, keep_copy=True)
    fill(policy.adapter_state("mine"), range(len(reference.state())))  # 0, 1, 2, ...
    fill(reference.state(), [10.0] * len(reference.state()))
    reference.sync(policy.adapter_state("mine"), 0.6)
    for i, (name, tensor) in enumerate(sorted(reference.state().items())):
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.6 * i + 0.4 * 10), msg=name)
    assert [tensor.flatten()[0].item() for _, tensor in sorted(policy.adapter_state("mine").items())][:3] == [0, 1, 2]
    reference.sync(policy.adapter_state("mine"), 0.6)
    last = max(reference.state().items())[1]  # 0.6 i + 0.4 (0.6 i + 4)
    torch.testing.assert_close(last, torch.full_like(last, 0.84 * (len(reference.state()) - 1) + 1.6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_synchronising_all_the_way_makes_the_reference_the_policy(tmp_path, dtype):
    policy = trained_policy(tmp_path, stable_diffusion(), dtype)
    reference = AdapterReference(policy, keep_copy=True)
    randomize(policy, seed=1)
    before = flags(policy)
    reference.sync(policy.adapter_state("mine"), 1.0)
    assert torch.equal(predict_reference(reference, policy), predict(policy))
    assert flags(policy) == before
    reference_weights = {name: tensor.clone() for name, tensor in reference.state().items()}
    randomize(policy, seed=2)  # a copy, not the same memory
    assert all(torch.equal(tensor, reference_weights[name]) for name, tensor in reference.state().items())


@torch.no_grad()
def test_synchronising_mixes_all_weights_of_a_second_model(tmp_path):
    pipeline = stable_diffusion()
    policy = build(tmp_path, pipeline, use_peft=False)
    reference = ModelReference({"unet": copy.deepcopy(pipeline.unet)}, policy)
    for parameter in policy.parameters():
        parameter.fill_(2.0)
    for parameter in reference.model.parameters():
        parameter.fill_(7.0)
    reference.sync(policy.state_dict(), 0.6)  # 0.6 * 2 + 0.4 * 7 = 4
    assert len(reference.state()) == len(policy.state_dict())
    for parameter in reference.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 4.0))
        assert not parameter.requires_grad
    assert all((parameter == 2).all() for parameter in policy.parameters())
    randomize(policy)
    reference.sync(policy.state_dict(), 1.0)
    assert torch.equal(predict_reference(reference, policy), predict(policy))


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_references_state_round_trips(tmp_path, use_peft):
    pipeline = stable_diffusion()
    policy = trained_policy(tmp_path, pipeline) if use_peft else build(tmp_path, pipeline, use_peft=False)
    networks = {"unet": copy.deepcopy(pipeline.unet)}
    reference = AdapterReference(policy, keep_copy=True) if use_peft else ModelReference(networks, policy)
    state = {name: tensor.clone() for name, tensor in reference.state().items()}
    expected = predict_reference(reference, policy)
    randomize(policy, seed=3)
    reference.sync(policy.adapter_state("mine") if use_peft else policy.state_dict(), 1.0)
    assert not torch.allclose(predict_reference(reference, policy), expected, atol=1e-2)
    reference.load_state(state)
    assert torch.equal(predict_reference(reference, policy), expected)


# ---- Drawing ----


def test_drawing_draws_from_the_base_network(tmp_path):
    pipeline = stable_diffusion()
    policy = build(tmp_path, pipeline)
    reference = AdapterReference(policy, keep_copy=False)
    randomize(policy)
    before = draw(pipeline)
    with reference.sampling(pipeline):
        drawn = draw(pipeline)
    assert np.array_equal(drawn, draw(stable_diffusion()))
    assert np.array_equal(draw(pipeline), before)
    assert np.abs(before - drawn).max() > 1e-3


def test_drawing_draws_from_the_frozen_copy(tmp_path):
    pipeline = stable_diffusion()
    policy = trained_policy(tmp_path, pipeline)
    initial = draw(pipeline)
    reference = AdapterReference(policy, keep_copy=True)
    randomize(policy, seed=1)
    before = draw(pipeline)
    with reference.sampling(pipeline):
        drawn = draw(pipeline)
    assert np.array_equal(drawn, initial)
    assert np.array_equal(draw(pipeline), before)
    assert np.abs(before - drawn).max() > 1e-3


def test_drawing_draws_from_the_second_model_and_puts_the_policy_back(tmp_path):
    pipeline, second = stable_diffusion(), stable_diffusion(seed=1)
    second.vae, second.text_encoder = pipeline.vae, pipeline.text_encoder
    expected = draw(second)
    policy = build(tmp_path, pipeline)
    reference = ModelReference({"unet": second.unet}, policy)
    trained, before, configuration = pipeline.unet, draw(pipeline), dict(pipeline.config)
    with reference.sampling(pipeline):
        assert pipeline.unet is second.unet
        assert np.array_equal(draw(pipeline), expected)
    assert pipeline.unet is trained
    assert np.array_equal(draw(pipeline), before)
    assert dict(pipeline.config) == configuration
    with pytest.raises(RuntimeError), reference.sampling(pipeline):
        raise RuntimeError
    assert pipeline.unet is trained


# ---- What is saved ----


def test_the_copy_is_not_saved_with_the_adapter(tmp_path):
    pipeline = stable_diffusion()
    policy = trained_policy(tmp_path, pipeline)
    number = len(policy.adapter_state("mine"))
    AdapterReference(policy, keep_copy=True)
    randomize(policy, seed=1)
    FAMILY.save_adapter(pipeline, "mine", tmp_path / "adapter")
    (path,) = (tmp_path / "adapter").iterdir()
    saved, mine = load_file(path), policy.adapter_state("mine")
    assert path.name == "pytorch_lora_weights.safetensors"
    assert len(saved) == number
    assert not any("ref" in name.split(".") for name in saved)
    assert sorted(tensor.sum().item() for tensor in saved.values()) == sorted(t.sum().item() for t in mine.values())


@pytest.mark.parametrize("keep_copy", [False, True])
def test_a_saved_adapter_acts_the_same_in_stock_diffusers(tmp_path, keep_copy):
    pipeline = stable_diffusion()
    policy = build(tmp_path, pipeline)  # rank 2, alpha 3
    AdapterReference(policy, keep_copy)
    randomize(policy)
    FAMILY.save_adapter(pipeline, policy.adapter_name, tmp_path / "adapter")
    fresh = stable_diffusion()
    assert type(fresh) is StableDiffusionPipeline
    fresh.load_lora_weights(tmp_path / "adapter")
    corrupted, time, prompt = inputs()
    with torch.no_grad():
        loaded = fresh.unet(corrupted, time, prompt["embeds"]).sample
    assert torch.equal(loaded, predict(policy))
    assert not torch.allclose(loaded, base_prediction(), atol=0.1)
    loaded_config = fresh.unet.peft_config[fresh.get_active_adapters()[0]]
    assert (loaded_config.r, loaded_config.lora_alpha) == (2, 3)


def test_a_saved_adapter_is_loaded_into_a_policy(tmp_path):
    pipeline = stable_diffusion()
    policy = build(tmp_path, pipeline)
    randomize(policy)
    FAMILY.save_adapter(pipeline, "default", tmp_path / "adapter")
    other = build(tmp_path, stable_diffusion())
    loaded = FAMILY.load_adapter(tmp_path / "adapter")
    assert loaded.keys() == {"unet"}
    other.load_adapter_state({f"unet.{name}": tensor for name, tensor in loaded["unet"].items()}, "default")
    assert torch.equal(predict(other), predict(policy))


# ---- Any answer will do ----


class Remembered(Reference):
    """Answers from a table by (epoch, row, sample), as a cache of the reference's errors would."""

    def __init__(self, networks):
        self.networks = networks
        self.table = {}

    def errors(self, model, corrupted):
        keys = corrupted.draw.keys
        if not self.table.keys() >= set(keys):
            errors = self.networks.errors(model, corrupted)
            self.table.update(zip(keys, errors.flatten().tolist(), strict=True))
        return torch.tensor([self.table[key] for key in keys]).reshape(-1, corrupted.num_rows)

    def predictions(self, model, corrupted):
        raise ValueError("Only errors are remembered.")

    def sampling(self, pipeline):
        return self.networks.sampling(pipeline)

    def state(self):
        return {}

    def load_state(self, state):
        assert not state


def test_a_reference_that_holds_no_network_trains_the_same(tmp_path):
    settings = {"num_likelihood_samples": 2, "max_steps": 4}
    plain = make_trainer(config(tmp_path / "plain", **settings))
    plain.train()
    first = make_trainer(config(tmp_path / "first", **settings))
    first.reference = remembered = Remembered(first.reference)
    first.train()
    assert len(remembered.table) == 2 * 4 * 4  # samples, rows of an update, updates
    again = make_trainer(config(tmp_path / "again", **settings))
    remembered.networks = None
    again.reference = remembered
    again.train()
    for trainer in (first, again):
        assert_equal(trained_weights(trainer), trained_weights(plain))
        assert logged(trainer) == logged(plain)
        # errors are all that is remembered
        assert logged(trainer, "prediction_difference") == []
        assert logged(trainer, "rewards/displaced") == logged(plain, "rewards/displaced")
    assert len(logged(plain, "prediction_difference")) == 4
