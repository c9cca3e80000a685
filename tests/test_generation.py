"""Data sets that are drawn: the right image for every seed, the same files however often the run is killed."""

import hashlib
import inspect
import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, List, load_dataset
from datasets import Image as ImageFeature
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.prompts import read_prompts
from tgo_trl.commands.generate.run import generate, generate_rows, pipeline_fingerprints
from tgo_trl.commands.generate.sampling import image_seed
from tgo_trl.families import StableDiffusionFamily, WanFamily
from tgo_trl.media.videos import load_video
from tgo_trl.policy.draws import stable_seed

from . import tiny
from .cases import CASES, KINDS_THAT_TAKE_LONG, perturb
from .test_parquet import files, run_and_kill, run_two_processes
from .tiny import wan

pytestmark = pytest.mark.usefixtures("on_cpu")

PROMPTS = ["a red cat", "a blue dog", "a green bird"]
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, its adapter in `adapter`, prompts in `prompts.txt`."""
    folder = tmp_path_factory.mktemp("generation")
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(folder / "model")
    save_adapter(pipeline, folder / "adapter")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def save_adapter(pipeline, path, family=None, lora_alpha=8):
    family = family or StableDiffusionFamily()
    for network in family.networks(pipeline).values():
        targets = list(family.lora_target_modules)
        network.add_adapter(LoraConfig(r=4, lora_alpha=lora_alpha, target_modules=targets), adapter_name="default")
        perturb(network)
    path.mkdir()
    family.save_adapter(pipeline, "default", path)


def config(folder, out, **settings):
    defaults = {
        "model_name_or_path": str(folder / "model"),
        "prompts": str(folder / "prompts.txt"),
        "output_dir": str(out),
        "num_images_per_prompt": 2,
        "num_inference_steps": STEPS,
        "batch_size": 1,
        "rows_per_shard": 2,
        "disable_tqdm": True,
    }
    return GenerateConfig(**{**defaults, **settings})


def load(path, tmp_path):
    return load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))


def drawn(pipeline, prompt, seed, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    call = {"num_inference_steps": STEPS, "height": 16, "width": 16, **kwargs}
    return pipeline(prompt, generator=generator, **call).images[0]


# ---- Seeds ----


def test_a_seed_is_a_function_of_seed_prompt_and_index():
    number = int.from_bytes(hashlib.blake2b(b"a red cat", digest_size=16).digest(), "big")
    assert image_seed(7, "a red cat", 3) == stable_seed(7, number, 3)
    seeds = {image_seed(seed, prompt, k) for seed in range(3) for prompt in PROMPTS for k in range(5)}
    assert len(seeds) == 45
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_row_is_what_the_pipeline_draws_from_its_seed():
    pipeline = tiny.stable_diffusion()
    rows = list(generate_rows(pipeline, None, PROMPTS, num_images_per_prompt=2, seed=5, batch_size=1,
                              num_inference_steps=STEPS))  # fmt: skip
    assert [(row["prompt"], row["prompt_index"], row["sample_index"]) for row in rows] == [
        (prompt, i, k) for i, prompt in enumerate(PROMPTS) for k in range(2)
    ]
    for row in rows:
        assert row["seed"] == image_seed(5, row["prompt"], row["sample_index"])
        assert row["image"].tobytes() == drawn(pipeline, row["prompt"], row["seed"]).tobytes()
    assert len({row["image"].tobytes() for row in rows}) == 6


def test_neither_the_order_nor_repeated_prompts_nor_batches_change_an_image():
    pipeline = tiny.stable_diffusion()
    arguments = {"num_images_per_prompt": 2, "num_inference_steps": STEPS}

    def images(prompts, batch_size):
        rows = generate_rows(pipeline, None, prompts, batch_size=batch_size, **arguments)
        return {(row["prompt"], row["sample_index"]): np.asarray(row["image"], dtype=int) for row in rows}

    one = images(PROMPTS, 1)
    other = images([*reversed(PROMPTS), PROMPTS[0], PROMPTS[1]], 1)
    batched = images(PROMPTS, 4)
    assert one.keys() == other.keys() == batched.keys()
    for key, image in one.items():
        assert np.array_equal(image, other[key])
        assert abs(image - batched[key]).max() <= 1  # rounding


def test_drawing_leaves_the_pipeline_and_torch_as_they_were():
    pipeline = tiny.stable_diffusion()
    pipeline.unet.train()
    pipeline.vae.eval()
    pipeline.set_progress_bar_config(disable=False, desc="mine")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    next(generate_rows(pipeline, None, ["a cat"], num_inference_steps=1))
    assert torch.equal(torch.rand(2), expected)
    assert pipeline.unet.training
    assert not pipeline.vae.training
    assert pipeline._progress_bar_config == {"disable": False, "desc": "mine"}


GUIDED = {
    name: {"true_cfg_scale": 4.0}
    for name in (
        "qwen_image",
        "qwen_image21",
        "qwen_image21_edit",
        "qwen_image_edit",
        "qwen_image_edit_plus",
        "flux",
        "flux_kontext",
    )
}


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("case", [it for it in KINDS_THAT_TAKE_LONG if "-" not in str(it.id)])
def test_a_batch_has_the_negative_prompt_of_a_single_call(case):
    pipeline = case.build()
    if "negative_prompt" not in inspect.signature(pipeline.__call__).parameters:
        pytest.skip("the pipeline takes none")
    if hasattr(pipeline, "guider"):  # which no argument sets
        pipeline.guider = pipeline.guider.new(guidance_scale=4.0)
    family = case.family(pipeline)
    call = {**case.module.CALL, **GUIDED.get(case.name, {})}
    for name in ("height", "width", "num_frames", "max_sequence_length", "negative_prompt", "image"):
        call.pop(name, None)
    size = (case.module.RESOLUTION, case.module.RESOLUTION)

    def pixels(prompts, **kwargs):
        files = [
            tuple(png(image) for image in case.sources[PROMPTS.index(prompt)]) for prompt in prompts if case.sources
        ]
        rows = generate_rows(pipeline, family, prompts, size=size, batch_size=2, sources=files, **call, **kwargs)
        media = "image" if case.num_frames is None else "video"
        return [np.asarray(row[media], dtype=float) for row in rows]

    together = pixels(PROMPTS[:2], negative_prompt="ugly and blurred")
    alone = [pixels([prompt], negative_prompt="ugly and blurred")[0] for prompt in PROMPTS[:2]]
    plain = pixels(PROMPTS[:2])
    for one, other, without in zip(together, alone, plain, strict=True):
        assert abs(one - other).mean() < 0.5 * abs(one - without).mean()


# ---- The data set ----


def test_the_data_set_holds_the_rows(folder, tmp_path):
    out = generate(config(folder, tmp_path / "out", seed=5))
    assert out == tmp_path / "out"
    loaded = load(out, tmp_path)
    pipeline = tiny.stable_diffusion()
    expected = list(generate_rows(pipeline, None, PROMPTS, num_images_per_prompt=2, seed=5, batch_size=1,
                                  num_inference_steps=STEPS))  # fmt: skip
    assert loaded.column_names == ["prompt", "image", "prompt_index", "sample_index", "seed"]
    assert len(loaded) == 6
    for row, other in zip(loaded, expected, strict=True):
        assert row.pop("image").tobytes() == other.pop("image").tobytes()
        assert row == other
    assert sorted(files(out)) == [
        *(f".manifest/train-0000{shard}.json" for shard in range(3)),
        "README.md",
        *(f"data/train-0000{shard}-of-00003.parquet" for shard in range(3)),
        "generation.json",
    ]
    settings = json.loads((out / "generation.json").read_text())["settings"]
    assert settings["call"] == {"num_inference_steps": STEPS, "guidance_scale": 7.5}
    assert (settings["model"], settings["height"], settings["dtype"]) == ("model", 16, "float32")
    assert str(tmp_path) not in (out / "generation.json").read_text() + (out / "README.md").read_text()


def test_settings_reach_the_pipeline(folder, tmp_path):
    call = {"guidance_scale": 2.0, "negative_prompt": "ugly", "height": 24, "width": 32, "call_kwargs": {"eta": 1.0}}
    out = generate(config(folder, tmp_path / "out", num_images_per_prompt=1, max_prompts=1, dtype="float32", **call))
    [row] = load(out, tmp_path)
    expected = drawn(tiny.stable_diffusion(), row["prompt"], row["seed"], guidance_scale=2.0, negative_prompt="ugly",
                     height=24, width=32, eta=1.0)  # fmt: skip
    assert row["image"].size == (32, 24)
    assert row["image"].tobytes() == expected.tobytes()


def test_videos_are_lists_of_frames(tmp_path):
    pipeline = wan.build()
    call = {"num_frames": 5, "max_sequence_length": 16, "height": 32, "width": 32, "guidance_scale": 1.0}
    settings = config(tmp_path, tmp_path / "out", num_images_per_prompt=1, rows_per_shard=None, **call)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    loaded = load(generate(settings, pipeline), tmp_path)
    assert loaded.features["video"] == List(ImageFeature())
    family = WanFamily(num_frames=5, max_sequence_length=16)
    call = {"size": (32, 32), "batch_size": 1, "num_inference_steps": STEPS, "guidance_scale": 1.0}
    expected = list(generate_rows(pipeline, family, ["a cat", "a dog"], **call))
    for row, other in zip(loaded, expected, strict=True):
        frames = load_video(row["video"], 5, 16.0)
        assert [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in other["video"]]


def test_an_adapter_acts(folder, tmp_path):
    out = generate(config(folder, tmp_path / "out", adapter_name_or_path=str(folder / "adapter")))
    stock = tiny.stable_diffusion()
    plain = [drawn(stock, row["prompt"], row["seed"]).tobytes() for row in load(out, tmp_path)]
    stock.load_lora_weights(folder / "adapter")
    for row, without in zip(load(out, tmp_path), plain, strict=True):
        assert row["image"].tobytes() == drawn(stock, row["prompt"], row["seed"]).tobytes() != without


def test_an_adapter_acts_as_strongly_as_it_is_told_to(folder, tmp_path):
    adapter = {"adapter_name_or_path": str(folder / "adapter")}
    half = generate(config(folder, tmp_path / "half", adapter_scale=0.5, **adapter))
    stock = tiny.stable_diffusion()
    plain = [drawn(stock, row["prompt"], row["seed"]).tobytes() for row in load(half, tmp_path)]
    stock.load_lora_weights(folder / "adapter", adapter_name="mine")
    stock.set_adapters("mine", 0.5)
    for row in load(half, tmp_path):
        assert row["image"].tobytes() == drawn(stock, row["prompt"], row["seed"]).tobytes()
    none = generate(config(folder, tmp_path / "none", adapter_scale=0, **adapter))
    assert [row["image"].tobytes() for row in load(none, tmp_path)] == plain
    assert json.loads((half / "generation.json").read_text())["settings"]["adapter_scale"] == 0.5
    assert "| adapter scale | 0.5 |" in (half / "README.md").read_text()
    whole = generate(config(folder, tmp_path / "whole", max_prompts=1, **adapter))
    assert (
        "adapter_scale" not in json.loads((whole / "generation.json").read_text())["settings"]
    )  # as before it was one


def test_adapters_are_loaded_as_their_family_does(tmp_path):
    [case] = [case for case in CASES if case.name == "amused"]
    save_adapter(case.build(), tmp_path / "adapter", case.family(case.build()))
    (tmp_path / "prompts.txt").write_text("a cat")
    pipeline = case.build()
    settings = config(tmp_path, tmp_path / "out", adapter_name_or_path=str(tmp_path / "adapter"), rows_per_shard=None)
    generate(settings, pipeline)
    loaded = [name for name, _ in pipeline.transformer.named_parameters() if "lora_" in name]
    assert loaded


def test_an_adapter_of_another_network_is_refused(folder, tmp_path):
    weights = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    (tmp_path / "adapter").mkdir()
    renamed = {key.replace("unet.", "transformer."): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="holds no weights for a `StableDiffusionPipeline`"):
        generate(config(folder, tmp_path / "out", adapter_name_or_path=str(tmp_path / "adapter")))


def test_images_of_one_colour_are_told(tmp_path, caplog):
    pipeline = tiny.stable_diffusion()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
    (tmp_path / "prompts.txt").write_text("a cat")
    with caplog.at_level(logging.WARNING, logger="tgo_trl.commands.generate.run"):
        generate(config(tmp_path, tmp_path / "out", model_name_or_path="black"), pipeline)
    assert "2 of the images have a single colour" in caplog.text


# ---- Resuming ----


@pytest.mark.slow
def test_a_killed_run_goes_on_byte_for_byte(folder, tmp_path):
    settings = {"num_images_per_prompt": 10, "num_inference_steps": 12, "batch_size": 3, "rows_per_shard": 4}
    interrupted, whole = (config(folder, tmp_path / name / "out", **settings) for name in ("killed", "whole"))
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tgo_trl.commands.generate import GenerateConfig\n"
        "from tgo_trl.commands.generate.run import generate\n"
        f"generate(GenerateConfig(**{asdict(interrupted)!r}))"
    )
    killed = tmp_path / "killed" / "out"
    run_and_kill(code, killed, num_shards=2)
    begun = {path: path.stat().st_mtime_ns for path in (killed / "data").glob("*.parquet")}
    assert 2 <= len(begun) < 8
    assert not (killed / "README.md").exists()
    lost = next(iter(begun))
    lost.rename(lost.with_name(f".{lost.name}.0123abcd"))  # as if it had been killed before it was renamed
    del begun[lost]
    generate(interrupted)
    generate(whole)
    assert files(killed) == files(tmp_path / "whole" / "out")
    assert len(list((killed / "data").iterdir())) == 8
    assert {path: path.stat().st_mtime_ns for path in begun} == begun  # none was drawn again


def test_a_finished_run_is_left_as_it_is(folder, tmp_path):
    out = generate(config(folder, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    generate(config(folder, out))
    assert {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()} == before


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, tmp_path):
    settings = {"num_images_per_prompt": 5, "rows_per_shard": 2}
    together, alone = (config(folder, tmp_path / name / "out", **settings) for name in ("two", "one"))
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tgo_trl.commands.generate import GenerateConfig\n"
        "from tgo_trl.commands.generate.run import generate\n"
        f"generate(GenerateConfig(**{asdict(together)!r}))"
    )
    run_two_processes(code, tmp_path)
    generate(alone)
    assert files(tmp_path / "two" / "out") == files(tmp_path / "one" / "out")


def test_other_settings_are_refused(folder, tmp_path):
    out = generate(config(folder, tmp_path / "out", max_prompts=1))
    before = files(out)
    with pytest.raises(ValueError, match=r"made with other settings: `call\.guidance_scale` was 7\.5, is 2\.0; `seed`"):
        generate(config(folder, out, max_prompts=1, guidance_scale=2.0, seed=1))
    with pytest.raises(ValueError, match=r"`prompts\.number` was 1, is 3"):
        generate(config(folder, out))
    assert files(out) == before


def test_other_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    settings = {"max_prompts": 1, "adapter_name_or_path": str(tmp_path / "adapter")}
    out = generate(config(folder, tmp_path / "out", **settings))
    shutil.rmtree(tmp_path / "adapter")
    save_adapter(tiny.stable_diffusion(), tmp_path / "adapter", lora_alpha=4)  # the same weights, half as strong
    with pytest.raises(ValueError, match=r"other settings: `fingerprints\.adapters` are others"):
        generate(config(folder, out, **settings))
    tiny.stable_diffusion(seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"`fingerprints\.unet` are others; .*`fingerprints\.vae` are others"):
        generate(config(tmp_path, out, prompts=str(folder / "prompts.txt"), max_prompts=1))


def test_fingerprints_see_every_part(folder):
    pipeline = tiny.stable_diffusion()
    before = pipeline_fingerprints(pipeline)
    assert before == pipeline_fingerprints(tiny.stable_diffusion())
    assert before.keys() == {"adapters", "pipeline", "scheduler", "text_encoder", "tokenizer", "unet", "vae"}

    def changed():
        now = pipeline_fingerprints(pipeline)
        return {name for name, digest in now.items() if before[name] != digest}

    pipeline.scheduler.register_to_config(beta_end=0.02)
    assert changed() == {"scheduler"}
    pipeline.register_to_config(requires_safety_checker=True)
    assert changed() == {"scheduler", "pipeline"}
    pipeline.load_lora_weights(folder / "adapter")
    assert changed() == {"scheduler", "pipeline", "adapters", "unet"}
    loaded = pipeline_fingerprints(pipeline)
    pipeline.set_adapters("default_0", 0.5)
    assert pipeline_fingerprints(pipeline)["adapters"] != loaded["adapters"]
    pipeline.disable_lora()
    assert pipeline_fingerprints(pipeline)["adapters"] == before["adapters"]


# ---- Prompts ----


def test_prompts_are_read_from_any_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = Dataset.from_dict({"text": ["a, b", "c"], "image": [tiny.picture(0)] * 2})
    (tmp_path / "p.txt").write_text("\ufeffa, b\r\n\r\n  c \r\n", encoding="utf-8")
    (tmp_path / "list.json").write_text('["a, b", "c"]')
    (tmp_path / "objects.json").write_text('[{"text": "a, b"}, {"text": "c"}]')
    (tmp_path / "p.jsonl").write_text('{"text": "a, b"}\n"c"\n')
    (tmp_path / "p.csv").write_text('id,text\n1,"a, b"\n2,c\n')
    (tmp_path / "p.tsv").write_text("id\ttext\n1\ta, b\n2\tc\n")
    table.to_parquet(tmp_path / "p.parquet")
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train.parquet")
    for name in ("p.txt", "list.json", "objects.json", "p.jsonl", "p.csv", "p.tsv", "p.parquet", "folder"):
        assert read_prompts(str(tmp_path / name), "text") == ["a, b", "c"], name
        assert read_prompts(str(tmp_path / name), "text", max_prompts=1) == ["a, b"]


def test_repeated_prompts_are_drawn_once_and_told(tmp_path, caplog):
    (tmp_path / "p.txt").write_text("a\nb\na\na\nc\n")
    with caplog.at_level(logging.WARNING, logger="tgo_trl.commands.generate.prompts"):
        assert read_prompts(str(tmp_path / "p.txt")) == ["a", "b", "c"]
    assert "2 of 5 prompts are repeated" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n\n", "There are no prompts"),
        ("p.json", '{"prompts": ["a"]}', "holds no list of prompts or of objects, but a `dict`"),
        ("p.json", '["a", "b"', r"'p\.json' is no JSON \(Expecting ',' delimiter: line 1 column 10"),
        ("p.jsonl", '{"text": "a"}', r"has no column 'prompt'; it has 'text'\. Set `prompt_column`"),
        ("p.csv", "text\na\n", "has no column 'prompt'; it has 'text'"),
        ("p.json", '["a", ""]', r"Prompt 1 of .* cannot be used: the prompt is empty"),
        ("p.json", '["a", 3]', r"Prompt 1 of .* cannot be used: the prompt is a `int`, not a string"),
        ("p.json", '["\\ud800"]', r"Prompt 0 of .* cannot be used: .*surrogates not allowed"),
        ("p.docx", "a", r"Prompts cannot be read from 'p\.docx'\. Write a text file"),
    ],
)
def test_prompts_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / name))


def test_a_missing_file_is_no_hub_id(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*none\.txt' to read prompts from"):
        read_prompts(str(tmp_path / "none.txt"))


# ---- Settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 16}, "`height` is set and `width` is not"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0; it must be at least 1"),
        ({"call_kwargs": "{'eta': 1}"}, "`call_kwargs` is no JSON"),
        ({"call_kwargs": "[1]"}, "`call_kwargs` is a `list`, not names with values"),
        ({"call_kwargs": {"guidance_scale": 2}}, "`call_kwargs` has 'guidance_scale'. Set `guidance_scale` instead"),
        ({"call_kwargs": {"num_images_per_prompt": 2}}, "Set `num_images_per_prompt` instead"),
        ({"call_kwargs": {"generator": 1}}, "which is set for each image"),
        ({"rows_per_shard": 0}, "`rows_per_shard` is 0"),
        ({"adapter_scale": 0.5}, "`adapter_scale` is 0.5, but there is no adapter. Set `adapter_name_or_path`"),
        ({"adapter_scale": "half"}, "`adapter_scale` is 'half'; it must be a number"),
        ({"hub_dataset_id": "me/rows"}, "nothing is uploaded. Set `push_to_hub` too"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path / "out", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 20, "width": 30}, "needs a multiple of 8. Set `height=16` and `width=32`"),
        ({"call_kwargs": {"true_cfg_scale": 2}}, "cannot be called with 'true_cfg_scale'. Leave it out"),
        ({"num_frames": 5}, "`num_frames` is set, but `StableDiffusionPipeline` has nothing that it could change"),
        ({"dtype": "int8"}, "`dtype` is 'int8'"),
        ({"dtype": "float32", "model_init_kwargs": {"torch_dtype": "float32"}}, "Set one of them"),
    ],
)
def test_settings_that_the_pipeline_cannot_take(folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(config(folder, tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_arguments_of_the_call_are_checked_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tgo_trl.commands.generate.run.load_pipeline", None)
    with pytest.raises(ValueError, match=r"cannot be called with 'true_cfg_scale'\. Leave it out; what it takes are "):
        generate(config(folder, tmp_path / "out", call_kwargs={"true_cfg_scale": 2}))


def test_a_family_object_takes_no_settings(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat")
    settings = config(tmp_path, tmp_path / "out", num_frames=5)
    with pytest.raises(ValueError, match="A `family` was passed, and the settings have `num_frames`"):
        generate(settings, wan.build(), WanFamily())


def test_settings_load_nothing_heavy():
    code = """
import sys
from tgo_trl.commands.generate import GenerateConfig
from tgo_trl.commands.score import ScoreConfig
assert GenerateConfig("m", "p", "o", call_kwargs='{"eta": 1}').call_kwargs == {"eta": 1}
assert "secret" not in repr(ScoreConfig("d", "o", "pickscore", hub_token="secret"))
heavy = ("torch", "transformers", "diffusers", "datasets", "numpy")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
