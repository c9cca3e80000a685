"""Attention is computed by the back end that is named, or the name is refused."""

from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from tgo_trl.policy import attention
from tgo_trl.policy.attention import check_backend, check_backend_name, trainable

from .cases import CASES
from .runs import assert_close, config, logged, make_trainer, trained_weights

BY_NAME = {case.name: case for case in CASES}
CPU = torch.device("cpu")


@pytest.fixture
def called(monkeypatch):
    """The back ends that computed attention, in order."""
    names = []
    backends = dict(_AttentionBackendRegistry._backends)

    def noting(name, function):
        def call(*args, **kwargs):
            names.append(name.value)
            return function(*args, **kwargs)

        return call

    noted = {name: noting(name, function) for name, function in backends.items()}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", noted)
    return names


def test_policy_and_reference_use_it_and_no_other_network(tmp_path, called):
    case, found = BY_NAME["flux"], []
    for settings in ({}, {"attention_backend": "_native_math", "sync_ref_model": True}):
        args = case.config(tmp_path, max_steps=1, gradient_checkpointing=False, **settings)
        pipeline, other = case.build(), case.build()
        trainer = make_trainer(args, model=pipeline, train_dataset=case.rows(4))
        called.clear()
        trainer.train()
        found.append((trained_weights(trainer), logged(trainer), set(called)))
        untouched = [it.processor for it in other.transformer.modules() if hasattr(it, "processor")]
        assert {it._attention_backend for it in untouched} == {None}
    (weights, losses, usual), (others, other_losses, used) = found
    assert (usual, used) == ({"native"}, {"_native_math"})
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert_close(others, weights, 1e-4)
    assert _AttentionBackendRegistry._active_backend == AttentionBackendName.NATIVE


def test_a_second_network_as_the_reference_uses_it_too(tmp_path, called):
    case = BY_NAME["flux"]
    args = case.config(tmp_path, max_steps=1, attention_backend="_native_math")
    trainer = make_trainer(args, model=case.build(), ref_model=case.build(seed=1), train_dataset=case.rows(4))
    called.clear()
    trainer.train()
    assert set(called) == {"_native_math"}


def test_every_name_of_diffusers_is_tried_or_refused():
    for name in attention.NAMES:
        if name in trainable():
            check_backend_name(name)
        else:
            with pytest.raises(
                ValueError, match=rf"`attention_backend` is '{name}', which (has no backward|downloads)"
            ):
                check_backend_name(name)
    assert {"native", "flash", "flash_varlen", "_native_cudnn", "flex", "xformers"} <= {*trainable()}
    assert not {"sage", "sage_varlen", "_sage_qk_int8_pv_fp16_cuda", "_flash_3", "flash_hub"} & {*trainable()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flashy", "is 'flashy'; it must be one of 'flash', 'flash_varlen'"),
        ("sage", "is 'sage', which has no backward pass in diffusers"),
        ("flash_hub", "is 'flash_hub', which downloads code from the Hub and runs it"),
        ("x" * 5000, "it must be one of"),
    ],
)
def test_names_are_refused_when_settings_are_made(tmp_path, name, message):
    with pytest.raises(ValueError, match=f"`attention_backend` {message}" if len(name) < 99 else message) as raised:
        config(tmp_path, attention_backend=name)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xformers", "cannot be trained with on this CPU in float32 .* Please install `xformers>="),
        ("_native_cudnn", "cannot be trained with on this CPU"),
    ],
)
def test_what_does_not_work_here_is_refused_before_a_model_is_loaded(tmp_path, name, message):
    args = config(tmp_path, attention_backend=name)
    with pytest.raises(ValueError, match=message):
        make_trainer(args, model="no/such-model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_works_is_compared_with_pytorchs_own(monkeypatch, dtype):
    check_backend("_native_math", CPU, dtype)
    usual = _AttentionBackendRegistry._backends
    broken = {**usual, AttentionBackendName._NATIVE_MATH: lambda query, key, value, **_: query + 0 * key * value}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", broken)
    with pytest.raises(ValueError, match="whose outputs or gradients on this CPU are not those of PyTorch's own"):
        check_backend("_native_math", CPU, dtype)
    detached = {**usual, AttentionBackendName._NATIVE_MATH: lambda query, key, value, **_: query.detach()}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", detached)
    with pytest.raises(ValueError, match="cannot be trained with"):
        check_backend("_native_math", CPU, dtype)


def test_it_is_tried_as_training_will_call_it(monkeypatch):
    seen = []

    def picky(query, key, value, attn_mask=None, **_):
        seen.append((query.dtype, key.dtype, value.dtype, attn_mask is not None))
        if attn_mask is not None or query.dtype != value.dtype:
            raise ValueError("not of one kind")
        heads = (it.movedim(1, 2) for it in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads).movedim(1, 2)

    backends = {**_AttentionBackendRegistry._backends, AttentionBackendName.FLASH: picky}
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", backends)
    monkeypatch.setattr(attention, "attention_backend", lambda name: nullcontext())  # whose package is not here
    check_backend("flash", CPU, torch.bfloat16)
    with pytest.raises(ValueError, match=r"under autocast .*set `bf16_autocast=False`"):
        check_backend("flash", CPU, torch.bfloat16, autocasts=True)
    with pytest.raises(ValueError, match="with masked prompts"):
        check_backend("flash", CPU, torch.bfloat16, with_mask=True)
    half, full = torch.bfloat16, torch.float32
    assert seen == [(half, half, half, False), (full, full, half, False), (half, half, half, True)]


def test_flex_is_refused_where_it_is_not_compiled(tmp_path):
    with pytest.raises(ValueError, match="the whole matrix of scores unless it is compiled"):
        config(tmp_path, attention_backend="flex")
    assert config(tmp_path, attention_backend="flex", compile_repeated_blocks=True).attention_backend == "flex"


def test_networks_that_have_no_choice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`UNet2DConditionModel` calls PyTorch's own attention whatever it is"):
        make_trainer(config(tmp_path, attention_backend="native"))
