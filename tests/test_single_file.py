"""Pipelines in one file: loaded as they are, or refused with the way."""

import json
import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tgo_trl.cli import main
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy.loading import load_pipeline, load_reference_networks
from tgo_trl.policy.named import is_single_file
from tgo_trl.policy.pipeline_class import recorded_class

from . import tiny
from .runs import assert_equal, config, make_trainer

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    **{f"up_blocks.{b}.resnets.{i}": f"output_blocks.{2 * b + i}.0" for b in (0, 1) for i in (0, 1)},
    **{f"up_blocks.0.attentions.{i}": f"output_blocks.{i}.1" for i in (0, 1)},
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
}  # fmt: skip
VAE = {
    **{f"encoder.down_blocks.{i}.resnets.": f"encoder.down.{i}.block." for i in (0, 1)},
    "encoder.down_blocks.0.downsamplers.0.conv": "encoder.down.0.downsample.conv",
    **{f"decoder.up_blocks.{1 - i}.resnets.": f"decoder.up.{i}.block." for i in (0, 1)},
    "decoder.up_blocks.0.upsamplers.0.conv": "decoder.up.1.upsample.conv",
    **{f"{part}.mid_block.resnets.{i}": f"{part}.mid.block_{i + 1}" for part in ("encoder", "decoder") for i in (0, 1)},
    **{f"{part}.mid_block.attentions.0": f"{part}.mid.attn_1" for part in ("encoder", "decoder")},
    **{f"{part}.conv_norm_out": f"{part}.norm_out" for part in ("encoder", "decoder")},
}
VAE_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def renamed(key, names):
    for ours, theirs in names.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def original(pipeline):
    """The weights under the names of Stable Diffusion's first release."""
    state = {}
    for key, value in pipeline.unet.state_dict().items():
        name = renamed(key, UNET)
        if ".resnets." in key:
            name = re.sub("|".join(RESNET), lambda match: RESNET[match[0]], name)
        state[f"model.diffusion_model.{name}"] = value
    for key, value in pipeline.vae.state_dict().items():
        name = renamed(key, VAE)
        if "attentions" in key:
            name = re.sub("|".join(VAE_PARTS), lambda match: VAE_PARTS[match[0]], name)
        state[f"first_stage_model.{name.replace('conv_shortcut', 'nin_shortcut')}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        prefix = "" if key.startswith("text_model.") else "text_model."
        state[f"cond_stage_model.transformer.{prefix}{key}"] = value
    return {key: value.contiguous() for key, value in state.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `base`, and the same in `model.safetensors`."""
    path = tmp_path_factory.mktemp("single")
    tiny.stable_diffusion().save_pretrained(path / "base")
    save_file(original(tiny.stable_diffusion()), path / "model.safetensors")
    return path


def test_a_single_file_is_the_pipeline_it_was(folder):
    pipeline = load_pipeline(str(folder / "model.safetensors"), {"config": str(folder / "base")}, None, None)
    expected = tiny.stable_diffusion()
    for name in ("unet", "vae", "text_encoder"):
        assert_equal(dict(getattr(pipeline, name).state_dict()), dict(getattr(expected, name).state_dict()), name)


def test_a_single_file_is_trained_and_drawn_from(folder, tmp_path):
    model, kwargs = str(folder / "model.safetensors"), {"config": str(folder / "base")}
    one = make_trainer(config(tmp_path / "one", model_init_kwargs=kwargs), model=model)
    other = make_trainer(config(tmp_path / "other"), model=str(folder / "base"))
    for trainer in (one, other):
        trainer.train()
        trainer.save_model()
    file = "out/pytorch_lora_weights.safetensors"
    assert_equal(load_file(tmp_path / "one" / file), load_file(tmp_path / "other" / file))
    one.create_model_card()
    card = (tmp_path / "one" / "out" / "README.md").read_text()
    assert 'pipeline = StableDiffusionPipeline.from_single_file("model.safetensors")' in card
    assert "huggingface.co/" + str(folder) not in card
    networks = load_reference_networks(model, one.pipeline, StableDiffusionFamily(), kwargs)
    assert_equal(dict(networks["unet"].state_dict()), dict(tiny.stable_diffusion().unet.state_dict()))


def test_generate_reads_one_too(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--num_inference_steps", "1", "--disable_tqdm"]
    kwargs = f'{{"config": "{folder / "base"}"}}'
    one = ["--model_name_or_path", str(folder / "model.safetensors"), "--model_init_kwargs", kwargs]
    assert main(["generate", *one, *arguments, "--output_dir", str(tmp_path / "one")]) == 0
    assert list((tmp_path / "one" / "data").glob("*.parquet"))


@pytest.fixture(scope="module")
def of_image_to_image(folder):
    """A configuration of the same parts whose index names a class that there is no family for."""
    path = shutil.copytree(folder / "base", folder / "img2img")
    index = path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionImg2ImgPipeline"'))
    return str(path)


def test_a_single_file_is_loaded_under_the_class_that_is_set(folder, of_image_to_image, tmp_path, capsys):
    model, kwargs = str(folder / "model.safetensors"), {"config": of_image_to_image}
    for call in (lambda: load_pipeline(model, kwargs, None, None, weights=False), lambda: make_trainer(
        config(tmp_path, model_init_kwargs=kwargs), model=model
    )):  # fmt: skip
        with pytest.raises(ValueError, match="No model family is known for `StableDiffusionImg2ImgPipeline`"):
            call()
    under = {**kwargs, "pipeline_class": "StableDiffusionPipeline"}
    pipeline, skeleton = (load_pipeline(model, under, None, None, weights=it) for it in (True, False))
    assert type(pipeline) is type(skeleton) is StableDiffusionPipeline
    assert_equal(dict(pipeline.unet.state_dict()), dict(tiny.stable_diffusion().unet.state_dict()))
    assert skeleton.unet.device.type == "meta"

    # as the commands do
    tiny.scored_rows(4).to_parquet(tmp_path / "rows.parquet")
    words = [
        "--model_name_or_path", model, "--model_init_kwargs", json.dumps(kwargs), "--pipeline_class",
        "StableDiffusionPipeline", "--dataset_name", tmp_path / "rows.parquet", "--output_dir", tmp_path / "trained",
        "--encoding_cache_dir", tmp_path / "cache", "--max_steps", "1", "--per_device_train_batch_size", "4",
        "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--lora_r", "4",
    ]  # fmt: skip
    for command in ("plan", "train"):
        assert main([command, *map(str, words)]) == 0, capsys.readouterr().err
    assert recorded_class(str(tmp_path / "trained")) == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FluxPipeline", "`transformer`, which that class needs"),
        ("AnimateDiffPipeline", "No model family is known for `AnimateDiffPipeline`"),
    ],
)
def test_a_class_that_cannot_be_is_refused_of_single_files(folder, name, message):
    model, kwargs = str(folder / "model.safetensors"), {"config": str(folder / "base"), "pipeline_class": name}
    for weights in (True, False):
        with pytest.raises(ValueError, match=message):
            load_pipeline(model, kwargs, None, None, weights=weights)


def without_the_autoencoder(state):
    return {key: value for key, value in state.items() if not key.startswith("first_stage_model")}


def cut(state):
    return {key: value for key, value in state.items() if "middle_block.1" not in key}


REFUSED = {
    "of nothing": (lambda state: {"model.diffusion_model.x": torch.zeros(1)}, {}, "weights of no pipeline"),
    "an adapter": (lambda state: {"unet.to_q.lora_A.weight": torch.zeros(1)}, {}, "`adapter_name_or_path`"),
    "without an autoencoder": (without_the_autoencoder, {"config": "base"}, "holds no whole `StableDiffusionPipeline`"),
    "cut": (cut, {"config": "base"}, "lacks weights|holds no whole"),
    "of another configuration": (lambda state: state, {"config": "nobody/nothing"}, "needs the configuration of"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kwargs", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_holds_no_pipeline_is_refused(folder, tmp_path, change, kwargs, message):
    path = tmp_path / "other.safetensors"
    save_file(change(original(tiny.stable_diffusion())), path)
    if kwargs.get("config") == "base":
        kwargs = {"config": str(folder / "base")}
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(path), kwargs, None, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.ckpt", "is a pickle, which runs code .*`safetensors.torch.save_file"),
        ("model.bin", "is a pickle"),
        ("https://example.org/model.pt?token=abc", "is a pickle"),
        ("model-q4.gguf", "a quantised network, not a pipeline.*`GGUFQuantizationConfig`"),
        ("nowhere.safetensors", "There is no file '.*nowhere.safetensors'"),
        ("https://user:secret@example.org/model.safetensors", "is no address of a file on the Hub.*Download it"),
        ("https://huggingface.co/owner/name", None),
    ],
)
def test_other_files_are_refused_with_the_way(name, message):
    if message is None:
        assert not is_single_file(name)
        return
    assert is_single_file(name)
    with pytest.raises(ValueError, match=message) as raised:
        load_pipeline(name, None, None, None)
    assert "secret" not in str(raised.value)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        load_pipeline(str(tmp_path / "model.safetensors"), None, None, None)


def test_a_folder_with_a_suffix_is_a_folder(folder, tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "v1.safetensors")
    assert load_pipeline(str(tmp_path / "v1.safetensors"), None, None, None).unet is not None


def test_quantization_is_not_for_single_files(folder):
    with pytest.raises(ValueError, match="A single file is loaded whole"):
        load_pipeline(str(folder / "model.safetensors"), {"config": str(folder / "base")}, object(), None)
