"""The policy: what is trained, in which dtype, and what it refuses."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import KasaConfig

from tgo_trl.families import QwenImageFamily, StableDiffusionFamily, WanFamily
from tgo_trl.policy.adapters import check_policy, check_start
from tgo_trl.policy.policy import Policy, build_policy, disable_dropout

from .cases import CASES
from .runs import assert_equal, config, make_trainer
from .tiny import stable_diffusion
from .tiny.wan import build_two_stage

FAMILY = StableDiffusionFamily()
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def lora(**settings):
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["to_q", "to_out.0"], **settings})


def build(folder, pipeline=None, peft_config=None, dtype=torch.float32, **settings):
    return build_policy(pipeline or stable_diffusion(), FAMILY, config(folder, **settings), peft_config, dtype)


def randomize(policy, seed=0):
    """Gives every trained weight a value far from its first one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter)


def inputs(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    corrupted = torch.randn(batch, 4, 8, 8, generator=generator)
    return corrupted, torch.tensor([30, 700])[:batch], {"embeds": torch.randn(batch, 77, 32, generator=generator)}


def trained(policy):
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def adapted(network):
    """The endings of the names of the layers that have an adapter."""
    names = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    return {ending for ending in (*TARGETS, "proj") for name in names if name.endswith(f".{ending}")}, len(names)


def saved(folder, **settings):
    """A folder with a trained adapter, and the policy that it was saved from."""
    pipeline = stable_diffusion()
    policy, _ = build(folder, pipeline, lora(**settings))
    randomize(policy)
    FAMILY.save_adapter(pipeline, policy.adapter_name, folder / "adapter")
    return folder / "adapter", policy


# ---- A new adapter ----


def test_by_default_the_familys_modules_get_an_adapter(tmp_path):
    pipeline = stable_diffusion()
    policy, was_trained = build(tmp_path, pipeline, lora_r=4, lora_alpha=6)
    assert not was_trained
    assert policy.adapter_name == "default"
    assert policy.networks["unet"] is pipeline.unet
    linear = [name for name, module in stable_diffusion().unet.named_modules() if isinstance(module, torch.nn.Linear)]
    expected = [name for name in linear if name.endswith(TARGETS)]
    assert adapted(pipeline.unet) == (set(TARGETS), len(expected))
    peft_config = pipeline.unet.peft_config["default"]
    assert (peft_config.r, peft_config.lora_alpha, peft_config.lora_dropout) == (4, 6, 0.0)


def test_only_the_adapter_is_trained(tmp_path):
    pipeline = stable_diffusion()
    base = {name for name, _ in pipeline.unet.named_parameters()}
    policy, _ = build(tmp_path, pipeline)
    assert trained(policy) == {name for name, _ in policy.named_parameters() if "lora_" in name}
    policy(*inputs()).square().sum().backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained(policy)
    assert len(with_gradient) + len(base) == len(list(policy.parameters()))
    assert all(
        parameter.grad is None for module in (pipeline.vae, pipeline.text_encoder) for parameter in module.parameters()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_trained_weights_are_float32_and_the_others_in_the_given_dtype(tmp_path, dtype):
    policy, _ = build(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in policy.parameters() if not parameter.requires_grad} == {dtype}
    assert policy(*inputs()).dtype == dtype


def test_a_fresh_adapter_changes_nothing(tmp_path):
    expected = stable_diffusion().unet(inputs()[0], inputs()[1], inputs()[2]["embeds"]).sample
    policy, _ = build(tmp_path)
    assert torch.equal(policy(*inputs()), expected)
    randomize(policy)
    assert not torch.allclose(policy(*inputs()), expected, atol=0.1)


def test_the_users_adapter_and_modules_are_taken(tmp_path):
    pipeline = stable_diffusion()
    build(tmp_path, pipeline, lora())
    assert adapted(pipeline.unet)[0] == {"to_q", "to_out.0"}
    assert pipeline.unet.peft_config["default"].r == 2
    pipeline = stable_diffusion()
    build(tmp_path, pipeline, lora_target_modules=["to_k"])
    assert adapted(pipeline.unet)[0] == {"to_k"}


def test_an_adapter_without_target_modules_gets_the_familys_and_stays_the_users_own(tmp_path):
    pipeline, peft_config = stable_diffusion(), LoraConfig(r=2, task_type="CAUSAL_LM")  # as TRL's `get_peft_config`
    build(tmp_path, pipeline, peft_config)
    assert adapted(pipeline.unet)[0] == set(TARGETS)
    assert peft_config.target_modules is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["conv_in"]}, "`load_lora_weights` cannot load"),
        ({"bias": "lora_only"}, "bias` is 'lora_only', which trains the network's own biases"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights` is 'pissa', which changes the network's own weights",
        ),
        ({"init_lora_weights": "olora"}, "init_lora_weights` is 'olora'"),
        (
            {"target_parameters": ["mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight"]},
            "target_parameters` is ",
        ),
        ({"kasa_config": KasaConfig()}, "kasa_config` is set, which cuts off the smallest singular values"),
    ],
)
def test_adapters_that_change_more_than_themselves_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, peft_config=lora(**settings))
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(lora(**settings), adapter_name="mine")
    with pytest.raises(ValueError, match=message):
        build(tmp_path, pipeline)


@pytest.mark.parametrize("init", [False, None])
def test_new_adapters_that_start_at_something_need_another_reference(tmp_path, init):
    """With the adapter off it would not be the policy that training begins with; a copy of it, or another model, is."""

    def trainer(ref_model=None, **settings):
        peft_config = lora(init_lora_weights=init, target_modules=["to_q"])
        return make_trainer(config(tmp_path, **settings), peft_config=peft_config, ref_model=ref_model)

    with pytest.raises(ValueError, match=f"init_lora_weights` is {init!r}, with which the adapter changes"):
        trainer()
    for settings in ({"loss_type": "sft"}, {"sync_ref_model": True}, {"ref_model": stable_diffusion(seed=1)}):
        assert trainer(**settings).policy.adapter_name == "default"
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(lora(init_lora_weights=init), adapter_name="mine")  # of which a copy is the reference
    assert build(tmp_path, pipeline)[1]


OTHER_KINDS = {
    "IA3": IA3Config(target_modules=["to_q"], feedforward_modules=[]),
    "LoHa": LoHaConfig(r=2, target_modules=["to_q"]),
    "AdaLora": AdaLoraConfig(init_r=4, target_r=2, target_modules=["to_q"], total_step=10),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_adapters_of_other_kinds_are_refused_before_training(tmp_path, name):
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(OTHER_KINDS[name], adapter_name="mine")
    message = rf"`pipeline\.unet\.peft_config\['mine'\]` must be a `peft\.LoraConfig`, got `{name}Config`"
    with pytest.raises(TypeError, match=message):
        build(tmp_path, pipeline)
    with pytest.raises(TypeError, match=f"`peft_config` must be a `peft.LoraConfig`, got `{name}Config`"):
        build(tmp_path, peft_config=OTHER_KINDS[name])


@pytest.mark.parametrize(("init", "apart"), [(True, 0), ("gaussian", 0), ("mica", 0), ("orthogonal", 1e-5)])
def test_adapters_that_start_at_nothing_are_taken(tmp_path, init, apart):
    peft_config = lora(init_lora_weights=init, target_modules=["to_q"])
    policy, _ = build(tmp_path, peft_config=peft_config)
    expected = stable_diffusion().unet(inputs()[0], inputs()[1], inputs()[2]["embeds"]).sample
    torch.testing.assert_close(policy(*inputs()), expected, atol=apart, rtol=0)
    trainer = make_trainer(config(tmp_path, report_to="none"), peft_config=peft_config)
    trainer.train()
    folder = tmp_path / "adapter"
    FAMILY.save_adapter(trainer.pipeline, "default", folder)
    stock = stable_diffusion()
    stock.load_lora_weights(folder)
    latents, time, told = inputs()
    actual = stock.unet(latents, time, told["embeds"]).sample
    assert not torch.allclose(actual, expected, atol=1e-4)  # it was trained
    trainer.model.eval()
    torch.testing.assert_close(actual, trainer.policy(latents, time, told), atol=1e-5, rtol=0)


def test_in_half_precision_a_product_that_is_0_but_for_rounding_needs_another_reference():
    check_start(lora(init_lora_weights="orthogonal"), is_half=False)
    with pytest.raises(ValueError, match=r"is 'orthogonal', with which .* changes the network by what half precision"):
        check_start(lora(init_lora_weights="orthogonal"), is_half=True)


# ---- An adapter that is there already ----


def test_a_loaded_adapter_goes_on_being_trained(tmp_path):
    folder, original = saved(tmp_path)
    pipeline = stable_diffusion()
    pipeline.load_lora_weights(folder)
    policy, was_trained = build(tmp_path, pipeline)
    assert was_trained
    assert policy.adapter_name in pipeline.unet.peft_config
    state, expected = policy.adapter_state(policy.adapter_name), original.adapter_state("default")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert torch.equal(policy(*inputs()), original(*inputs()))
    assert len(trained(policy)) == len(state)


def test_a_loaded_adapter_is_put_into_float32(tmp_path):
    folder, _ = saved(tmp_path)
    pipeline = stable_diffusion().to(torch.bfloat16)
    pipeline.load_lora_weights(folder)
    policy, _ = build(tmp_path, pipeline, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad} == {torch.float32}


def test_an_adapter_that_was_switched_off_is_switched_on(tmp_path):
    folder, original = saved(tmp_path)
    pipeline = stable_diffusion()
    pipeline.load_lora_weights(folder)
    pipeline.disable_lora()
    policy, _ = build(tmp_path, pipeline)
    assert torch.equal(policy(*inputs()), original(*inputs()))
    policy(*inputs()).sum().backward()
    assert {name for name, parameter in policy.named_parameters() if parameter.grad is not None} == trained(policy)


def test_a_weighted_adapter_is_refused(tmp_path):
    folder, _ = saved(tmp_path)
    pipeline = stable_diffusion()
    pipeline.load_lora_weights(folder, adapter_name="mine")
    pipeline.set_adapters("mine", 0.5)
    with pytest.raises(ValueError, match=r"The adapter 'mine' is weighted by 0.5, which is not saved with it"):
        build(tmp_path, pipeline)
    pipeline.set_adapters("mine", 1.0)
    assert build(tmp_path, pipeline)[0].adapter_name == "mine"


def test_a_rank_stabilised_adapter_is_not_taken_for_a_weighted_one(tmp_path):
    folder, original = saved(tmp_path, use_rslora=True, r=4, alpha_pattern={"to_q": 7})
    pipeline = stable_diffusion()
    pipeline.load_lora_weights(folder)
    assert torch.equal(build(tmp_path, pipeline)[0](*inputs()), original(*inputs()))


def test_an_existing_adapter_and_a_new_one_conflict(tmp_path):
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(lora(), adapter_name="mine")
    with pytest.raises(ValueError, match="already has the adapter 'mine' and `peft_config` was passed too"):
        build(tmp_path, pipeline, lora())
    with pytest.raises(
        ValueError, match="`use_peft=False` trains all weights, but the pipeline has the adapter 'mine'"
    ):
        build(tmp_path, pipeline, use_peft=False)


def test_a_fused_and_unloaded_adapter_makes_way_for_a_new_one(tmp_path):
    folder, original = saved(tmp_path)
    pipeline = stable_diffusion()
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    policy, was_trained = build(tmp_path, pipeline, lora())
    assert not was_trained
    torch.testing.assert_close(policy(*inputs()), original(*inputs()), atol=1e-4, rtol=1e-4)


def test_two_adapters_are_refused(tmp_path):
    pipeline = stable_diffusion()
    for name in ("one", "another"):
        pipeline.unet.add_adapter(lora(), adapter_name=name)
    with pytest.raises(ValueError, match="The pipeline has the adapters 'another', 'one', and only one can be trained"):
        build(tmp_path, pipeline)


def test_an_adapter_of_a_frozen_part_is_refused(tmp_path):
    pipeline = stable_diffusion()
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="words")
    with pytest.raises(ValueError, match="The pipeline's `text_encoder` has an adapter, which stays frozen"):
        build(tmp_path, pipeline)


def test_a_peft_model_is_refused(tmp_path):
    pipeline = stable_diffusion()
    pipeline.unet = get_peft_model(pipeline.unet, lora())
    with pytest.raises(ValueError, match=r"`pipeline\.unet` is a `PeftModel`, whose adapter diffusers cannot save"):
        build(tmp_path, pipeline)


@pytest.mark.parametrize("peft_config", [IA3Config(), {"r": 4}])
def test_other_kinds_of_adapter_are_refused(tmp_path, peft_config):
    name = type(peft_config).__name__
    with pytest.raises(TypeError, match=rf"`peft_config` must be a `peft\.LoraConfig`, got `{name}`"):
        build(tmp_path, peft_config=peft_config)


# ---- All weights ----


def test_full_fine_tuning_trains_every_weight_in_float32(tmp_path):
    pipeline = stable_diffusion().to(torch.bfloat16)
    pipeline.unet.requires_grad_(False)
    policy, was_trained = build(tmp_path, pipeline, dtype=torch.bfloat16, use_peft=False)
    assert not was_trained
    assert policy.adapter_name is None
    assert trained(policy) == {f"networks.unet.{name}" for name, _ in stable_diffusion().unet.named_parameters()}
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert not hasattr(pipeline.unet, "peft_config")


def test_full_fine_tuning_takes_no_peft_config(tmp_path):
    with pytest.raises(ValueError, match="`use_peft=False` trains all weights, but `peft_config` was passed"):
        build(tmp_path, peft_config=lora(), use_peft=False)


# ---- Gradient checkpointing ----


def loss_and_gradients(policy):
    policy.zero_grad()
    loss = policy(*inputs()).square().mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_peft", [True, False])
def test_checkpointing_changes_neither_loss_nor_gradients(tmp_path, use_peft):
    policy, _ = build(tmp_path, use_peft=use_peft)
    if use_peft:
        randomize(policy)
    policy.train()
    calls = []
    block = policy.networks["unet"].up_blocks[0].resnets[0]  # behind some adapters: it has a gradient to pass on
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss, gradients = loss_and_gradients(policy)
    assert len(calls) == 1
    policy.activation_checkpointing_enable()
    checkpointed_loss, checkpointed = loss_and_gradients(policy)
    assert len(calls) == 3  # once forward, once more for the backward pass
    assert abs(loss - checkpointed_loss) <= 1e-6 * abs(loss)
    assert gradients.keys() == checkpointed.keys() == trained(policy)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert all((gradients[name] - checkpointed[name]).abs().max() <= 1e-6 * largest for name in gradients)


@pytest.mark.parametrize("options", [{}, {"use_reentrant": False}, None])
def test_both_names_and_harmless_options_turn_it_on(tmp_path, options):
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        policy, _ = build(tmp_path)
        getattr(policy, name)(options)
        assert policy.networks["unet"].is_gradient_checkpointing


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({"use_reentrant": True}, {}),
        ({"preserve_rng_state": False}, {}),
        ({}, {"offload": True}),
    ],
)
def test_other_options_are_refused(tmp_path, options, others):
    policy, _ = build(tmp_path)
    with pytest.raises(ValueError, match=r"`activation_checkpointing_kwargs` cannot\s+change that"):
        policy.activation_checkpointing_enable(options, **others)
    with pytest.raises(ValueError, match=r"`activation_checkpointing_kwargs` cannot\s+change that"):
        policy.gradient_checkpointing_enable(options, **others)


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True, None])
def test_an_interval_is_a_whole_number(tmp_path, every):
    policy, _ = build(tmp_path)
    with pytest.raises(ValueError, match=r"`every_n_layers` of `activation_checkpointing_kwargs` is .*; it must be a"):
        policy.activation_checkpointing_enable({"every_n_layers": every})
    with pytest.raises(ValueError, match="`every_n_layers`"):
        config(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"every_n_layers": every})


def test_options_of_checkpointing_are_checked_when_settings_are_made(tmp_path):
    with pytest.raises(ValueError, match="`activation_checkpointing_kwargs` cannot"):
        config(tmp_path, gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match=r"has `every_n_layers`, and .* is False, so that no block is recomputed"):
        config(tmp_path, gradient_checkpointing=False, gradient_checkpointing_kwargs={"every_n_layers": 2})


def counted_blocks(unet):
    """The blocks that can be recomputed, by kind and in the order in which they are called, and their calls."""
    kinds = {"ResnetBlock2D": [], "BasicTransformerBlock": []}
    for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for block in part.modules():
            # diffusers recomputes the first block in the middle in no case
            if type(block).__name__ in kinds and block is not unet.mid_block.resnets[0]:
                kinds[type(block).__name__].append(block)
    calls = {block: 0 for blocks in kinds.values() for block in blocks}
    for block in calls:
        block.register_forward_pre_hook(lambda module, _: calls.update({module: calls[module] + 1}))
    return kinds, calls


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_block_of_each_kind_is_recomputed_bit_for_bit(tmp_path, every):
    policy, _ = build(tmp_path, use_peft=False)
    policy.train()
    kinds, calls = counted_blocks(policy.networks["unet"])
    loss, gradients = loss_and_gradients(policy)
    assert set(calls.values()) == {1}
    policy.activation_checkpointing_enable({} if every == 1 else {"every_n_layers": every})
    same_loss, same = loss_and_gradients(policy)
    assert loss == same_loss
    assert_equal(same, gradients)
    for name, blocks in kinds.items():
        assert [calls[block] for block in blocks] == [3 if i % every == 0 else 2 for i in range(len(blocks))], name


def test_a_run_recomputes_every_nth_block(tmp_path):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}}
    trainer = make_trainer(config(tmp_path, use_peft=False, max_steps=1, **settings))
    kinds, calls = counted_blocks(trainer.policy.networks["unet"])  # the reference is another network
    trainer.train()
    for name, blocks in kinds.items():
        assert [calls[block] for block in blocks] == [2 - i % 2 for i in range(len(blocks))], name


def test_a_network_that_cannot_checkpoint_is_named():
    class Unsupported(UNet2DConditionModel):
        _supports_gradient_checkpointing = False

    network = Unsupported.from_config(stable_diffusion().unet.config)
    with pytest.raises(ValueError, match=r"`Unsupported` has no gradient checkpointing. Set `gradient_checkp"):
        Policy(FAMILY, {"unet": network}, None).activation_checkpointing_enable()


# ---- State ----


def test_an_adapters_state_round_trips(tmp_path):
    policy, _ = build(tmp_path, peft_config=lora())
    randomize(policy)
    state = {name: value.clone() for name, value in policy.adapter_state("default").items()}
    assert set(state) == {name.replace("networks.", "").replace(".default", "") for name in trained(policy)}
    expected = policy(*inputs())
    randomize(policy, seed=1)
    assert not torch.allclose(policy(*inputs()), expected, atol=0.1)
    policy.load_adapter_state(state, "default")
    assert torch.equal(policy(*inputs()), expected)
    assert len(trained(policy)) == len(state)


@pytest.mark.parametrize("mismatch", ["rank", "modules", "missing", "unknown"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, mismatch):
    policy, _ = build(tmp_path, peft_config=lora())
    randomize(policy)
    state = dict(policy.adapter_state("default"))
    if mismatch == "rank":
        state = build(tmp_path, peft_config=lora(r=3))[0].adapter_state("default")
    elif mismatch == "modules":
        state = build(tmp_path, peft_config=lora(target_modules=["to_k"]))[0].adapter_state("default")
    elif mismatch == "missing":
        state.pop(next(iter(state)))
    else:
        state["unet.elsewhere.lora_A.weight"] = torch.zeros(2, 2)
    before = policy(*inputs())
    message = (
        rf"The saved adapter has {len(state)} tensors and this one {len(trained(policy))}, of other names or shapes"
    )
    with pytest.raises(ValueError, match=message):
        policy.load_adapter_state(state, "default")
    assert torch.equal(policy(*inputs()), before)


# ---- Small things ----


def test_transformers_sees_no_configuration_on_it(tmp_path):
    # Its reporters would take diffusers' configuration for one of theirs.
    assert not hasattr(build(tmp_path)[0], "config")


def test_the_networks_dropout_is_switched_off_and_the_adapters_is_not(tmp_path):
    policy, _ = build(tmp_path, stable_diffusion(dropout=0.5), lora(lora_dropout=0.25))
    disable_dropout(policy)
    rates = {"lora" if "lora" in name else "network": set() for name, _ in policy.named_modules()}
    for name, layer in policy.named_modules():
        if isinstance(layer, torch.nn.Dropout):
            rates["lora" if "lora" in name else "network"].add(layer.p)
    assert rates == {"lora": {0.25}, "network": {0.0}}


def test_every_dropout_of_the_network_is_switched_off(tmp_path):
    policy, _ = build(tmp_path, stable_diffusion(dropout=0.5), lora())
    randomize(policy)
    policy.train()
    assert not torch.equal(policy(*inputs()), policy(*inputs()))
    disable_dropout(policy)
    assert torch.equal(policy(*inputs()), policy(*inputs()))


def test_an_adapter_on_one_of_two_networks_is_refused(tmp_path):
    pipeline = build_two_stage()
    pipeline.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
    with pytest.raises(ValueError, match=r"The pipeline's adapter 'default' is not on transformer_2, which would be"):
        check_policy(pipeline, WanFamily(num_frames=5), config(tmp_path), None)


def test_what_nothing_reads_stays_frozen_when_all_weights_are_trained(tmp_path):
    (case,) = (case for case in CASES if case.name == "qwen_image")
    pipeline = case.build()
    parts = ("attn.to_add_out", "attn.add_q_proj", "attn.norm_added_q", "txt_mlp")
    frozen = [f"transformer_blocks.1.{part}" for part in parts]
    assert QwenImageFamily().unread_parts(pipeline.transformer) == frozen
    lora = case.setup(tmp_path)
    policy, _ = build_policy(pipeline, lora.family, config(tmp_path, use_peft=False), None, torch.float32)
    setup = dataclasses.replace(lora, pipeline=pipeline, policy=policy, reference=None)
    setup.errors().policy.sum().backward()
    found = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert found == {name for name, weight in policy.named_parameters() if weight.requires_grad}
    missing = {name for name, _ in policy.named_parameters()} - found
    assert missing
    assert all(any(part in name for part in frozen) for name in missing)


# ---- What a run does at every step ----


def test_within_a_run_the_trained_weights_alone_are_dealt_with(tmp_path):
    policy, _ = build(tmp_path)
    weights = policy.trained_weights()
    assert [id(weight) for weight in weights] == [id(it) for it in policy.parameters() if it.requires_grad]
    frozen = next(weight for weight in policy.parameters() if not weight.requires_grad)
    policy.begin_run(())
    for weight in (frozen, *weights):
        weight.grad = torch.ones_like(weight)
    policy.zero_grad()
    assert [weight.grad for weight in weights] == [None] * len(weights)
    assert frozen.grad is not None  # nothing gives it one
    policy.zero_grad(set_to_none=False)
    assert (frozen.grad == 0).all()
    policy.end_run()
    policy.zero_grad()
    assert frozen.grad is None


def test_within_a_run_modes_change_where_they_differ(tmp_path):
    policy, _ = build(tmp_path)
    unet = policy.networks["unet"]
    unet.train()
    unet.mid_block.eval()
    policy.begin_run(())
    assert all(module.training for module in policy.modules())
    for change in (policy.eval, unet.eval):
        change()
        assert not any(module.training for module in unet.modules())
        policy.train()
        assert all(module.training for module in policy.modules())
