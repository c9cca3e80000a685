"""LoRA on a base that is really quantised: torchao's 8-bit weights, which need no GPU."""

import pytest
import torch
from diffusers import (
    FluxKontextPipeline,
    FluxPipeline,
    PipelineQuantizationConfig,
    StableDiffusionPipeline,
    TorchAoConfig,
)
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
)
from torchao.quantization.quantize_.workflows import Int8Tensor
from transformers import TorchAoConfig as TransformersTorchAoConfig

from tgo_trl.policy.loading import load_pipeline
from tgo_trl.policy.pipeline_class import recorded_class
from tgo_trl.precision import compute_dtype
from tgo_trl.storage.fingerprints import component_fingerprint

from .cases import CASES, perturb
from .runs import assert_equal, config, first_log, logged, make_trainer, num_graphs, trained_weights
from .tiny import scored_rows, stable_diffusion


def int8():
    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(width=32).save_pretrained(path)
    return str(path)


def quantized_weights(module):
    return [weight for weight in module.parameters() if isinstance(weight, Int8Tensor)]


def trainer_of(folder, tmp_path, **arguments):
    settings = arguments.pop("settings", {})
    arguments = {"quantization_config": int8(), "train_dataset": scored_rows(8), **arguments}
    return make_trainer(config(tmp_path, **settings), model=folder, **arguments)


def test_an_adapter_trains_on_an_8_bit_base(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path)
    unet = trainer.pipeline.unet
    assert len(quantized_weights(unet)) > 10
    before = [weight.dequantize().clone() for weight in quantized_weights(unet)]
    trainer.train()
    assert first_log(trainer)["rewards/margins"] == 0
    assert len(logged(trainer)) == 2
    for weight, old in zip(quantized_weights(unet), before, strict=True):
        assert torch.equal(weight.dequantize(), old)
    moved = [weight for name, weight in unet.named_parameters() if "lora_B" in name]
    assert moved
    assert all(weight.abs().max() > 0 for weight in moved)

    trainer.save_model()
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.load_lora_weights(str(tmp_path / "out"))
    state = stock.unet.state_dict()
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            assert torch.equal(state[name.replace(".default.", ".default_0.")], weight)


def test_an_adapter_trains_on_it_without_autocast(folder, tmp_path):
    logs = []
    for autocasts in (True, False):
        trainer = trainer_of(folder, tmp_path, settings={"bf16": True, "bf16_autocast": autocasts})
        trainer.train()
        logs.append(logged(trainer))
        assert {weight.dtype for weight in trainer.policy.trained_weights()} == {torch.float32}
    assert logs[1] == pytest.approx(logs[0], rel=1e-2)


@pytest.mark.slow  # where no coverage is taken, whose tracer breaks graphs
def test_compiled_blocks_of_an_8_bit_base_give_the_same_bit_for_bit(folder, tmp_path):
    compiled = {"compile_repeated_blocks": True, "torch_compile_backend": "eager"}
    runs = [trainer_of(folder, tmp_path / str(i), settings=it) for i, it in enumerate(({}, compiled))]
    before = num_graphs()
    for trainer in runs:
        trainer.train()
    assert num_graphs() == (before[0] + 3, before[1])
    assert logged(runs[1]) == logged(runs[0])
    assert_equal(trained_weights(runs[1]), trained_weights(runs[0]))


def test_gradients_are_those_of_the_network_that_is_not_quantised(tmp_path):
    (case,) = [case for case in CASES if case.name == "flux"]
    folder = str(tmp_path / "pipeline")
    case.build().save_pretrained(folder)
    gradients = []
    for quantization in (None, int8()):
        pipeline = load_pipeline(folder, None, quantization, None)
        assert bool(quantized_weights(pipeline.transformer)) == (quantization is not None)
        setup = case.setup(tmp_path, pipeline=pipeline)
        perturb(setup.policy, 0.05)
        setup.errors().policy.sum().backward()
        gradients.append({name: p.grad for name, p in setup.policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.cosine_similarity(gradients[1][name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def int4():
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)))


@pytest.mark.parametrize("quantization", [int8, int4], ids=["8 bit", "4 bit"])
def test_a_base_is_quantised_under_the_class_that_is_set(tmp_path, quantization):
    (case,) = [case for case in CASES if case.name == "flux_kontext"]
    folder = str(tmp_path / "pipeline")
    FluxPipeline(**case.build().components).save_pretrained(folder)
    trainer = trainer_of(
        folder, tmp_path, train_dataset=case.rows(4), quantization_config=quantization(),
        settings={"pipeline_class": "FluxKontextPipeline", "max_steps": 1, "resolution": 16, **case.module.SETTINGS},
    )  # fmt: skip
    assert type(trainer.pipeline) is FluxKontextPipeline
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": quantization()})
    stock = FluxKontextPipeline.from_pretrained(folder, quantization_config=mapping, torch_dtype=torch.float32)
    theirs = {name: it for name, it in stock.transformer.named_parameters() if hasattr(it, "dequantize")}
    ours = {name.replace(".base_layer", ""): it for name, it in trainer.pipeline.transformer.named_parameters()}
    is_quantised = [name for name, it in theirs.items() if type(it) is not torch.nn.Parameter]
    assert len(is_quantised) > 10
    for name in is_quantised:
        assert type(ours[name]) is type(theirs[name])
        assert torch.equal(ours[name].dequantize(), theirs[name].dequantize()), name
    trainer.train()
    trainer.save_model()
    assert recorded_class(str(tmp_path / "out")) == "FluxKontextPipeline"


def test_what_is_not_quantised_is_in_the_dtype_of_training(folder):
    pipeline = load_pipeline(folder, None, int8(), None, torch.bfloat16)
    assert compute_dtype(pipeline.unet) == torch.bfloat16
    assert {weight.dtype for weight in pipeline.vae.parameters()} == {torch.float32}
    assert {weight.dtype for weight in pipeline.unet.parameters() if type(weight) is torch.nn.Parameter} == {
        torch.bfloat16
    }


def test_a_quantisation_that_stops_gradients_is_refused(folder, tmp_path):
    dynamic = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ValueError, match=r"The quantised layers of `unet` .* pass no gradient on"):
        trainer_of(folder, tmp_path, quantization_config=dynamic)


def test_quantised_weights_cannot_be_trained_themselves(folder, tmp_path):
    with pytest.raises(ValueError, match="`unet` is quantised, and quantised weights cannot be trained"):
        trainer_of(folder, tmp_path, settings={"use_peft": False})


def test_a_reference_that_is_named_is_quantised_as_the_policy_is(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path, ref_model=folder, settings={"max_steps": 1})
    trainer.train()
    assert quantized_weights(trainer.reference.model)
    assert first_log(trainer)["rewards/margins"] == 0


def test_a_quantised_text_encoder_is_fingerprinted_and_used(folder, tmp_path):
    def load():
        mapping = {"text_encoder": TransformersTorchAoConfig(Int8WeightOnlyConfig()), "unet": int8()}
        return load_pipeline(folder, None, PipelineQuantizationConfig(quant_mapping=mapping), None)

    first, second = load(), load()
    assert quantized_weights(first.text_encoder)
    assert component_fingerprint(first.text_encoder) == component_fingerprint(second.text_encoder)
    assert component_fingerprint(first.text_encoder) != component_fingerprint(stable_diffusion().text_encoder)
    weight = quantized_weights(second.text_encoder)[0]
    weight.data.scale.mul_(2)
    assert component_fingerprint(first.text_encoder) != component_fingerprint(second.text_encoder)
    trainer = make_trainer(config(tmp_path, max_steps=1), model=first)
    trainer.train()
    assert first_log(trainer)["rewards/margins"] == 0


def test_processes_do_not_exchange_quantised_weights(folder, tmp_path):
    policy = trainer_of(folder, tmp_path).policy
    ignored = set(policy._ddp_params_and_buffers_to_ignore)
    exchanged = {name for name, _ in policy.named_parameters()} - ignored
    assert exchanged == {name for name, weight in policy.named_parameters() if weight.requires_grad}
    plain = make_trainer(config(tmp_path)).policy
    assert plain._ddp_params_and_buffers_to_ignore == []
