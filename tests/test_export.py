"""Exported adapters: other programs' names, and weights that need nothing beside them."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tgo_trl import ExportConfig, export
from tgo_trl.cli import main
from tgo_trl.commands.export import run
from tgo_trl.families import StableDiffusionFamily, WanFamily
from tgo_trl.policy.loading import attach_adapter

from . import tiny
from .cases import CASES, KINDS_THAT_TAKE_LONG, perturb
from .test_generation import save_adapter

SCALE = 0.5
PREFIXES = {
    "stable_diffusion": "lora_unet_", "stable_diffusion_xl": "lora_unet_", "flux": "transformer.",
    "flux2": "transformer.", "flux2_dev": "transformer.", "flux2_edit": "transformer.",
    "flux2_dev_edit": "transformer.", "flux_kontext": "transformer.", "chroma": "transformer.",
    "krea2": "transformer.",
    "longcat_image": "transformer.", "longcat_image_edit": "transformer.",
    "qwen_image_edit": "transformer.", "qwen_image_edit_plus": "transformer.",
    "stable_diffusion_3": "transformer.", "qwen_image": "transformer.", "z_image": "transformer.",
    "qwen_image21": "transformer.", "qwen_image21_edit": "transformer.",
    "ltx2": "diffusion_model.", "wan": "diffusion_model.", "wan_image_to_video": "diffusion_model.",
}  # fmt: skip


def deltas(pipeline, family):
    """What the adapters of a pipeline add to each weight, as they are loaded."""
    return {
        f"{network_name}.{name}": sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters).detach()
        for network_name, network in family.networks(pipeline).items()
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer)
    }


def made(case, folder):
    """The base in `base`, and an adapter with a scale of 8 / 4 in `adapter`; what it adds to each weight."""
    pipeline = case.build()
    pipeline.save_pretrained(folder / "base")
    family = case.family(pipeline)
    save_adapter(pipeline, folder / "adapter", family)
    return family, deltas(pipeline, family)


def arguments(folder, **settings):
    names = {"adapter_name_or_path": folder / "adapter", "model_name_or_path": folder / "base"}
    names["output_dir"] = folder / "out"
    return ExportConfig(**{**{name: str(path) for name, path in names.items()}, "scale": SCALE, **settings})


@pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)
def test_stock_diffusers_reads_the_same_from_other_names(case, tmp_path, capsys):
    family, expected = made(case, tmp_path)
    prefix = family.comfyui_prefix
    assert prefix == PREFIXES.get(case.module.__name__.rpartition(".")[2])
    if prefix is None:
        with pytest.raises(ValueError, match=r"ComfyUI has no names for the weights of a .*Set `format` to 'merged'"):
            export(arguments(tmp_path))
        return
    paths = export(arguments(tmp_path))
    two = {"transformer": "adapter-high-noise", "transformer_2": "adapter-low-noise"}
    names = list(family.networks(case.build()))
    assert [path.stem for path in paths] == ([two[name] for name in names] if len(names) > 1 else ["adapter"])
    assert all(key.startswith(prefix) for path in paths for key in load_file(path))
    assert capsys.readouterr().out.count(" layers, at a scale of 0.5") == len(paths)
    stock = case.build()
    load = stock.load_lora_weights if hasattr(stock, "load_lora_weights") else stock.transformer.load_lora_adapter
    for path, second in zip(paths, ({}, {"load_into_transformer_2": True}), strict=False):
        load(tmp_path / "out", weight_name=path.name, **second)
    read = [stock]
    if len(paths) == 1:  # a family looks for those of several networks by their own names
        read.append(case.build())
        attach_adapter(read[1], family, str(paths[0]))
    for pipeline in read:
        found = deltas(pipeline, family)
        assert found.keys() == expected.keys()
        for name, delta in expected.items():
            torch.testing.assert_close(found[name], SCALE * delta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)
def test_a_merged_pipeline_has_the_adapter_in_its_weights(case, tmp_path):
    family, added = made(case, tmp_path)
    if family.left_out(case.build()):  # nobody loads it by its name alone
        with pytest.raises(ValueError, match="text_encoder_3"):
            export(arguments(tmp_path, format="merged"))
        return
    (merged,) = export(arguments(tmp_path, format="merged"))
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]
    found, base = case.build(), case.build()
    found = type(found).from_pretrained(merged)
    for name, network in family.networks(base).items():
        weights = getattr(found, name).state_dict()
        assert weights.keys() == network.state_dict().keys()
        for key, weight in network.state_dict().items():
            delta = added.get(f"{name}.{key.removesuffix('.weight')}")
            expected = weight if delta is None else weight + SCALE * delta
            torch.testing.assert_close(weights[key], expected, rtol=1e-5, atol=1e-6)


def test_kohya_s_names_say_all_by_themselves(tmp_path):
    """`W + alpha / rank * up @ down`, whatever the header says."""
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(tmp_path / "base")
    save_adapter(pipeline, tmp_path / "adapter")
    expected = deltas(pipeline, StableDiffusionFamily())
    (path,) = export(arguments(tmp_path, scale=1.0))
    assert path == tmp_path / "out" / "adapter.safetensors"
    state = load_file(path)
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {name for name in state if name.startswith(key)} == {
        f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"
    }  # fmt: skip
    down, up, alpha = (state[f"{key}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert alpha.item() == 4
    torch.testing.assert_close(alpha / len(down) * up @ down, expected[f"unet.{module}"])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_layers_of_wan_have_its_own_names():
    family = WanFamily()
    names = {
        "blocks.3.attn1.to_q": "blocks.3.self_attn.q", "blocks.3.attn2.to_out.0": "blocks.3.cross_attn.o",
        "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0", "blocks.0.ffn.net.2": "blocks.0.ffn.2",
        "blocks.0.attn2.add_k_proj": "blocks.0.cross_attn.k_img", "condition_embedder.time_proj": None,
        "blocks.0.norm2": None,
    }  # fmt: skip
    assert {module: family.comfyui_module(module) for module in names} == names


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("chroma", "distilled_guidance_layer.in_proj"),
        ("longcat_image", "time_embed.timestep_embedder.linear_1"),
        ("longcat_image_edit", "time_embed.timestep_embedder.linear_1"),
    ],
)
def test_comfyui_has_no_names_for_what_flux_has_not(name, lacking):
    """As `flux_to_diffusers` in ComfyUI's comfy/utils.py maps them, by which it reads adapters of these three."""
    case = next(it for it in CASES if it.name == name)
    pipeline = case.build()
    family, modules = case.family(pipeline), dict(pipeline.transformer.named_modules())
    known = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "context_embedder", "proj_out"
    assert {*known, lacking} <= modules.keys()
    assert [family.comfyui_module(module) for module in known] == [*known]
    assert family.comfyui_module(lacking) is None


def test_alpha_of_single_modules_and_stabilised_ranks_count(tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(tmp_path / "base")
    lora = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, alpha_pattern={"attn2.to_q": 2}, rank_pattern={"mid_block.*attn1.to_k": 2},
        target_modules=["to_q", "to_k"],
    )  # fmt: skip
    pipeline.unet.add_adapter(lora, adapter_name="default")
    perturb(pipeline.unet)
    (tmp_path / "adapter").mkdir()
    StableDiffusionFamily().save_adapter(pipeline, "default", tmp_path / "adapter")
    expected = deltas(pipeline, StableDiffusionFamily())
    (path,) = export(arguments(tmp_path, scale=1.0))
    state = load_file(path)
    ranks = set()
    for name, delta in expected.items():
        key = f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}"
        down, up, alpha = (state[f"{key}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        torch.testing.assert_close(alpha / len(down) * up @ down, delta, rtol=1e-5, atol=1e-7)
        ranks.add(len(down))
    assert ranks == {2, 4}


@pytest.fixture
def folder(tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(tmp_path / "base")
    save_adapter(pipeline, tmp_path / "adapter")
    return tmp_path


def test_the_command_halves_a_file_and_says_what_it_wrote(folder, capsys):
    files = ["--adapter_name_or_path", str(folder / "adapter"), "--model_name_or_path", str(folder / "base")]
    assert main(["export", *files, "--output_dir", str(folder / "out"), "--dtype", "bfloat16"]) == 0
    assert re.search(r"adapter\.safetensors: \d+ layers, at a scale of 1\n.*models/loras", capsys.readouterr().out)
    state = load_file(folder / "out" / "adapter.safetensors")
    dtypes = {name.endswith(".alpha"): tensor.dtype for name, tensor in state.items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_merged_pipeline_is_written_in_the_dtype_that_is_asked_for(folder):
    (merged,) = export(arguments(folder, format="merged", dtype="float16"))
    assert {it.dtype for it in load_file(merged / "unet" / "diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }
    index = json.loads((merged / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_what_is_there_is_not_overwritten_by_a_pipeline(folder):
    with pytest.raises(ValueError, match="which is not empty; a pipeline is written into a folder of its own"):
        export(arguments(folder, format="merged", output_dir=str(folder / "base")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "kohya"}, "`format`"),
        ({"dtype": "int8"}, "`dtype`"),
        ({"scale": 0.0}, "the adapter does nothing"),
        ({"scale": 1e39}, "`scale`"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_numbers_that_a_dtype_cannot_hold_are_refused(folder):
    path = folder / "adapter" / "pytorch_lora_weights.safetensors"
    save_file({name: tensor + 6e4 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"too large or too small for torch.float16"):
        export(arguments(folder, dtype="float16", scale=4.0))


def test_more_than_two_factors_are_refused(folder):
    path = folder / "adapter" / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("lora_B.weight"))
    save_file({**state, name.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"no plain LoRA .*lora_magnitude_vector"):
        export(arguments(folder))


def test_a_folder_without_an_adapter_is_refused(folder):
    with pytest.raises(ValueError, match="a folder without a LoRA adapter"):
        export(arguments(folder, adapter_name_or_path=str(folder)))
    (folder / "other").mkdir()
    save_file({"x": torch.ones(1)}, folder / "other" / "weights.safetensors")
    with pytest.raises(ValueError, match="as training and diffusers' `save_lora_weights` write it"):
        export(arguments(folder, adapter_name_or_path=str(folder / "other")))


def test_an_adapter_of_another_base_is_refused(folder):
    path = folder / "adapter" / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    save_file({name.replace("unet.", "transformer."): tensor for name, tensor in state.items()}, path)
    with pytest.raises(ValueError, match="holds weights of none of its networks, and the base has unet"):
        export(arguments(folder))


def rewrite(folder, change, header=None):
    """Changes the adapter's weights, a dictionary, and what its header says of it."""
    path = folder / "adapter" / "pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata if header is None else {**metadata, "lora_adapter_metadata": header})


@pytest.mark.parametrize("format", ["comfyui", "merged"])
def test_weights_of_a_text_encoder_are_not_left_out_in_silence(folder, format):
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    rewrite(folder, lambda it: it.update({
        f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(32, 4)}))  # fmt: skip
    with pytest.raises(ValueError, match="2 are not of unet: of a text encoder"):
        export(arguments(folder, format=format))


def test_a_file_is_not_taken_for_its_folder(folder):
    path = folder / "adapter" / "pytorch_lora_weights.safetensors"
    with pytest.raises(ValueError, match=r"is the file .* Name the folder"):
        export(arguments(folder, adapter_name_or_path=str(path)))


def test_a_folder_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="is no folder here, and cannot be fetched from the Hub"):
        export(arguments(folder, adapter_name_or_path=str(folder / "typo" / "adapter")))


def test_one_of_two_files_is_not_an_adapter(tmp_path):
    pipeline = tiny.wan.build_two_stage()
    pipeline.save_pretrained(tmp_path / "base")
    save_adapter(pipeline, tmp_path / "adapter", WanFamily())
    (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").unlink()
    for form in ("comfyui", "merged"):
        with pytest.raises(ValueError, match="holds weights of transformer_2, and the base has transformer, transf"):
            export(arguments(tmp_path, format=form))


def test_another_adapter_of_the_same_name_is_not_written_over(folder):
    first = export(arguments(folder))[0].read_bytes()
    assert export(arguments(folder))[0].read_bytes() == first  # the same again
    with pytest.raises(ValueError, match="is there already, with other weights"):
        export(arguments(folder, scale=2.0))
    (folder / "adapter").rename(folder / "checkpoint-10")
    (path,) = export(arguments(folder, adapter_name_or_path=str(folder / "checkpoint-10")))
    assert path.stem == f"{folder.name}-checkpoint-10"


def test_a_file_that_is_no_adapter_is_not_written_over(folder):
    (folder / "out").mkdir()
    (folder / "out" / "adapter.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is there already, with other weights"):
        export(arguments(folder))


def test_the_folder_of_the_adapter_is_left_alone(folder):
    with pytest.raises(ValueError, match="the folder of the adapter itself"):
        export(arguments(folder, output_dir=str(folder / "adapter")))


def test_small_factors_are_made_alike_before_float16(folder):
    """A short training leaves the second factor near what float16 cannot hold."""

    def shrink(state):
        state.update({name: value * 1e-6 if "lora_B" in name else value for name, value in state.items()})

    rewrite(folder, shrink)
    whole = load_file(export(arguments(folder, output_dir=str(folder / "whole")))[0])
    half = load_file(export(arguments(folder, dtype="float16"))[0])
    for name in [name for name in whole if name.endswith("lora_up.weight")]:
        down = name.replace("lora_up", "lora_down")
        product, expected = half[name].float() @ half[down].float(), whole[name] @ whole[down]
        assert float((product - expected).norm() / expected.norm()) < 2e-3
        plain = whole[name].half().float() - whole[name]
        assert float(plain.norm() / whole[name].norm()) > 5e-3  # as it would be otherwise


def test_a_scale_that_overflows_is_refused(folder):
    with pytest.raises(ValueError, match=r"too large or too small for torch.float16"):
        export(arguments(folder, scale=3e38, dtype="float16"))


def test_a_scale_that_leaves_nothing_is_refused(folder):
    with pytest.raises(ValueError, match=r"too large or too small for torch.float32"):
        export(arguments(folder, scale=1e-300))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[1, 2]", "holds no configuration"), ("{oops", "holds no configuration"),
        ("[" * 9999, "holds no configuration"),
        ('{"unet.lora_alpha": "8"}', "`lora_alpha` is '8'"), ('{"unet.lora_alpha": NaN}', "`lora_alpha` is nan"),
        ('{"unet.alpha_pattern": ["to_q"]}', "`alpha_pattern`"),
        ('{"unet.alpha_pattern": {"(a+)+$": 2}}', "`alpha_pattern`"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_named(folder, header, message):
    rewrite(folder, lambda state: None, header)
    with pytest.raises(ValueError, match=message):
        export(arguments(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda name, it: {name: it[:2]}, lambda name, it: {name: it.to(torch.int32)},
        lambda name, it: {name: torch.full_like(it, float("nan"))}, lambda name, it: {name: it[:0]},
    ],
    ids=["another rank", "integers", "NaN", "no rank"],
)  # fmt: skip
def test_damaged_factors_are_named(folder, change):
    def damage(state):
        name = min(name for name in state if name.endswith("lora_A.weight"))
        state.update({key: value.contiguous() for key, value in change(name, state[name]).items()})

    rewrite(folder, damage)
    with pytest.raises(ValueError, match="are no two factors of finite numbers"):
        export(arguments(folder))


def test_a_merged_pipeline_that_overflows_is_not_written(folder):
    rewrite(folder, lambda state: state.update({name: value * 1e4 for name, value in state.items()}))
    with pytest.raises(ValueError, match=r"has NaN or infinity in torch.float16. Set `dtype` to 'bfloat16'"):
        export(arguments(folder, format="merged", dtype="float16"))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", ["torch_dtype", "quantization_config"])
def test_how_a_base_is_loaded_is_not_left_to_chance(tmp_path, name):
    with pytest.raises(ValueError, match=f"`model_init_kwargs` has `{name}`"):
        arguments(tmp_path, model_init_kwargs={name: "float16"})


def test_a_killed_merge_leaves_no_pipeline_and_goes_on(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "flush", lambda path: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            export(arguments(folder, format="merged", output_dir=str(folder / "merged")))
    assert not (folder / "merged").exists()
    with monkeypatch.context() as patch:
        usual, count = Path.rename, iter(range(99))
        patch.setattr(Path, "rename", lambda path, to: usual(path, to) if next(count) < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(arguments(folder, format="merged", output_dir=str(folder / "merged")))
    assert not (folder / "merged").exists()
    (folder / "merged" / ".unfinished" / "unet").mkdir(parents=True)  # of one that could not clear up
    (merged,) = export(arguments(folder, format="merged", output_dir=str(folder / "merged")))
    assert (merged / "model_index.json").is_file()
    assert not (merged / ".unfinished").exists()
