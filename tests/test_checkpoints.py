"""What a run leaves on disk, and that stock diffusers makes the same images of it."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from tgo_trl.labels.rule import LabelRule
from tgo_trl.trainer import checkpoints

from . import tiny
from .runs import assert_equal, config, make_trainer, trained_weights

WEIGHTS = "pytorch_lora_weights.safetensors"
STATE = {"tgo_config.json", "trainer_state.json", "manifest.json"}
RESUME = {"optimizer.pt", "scheduler.pt", "rng_state.pth", *STATE}
PROMPTS, SEEDS = ["a red cat", "a blue dog"], [3, 4]
DRAW = {"num_inference_steps": 3, "guidance_scale": 4.0}


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def images(pipeline, **kwargs):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    size = {"height": tiny.RESOLUTION, "width": tiny.RESOLUTION}
    return [np.array(image) for image in pipeline(PROMPTS, generator=generators, **size, **DRAW, **kwargs).images]


def trained(folder, **settings):
    arguments = {name: settings.pop(name) for name in ("model", "peft_config") if name in settings}
    trainer = make_trainer(config(folder, learning_rate=3e-2, max_steps=4, **settings), **arguments)
    trainer.train()
    return trainer


def test_a_checkpoint_holds_the_adapter_and_what_a_resume_needs(tmp_path):
    trained(tmp_path, save_strategy="steps", save_steps=4)
    assert files(tmp_path / "out" / "checkpoint-4") == {WEIGHTS, *RESUME}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint-4", "README.md", "score_histogram.png"}


def test_the_checkpoint_of_a_moving_reference_holds_the_reference_too(tmp_path):
    trained(tmp_path, save_strategy="steps", save_steps=4, sync_ref_model=True)
    names = {WEIGHTS, "reference.safetensors", *RESUME}
    assert files(tmp_path / "out" / "checkpoint-4") == names


def test_the_checkpoint_of_full_fine_tuning_holds_the_network_alone(tmp_path):
    trained(tmp_path, use_peft=False, save_strategy="steps", save_steps=4)
    network = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert files(tmp_path / "out" / "checkpoint-4") == {*network, *RESUME}


def test_save_only_model_leaves_the_optimizer_out(tmp_path):
    trained(tmp_path, save_strategy="steps", save_steps=4, save_only_model=True)
    assert files(tmp_path / "out" / "checkpoint-4") == {WEIGHTS, *STATE}


def test_save_model_writes_the_adapter_with_its_settings(tmp_path):
    trainer = trained(tmp_path)
    trainer.save_model()
    assert files(tmp_path / "out") == {WEIGHTS, "tgo_config.json", "score_histogram.png"}
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert files(tmp_path / "elsewhere") == {WEIGHTS, "tgo_config.json"}
    assert_equal(load_file(tmp_path / "elsewhere" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))
    with safe_open(tmp_path / "out" / WEIGHTS, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.r"] == 4
    assert metadata["unet.lora_alpha"] == 8
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert len(weights) == len(trained_weights(trainer))
    assert all(re.fullmatch(r"unet\..*\.lora_[AB]\.weight", name) for name in weights)
    assert all(weight.dtype == torch.float32 for weight in weights.values())


ADAPTERS = {
    "alpha over rank": {"lora_r": 4, "lora_alpha": 32},
    "alpha under rank": {"lora_r": 4, "lora_alpha": 2},
    "own targets": {"lora_target_modules": ["to_q", "ff.net.0.proj", "conv1"]},
    "trained in bfloat16": {"bf16": True},
    "trained without autocast": {"bf16": True, "bf16_autocast": False},
    "rank-stabilised": {"peft_config": LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["to_k", "to_v"])},
    "rank by layer": {
        "peft_config": LoraConfig(r=2, lora_alpha=4, target_modules=["to_k", "to_v"], rank_pattern={"to_k": 5})
    },
    "v-prediction": {"model": "v_prediction"},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_a_saved_adapter_draws_the_same_images_in_stock_diffusers(tmp_path, settings):
    settings = dict(settings)
    prediction_type = settings.pop("model", "epsilon")
    trainer = trained(tmp_path, model=tiny.stable_diffusion(prediction_type), **settings)
    trainer.save_model()
    mine = trainer.sample(PROMPTS, SEEDS, **DRAW)
    stock = tiny.stable_diffusion(prediction_type)
    before = images(stock)
    stock.load_lora_weights(tmp_path / "out")
    after = images(stock)
    # In bfloat16, the trainer samples under autocast and this pipeline in float32.
    tolerance = 6 if settings.get("bf16") else 1
    for sample, loaded, untrained in zip(mine, after, before, strict=True):
        assert np.abs(np.array(sample).astype(int) - loaded).max() <= tolerance
        assert np.abs(untrained.astype(int) - loaded).max() > 10


def test_a_continued_adapter_is_saved_alone(tmp_path):
    """The frozen copy that it was compared with stays out of the file."""
    from .test_trainer import with_trained_adapter

    trainer = trained(tmp_path, model=with_trained_adapter(tiny.stable_diffusion()))
    trainer.save_model()
    weights = load_file(tmp_path / "out" / WEIGHTS)
    state = trainer.policy.adapter_state("mine")
    assert_equal(weights, state)
    assert not torch.equal(next(iter(state.values())), next(iter(trainer.reference.state().values())))
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(tmp_path / "out")
    for sample, loaded in zip(trainer.sample(PROMPTS, SEEDS, **DRAW), images(stock), strict=True):
        assert np.abs(np.array(sample).astype(int) - loaded).max() <= 1


def test_a_saved_pipeline_draws_the_same_images_in_stock_diffusers(tmp_path):
    trainer = trained(tmp_path, use_peft=False)
    trainer.save_model()
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    untrained = images(tiny.stable_diffusion())
    for sample, loaded, before in zip(trainer.sample(PROMPTS, SEEDS, **DRAW), images(stock), untrained, strict=True):
        assert np.array_equal(np.array(sample), loaded)
        assert np.abs(before.astype(int) - loaded).max() > 10
    assert not [name for name in files(tmp_path / "out") if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]


def test_the_network_of_a_full_checkpoint_loads_in_stock_diffusers(tmp_path):
    trainer = trained(tmp_path, use_peft=False, save_strategy="steps", save_steps=4)
    network = type(trainer.pipeline.unet).from_pretrained(tmp_path / "out" / "checkpoint-4" / "unet")
    assert_equal(dict(network.state_dict()), dict(trainer.pipeline.unet.state_dict()))


def test_tgo_config_holds_threshold_temperature_and_settings(tmp_path):
    trainer = trained(tmp_path, save_strategy="steps", save_steps=4, beta=2.0, confidence_coef=3.0)
    trainer.save_model()
    text = (tmp_path / "out" / "tgo_config.json").read_text()
    assert text == (tmp_path / "out" / "checkpoint-4" / "tgo_config.json").read_text()
    values = json.loads(text)
    names = {
        "temperature", "size", "label_rule", "config", "course", "progress", "updates", "changes", "pipeline_class"
    }  # fmt: skip
    assert values.keys() == names
    assert values["temperature"] == pytest.approx(0.064)
    assert values["size"] == [16, 16]
    rule = values["label_rule"]
    assert rule["threshold"] == 3.5
    assert rule["confidence_coef"] == 3.0
    assert (rule["num_rows"], rule["num_positive"], rule["num_prompts"]) == (8, 4, 4)
    assert LabelRule.from_dict(rule) == trainer.label_rule == checkpoints.read_label_rule(tmp_path / "out")
    assert values["config"]["beta"] == 2.0
    assert values["config"]["learning_rate"] == 3e-2
    assert values["config"]["seed"] == 42


def test_tgo_config_tells_no_path_and_no_token(tmp_path):
    """It is uploaded with the adapter."""
    base = tmp_path / "base"
    tiny.stable_diffusion().save_pretrained(base)
    secrets = {"token": "hf_secret", "cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    trainer = make_trainer(
        config(
            tmp_path, model_init_kwargs=secrets, hub_token="hf_secret", hub_model_id="me/mine", run_name="my machine"
        ),
        model=str(base),
    )
    trainer.save_model()
    text = (tmp_path / "out" / "tgo_config.json").read_text()
    for hidden in ("hf_secret", str(tmp_path), "me/mine", "my machine"):
        assert hidden not in text
    assert json.loads(text)["config"]["model_init_kwargs"]["local_files_only"] is True


def test_the_label_rule_of_prompts_survives_json(tmp_path):
    trainer = make_trainer(config(tmp_path, threshold_type="prompt_baseline"))
    trainer.save_model()
    rule = checkpoints.read_label_rule(tmp_path / "out")
    assert rule == trainer.label_rule
    assert rule.prompt_thresholds.keys() == set(tiny.PROMPTS)


def test_nothing_but_pictures_json_and_safetensors_is_written_outside_of_checkpoints(tmp_path):
    trainer = trained(
        tmp_path, save_strategy="steps", save_steps=4, sample_prompts=["a cat"], sample_num_inference_steps=1
    )
    trainer.save_model()
    trainer.save_state()
    outside = {name for name in files(tmp_path / "out") if not name.startswith("checkpoint-")}
    assert {name.rpartition(".")[2] for name in outside} == {"safetensors", "json", "png", "md"}


def test_a_pipeline_trained_in_bfloat16_mixed_precision_is_saved_in_one_dtype(tmp_path):
    trainer = trained(tmp_path, use_peft=False, bf16=True)
    trainer.save_model()
    loaded = StableDiffusionPipeline.from_pretrained(trainer.args.output_dir)
    components = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert {p.dtype for component in components for p in component.parameters()} == {torch.float32}
    assert images(loaded)
