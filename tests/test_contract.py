"""What every family must do, over all tiny pipelines: a family that is not right fails here."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tgo_trl.families import EDIT_FAMILIES, FAMILIES
from tgo_trl.losses.likelihood import implicit_reward, log_ratio
from tgo_trl.losses.tgo import tgo_loss
from tgo_trl.policy.draws import Draw
from tgo_trl.trainer.plots import film_strip

from . import tiny
from .cases import CASES, KINDS, KINDS_THAT_TAKE_LONG, PROMPTS, _built, calls_of, perturb
from .runs import assert_equal, first_log, logged, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


of_runs = pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)


@pytest.fixture(params=KINDS)
def case(request):
    return request.param


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
DONE_BY_PIPELINES = {"sana": "tokenizer", "krea2": "text_encoder"}
"""The part that a pipeline itself alters when it is called: how it pads, and what it listens to."""


def state_of(pipeline, but=()):
    """What a test could leave behind in parts that others share, but for numbers of tensors."""
    parts = {name: part for name, part in pipeline.components.items() if name not in but}
    return {name: module_state(it) if isinstance(it, nn.Module) else other_state(it) for name, it in parts.items()}


def module_state(part):
    weights = {name: (it.dtype, it.device, it.requires_grad) for name, it in part.named_parameters()}
    buffers = {name: (it.dtype, it.device) for name, it in part.named_buffers()}
    modules = {name: (it.training, *slices_of(it), *hooks_of(it)) for name, it in part.named_modules()}
    return weights, buffers, modules, str(getattr(part, "config", None))


def hooks_of(module):
    """How many there are, but for those that transformers leaves once and for all, to hand out hidden states."""
    hooks = (hook for name in HOOKS for hook in getattr(module, name).values())
    return [sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)]


def slices_of(module):
    return [getattr(module, name, None) for name in ("use_slicing", "use_tiling")]


def plain(values):
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str, type(None)))}


def other_state(part):
    return type(part), plain(getattr(part, "__dict__", {})), str(getattr(part, "config", None))


@pytest.fixture(autouse=True)
def shared_parts_stay(request):
    """After each test, in whichever process it ran: the parts that others get are as they were."""
    case = request.node.callspec.params.get("case") if hasattr(request.node, "callspec") else None
    if case is None:
        yield
        return
    built = _built(case)
    own = (*case.family(built).network_names, "scheduler", "guider", DONE_BY_PIPELINES.get(case.name.partition("-")[0]))
    before = state_of(built, own)
    yield
    assert state_of(built, own) == before


def gradients(module):
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def test_every_family_of_the_table_has_a_case():
    assert {type(case.family(case.fresh())) for case in CASES} == {*FAMILIES.values(), *EDIT_FAMILIES.values()}


# ---- Policy and reference ----


def test_the_log_ratio_is_zero_at_initialisation(case, tmp_path):
    errors = case.setup(tmp_path).errors()
    assert torch.equal(errors.policy, errors.reference)
    assert torch.isfinite(errors.policy).all()
    assert (errors.policy > 0).all()
    assert errors.policy.dtype == torch.float32


def test_only_adapters_get_gradient_and_all_of_them_do(case, tmp_path):
    setup = case.setup(tmp_path)
    perturb(setup.policy)
    draw = setup.draw(num_samples=8)  # at many times, for networks that share them out
    errors = setup.errors(draw)
    assert not torch.equal(errors.policy, errors.reference)
    assert not errors.reference.requires_grad
    errors.policy.sum().backward()
    trained = {name for name, weight in setup.policy.named_parameters() if weight.requires_grad}
    found = gradients(setup.policy)
    assert found.keys() == trained
    assert all("lora_" in name for name in trained)
    for name, network in setup.family.networks(setup.pipeline).items():
        assert any(f"networks.{name}." in weight for weight in trained)
        assert all(f"networks.{name}.{weight}" in found for weight, p in network.named_parameters() if p.requires_grad)
    dead = {name for name, gradient in found.items() if not gradient.abs().max() > 0}
    assert not dead


def test_rows_do_not_look_at_each_other(case, tmp_path):
    setup = case.setup(tmp_path)
    perturb(setup.policy)
    together = setup.errors().policy[0]
    for order in ([1, 0], [0], [1]):
        torch.testing.assert_close(setup.errors(order=order).policy[0], together[order], rtol=1e-4, atol=1e-5)
    assert abs(together[0] - together[1]) > 1e-5


def test_a_draw_decides_alone(case, tmp_path):
    setup = case.setup(tmp_path)
    draw = setup.draw()
    first = setup.errors(draw).policy
    torch.manual_seed(99)
    assert torch.equal(setup.errors(setup.draw()).policy, first)
    assert not torch.equal(setup.errors(setup.draw(seed=1)).policy, first)
    other_noise = Draw(draw.quantile, draw.noise.flip(-1), draw.posterior_noise)
    other_time = Draw((draw.quantile + 0.3) % 1, draw.noise, draw.posterior_noise)
    for other in (other_noise, other_time):
        assert not torch.equal(setup.errors(other).policy, first)


def test_the_prediction_depends_on_the_prompt(case, tmp_path):
    setup = case.setup(tmp_path)
    first = setup.errors().policy
    for name, tensor in list(setup.prompt.items()):
        setup.prompt[name] = tensor.flip(0)
    assert not torch.allclose(setup.errors().policy, first, rtol=1e-5, atol=0)


@of_runs
def test_gradient_checkpointing_changes_nothing(case, tmp_path):
    found = []
    for checkpointing in (False, True):
        setup = case.setup(tmp_path)
        perturb(setup.policy)
        setup.policy.train()
        if checkpointing:
            setup.policy.activation_checkpointing_enable()
        errors = setup.errors().policy
        errors.sum().backward()
        found.append((errors.detach(), gradients(setup.policy)))
    (plain, plain_gradients), (checkpointed, checkpointed_gradients) = found
    torch.testing.assert_close(checkpointed, plain)
    assert checkpointed_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@of_runs
def test_gradient_checkpointing_saves_memory(case, tmp_path):
    def saved_bytes(checkpointing):
        setup = case.setup(tmp_path)
        setup.policy.train()
        if checkpointing:
            setup.policy.activation_checkpointing_enable()
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            setup.errors()
        return total

    assert saved_bytes(True) < saved_bytes(False)


@of_runs
@pytest.mark.parametrize("autocasts", [True, False], ids=["autocast", "without"])
def test_bfloat16_runs(case, tmp_path, autocasts):
    exact = case.setup(tmp_path).errors().policy
    setup = case.setup(tmp_path, dtype=torch.bfloat16, bf16=True, bf16_autocast=autocasts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = setup.errors()
    assert torch.equal(errors.policy, errors.reference)
    assert errors.policy.dtype == torch.float32
    torch.testing.assert_close(errors.policy, exact, rtol=0.05, atol=0.05)
    errors.policy.sum().backward()
    for gradient in gradients(setup.policy).values():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all()


# ---- The adapter in stock diffusers ----


def test_a_saved_adapter_predicts_the_same_in_stock_diffusers(case, tmp_path):
    setup = case.setup(tmp_path, lora_r=3, lora_alpha=7)
    perturb(setup.policy)
    setup.family.save_adapter(setup.pipeline, setup.policy.adapter_name, tmp_path)

    stock = case.fresh()
    exec(setup.family.loading_code(stock, str(tmp_path)), {"pipeline": stock})  # what the model card says
    generator = torch.Generator().manual_seed(0)
    arguments = {**case.module.CALL, "prompt": PROMPTS[0], "generator": generator, "output_type": "pt"}
    networks, trained = setup.family.networks(stock), setup.family.networks(setup.pipeline)
    for name, network in networks.items():
        calls = calls_of(network, stock, **arguments)
        assert calls, name
        for call, output in calls:
            with torch.no_grad():
                expected = first_tensor(trained[name](**call))
                torch.testing.assert_close(first_tensor(output), expected, rtol=1e-4, atol=1e-5)
                network.disable_adapters()
                plain = first_tensor(network(**call))
                network.enable_adapters()
            assert (plain - expected).abs().max() > 1e-3


@of_runs
def test_an_adapter_is_attached_as_the_model_card_says(case, tmp_path):
    setup = case.setup(tmp_path, lora_r=3, lora_alpha=7)
    perturb(setup.policy)
    setup.family.save_adapter(setup.pipeline, setup.policy.adapter_name, tmp_path)
    attached, told = case.fresh(), case.fresh()
    setup.family.attach_adapter(attached, str(tmp_path))
    exec(setup.family.loading_code(told, str(tmp_path)), {"pipeline": told})
    for name, network in setup.family.networks(attached).items():
        state, expected = network.state_dict(), getattr(told, name).state_dict()
        assert state.keys() == expected.keys()
        assert any("lora_B" in key for key in state)
        assert all(torch.equal(state[key], expected[key]) for key in state)


@of_runs
def test_a_saved_adapter_comes_back(case, tmp_path):
    setup = case.setup(tmp_path)
    perturb(setup.policy)
    name = setup.policy.adapter_name
    saved = {key: value.clone() for key, value in setup.policy.adapter_state(name).items()}
    setup.family.save_adapter(setup.pipeline, name, tmp_path)
    perturb(setup.policy)
    loaded = setup.family.load_adapter(tmp_path)
    flat = {f"{network}.{key}": value for network, part in loaded.items() for key, value in part.items()}
    setup.policy.load_adapter_state(flat, name)
    state = setup.policy.adapter_state(name)
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)


# ---- Against upstream ----


def test_the_error_is_that_of_a_second_formula(case, tmp_path):
    setup = case.setup(tmp_path)
    draw = setup.draw()
    with torch.no_grad():
        expected = case.module.denoising_error(setup.pipeline, case.pixels(), PROMPTS, draw)
    assert expected.shape == (2,)
    torch.testing.assert_close(setup.errors(draw).policy[0].detach(), expected, rtol=1e-5, atol=1e-5)


def test_samples_have_prompts_of_the_length_of_training(case, tmp_path):
    pipeline = case.fresh()
    family = case.family_with(pipeline, {})  # with the lengths that the published ones have
    if not family.prompt_length(pipeline) or case.num_frames is not None:
        pytest.skip("prompts have one length, or samples take long")
    trained = {name: tuple(tensor.shape) for name, tensor in case.encode(family, pipeline)[1].items()}
    seen = []
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **kwargs: (seen.append(kwargs), encode(*args, **kwargs))[1]
    size = (case.module.RESOLUTION, case.module.RESOLUTION)
    generators = [torch.Generator().manual_seed(0)]
    given = {} if case.sources is None else {"sources": case.sources[:1]}
    with torch.no_grad():
        family.sample(pipeline, PROMPTS[:1], generators, size, num_inference_steps=1, **given)
    length = family.prompt_length(pipeline)["max_sequence_length"]
    assert seen[0]["max_sequence_length"] == length
    assert length <= trained["embeds"][1]  # SD3's come after CLIP's


def test_the_network_is_called_as_the_pipeline_calls_it(case, tmp_path):
    setup = case.setup(tmp_path)
    arguments = {**case.module.CALL, **case.module.UNGUIDED, "output_type": "latent"}
    latent_shape = setup.family.latent_shape(setup.image)
    image, prompt = (
        {name: tensor[:1] for name, tensor in it.items()} for it in case.encode(setup.family, setup.pipeline)
    )
    conditions = setup.family.conditions(setup.pipeline, image, prompt)
    networks = setup.family.networks(setup.pipeline)
    is_like_training = getattr(case.module, "is_like_training", lambda call: True)
    for network in networks.values():
        generator = torch.Generator().manual_seed(0)
        calls = calls_of(network, setup.pipeline, prompt=PROMPTS[0], generator=generator, **arguments)
        calls = [(call, output) for call, output in calls if is_like_training(call)]
        assert calls
        for call, output in calls:
            corrupted, time = case.module.read_call(call, latent_shape)
            assert corrupted.shape == (1, *latent_shape)
            ours = calls_of(network, setup.family.predict, networks, corrupted, time, conditions)
            assert len(ours) == 1
            assert_same_call(ours[0][0], call, getattr(case.module, "UNSEEN", ()))
            torch.testing.assert_close(first_tensor(ours[0][1]), first_tensor(output))


def assert_same_call(ours, theirs, unseen):
    """Every argument that the pipeline passes, and that is not None, has the same value."""
    ignored = {"return_dict", "attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs", *unseen}
    theirs = {name: value for name, value in theirs.items() if value is not None and name not in ignored}
    ours = {name: value for name, value in ours.items() if value is not None and name not in ignored}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_same(ours[name], value, name)


def assert_same(ours, theirs, where):
    if isinstance(theirs, torch.Tensor):
        if theirs.dim() == 0:  # a time for all rows
            theirs = theirs.expand_as(ours)
        if ours.dim() == 1 and theirs.dim() == 2:  # one for each token, where ours is for all tokens of a row
            ours = ours[:, None].expand_as(theirs)
        torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-5, atol=1e-5, msg=lambda m: f"{where}: {m}")
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}/{i}")
    else:
        assert ours == theirs, where


def first_tensor(output):
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


# ---- Training ----


@of_runs
def test_training_lowers_the_loss_of_eight_rows(case, tmp_path):
    setup = case.setup(tmp_path, num_rows=8)
    process = setup.family.process(setup.pipeline)
    temperature = process.temperature(math.prod(setup.family.latent_shape(setup.image)))
    draw = setup.draw(rows=tuple(range(8)))
    is_positive = torch.arange(8) % 2 == 0
    optimizer = torch.optim.AdamW([p for p in setup.policy.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        errors = setup.errors(draw)
        reward = implicit_reward(log_ratio(errors.policy[0], errors.reference[0], temperature), beta=1.0)
        loss = tgo_loss(reward, is_positive, torch.ones(8)).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < losses[0] - 0.01


@of_runs
def test_the_trainer_runs_changes_samples_and_releases_the_encoders(case, tmp_path):
    args = case.config(tmp_path, max_steps=4, per_device_train_batch_size=8, learning_rate=1e-2, bf16=True)
    trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(8))
    moved = []
    trainer.encoders._place = lambda names, device: moved.append((set(names), device))
    trainer.train()
    weight = trainer.train_labels.weights.mean().item()
    first = first_log(trainer)
    assert first["rewards/margins"] == 0
    assert {value for name, value in first.items() if name.startswith("drift/")} == {1.0}
    expected = 0.0 if trainer.denoiser.noise_process.has_target else None  # logits are not subtracted
    assert first.get("prediction_difference") == expected
    assert logged(trainer)[0] == pytest.approx(weight * math.log(2), rel=1e-5)
    assert np.isfinite(logged(trainer)).all()
    assert not moved  # everything was encoded before training began, and the encoders stay where they are

    sizes = ("height", "width", "num_frames", "max_sequence_length", "image")  # of the family
    call = {name: value for name, value in case.module.CALL.items() if name not in sizes}
    if case.sources is not None:
        call["sources"] = case.sources[:1]
    before, after = (
        film_strip(sample) if isinstance(sample, list) else sample
        for sample in (
            trainer.sample(PROMPTS[:1], [0], from_reference=from_reference, **call)[0]
            for from_reference in (True, False)
        )
    )
    assert before.size == after.size
    assert before.tobytes() != after.tobytes()
    frozen = {name for name in trainer.pipeline.components if name not in trainer.family.network_names}
    assert moved == [(frozen, args.device), (frozen, torch.device("cpu"))] * 2


# ---- The tests themselves ----


def test_what_the_tests_share_is_as_it_was_built(case):
    """The last one, so that it finds what the others did to the parts that they share."""
    built, fresh, other = case.build(), case.fresh(), case.fresh()
    assert fresh.components.keys() == built.components.keys()
    for name, part in built.components.items():
        if isinstance(part, torch.nn.Module):
            assert_equal(getattr(fresh, name).state_dict(), part.state_dict(), name)
            is_own = name in case.family(built).network_names
            assert (getattr(fresh, name) is not getattr(other, name)) == is_own


@pytest.mark.parametrize("change", [
    lambda it: it.text_encoder.train(),
    lambda it: it.vae.decoder.conv_in.requires_grad_(False),
    lambda it: it.vae.to(torch.bfloat16),
    lambda it: it.vae.encoder.register_forward_hook(lambda *_: None),
    lambda it: it.vae.register_to_config(scaling_factor=2.0),
    lambda it: setattr(it.tokenizer, "padding_side", "left"),
    lambda it: setattr(it.vae, "use_slicing", True),
])  # fmt: skip
def test_a_change_of_what_the_tests_share_is_seen(change):
    pipeline = tiny.stable_diffusion()
    before = state_of(pipeline)
    assert state_of(tiny.stable_diffusion()) == before
    change(pipeline)
    assert state_of(pipeline) != before
