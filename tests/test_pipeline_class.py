"""A pipeline loaded under another class of the same parts: what is refused, what is recorded, and what follows it."""

import json
import shutil

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    ModularPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
)
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from huggingface_hub import HfApi

from tgo_trl import AlignPropConfig, TGOTrainer
from tgo_trl.cli import main
from tgo_trl.commands.evaluate.config import EvaluateConfig
from tgo_trl.commands.export import ExportConfig
from tgo_trl.commands.export.run import export
from tgo_trl.commands.generate import GenerateConfig
from tgo_trl.commands.generate.known import look_up
from tgo_trl.commands.train.config import TrainArguments
from tgo_trl.commands.train.run import named_pipeline, take_recorded_class
from tgo_trl.families import FAMILIES, FluxFamily, FluxKontextFamily, WanFamily, WanImageToVideoFamily
from tgo_trl.policy.index import class_beside_index, find_family_class, find_index
from tgo_trl.policy.loading import load_pipeline
from tgo_trl.policy.modular import as_standard
from tgo_trl.policy.pipeline_class import recorded_class

from .cases import CASES
from .runs import assert_equal, config, make_trainer
from .test_generation import save_adapter
from .test_modular import save_modular
from .tiny import flux, meissonic, qwen_image, wan, wan_image_to_video

pytestmark = pytest.mark.usefixtures("on_cpu")

KONTEXT = "FluxKontextPipeline"
TO_VIDEO = {"pipeline_class": "WanImageToVideoPipeline"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Wan 2.2 TI2V-5B whose index says text to video, as the published one's does, and others."""
    folder = tmp_path_factory.mktemp("pipelines")
    wan.build_ti2v().save_pretrained(folder / "ti2v")
    wan.build().save_pretrained(folder / "wan")
    flux.build().save_pretrained(folder / "flux")
    save_modular("flux", folder / "modular")
    return folder


def test_parts_are_loaded_under_the_class_that_is_set(folder):
    pipeline = load_pipeline(str(folder / "ti2v"), TO_VIDEO, None, None)
    stock = WanImageToVideoPipeline.from_pretrained(folder / "ti2v")
    assert type(pipeline) is WanImageToVideoPipeline
    assert pipeline.config.expand_timesteps is stock.config.expand_timesteps is True
    theirs, ours = (it.transformer.state_dict() for it in (stock, pipeline))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert type(load_pipeline(str(folder / "ti2v"), {}, None, None)) is WanPipeline
    other = load_pipeline(str(folder / "flux"), {"pipeline_class": "FluxKontextPipeline"}, None, None)
    assert type(other) is FluxKontextPipeline

    skeleton = load_pipeline(str(folder / "ti2v"), TO_VIDEO, None, None, weights=False)
    assert type(skeleton) is WanImageToVideoPipeline
    assert skeleton.transformer.device.type == "meta"


def family_of(model, init_kwargs):
    return find_family_class(str(model), init_kwargs, None, find_index(str(model), init_kwargs))


def test_the_family_is_known_before_anything_is_loaded(folder):
    assert family_of(folder / "ti2v", None) is WanFamily
    assert family_of(folder / "ti2v", TO_VIDEO) is WanImageToVideoFamily
    assert family_of(folder / "flux", {"pipeline_class": "FluxKontextPipeline"}) is FluxKontextFamily


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("ti2v", "WanImageToVideoPipline", r"no pipeline of diffusers .* Did you mean 'WanImageToVideoPipeline'\?"),
        ("ti2v", "AutoencoderKLWan", "is 'AutoencoderKLWan', which is no pipeline of diffusers"),
        ("ti2v", "MeissonicPipeline", "which is no pipeline of diffusers"),
        ("ti2v", "LTXPipeline", r"`pipeline_class` is 'LTXPipeline'\. No model family is known for `LTXPipeline`"),
        ("flux", "StableDiffusionPipeline", "a `FluxPipeline`, has no `unet`, which that class needs"),
        ("qwen", "QwenImageEditPipeline", "has no `processor`, which that class needs"),
        ("flux", "StableDiffusion3Pipeline", "has no `text_encoder_3`, `tokenizer_3`"),
        ("flux", "ChromaPipeline", "has a `FluxTransformer2DModel` as its `transformer`, which that class does not c"),
        ("wan_stages", "ChromaPipeline", "has a `transformer_2`, which that class does not take"),
    ],
)
def test_a_class_that_cannot_be_is_refused_by_its_name(folder, tmp_path, model, name, message):
    indexes = {
        "qwen": {"_class_name": "QwenImagePipeline", **_parts(qwen_image.build())},
        "wan_stages": {"_class_name": "WanPipeline", **_parts(wan.build_two_stage())},
    }
    if model in indexes:  # of which nothing but the index is looked at
        (tmp_path / model).mkdir()
        (tmp_path / model / "model_index.json").write_text(json.dumps(indexes[model]))
    with pytest.raises(ValueError, match=message):
        family_of((tmp_path if model in indexes else folder) / model, {"pipeline_class": name})


def _parts(pipeline):
    return {
        name: [None, None] if part is None else [type(part).__module__.partition(".")[0], type(part).__name__]
        for name, part in pipeline.components.items()
    }


class Own(FluxFamily):
    """A family of the user's, for a class that none of the table is for."""


@pytest.mark.parametrize("family", [Own(max_sequence_length=16), None])
def test_a_class_that_only_the_users_family_knows_is_loaded_under_it(folder, tmp_path, family, monkeypatch):
    model, settings = str(folder / "flux"), {"pipeline_class": "FluxPipeline"}
    index = json.loads((folder / "flux" / "model_index.json").read_text())
    monkeypatch.delitem(FAMILIES, "FluxPipeline")
    shutil.copytree(model, tmp_path / "flux")
    index_path = tmp_path / "flux" / "model_index.json"
    index_path.write_text(json.dumps({**index, "_class_name": "FluxKontextPipeline"}))
    (case,) = (it for it in CASES if it.name == "flux")

    def trained():
        args = config(tmp_path, max_steps=1, resolution=16, **settings)
        return TGOTrainer(str(tmp_path / "flux"), args, case.rows(4), family=family).pipeline

    def sampled():
        given = {"num_images_per_prompt": 1, "num_inference_steps": 1, "height": 16, "width": 16, **settings}
        known = look_up(GenerateConfig(str(tmp_path / "flux"), ["a"], str(tmp_path / "o"), **given), None, family)
        return known.kind, known.pipeline_class

    if family is not None:
        assert type(trained()) is FluxPipeline
        assert sampled() == (Own, FluxPipeline)
        return
    for run in (trained, sampled):
        with pytest.raises(ValueError, match="No model family is known for `FluxPipeline`"):
            run()


def test_networks_of_another_task_are_refused_before_weights_are_loaded(folder, monkeypatch):
    monkeypatch.setattr(WanImageToVideoFamily, "load", None)
    with pytest.raises(ValueError, match="`transformer` takes 16 channels, and the pipeline gives it 36"):
        load_pipeline(str(folder / "wan"), TO_VIDEO, None, None)


def test_the_commands_plan_and_export_take_it(folder, tmp_path, capsys):
    """As they take the pipeline that stock diffusers saves under that class."""
    model, (case,) = folder / "flux", (it for it in CASES if it.name == "flux_kontext")
    kontext = FluxKontextPipeline.from_pretrained(model)
    kontext.save_pretrained(tmp_path / "kontext")
    case.rows(4).to_parquet(tmp_path / "rows.parquet")
    save_adapter(kontext, tmp_path / "adapter", FluxKontextFamily())
    trained = [
        "--dataset_name", str(tmp_path / "rows.parquet"), "--output_dir", str(tmp_path / "new"), "--max_steps", "2",
        "--encoding_cache_dir", str(tmp_path / "none"), "--max_sequence_length", "16", "--use_cpu", "true",
        "--report_to", "none", "--resolution", "16",
    ]  # fmt: skip
    plans, merged = [], []
    for base in ([str(model), "--pipeline_class", KONTEXT], [str(tmp_path / "kontext")]):
        assert main(["plan", "--model_name_or_path", *base, *trained]) == 0, capsys.readouterr().err
        plans.append(capsys.readouterr().out.partition("Next:")[0].partition("Plan:")[2])
        out = tmp_path / f"merged-{len(plans)}"
        words = ["--adapter_name_or_path", tmp_path / "adapter", "--output_dir", out, "--format", "merged"]
        assert main(["export", "--model_name_or_path", *base, *map(str, words)]) == 0, capsys.readouterr().err
        merged.append(DiffusionPipeline.from_pretrained(out))
    assert plans[0] == plans[1] != ""
    assert type(merged[0]) is type(merged[1]) is FluxKontextPipeline
    assert_equal(*(dict(it.transformer.state_dict()) for it in merged))
    for command in (["plan", *trained], ["export", "--adapter_name_or_path", str(tmp_path / "adapter")]):
        words = ["--model_name_or_path", str(model), "--pipeline_class", "StableDiffusionPipeline"]
        assert main([*command, *words]) == 1
        assert "has no `unet`, which that class needs" in capsys.readouterr().err


def test_it_is_set_in_one_place(folder, tmp_path):
    with pytest.raises(ValueError, match="`model_init_kwargs` has `pipeline_class`, which is a setting of its own"):
        config(tmp_path, model_init_kwargs=TO_VIDEO)
    with pytest.raises(ValueError, match="`model_init_kwargs` has `pipeline_class`"):
        GenerateConfig("m", "p", "o", model_init_kwargs=TO_VIDEO)
    with pytest.raises(ValueError, match="`model_init_kwargs` has `pipeline_class`"):
        ExportConfig("a", model_init_kwargs='{"pipeline_class": "WanPipeline"}')
    with pytest.raises(ValueError, match="`pipeline_class` is 3; it must be text"):
        config(tmp_path, pipeline_class=3)
    assert AlignPropConfig(str(tmp_path), use_cpu=True, **TO_VIDEO).model_init_dict == TO_VIDEO
    settings = {"model_init_kwargs": {"revision": "main"}, **TO_VIDEO}
    assert config(tmp_path, **settings).model_init_dict == {"revision": "main", **TO_VIDEO}
    assert config(tmp_path).model_init_dict is None


def test_a_pipeline_that_is_passed_is_of_the_class(folder, caplog):
    pipeline = wan.build_ti2v()
    with pytest.raises(ValueError, match=r"the pipeline that was passed is a `WanPipeline`. Pass one that was loaded"):
        load_pipeline(pipeline, TO_VIDEO, None, None)
    assert load_pipeline(pipeline, {"pipeline_class": "WanPipeline"}, None, None) is pipeline
    assert not caplog.records


def test_what_an_adapter_was_trained_under_is_taken_unless_another_is_set(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert recorded_class(None) is recorded_class(str(adapter)) is recorded_class("owner/name") is None
    for content, expected in (
        ('{"config": {"pipeline_class": "WanImageToVideoPipeline"}}', "WanImageToVideoPipeline"),
        ('{"config": {"pipeline_class": null}}', None),
        ('{"config": {"pipeline_class": null}, "pipeline_class": "WanPipeline"}', "WanPipeline"),
        ('{"config": {}}', None),
        ("[]", None),
        ("{", None),
    ):
        (adapter / "tgo_config.json").write_text(content)
        assert recorded_class(str(adapter)) == expected
    (adapter / "tgo_config.json").write_text('{"config": {"pipeline_class": "WanImageToVideoPipeline"}}')
    model = str(folder / "ti2v")
    given = {"model_name_or_path": model, "prompts": "p", "output_dir": "o", "adapter_name_or_path": str(adapter)}
    assert look_up(GenerateConfig(**given)).kind is WanImageToVideoFamily
    assert look_up(GenerateConfig(**given, pipeline_class="WanPipeline")).kind is WanFamily
    assert look_up(GenerateConfig(model, "p", "o")).init_kwargs == {}
    compared = EvaluateConfig(
        models=[f"base={model}", f"tgo={model}+{adapter}"], prompts="p", rewards=["hpsv2.1"],
        model_settings={"base": TO_VIDEO},
    )  # fmt: skip
    kinds = [look_up(compared.generation(it, "")).kind for it in compared.contestants()]
    assert kinds == [WanImageToVideoFamily] * 2


def test_training_goes_on_under_the_class_that_an_adapter_was_trained_under(folder, tmp_path):
    save_adapter(wan_image_to_video.build_ti2v(), tmp_path / "adapter", WanImageToVideoFamily(num_frames=5))
    record = {"config": {"pipeline_class": "WanImageToVideoPipeline"}}
    (tmp_path / "adapter" / "tgo_config.json").write_text(json.dumps(record))
    arguments = TrainArguments(str(folder / "ti2v"), "rows", adapter_name_or_path=str(tmp_path / "adapter"))
    args = config(tmp_path, num_frames=5)
    take_recorded_class(arguments, args)
    assert args.pipeline_class == "WanImageToVideoPipeline"
    assert type(named_pipeline(arguments, args, weights=False)) is WanImageToVideoPipeline
    other = config(tmp_path, pipeline_class="WanPipeline")
    take_recorded_class(arguments, other)
    assert other.pipeline_class == "WanPipeline"


def test_what_a_pipelines_own_index_does_not_name_is_known(folder, tmp_path):
    class Logged(FluxPipeline):
        """A class of a user's own, which no command knows."""

    model = str(folder / "flux")
    plain, kontext = FluxPipeline.from_pretrained(model), FluxKontextPipeline.from_pretrained(model)
    assert class_beside_index(plain) is class_beside_index(Logged.from_pretrained(model)) is None
    assert class_beside_index(kontext) == class_beside_index(FluxKontextPipeline.from_pipe(plain)) == KONTEXT
    assert class_beside_index(FluxKontextPipeline(**plain.components)) == KONTEXT  # of no base
    assert class_beside_index(Logged(**plain.components)) == "FluxPipeline"
    mixed = type("Mixed", (StableDiffusionMixin, Logged), {})  # of which diffusers exports the first ancestor, too
    assert class_beside_index(mixed(**plain.components)) == "FluxPipeline"
    assert class_beside_index(meissonic.build()) is None  # which is not diffusers'
    modular = ModularPipeline.from_pretrained(str(folder / "modular"))
    modular.load_components()
    assert class_beside_index(as_standard(modular)) is None
    shutil.copytree(model, tmp_path / "gone")
    gone = FluxPipeline.from_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert class_beside_index(gone) == "FluxPipeline"


@pytest.mark.parametrize("is_other", [True, False], ids=["another", "the index's"])
def test_the_class_of_a_pipeline_that_was_passed_is_that_of_all_that_follows(folder, tmp_path, is_other):
    model, name = str(folder / "flux"), "flux_kontext" if is_other else "flux"
    (case,) = (it for it in CASES if it.name == name)
    expected = KONTEXT if is_other else None
    pipeline = (FluxKontextPipeline if is_other else FluxPipeline).from_pretrained(model)
    trainer = make_trainer(
        config(tmp_path, max_steps=1, max_sequence_length=16, resolution=16), model=pipeline, train_dataset=case.rows(4)
    )
    trainer.save_model()
    adapter = str(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tgo_config.json").read_text()).get("pipeline_class") == expected
    assert trainer.args.pipeline_class is None
    assert recorded_class(adapter) == expected
    assert look_up(GenerateConfig(model, "p", "o", adapter_name_or_path=adapter)).kind is type(trainer.family)
    arguments, args = TrainArguments(model, "rows", adapter_name_or_path=adapter), config(tmp_path)
    take_recorded_class(arguments, args)
    assert type(named_pipeline(arguments, args, weights=False)) is type(pipeline)
    (merged,) = export(ExportConfig(adapter, "merged", str(tmp_path / "merged"), model_name_or_path=model))
    assert type(DiffusionPipeline.from_pretrained(merged)) is type(pipeline)


def test_the_record_of_an_adapter_on_the_hub_is_read(tmp_path, hub):
    (tmp_path / "tgo_config.json").write_text('{"config": {"pipeline_class": "WanImageToVideoPipeline"}}')
    HfApi().create_repo("me/mine")
    HfApi().upload_folder(repo_id="me/mine", folder_path=str(tmp_path))
    assert recorded_class("me/mine") == "WanImageToVideoPipeline"
    assert recorded_class("me/none") is None


def test_a_record_that_cannot_be_had_now_is_warned_of_once(tmp_path, hub, naps, caplog):
    """A repository without one is none of those, nor is one that does not exist."""
    (tmp_path / "README.md").write_text("of another program")
    for name in ("me/plain", "me/silent"):
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path=str(tmp_path))
    assert recorded_class("me/plain") is recorded_class("me/absent") is None
    assert not caplog.records
    hub.fail("HEAD /me/silent/", status=503, times=1000)
    assert recorded_class("me/silent") is recorded_class("me/silent") is None
    (record,) = (it for it in caplog.records if it.name.startswith("tgo_trl"))
    assert "tgo_config.json of me/silent is neither in the cache" in record.getMessage()
    assert "Set `pipeline_class` if the adapter" in record.getMessage()
    hub.fail("HEAD /me/plain/", status=401, message="Invalid credentials in Authorization header", times=1000)
    message = r"me/plain was trained under \(tgo_config.json\): Invalid credentials in Authorization header. Mend that"
    with pytest.raises(ValueError, match=message):
        recorded_class("me/plain")
    settings = {"prompts": "p", "output_dir": "o", "adapter_name_or_path": "me/plain"}
    assert look_up(GenerateConfig("m", **settings, **TO_VIDEO)).init_kwargs == TO_VIDEO  # and nobody is asked
