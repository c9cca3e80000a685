"""What a user may name as `model`, `ref_model` and `processing_class`."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler, GGUFQuantizationConfig
from diffusers.loaders import lora_base
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy.index import read_index
from tgo_trl.policy.loading import (
    _of_networks,
    adapter_scales,
    attach_adapter,
    load_pipeline,
    load_reference_networks,
    replace_tokenizer,
)

from .tiny import clip_tokenizer, stable_diffusion

FAMILY = StableDiffusionFamily()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline on disk."""
    folder = tmp_path_factory.mktemp("pipeline")
    stable_diffusion().save_pretrained(folder)
    return str(folder)


class Unconditional(DiffusionPipeline):
    """A pipeline without a `unet`."""

    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)


class TwoNetworks(StableDiffusionFamily):
    network_names = ("unet", "unet_2")


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- The model ----


def test_a_pipeline_is_returned_as_it_is():
    pipeline = stable_diffusion()
    assert load_pipeline(pipeline, None, None, None) is pipeline


def test_a_folder_is_loaded_in_float32(folder):
    pipeline = load_pipeline(folder, None, None, None)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    assert_same_weights(pipeline.unet, stable_diffusion().unet)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"], ids=str)
def test_a_dtype_is_honoured_under_both_names_and_as_text(folder, name, dtype):
    assert load_pipeline(folder, {name: dtype}, None, None).unet.dtype == torch.bfloat16


def test_init_kwargs_reach_the_pipeline_and_are_left_alone(folder):
    scheduler = stable_diffusion("v_prediction").scheduler
    init_kwargs = {"scheduler": scheduler, "trust_remote_code": False}
    assert load_pipeline(folder, init_kwargs, None, None).scheduler is scheduler
    assert init_kwargs == {"scheduler": scheduler, "trust_remote_code": False}


def test_init_kwargs_without_a_string_are_ignored_with_a_warning(caplog):
    pipeline = stable_diffusion()
    assert load_pipeline(pipeline, {"variant": "fp16"}, None, None) is pipeline
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "You passed `model_init_kwargs` to the `TGOConfig`, but your model is already instantiated" in caplog.text


def test_init_kwargs_that_a_pipeline_was_loaded_with_are_not_said_to_be_ignored(folder, caplog):
    """As where a command loads it, to put an adapter on it, before the trainer gets it."""
    pipeline = load_pipeline(folder, {"dtype": "bfloat16"}, None, None)
    load_pipeline(pipeline, {"dtype": "bfloat16"}, None, None)
    assert caplog.messages == []
    load_pipeline(pipeline, {"dtype": "float32"}, None, None)
    assert "The `model_init_kwargs` will be ignored" in caplog.text


def test_silence_without_init_kwargs(caplog):
    load_pipeline(stable_diffusion(), None, None, None)
    assert caplog.messages == []


@pytest.mark.parametrize(("model", "name"), [(None, "NoneType"), (3, "int"), (torch.nn.Linear(1, 1), "Linear")])
def test_other_types_are_refused(model, name):
    with pytest.raises(TypeError, match=f"`model` must be a diffusers pipeline, a Hub id or a folder, got `{name}`"):
        load_pipeline(model, None, None, None)


def test_a_network_alone_is_refused_with_what_it_lacks():
    with pytest.raises(TypeError, match="lacks the encoders and the scheduler that training needs: pass its pipeline"):
        load_pipeline(stable_diffusion().unet, None, None, None)


def test_code_from_the_hub_is_refused(folder):
    with pytest.raises(ValueError, match="`trust_remote_code=True`, which would run code from the Hub"):
        load_pipeline(folder, {"trust_remote_code": True}, None, None)


# ---- Quantization ----


def quantization():
    return GGUFQuantizationConfig()


def test_quantization_of_a_pipeline_that_is_already_loaded_is_refused():
    with pytest.raises(ValueError, match="You passed `quantization_config` to the trainer, but your model is already"):
        load_pipeline(stable_diffusion(), None, quantization(), None)


def test_quantization_is_set_in_one_place(folder):
    with pytest.raises(ValueError, match=r"both as a trainer argument and in `args.model_init_kwargs`"):
        load_pipeline(folder, {"quantization_config": quantization()}, quantization(), None)


def test_a_networks_quantization_is_applied_to_the_trained_networks_only(folder):
    config = quantization()
    assert _of_networks(config, StableDiffusionFamily, read_index(folder, {})).quant_mapping == {"unet": config}
    # of two networks, those that the repository has
    assert _of_networks(config, TwoNetworks, read_index(folder, {})).quant_mapping == {"unet": config}


# ---- The reference ----


def test_the_reference_is_a_network_a_pipeline_or_a_folder(folder):
    policy, other = stable_diffusion(), stable_diffusion(seed=1)
    assert load_reference_networks(other.unet, policy, FAMILY, None) == {"unet": other.unet}
    assert load_reference_networks(other, policy, FAMILY, {"ignored": True}) == {"unet": other.unet}
    loaded = load_reference_networks(folder, policy, FAMILY, None)
    assert loaded.keys() == {"unet"}
    assert_same_weights(loaded["unet"], stable_diffusion().unet)


def test_a_folder_may_be_named_by_a_path(folder):
    assert_same_weights(load_pipeline(Path(folder), None, None, None).unet, stable_diffusion().unet)
    loaded = load_reference_networks(Path(folder), stable_diffusion(), FAMILY, None)
    assert_same_weights(loaded["unet"], stable_diffusion().unet)


def test_a_reference_that_is_named_is_loaded_with_the_init_kwargs(folder):
    loaded = load_reference_networks(folder, stable_diffusion(), FAMILY, {"torch_dtype": torch.bfloat16})
    assert loaded["unet"].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["network", "pipeline", "pipeline of the same parts"])
def test_the_policy_is_not_its_own_reference(kind):
    pipeline = stable_diffusion()
    reference = {
        "network": pipeline.unet,
        "pipeline": pipeline,
        "pipeline of the same parts": type(pipeline)(**pipeline.components, requires_safety_checker=False),
    }[kind]
    with pytest.raises(ValueError, match="`model` and `ref_model` cannot be the same object"):
        load_reference_networks(reference, pipeline, FAMILY, None)
    assert load_reference_networks(copy.deepcopy(pipeline.unet), pipeline, FAMILY, None)  # equal is not the same


def test_one_network_is_no_reference_for_two():
    two = stable_diffusion()
    two.unet_2 = two.unet
    with pytest.raises(ValueError, match="`ref_model` is one network, but this pipeline trains unet, unet_2"):
        load_reference_networks(stable_diffusion().unet, two, TwoNetworks(), None)


def test_a_pipeline_of_another_kind_is_no_reference():
    pipeline = stable_diffusion()
    with pytest.raises(ValueError, match="`ref_model` is a `Unconditional` without unet, which the policy trains"):
        load_reference_networks(Unconditional(pipeline.scheduler), pipeline, FAMILY, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "v_prediction"}, "its `prediction_type` is 'v_prediction', not 'epsilon', as of `model`"),
        ({"prediction_type": "sample"}, "its scheduler is none that `model` could be trained with"),
        ({"rescale_betas_zero_snr": True}, "its schedule is another one"),
        ({"num_train_timesteps": 500}, "its schedule has 500 timesteps, not 1000"),
    ],
)
def test_a_reference_that_answers_another_question_is_refused(changes, words):
    policy, other = stable_diffusion(), stable_diffusion(seed=1)
    other.scheduler = DDPMScheduler.from_config(other.scheduler.config, **changes)
    with pytest.raises(ValueError, match=f"`ref_model` cannot be asked what the policy is asked: {words}"):
        load_reference_networks(other, policy, FAMILY, None)
    assert load_reference_networks(other.unet, policy, FAMILY, None)  # which says nothing of its noise
    other.register_modules(scheduler=None)
    assert load_reference_networks(other, policy, FAMILY, None)


def test_a_reference_may_be_sampled_in_another_way():
    policy, other = stable_diffusion(), stable_diffusion(seed=1)
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    assert load_reference_networks(other, policy, FAMILY, None) == {"unet": other.unet}


def test_other_types_of_reference_are_refused():
    with pytest.raises(TypeError, match=r"`ref_model` must be a diffusers pipeline, a Hub id, .* got `int`"):
        load_reference_networks(3, stable_diffusion(), FAMILY, None)


# ---- The tokenizer ----


def test_a_tokenizer_takes_the_place_of_the_pipelines():
    pipeline, tokenizer = stable_diffusion(), clip_tokenizer()
    replace_tokenizer(pipeline, tokenizer)
    assert pipeline.tokenizer is tokenizer
    assert pipeline.components["tokenizer"] is tokenizer


def test_only_a_tokenizer_can_be_replaced():
    pipeline = stable_diffusion()
    with pytest.raises(TypeError, match="`processing_class` is a `StableDiffusionPipeline`"):
        replace_tokenizer(pipeline, pipeline)
    with pytest.raises(TypeError, match="only a tokenizer can be replaced"):
        replace_tokenizer(Unconditional(pipeline.scheduler), clip_tokenizer())


def test_a_community_pipeline_is_refused(folder):
    with pytest.raises(ValueError, match="`custom_pipeline`, which runs code from the Hub"):
        load_pipeline(str(folder), {"custom_pipeline": "lpw_stable_diffusion"}, None, None)


# ---- Adapters ----


def adapter_of(pipeline, folder, target_modules=("to_q", "to_v"), **changes):
    """A folder with a trained adapter of a pipeline, some tensors changed by name."""
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=list(target_modules)), adapter_name="mine")
    FAMILY.save_adapter(pipeline, "mine", folder)
    path = folder / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    for change in changes.values():
        state = change(state)
    save_file(state, path)
    return str(folder)


def test_an_adapter_is_attached_from_a_folder_or_a_file(tmp_path):
    folder = adapter_of(stable_diffusion(), tmp_path)
    for weights in (folder, str(tmp_path / "pytorch_lora_weights.safetensors")):
        pipeline = stable_diffusion()
        attach_adapter(pipeline, FAMILY, weights)
        assert set(adapter_scales(pipeline)) == {
            f"unet.{name}" for name, _ in pipeline.unet.named_modules() if name.endswith(("to_q", "to_v"))
        }


def renamed(state):
    return {key.replace("down_blocks.1", "down_blocks.7"): value for key, value in state.items()}


DAMAGED = {
    "of other layers": (lambda state: {f"other.{k}": v for k, v in state.items()}, "holds no weights for a"),
    "of a larger network": (renamed, "8 of 32 weights fit nothing in this `StableDiffusionPipeline`"),
    "of a wider network": (
        lambda state: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in state.items()}, "does not fit a",
    ),
    "empty": (lambda state: {}, "holds no weights|does not fit"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, change, message):
    folder = adapter_of(stable_diffusion(), tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        attach_adapter(stable_diffusion(), FAMILY, folder)


def test_a_misspelt_folder_is_told_with_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, meant in (("modle", "model"), (f"{tmp_path}/modle", f"{tmp_path}/model")):
        with pytest.raises(OSError, match=f"There is no folder '{name}' here, and of the Hub: .* mean '{meant}'"):
            read_index(name, {})
    with pytest.raises(OSError, match=r"model_index\.json") as raised:
        read_index("model", {})
    assert "There is no folder" not in str(raised.value)


def test_an_adapter_that_is_nowhere_is_told():
    with pytest.raises(ValueError, match=r"There is no folder 'no/where' here, .* Mend the name, or write the path"):
        attach_adapter(stable_diffusion(), FAMILY, "no/where")


@pytest.mark.parametrize("path", ["/no/where", "outputs/runs/nowhere"])
def test_a_path_that_is_nowhere_is_told_with_a_connection(monkeypatch, path):
    monkeypatch.setattr(lora_base, "HF_HUB_OFFLINE", False)  # no request is made of what is no id
    with pytest.raises(ValueError, match=f"There is no folder '{path}' here, and no id on the Hub has that form. Mend"):
        attach_adapter(stable_diffusion(), FAMILY, path)


def test_an_adapter_in_pefts_format_or_a_damaged_one_is_refused(tmp_path):
    network = get_peft_model(stable_diffusion().unet, LoraConfig(r=4, target_modules=["to_q"]))
    network.save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match="holds no weights for a `StableDiffusionPipeline`"):
        attach_adapter(stable_diffusion(), FAMILY, str(tmp_path / "peft"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pytorch_lora_weights.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        attach_adapter(stable_diffusion(), FAMILY, str(tmp_path / "broken"))
