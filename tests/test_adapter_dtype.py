"""LoRA in bfloat16 without autocast: what is cast, what stays float32, and what it cannot be used with."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tgo_trl import TGOConfig
from tgo_trl.policy.adapter_dtype import cast_factors
from tgo_trl.policy.adapters import check_policy
from tgo_trl.policy.policy import build_policy

from .cases import CASES, perturb
from .runs import Stop, StopAt, assert_equal, config, first_log, make_trainer, metrics, trained_weights
from .test_trainer import with_trained_adapter
from .tiny import scored_rows, stable_diffusion

WITHOUT = {"bf16": True, "bf16_autocast": False}
STABLE_DIFFUSION = next(case for case in CASES if case.name == "stable_diffusion")
EVERYWHERE = ["to_q", "to_k", "ff.net.0.proj", "conv1", "proj_in"]
"""Linear layers, and convolutions with and without a kernel."""


def adapted_layer(base, in_bfloat16=True, **settings):
    """A layer with an adapter of rank 1 and scale 2, in a module of its own."""
    module = nn.Sequential(base).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=1, lora_alpha=2, target_modules=["0"], **settings), module)
    if in_bfloat16:
        module[0].base_layer.to(torch.bfloat16)
    cast_factors(module, True)
    return module


def factors(module):
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    return [factor for layer in layers for factor in (*layer.lora_A.values(), *layer.lora_B.values())]


# ---- One layer, by hand ----


def test_factors_are_cast_and_their_gradients_are_not_rounded():
    layer = adapted_layer(nn.Linear(2, 1, bias=False))
    down, up = factors(layer)
    with torch.no_grad():
        layer[0].base_layer.weight.zero_()
        down.weight.copy_(torch.tensor([[1 + 2**-10, 3.0]]))  # in bfloat16, [1, 3]
        up.weight.fill_(0.5)
    output = layer(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert output.item() == 2 * 0.5 * (1 + 3 * 2)
    output.sum().backward()
    # scale * up * input, and scale * down . input
    assert down.weight.grad.tolist() == [[1.0, 2.0]]
    assert up.weight.grad.item() == 14.0
    layer(torch.tensor([[2**-9, 0.0]], dtype=torch.bfloat16)).sum().backward()
    assert down.weight.grad.tolist() == [[1 + 2**-9, 2.0]]  # which bfloat16 does not have
    for factor in (down, up):
        assert factor.weight.dtype == factor.weight.grad.dtype == torch.float32
    assert down.weight[0, 0].item() == 1 + 2**-10


LAYERS = {
    "linear": (nn.Linear(3, 4), (2, 3)),
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 5)),
    "conv2d": (nn.Conv2d(3, 4, 3, stride=2), (2, 3, 5, 5)),
    "conv3d": (nn.Conv3d(3, 4, 1), (2, 3, 2, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer_computes_in_the_dtype_of_its_input(name):
    base, shape = LAYERS[name]
    layer = adapted_layer(base.float(), in_bfloat16=False, lora_bias=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in factors(layer):
            for weight in factor.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
    inputs = torch.randn(shape, generator=generator)
    names = set(layer.state_dict())
    exact = layer(inputs)
    cast_factors(layer, False)
    assert torch.equal(layer(inputs), exact)
    assert {type(factor) for factor in factors(layer)} <= {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
    cast_factors(layer, True)
    layer[0].base_layer.to(torch.bfloat16)
    rounded = layer(inputs.bfloat16())
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.05)
    assert set(layer.state_dict()) == names


def test_an_adapter_is_merged_from_its_float32_weights():
    layer = adapted_layer(nn.Linear(3, 4), in_bfloat16=False)
    down, up = factors(layer)
    nn.init.normal_(up.weight)
    before = layer[0].base_layer.weight.clone()
    layer[0].merge()
    torch.testing.assert_close(layer[0].base_layer.weight, before + 2 * up.weight @ down.weight)


# ---- Networks ----


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_bit_for_bit_what_the_cpus_autocast_computes(tmp_path, checkpointing):
    """Which casts factors and inputs of linear layers, convolutions and attention, and leaves norms as they are."""
    found = []
    for settings in ({"bf16": True}, WITHOUT):
        setup = STABLE_DIFFUSION.setup(tmp_path, torch.bfloat16, lora_target_modules=EVERYWHERE, **settings)
        perturb(setup.policy)
        setup.policy.train()
        if checkpointing:
            setup.policy.activation_checkpointing_enable()
        with torch.autocast("cpu", torch.bfloat16):
            errors = setup.errors()
        errors.policy.sum().backward()
        gradients = {name: it.grad for name, it in setup.policy.named_parameters() if it.requires_grad}
        assert {it.dtype for it in gradients.values()} == {torch.float32}
        found.append({"policy": errors.policy.detach(), "reference": errors.reference, **gradients})
    assert_equal(found[1], found[0])
    assert not torch.equal(found[0]["policy"], found[0]["reference"])


def test_networks_are_called_without_autocast_whatever_is_around_them(tmp_path):
    setup = STABLE_DIFFUSION.setup(tmp_path, torch.bfloat16, **WITHOUT)
    seen = []
    factors(setup.policy)[0].register_forward_hook(
        lambda _, inputs, output: seen.append((torch.is_autocast_enabled("cpu"), inputs[0].dtype, output.dtype))
    )
    with torch.autocast("cpu", torch.bfloat16):
        errors = setup.errors()
    assert seen == [(False, torch.bfloat16, torch.bfloat16)]
    assert errors.policy.dtype == errors.reference.dtype == torch.float32


def test_another_run_of_the_pipeline_with_autocast_finds_plain_layers(tmp_path):
    pipeline = stable_diffusion()
    for settings in (WITHOUT, {"bf16": True}):
        args = config(tmp_path, **settings)
        policy, was_there = build_policy(pipeline, STABLE_DIFFUSION.family(pipeline), args, None, torch.bfloat16)
        layers = [layer for layer in policy.modules() if isinstance(layer, LoraLayer)]
        is_plain = {type(factor) is nn.Linear for factor in factors(policy)}
        assert is_plain == {was_there}
        assert {layer.cast_input_dtype_enabled for layer in layers} == {was_there}


# ---- Runs ----

RUN = {
    "max_steps": 2, "sync_ref_model": True, "ref_model_sync_steps": 1, "ema_decay": 0.5, "save_strategy": "steps",
    "save_steps": 1, "gradient_checkpointing": True, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}  # fmt: skip


def run(folder, stop=None, **settings):
    """What a run gave that goes on with an adapter: its log, an evaluation, and the weights."""
    rows = {"train_dataset": scored_rows(8), "eval_dataset": scored_rows(4, seed=1)}

    def build(**arguments):
        model = with_trained_adapter(stable_diffusion())
        return make_trainer(config(folder, **{**RUN, "bf16": True, **settings}), model=model, **rows, **arguments)

    if stop is not None:
        with pytest.raises(Stop):
            build(callbacks=[StopAt(stop)]).train()
    trainer = build()
    trainer.train(resume_from_checkpoint=stop is not None)
    weights = {"policy": trained_weights(trainer), "reference": trainer.reference.state()}
    return {"log": metrics(trainer.state.log_history), "evaluation": metrics([trainer.evaluate()]), **weights}


def test_a_run_is_that_of_the_cpus_autocast_and_goes_on_where_it_stopped(tmp_path):
    expected = run(tmp_path / "autocast")
    assert_equal(run(tmp_path / "without", bf16_autocast=False), expected)
    assert_equal(run(tmp_path / "stopped", stop=2, bf16_autocast=False)["policy"], expected["policy"])
    assert {weight.dtype for weight in expected["policy"].values()} == {torch.float32}


@pytest.mark.parametrize("how", ["asked", "remembered", "another model"])
def test_policy_and_reference_agree_at_first(tmp_path, how):
    settings = {"precompute_ref_log_probs": True} if how == "remembered" else {}
    reference = stable_diffusion() if how == "another model" else None
    trainer = make_trainer(config(tmp_path, max_steps=1, **WITHOUT, **settings), ref_model=reference)
    trainer.train()
    first = first_log(trainer)
    assert first["rewards/margins"] == first["rewards/displaced"] == 0
    assert first["grad_norm"] > 0
    assert trainer.hyperparameters()["precision"] == "bf16, without autocast"


# ---- What it cannot be used with ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`bf16` is False"),
        ({"fp16": True}, "with `fp16=True` norms and losses overflow"),
        ({"bf16": True, "use_peft": False}, "`use_peft=False` trains all weights, which are float32"),
    ],
)
def test_what_has_no_autocast_to_be_without_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"`bf16_autocast` is False, and {message}"):
        TGOConfig(str(tmp_path), use_cpu=True, bf16_autocast=False, **settings)


def test_adapters_of_more_than_two_factors_are_refused(tmp_path):
    args, pipeline = config(tmp_path, **WITHOUT), stable_diffusion()
    family = STABLE_DIFFUSION.family(pipeline)
    dora = LoraConfig(r=2, target_modules=["to_q"], use_dora=True)
    with pytest.raises(ValueError, match=r"`peft_config\.use_dora` is True, and `bf16_autocast` is False"):
        check_policy(pipeline, family, args, dora)
    pipeline.unet.add_adapter(dora, "mine")
    with pytest.raises(ValueError, match=r"adapter of `unet\..*to_q` is not just two factors \(.*DoraLinearVariant"):
        check_policy(pipeline, family, args, None)
    check_policy(pipeline, family, config(tmp_path, bf16=True), None)
