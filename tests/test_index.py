"""What is known of a pipeline before its weights: once for each load, since of the Hub it is a request each time."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, FluxKontextPipeline, FluxPipeline, StableDiffusionPipeline, TorchAoConfig
from safetensors.torch import save_file
from torchao.quantization import Int8WeightOnlyConfig

from tgo_trl import AlignPropTrainer, TGOTrainer
from tgo_trl.cli import main
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy.index import find_index, readable_index
from tgo_trl.policy.loading import load_pipeline

from . import test_alignprop, tiny
from .runs import config
from .test_generation import save_adapter
from .test_modular import save_modular
from .tiny import flux

pytestmark = pytest.mark.usefixtures("on_cpu")


def put(hub, name, folder):
    """A folder on the Hub; all of it is then in the cache, so that stock diffusers asks for no index of it again."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    hub.create(name).put({str(path.relative_to(folder)): path.read_bytes() for path in paths})
    return name


def asked(hub, call):
    """Requests for the index, and for that of a modular repository."""
    hub.requests.clear()
    done = call()
    return hub.asked(r"HEAD .*/model_index.json"), hub.asked(r"HEAD .*/modular_model_index.json"), done


@pytest.fixture
def sd(tmp_path_factory, hub):
    folder = tmp_path_factory.mktemp("sd")
    tiny.stable_diffusion(width=32).save_pretrained(folder)
    name = put(hub, "me/sd", folder)
    assert asked(hub, lambda: DiffusionPipeline.from_pretrained(name))[0] == 1
    assert asked(hub, lambda: DiffusionPipeline.from_pretrained(name))[0] == 0  # nothing but ours is counted below
    return name


def test_a_load_asks_for_the_index_once(sd, hub, tmp_path):
    for settings in ({}, {"weights": False}, {"family": StableDiffusionFamily()}):
        times, modular, pipeline = asked(
            hub, lambda it=settings: load_pipeline(sd, None, None, **{"family": None, **it})
        )
        assert (times, modular, type(pipeline)) == (1, 0, StableDiffusionPipeline), settings
    int8 = TorchAoConfig(Int8WeightOnlyConfig())
    assert asked(hub, lambda: load_pipeline(sd, None, int8, None))[0] == 1
    index = find_index(sd, None)
    assert asked(hub, lambda: load_pipeline(sd, None, None, None, index=index))[0] == 0

    flux.build().save_pretrained(tmp_path / "flux")
    name = put(hub, "me/flux", tmp_path / "flux")
    FluxPipeline.from_pretrained(name)
    kontext = {"pipeline_class": "FluxKontextPipeline"}
    times, _, pipeline = asked(hub, lambda: load_pipeline(name, kontext, int8, None))
    assert (times, type(pipeline)) == (1, FluxKontextPipeline)


def test_a_load_asks_a_modular_repository_once_for_each_index(hub, tmp_path):
    name = put(hub, "me/modular", save_modular("flux", tmp_path / "modular"))
    for weights in (False, True):
        times, modular, pipeline = asked(hub, lambda it=weights: load_pipeline(name, None, None, None, weights=it))
        assert (times, modular, type(pipeline)) == (1, 1, FluxPipeline)


@pytest.mark.parametrize("command", ["plan", "train", "generate", "export"])
def test_a_command_asks_for_the_index_once(sd, hub, tmp_path, capsys, command):
    rows, prompts, adapter = tmp_path / "rows.parquet", tmp_path / "prompts.txt", tmp_path / "adapter"
    tiny.scored_rows(4).to_parquet(rows)
    prompts.write_text("a cat\n")
    save_adapter(tiny.stable_diffusion(width=32), adapter)
    trained = {
        "dataset_name": rows, "output_dir": tmp_path / "out", "encoding_cache_dir": tmp_path / "cache", "max_steps": 1,
        "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "lora_r": 4,
    }  # fmt: skip
    options = {
        "plan": trained, "train": trained,
        "generate": {"prompts": prompts, "output_dir": tmp_path / "drawn", "num_inference_steps": 1},
        "export": {"adapter_name_or_path": adapter, "output_dir": tmp_path / "merged", "format": "merged"},
    }[command]  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    times, _, status = asked(hub, lambda: main([command, "--model_name_or_path", sd, *words]))
    assert (times, status) == (1, 0), capsys.readouterr().err


def test_both_trainers_ask_for_the_index_once(sd, hub, tmp_path):
    args = config(tmp_path, compile_repeated_blocks=True)
    assert asked(hub, lambda: TGOTrainer(sd, args, tiny.scored_rows(4)))[0] == 1
    climbing = test_alignprop.settings(tmp_path / "climbed", compile_repeated_blocks=True)
    reward, prompts = test_alignprop.Brightness(), test_alignprop.PROMPTS
    assert asked(hub, lambda: AlignPropTrainer(sd, reward, climbing, prompts))[0] == 1


def test_what_has_no_index_has_none(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    assert find_index(str(tmp_path / "model.safetensors"), None) is None
    assert find_index(tiny.stable_diffusion(), None) is None
    with pytest.raises(OSError, match="model_index"):
        find_index(str(tmp_path), None)
    assert readable_index(str(tmp_path), None) is None
    assert find_index(str(tmp_path), None, StableDiffusionFamily()) is None


def test_a_family_loads_what_has_no_index(tmp_path):
    """The user's own, which may build the pipeline from whatever there is."""

    class Own(StableDiffusionFamily):
        @classmethod
        def load(cls, model, **kwargs):
            (found,) = Path(model).iterdir()
            return StableDiffusionPipeline.from_pretrained(found, **kwargs)

    tiny.stable_diffusion().save_pretrained(tmp_path / "inner")
    assert type(load_pipeline(str(tmp_path), None, None, Own())) is StableDiffusionPipeline
    with pytest.raises(OSError, match="model_index"):
        load_pipeline(str(tmp_path), {"pipeline_class": "StableDiffusionPipeline"}, None, Own())
