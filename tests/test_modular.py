"""Modular pipelines of diffusers: repositories and objects as standard pipelines, and adapters on both."""

import json
import shutil

import diffusers
import pytest
import torch
from datasets import load_dataset
from diffusers import DiffusionPipeline, ModularPipeline, PipelineQuantizationConfig, TorchAoConfig
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from torchao.quantization.quantize_.workflows import Int8Tensor

from tgo_trl import TGOTrainer
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import generate
from tgo_trl.families import FAMILIES
from tgo_trl.policy import known_digests
from tgo_trl.policy.index import find_family_class, find_index, network_classes, network_names
from tgo_trl.policy.loading import load_pipeline
from tgo_trl.policy.modular import STANDARD, VALUES, as_standard

from .cases import CASES, calls_of, perturb
from .runs import config, make_trainer
from .test_export import deltas
from .tiny import scored_rows

BY_NAME = {case.name: case for case in CASES}
KINDS = {
    "flux": "FluxModularPipeline", "flux_kontext": "FluxKontextModularPipeline",
    "flux2": "Flux2KleinBaseModularPipeline", "flux2_dev": "Flux2ModularPipeline", "krea2": "Krea2ModularPipeline",
    "hunyuan_video15": "HunyuanVideo15ModularPipeline",
    "hunyuan_video15_image_to_video": "HunyuanVideo15ModularPipeline",
    "qwen_image21": "QwenImage21ModularPipeline",
    "ltx2": "LTX2ModularPipeline", "qwen_image": "QwenImageModularPipeline",
    "qwen_image_edit": "QwenImageEditModularPipeline", "qwen_image_edit_plus": "QwenImageEditPlusModularPipeline",
    "stable_diffusion_3": "StableDiffusion3ModularPipeline", "stable_diffusion_xl": "StableDiffusionXLModularPipeline",
    "wan": "WanModularPipeline", "wan-two_stage": "Wan22ModularPipeline",
    "wan_image_to_video": "WanImage2VideoModularPipeline",
    "wan_image_to_video-two_stage": "Wan22Image2VideoModularPipeline", "z_image": "ZImageModularPipeline",
}  # fmt: skip


def modular_of(pipeline, class_name):
    """A modular pipeline of the parts of a standard one."""
    modular = getattr(diffusers, class_name)()
    parts = {name: part for name, part in pipeline.components.items() if name in modular._component_specs}
    values = {name: pipeline.config[name] for name in modular._config_specs if name in pipeline.config}
    modular.update_components(**{name: part for name, part in parts.items() if part is not None}, **values)
    return modular


def save_modular(name, folder, seed=0):
    modular = modular_of(BY_NAME[name].build(seed), KINDS[name])
    modular.save_pretrained(str(folder), overwrite_modular_index=True)
    assert not (folder / "model_index.json").exists()
    return folder


def weights_of(pipeline):
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": weight for name, part in parts.items() for key, weight in part.state_dict().items()}


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """The folder of a modular FLUX.1."""
    return save_modular("flux", tmp_path_factory.mktemp("modular") / "base")


# ---- Repositories ----


def test_every_class_is_a_modular_one_and_has_a_standard_one_with_a_family():
    distilled = {"Flux2KleinModularPipeline", "Krea2TurboModularPipeline", "QwenImage21TurboModularPipeline"}
    assert set(STANDARD) == {*KINDS.values(), *distilled}
    assert set(STANDARD.values()) <= set(FAMILIES)
    for name, values in VALUES.items():
        specs = getattr(diffusers, name)()._config_specs
        assert values.items() >= {key: specs[key].default for key in values if key in specs}.items()


SLOW = {"flux_kontext", "qwen_image_edit_plus", "stable_diffusion_3"} | {it for it in KINDS if "to_video" in it}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in KINDS]
)
def test_a_modular_repository_is_the_standard_pipeline(name, tmp_path):
    whole = BY_NAME[name].build()
    own = {key: part for key, part in whole.components.items() if type(part).__module__.startswith("tests.")}
    loaded = load_pipeline(str(save_modular(name, tmp_path / "base")), own, None, None)
    assert type(loaded) is type(whole)
    expected, found = weights_of(whole), weights_of(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert {part.training for part in loaded.components.values() if isinstance(part, nn.Module)} == {False}
    assert loaded.scheduler.config.items() >= {k: v for k, v in whole.scheduler.config.items() if k[0] != "_"}.items()
    assert loaded.config["_name_or_path"] == str(tmp_path / "base")
    for key in ("is_distilled", "boundary_ratio", "force_zeros_for_empty_prompt", "sample_sigmas"):
        assert loaded.config.get(key) == whole.config.get(key), key
    family = BY_NAME[name].family(loaded)
    family.check(loaded)


def test_a_guider_is_that_of_the_modular_class_and_of_an_object_its_own(tmp_path):
    """7.5 by its blocks; a repository has none of it."""
    whole = BY_NAME["hunyuan_video15"].build(guidance_scale=3.0)
    modular = modular_of(whole, "HunyuanVideo15ModularPipeline")
    assert as_standard(modular).guider is whole.guider
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    assert as_loaded(tmp_path).guider.guidance_scale == 7.5
    assert ModularPipeline.from_pretrained(str(tmp_path)).guider.guidance_scale == 7.5
    given = load_pipeline(str(tmp_path), {"guider": whole.guider}, None, None)
    assert given.guider is whole.guider


def test_nothing_is_made_of_a_modular_class_that_is_not_asked_for(tmp_path, monkeypatch):
    """Making one warns of guiders, which this pipeline has none of."""
    folder = save_modular("flux2", tmp_path)
    monkeypatch.setattr(diffusers, KINDS["flux2"], lambda: pytest.fail("one was made"))
    assert type(as_loaded(folder)) is diffusers.Flux2KleinPipeline


def test_a_network_of_the_other_kind_is_refused(tmp_path):
    """Of a repository that does not have, or has, what sees the first frame."""
    whole = BY_NAME["hunyuan_video15_image_to_video"].build()
    modular = modular_of(whole, "HunyuanVideo15ModularPipeline")
    modular.update_components(image_encoder=None)
    assert type(as_standard(modular)) is diffusers.HunyuanVideo15Pipeline
    with pytest.raises(ValueError, match="`transformer` has `task_type='i2v'`"):
        make_trainer(
            config(tmp_path, num_frames=5, resolution=16),
            model=modular,
            train_dataset=BY_NAME["hunyuan_video15"].rows(4),
        )


def test_a_list_of_numbers_is_a_setting_and_no_part(tmp_path):
    levels = [1.0, 0.6, 0.3, 0.1]
    whole = BY_NAME["qwen_image21"].build(sample_sigmas=levels)
    modular = modular_of(whole, "QwenImage21TurboModularPipeline")
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    own = {name: part for name, part in whole.components.items() if type(part).__module__.startswith("tests.")}
    for pipeline in (load_pipeline(str(tmp_path), own, None, None), as_standard(modular)):
        assert pipeline.config.sample_sigmas == levels
        assert FAMILIES["QwenImage21Pipeline"]().step_distilled_from(pipeline) == "`Qwen/Qwen-Image-2.1`"


def test_what_is_known_before_loading_is_known_of_modular_ones(flux):
    index = find_index(str(flux), None)
    family = find_family_class(str(flux), None, None, index)
    assert family is FAMILIES["FluxPipeline"]
    assert network_names(index, family) == ["transformer"]
    assert network_classes(str(flux), None, None, index) == [diffusers.FluxTransformer2DModel]
    skeleton = load_pipeline(str(flux), None, None, None, weights=False)
    networks = [part for part in skeleton.components.values() if isinstance(part, nn.Module)]
    assert {weight.device.type for part in networks for weight in part.parameters()} == {"meta"}


def test_an_index_as_published_ones_are_is_read_where_its_parts_are(flux, tmp_path):
    """Written without loading: no library beside the type, `repo`, and parts in another folder."""
    index = json.loads((flux / "modular_model_index.json").read_text())
    for name, entry in index.items():
        if isinstance(entry, list):
            where = {"repo": str(flux), "type_hint": entry[2]["type_hint"], "subfolder": name, "variant": None}
            index[name] = [None, None, where]
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index))
    loaded, expected = (load_pipeline(str(it), None, None, None) for it in (tmp_path, flux))
    networks = {"vae": loaded.vae, "text_encoder": loaded.text_encoder}
    assert known_digests._keys(str(tmp_path), {}, networks) == {}  # files that are elsewhere may be any
    assert known_digests._keys(str(flux), {}, networks).keys() == networks.keys()
    found, expected = weights_of(loaded), weights_of(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_folder_that_was_moved_is_read_where_it_is(flux, tmp_path):
    moved = shutil.copytree(flux, tmp_path / "moved")
    text = (moved / "modular_model_index.json").read_text()
    (moved / "modular_model_index.json").write_text(text.replace(str(flux), "someone/else"))
    assert weights_of(load_pipeline(str(moved), None, None, None)).keys() == weights_of(as_loaded(flux)).keys()


def as_loaded(folder):
    return load_pipeline(str(folder), None, None, None)


def test_dtypes_and_parts_are_those_that_were_asked_for(flux):
    dtype = {"transformer": torch.bfloat16, "default": torch.float16}
    vae = as_loaded(flux).vae
    pipeline = load_pipeline(str(flux), {"dtype": dtype, "vae": vae}, None, None)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.text_encoder.dtype == torch.float16
    assert pipeline.vae is vae


@pytest.mark.parametrize("is_mapping", [True, False])
def test_the_trained_network_alone_is_quantised(flux, is_mapping):
    int8 = TorchAoConfig(Int8WeightOnlyConfig())
    quantization = PipelineQuantizationConfig(quant_mapping={"transformer": int8}) if is_mapping else int8
    pipeline = load_pipeline(str(flux), None, quantization, None)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    quantised = {name for name, part in parts.items() if any(isinstance(it, Int8Tensor) for it in part.parameters())}
    assert quantised == {"transformer"}


def test_samples_are_drawn_from_modular_ones_by_name_and_as_objects(flux, tmp_path):
    size = BY_NAME["flux"].module.RESOLUTION
    modular = ModularPipeline.from_pretrained(str(flux))
    modular.load_components(dtype=torch.float32)
    drawn = []
    for pipeline in (None, modular, as_loaded(flux)):
        settings = {
            "dtype": "float32",
            "height": size,
            "width": size,
            "num_inference_steps": 1,
            "max_sequence_length": 16,
        }
        folder = tmp_path / str(len(drawn))
        (tmp_path / "prompts.txt").write_text("a red cat\n")
        generate(GenerateConfig(str(flux), str(tmp_path / "prompts.txt"), str(folder), **settings), pipeline)
        drawn.append(load_dataset(str(folder), split="train")[0]["image"].tobytes())
    assert drawn[0] == drawn[1] == drawn[2]


# ---- What is refused ----


def rewrite(flux, folder, change):
    index = json.loads((flux / "modular_model_index.json").read_text())
    change(index)
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return str(folder)


def test_a_class_without_a_standard_one_is_refused_before_loading(flux, tmp_path):
    model = rewrite(flux, tmp_path, lambda index: index.update(_class_name="HeliosModularPipeline"))
    rows = scored_rows(4)
    for call in (lambda: find_index(model, None), lambda: TGOTrainer(model, config(tmp_path), rows)):
        with pytest.raises(
            ValueError, match=r"is a modular repository, of the class `HeliosModularPipeline`.*Known are"
        ):
            call()


def test_code_of_a_repository_is_not_run(flux, tmp_path):
    def change(index):
        index["text_encoder"][:2] = index["text_encoder"][2]["type_hint"] = ["encoder.py", "MyEncoder"]

    model = rewrite(flux, tmp_path, change)
    (tmp_path / "encoder.py").write_text("raise AssertionError\n")
    with pytest.raises(
        ValueError, match=r"`text_encoder` of the modular .* a `MyEncoder` of `encoder.py`, which is nei"
    ):
        as_loaded(model)
    with pytest.raises(ValueError, match="`trust_remote_code=True`, which would run code"):
        load_pipeline(model, {"trust_remote_code": True}, None, None)


def test_a_missing_part_and_an_unknown_option_are_named(flux, tmp_path):
    model = rewrite(flux, tmp_path, lambda index: index.pop("vae"))
    with pytest.raises(ValueError, match="The `FluxModularPipeline` has no `vae`, which a `FluxPipeline` of the same"):
        as_loaded(model)
    with pytest.raises(ValueError, match="has device_map, which the parts of the modular repository"):
        load_pipeline(str(flux), {"device_map": "balanced"}, None, None)


def test_another_class_is_refused_of_a_modular_one_and_its_own_taken(flux):
    for call in (find_index, lambda model, kwargs: load_pipeline(model, kwargs, None, None)):
        with pytest.raises(
            ValueError, match=r"`pipeline_class` is 'FluxKontextPipeline', and .* is a modular repository"
        ):
            call(str(flux), {"pipeline_class": "FluxKontextPipeline"})
    own = load_pipeline(str(flux), {"pipeline_class": "FluxPipeline"}, None, None)
    assert type(own) is diffusers.FluxPipeline


def test_what_is_no_pipeline_at_all_stays_so(tmp_path):
    with pytest.raises(OSError, match="model_index"):
        as_loaded(tmp_path)


# ---- Objects ----


def test_an_object_gives_its_own_parts():
    standard = BY_NAME["flux"].build()
    modular = modular_of(standard, "FluxModularPipeline")
    pipeline = as_standard(modular)
    assert type(pipeline) is type(standard)
    assert all(pipeline.components[name] is part for name, part in standard.components.items())
    assert as_standard(standard) is standard
    assert as_standard("name") == "name"


def test_an_object_whose_parts_are_not_loaded_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no `scheduler`, `vae`, .* call `load_components\(\)`"):
        make_trainer(config(tmp_path), model=diffusers.FluxModularPipeline())
    with pytest.raises(ValueError, match="`model` is a `ModularPipeline`, of the class `ModularPipeline`: its blocks"):
        as_standard(ModularPipeline.__new__(ModularPipeline))


@pytest.mark.parametrize("is_object", [True, False])
def test_a_trained_adapter_loads_into_the_modular_pipeline(flux, is_object, monkeypatch):
    monkeypatch.chdir(flux.parent)  # the card names base and adapter from there
    case, model, folder = BY_NAME["flux"], str(flux), flux.parent / f"run-{is_object}"
    if is_object:
        model = ModularPipeline.from_pretrained(str(flux))
        model.load_components(dtype=torch.float32)
    trainer = make_trainer(case.config(folder, max_steps=1), model=model, train_dataset=case.rows(4))
    perturb(trainer.policy)
    trainer.save_model()
    trainer.create_model_card()
    trained = trainer.pipeline.transformer
    if is_object:
        assert trained is model.transformer

    modular = ModularPipeline.from_pretrained(str(flux))
    modular.load_components(dtype=torch.float32)
    modular.load_lora_weights(str(folder / "out"))
    call = {"prompt": "a cat", "num_inference_steps": 1, "height": case.module.RESOLUTION, "output": "images"}
    call |= {"width": case.module.RESOLUTION, "max_sequence_length": 16}
    calls = calls_of(modular.transformer, modular, generator=torch.Generator().manual_seed(0), **call)
    assert calls
    for arguments, output in calls:
        with torch.no_grad():
            torch.testing.assert_close(output[0], trained(**arguments)[0], rtol=1e-4, atol=1e-5)
            modular.transformer.disable_adapters()
            assert (modular.transformer(**arguments)[0] - output[0]).abs().max() > 1e-3
            modular.transformer.enable_adapters()

    # and as the card says
    card = (folder / "out" / "README.md").read_text()
    snippet = card.partition("```python\n")[2].partition("```")[0]
    assert "ModularPipeline.from_pretrained" in snippet
    loading = snippet.partition("pipeline.to(")[0]
    scope = {}
    exec(loading, scope)
    found = weights_of(scope["pipeline"])
    assert any("lora" in key for key in found)
    assert isinstance(scope["pipeline"], DiffusionPipeline)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "wan-two_stage" else []) for name in KINDS]
)
def test_adapters_of_every_kind_load_into_its_modular_pipeline(name, tmp_path):
    case = BY_NAME[name]
    setup = case.setup(tmp_path, lora_r=3, lora_alpha=7)
    perturb(setup.policy)
    setup.family.save_adapter(setup.pipeline, setup.policy.adapter_name, tmp_path)
    modular = modular_of(case.build(), KINDS[name])
    exec(setup.family.loading_code(setup.pipeline, str(tmp_path)), {"pipeline": modular})
    expected = deltas(setup.pipeline, setup.family)
    assert expected
    found = deltas(modular, setup.family)
    assert found.keys() == expected.keys()
    for key, delta in expected.items():
        torch.testing.assert_close(found[key], delta)
