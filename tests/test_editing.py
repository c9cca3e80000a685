"""Rows with source images, end to end on a tiny FLUX.1 Kontext: generate, score, train."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from tgo_trl import TGOConfig
from tgo_trl.cli import main
from tgo_trl.commands.evaluate.config import EvaluateConfig
from tgo_trl.commands.evaluate.run import evaluate
from tgo_trl.commands.generate import GenerateConfig
from tgo_trl.commands.generate.run import build_sampler, find_tasks, generate, generate_rows
from tgo_trl.commands.generate.sampling import Sampler, image_seed
from tgo_trl.commands.generate.tasks import SourceImage, Task, source_pictures
from tgo_trl.commands.rounds.config import RoundsConfig
from tgo_trl.commands.rounds.run import rounds
from tgo_trl.commands.score import ScoreConfig
from tgo_trl.commands.score.run import score
from tgo_trl.commands.strength.config import StrengthConfig
from tgo_trl.commands.strength.drift import encode_drift_rows, read_drift_rows
from tgo_trl.commands.strength.run import strength
from tgo_trl.data.columns import Columns
from tgo_trl.data.sources import check_same_number
from tgo_trl.families import FluxKontextFamily, QwenImageEditPlusFamily
from tgo_trl.media.images import fit_image, image_to_tensor, load_image
from tgo_trl.parser import SettingsParser
from tgo_trl.storage.fingerprints import fingerprint, task_of
from tgo_trl.trainer import sample_grids
from tgo_trl.trainer.checkpoints import public_config
from tgo_trl.trainer.eval_samples import EvalSamples
from tgo_trl.trainer.sample_grids import SampleGridCallback
from tgo_trl.trainer.sources import read_sample_sources

from . import tiny
from .cases import CASES
from .runs import config, make_trainer
from .test_generation import save_adapter
from .tiny import flux, flux_kontext

pytestmark = [pytest.mark.usefixtures("on_cpu"), pytest.mark.filterwarnings("ignore::UserWarning")]

REWARD = """
import numpy as np

def nearness(prompts, images, sources):
    return [-float(np.abs(np.asarray(a, float) - np.asarray(b[0], float)).mean()) for a, b in zip(images, sources)]

def farness(prompts, images, sources):
    return [-score for score in nearness(prompts, images, sources)]
"""


PLUS = next(case for case in CASES if case.name == "qwen_image_edit_plus")
EDITS = ("make it red", "make it red", "make it blue")
CALL = {"num_inference_steps": 1, "height": 16, "width": 16, "num_images_per_prompt": 2, "max_sequence_length": 16}


@pytest.fixture
def prompts_file(tmp_path):
    return write_prompts(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, an adapter in `adapter`, prompts in `prompts.jsonl`, and a reward in `reward.py`."""
    folder = tmp_path_factory.mktemp("edits")
    pipeline = flux_kontext.build()
    pipeline.save_pretrained(folder / "model")
    save_adapter(pipeline, folder / "adapter", FluxKontextFamily())
    (folder / "reward.py").write_text(REWARD)
    write_prompts(folder)
    return folder


def write_prompts(folder):
    lines = []
    for i, prompt in enumerate(EDITS):
        tiny.picture(i).save(folder / f"{i}.png")
        lines.append(json.dumps({"prompt": prompt, "source_image": f"{i}.png", "kind": prompt[-4:]}))
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def png(color):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(stream, "PNG")
    return stream.getvalue()


def nearness(image, source):
    return -np.abs(np.asarray(image, float) - np.asarray(source, float)).mean()


def drawn(path, folder, **settings):
    config = GenerateConfig("tiny", str(path), str(folder), **{**CALL, **settings})
    return generate(config, pipeline=flux_kontext.build())


def test_rows_go_from_prompts_to_a_trained_adapter(prompts_file, tmp_path, monkeypatch):
    rows = load_dataset(str(drawn(prompts_file, tmp_path / "drawn")), split="train")
    assert rows["prompt"] == ["make it red"] * 4 + ["make it blue"] * 2  # of two sources each drawn by itself
    for i, row in enumerate(rows):
        assert np.array_equal(np.asarray(row["source_image"]), np.asarray(tiny.picture(i // 2)))
    assert len(set(rows["seed"])) == 6

    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)
    scored = score(ScoreConfig(str(tmp_path / "drawn"), str(tmp_path / "scored"), [f"{reward}:nearness"]))
    rows = load_dataset(str(scored), split="train")
    assert rows[0]["score"] == pytest.approx(nearness(rows[0]["image"], tiny.picture(0)))

    args = config(
        tmp_path / "run", max_steps=1, resolution=16, max_sequence_length=16, sample_prompts=["make it red"],
        sample_sources=[str(tmp_path / "0.png")], sample_num_inference_steps=1, eval_rewards=[f"{reward}:nearness"],
        eval_strategy="steps", eval_steps=1, eval_samples_per_prompt=1,
    )  # fmt: skip
    read, grids = [], []
    monkeypatch.setattr("tgo_trl.trainer.sources.load_image", lambda path: read.append(path) or load_image(path))
    plot = sample_grids.plot_grid
    monkeypatch.setattr(sample_grids, "plot_grid", lambda *args: grids.append(args) or plot(*args))
    trainer = make_trainer(args, model=flux_kontext.build(), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert read == args.sample_sources, "a source of samples is read once"
    [(pictures, names, *_)] = grids
    assert names == ["source", "reference", "step 1"]
    assert np.array_equal(np.asarray(pictures[0][0]), np.asarray(tiny.picture(0)))
    assert len(trainer.train_dataset.sources._places) == 6
    assert len({place[1] for place in trainer.train_dataset.sources._places.values()}) == 3  # each source once
    assert any("eval_samples/nearness" in entry for entry in trainer.state.log_history)
    assert list((tmp_path / "run" / "out" / "samples").glob("*.png"))


def test_what_is_missing_is_named_before_anything_is_loaded(prompts_file, tmp_path):
    rows = tiny.scored_rows(4)
    with pytest.raises(ValueError, match="has no column 'source_image'"):
        make_trainer(config(tmp_path, resolution=16), model=flux_kontext.build(), train_dataset=rows)
    with pytest.raises(ValueError, match="`sample_sources` has 1 files, and `sample_prompts` has 0"):
        config(tmp_path, sample_sources=["a.png"])
    with pytest.raises(ValueError, match="reads prompts alone"):
        make_trainer(config(tmp_path, source_column="before"), model=flux.build(), train_dataset=rows)
    text = tmp_path / "prompts.txt"
    text.write_text("make it red")
    with pytest.raises(ValueError, match="has prompts alone, and the pipeline makes images from others"):
        drawn(text, tmp_path / "drawn")
    generation = GenerateConfig("tiny", str(prompts_file), str(tmp_path / "drawn"))
    with pytest.raises(ValueError, match="prompts were read alone"):
        build_sampler(generation, flux_kontext.build(), None)
    pipeline = flux_kontext.build()
    with pytest.raises(ValueError, match="makes samples from source images"):
        FluxKontextFamily().sample(pipeline, ["a"], [None], (16, 16))


def test_the_same_instruction_for_two_images_is_two_tasks():
    """Each has a seed and a variety of its own, whatever their order."""
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))

    def samples(prompts, sources):
        return EvalSamples(None, {}, prompts, 2, 5, 4, sources=[[image] for image in sources])

    both = samples(["brighten", "brighten"], [red, blue])
    assert len(set(both.tasks)) == 2
    assert both.tasks[0] == both.tasks[1]
    assert len(set(both.seeds)) == 4
    swapped = samples(["brighten", "brighten"], [blue, red])
    assert swapped.ways == both.ways
    assert swapped.seeds == both.seeds[2:] + both.seeds[:2]
    crossed = [samples(["a", "b"], order) for order in ([red, blue], [blue, red])]
    assert crossed[0].ways != crossed[1].ways


def test_rows_of_the_same_instruction_for_two_images_are_both_sampled():
    files = [(png("red"),), (png("blue"),)]
    pipeline, options = flux_kontext.build(), {"num_inference_steps": 1, "size": (16, 16), "max_sequence_length": 16}
    rows = list(generate_rows(pipeline, FluxKontextFamily(), ["a", "a", "a"], sources=[*files, files[0]], **options))
    assert [row["prompt"] for row in rows] == ["a", "a"]
    assert rows[0]["seed"] != rows[1]["seed"]
    with pytest.raises(ValueError, match="There are 2 prompts and sources of 1"):
        list(generate_rows(pipeline, FluxKontextFamily(), ["a", "b"], sources=files[:1], **options))


def test_a_source_that_cannot_be_decoded_is_named_before_anything_is_drawn(prompts_file, tmp_path):
    path = prompts_file.parent / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Prompt 0 of .* cannot be used"):
        find_tasks(GenerateConfig("tiny", str(prompts_file), str(tmp_path / "drawn")), FluxKontextFamily)


def test_a_reward_of_edits_and_files_are_looked_at_before_a_model_is_loaded(tmp_path):
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def nearness(prompts, images, sources):\n    return [0.0] * len(images)\n")
    settings = {"eval_strategy": "steps", "eval_steps": 1, "sample_prompts": ["a"], "max_steps": 1}
    args = config(tmp_path, eval_rewards=[f"{rewards}:nearness"], **settings)
    with pytest.raises(ValueError, match=r"compares an image with the one.*Set `eval_sources`"):
        make_trainer(args, model=flux.build(), eval_dataset=tiny.scored_rows(4))
    rows = tiny.scored_rows(4)
    rows = rows.map(lambda row: {"source_image": row["image"]})
    args = config(tmp_path, resolution=16, sample_prompts=["a"], sample_sources=[str(tmp_path / "none.png")])
    with pytest.raises(ValueError, match="of a sample cannot be used"):
        make_trainer(args, model=flux_kontext.build(), train_dataset=rows)


# ---- Comparing models ----


def assert_drawn(stock, row, source):
    """A row is what diffusers draws of its prompt and source from its seed."""
    call = {**flux_kontext.CALL, "image": source, "num_inference_steps": 1, "guidance_scale": 3.5}
    image = stock(prompt=row["prompt"], generator=torch.Generator().manual_seed(row["seed"]), **call).images[0]
    assert np.abs(np.asarray(row["image"], int) - np.asarray(image, int)).max() <= 1


def compared(folder, out, **settings):
    given = {
        "models": [f"base={folder / 'model'}", f"half={folder / 'model'}+{folder / 'adapter'}@0.5"],
        "prompts": str(folder / "prompts.jsonl"), "category_column": "kind", "num_resamples": 100,
        "rewards": [f"{folder / 'reward.py'}:nearness"], "rows_per_shard": 4, "disable_tqdm": True,
    }  # fmt: skip
    return EvaluateConfig(output_dir=str(out), **{**CALL, **given, **settings})


def test_models_are_compared_on_the_same_edits(folder, tmp_path):
    report = evaluate(compared(folder, tmp_path / "out"))
    stock = flux_kontext.build()
    stock.load_lora_weights(folder / "adapter", adapter_name="mine")
    for label, scale in (("base", 0.0), ("half", 0.5)):
        stock.set_adapters("mine", scale)
        rows = load_dataset(str(tmp_path / "out" / "models" / label / "drawn"), split="train")
        for i, row in enumerate(rows):
            task = task_of(row["prompt"], [fingerprint((folder / f"{i // 2}.png").read_bytes())])
            assert row["seed"] == image_seed(42, task, i % 2)
            assert_drawn(stock, row, tiny.picture(i // 2))
        scores = [nearness(row["image"], row["source_image"]) for row in rows]
        assert report.overall.rewards["nearness"].means[label].value == pytest.approx(np.mean(scores))
        blue = report.categories["blue"].rewards["nearness"].means[label].value
        assert blue == pytest.approx(np.mean(scores[4:]))
    assert report.overall.num_prompts == 3

    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    (tmp_path / "out" / "grid-1.png").unlink()
    assert evaluate(compared(folder, tmp_path / "out")) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == begun
    assert (tmp_path / "out" / "grid-1.png").is_file()


def test_the_pictures_of_edits_show_their_sources(tmp_path):
    def task(*colors):
        return Task("a", tuple(SourceImage(fingerprint(it), it) for it in map(png, colors)))

    samples = [Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))]
    assert source_pictures([Task("a"), Task("b")], samples) == {}
    one = source_pictures([task("red"), task("blue")], samples)
    assert {name: [it.getpixel((0, 0)) for it in row] for name, row in one.items()} == {
        "source": [(255, 0, 0), (0, 0, 255)]
    }
    assert [it.size for it in one["source"]] == [(8, 8), (16, 8)]
    two = source_pictures([task("red"), task("blue", "lime")], samples)
    assert [row[i].getpixel((0, 0)) for row in two.values() for i in range(2)] == [
        (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 255, 0),
    ]  # fmt: skip
    assert list(two) == ["source 1", "source 2"]


def test_what_is_no_comparison_of_edits_is_refused_before_anything_is_drawn(folder, tmp_path):
    flux.build().save_pretrained(tmp_path / "flux")
    mixed = [f"edits={folder / 'model'}", f"plain={tmp_path / 'flux'}"]
    for settings, message in (
        ({"models": mixed}, "'edits' makes images from others, and 'plain' from prompts alone"),
        ({"models": mixed[1:]}, "'.*nearness' compares an image with the one that it was made from"),
        ({"prompts": "parti", "category_column": None}, "The set 'parti' has prompts alone"),
        ({"source_column": "before"}, "'prompts.jsonl' has no column 'before'.* or `source_column`"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(compared(folder, tmp_path / "out", **settings))
        assert not (tmp_path / "out").exists()


def test_a_source_that_changes_while_samples_are_drawn_ends_it(prompts_file, tmp_path):
    tasks = find_tasks(GenerateConfig("tiny", str(prompts_file), str(tmp_path / "drawn")), FluxKontextFamily)
    assert [type(source.value).__name__ for task in tasks for source in task.sources] == ["DataFile"] * 3
    tiny.picture(9).save(tmp_path / "1.png")
    assert tasks[0].sources[0].read() == (tmp_path / "0.png").read_bytes()
    with pytest.raises(ValueError, match=r"'1\.png' has changed since the prompts were read"):
        tasks[1].sources[0].read()
    (tmp_path / "2.png").unlink()
    with pytest.raises(
        ValueError, match=r"'2\.png' was there when prompts were read, and now the image .*cannot be read"
    ):
        tasks[2].sources[0].read()


@pytest.mark.parametrize("most", [10, 10**6])
def test_sources_in_rows_are_kept_out_of_memory_where_they_are_many(tmp_path, monkeypatch, most):
    monkeypatch.setattr("tgo_trl.commands.generate.tasks.IN_MEMORY", most)
    files = [png("red"), png("blue")]
    rows = {"prompt": ["a", "b", "a"], "source_image": [{"bytes": files[i], "path": None} for i in (0, 1, 1)]}
    Dataset.from_dict(rows, features=Features({"prompt": Value("string"), "source_image": ImageFeature()})).to_parquet(
        tmp_path / "rows.parquet"
    )
    config = GenerateConfig("tiny", str(tmp_path / "rows.parquet"), str(tmp_path / "drawn"))
    tasks = find_tasks(config, FluxKontextFamily)
    stored = [source for task in tasks for source in task.sources]
    for _ in range(2):
        assert [source.read() for source in reversed(stored)] == [files[1], files[1], files[0]]
    store = stored[0].value.store
    assert store.file.seek(0, 2) == len(files[0]) + len(files[1])  # each distinct one once
    assert store.file._rolled is (most == 10)


# ---- Strength and rounds ----


def test_an_adapter_of_edits_is_measured_over_its_scales(folder, tmp_path):
    settings = {"scales": [1.0], "num_drift_rows": 3, "write_card": False, "disable_tqdm": True, "rows_per_shard": 4}
    rewards = [f"{folder / 'reward.py'}:nearness"]
    given = {"model_name_or_path": str(folder / "model"), "output_dir": str(tmp_path / "out"), **CALL, **settings}
    report = strength(StrengthConfig(str(folder / "adapter"), str(folder / "prompts.jsonl"), rewards, **given))
    for row, scale in zip(report.rows, ("0", "1"), strict=True):
        rows = load_dataset(str(tmp_path / "out" / f"scale-{scale}" / "scored"), split="train")
        expected = [nearness(image, tiny.picture(i // 2)) for i, image in enumerate(rows["image"])]
        assert rows["score"] == pytest.approx(expected)
        assert row.reward == pytest.approx(np.mean(expected))
    assert report.rows[0].drift == [1, 1, 1, 1]
    assert all(value != 1 for value in report.rows[1].drift)
    assert (tmp_path / "out" / "strength.png").is_file()


def test_rows_that_drift_is_measured_on_have_their_sources(prompts_file, tmp_path):
    class Seeing(FluxKontextFamily):
        prompts_see_sources = True

        def encode_edits(self, pipeline, prompts, pixels):
            return {"seen": pixels.mean((2, 3, 4))}

    out = drawn(prompts_file, tmp_path / "drawn")
    pipeline, size = flux_kontext.build(), (16, 16)
    pixels = torch.stack([image_to_tensor(tiny.picture(i), size) for i in (0, 1, 2)])[:, None]
    columns = Columns(source="source_image")
    for family in (FluxKontextFamily(max_sequence_length=16), Seeing()):
        rows = read_drift_rows(str(out), "train", columns, 3, family)
        assert rows.indices == [0, 2, 4]
        encoded = encode_drift_rows(rows, Sampler(pipeline, family, size, 4, {}), None, [0.0])[0.0]
        for i, (image, prompt) in enumerate(zip(encoded.images, encoded.prompts, strict=True)):
            with torch.no_grad():
                source = family.encode_sources(pipeline, pixels[i : i + 1])["source"]
            assert torch.equal(image["source"], source)
            if family.prompts_see_sources:
                assert torch.equal(prompt["seen"], pixels[i : i + 1].mean((2, 3, 4)))
    with pytest.raises(ValueError, match=r"has no column 'before'.* or `source_column`"):
        read_drift_rows(str(out), "train", replace(columns, source="before"), 3, FluxKontextFamily())


def test_a_source_that_is_another_each_time_is_refused(tmp_path):
    """It would be kept for other runs under the fingerprint of the one that came first."""
    calls = []

    def turn(batch):
        calls.append(1)
        turned = [[image.rotate(180 * (len(calls) > 8)) for image in images] for images in batch["source_image"]]
        return {**batch, "source_image": turned}

    case = next(case for case in CASES if case.name == "flux_kontext")
    args = config(tmp_path, resolution=16, max_sequence_length=16)
    with pytest.raises(ValueError, match=r"Row \d, column 'source_image': it was another one a moment ago"):
        make_trainer(args, model=case.build(), train_dataset=case.rows(4).with_transform(turn))


def test_rows_of_other_numbers_of_sources_are_refused():
    check_same_number("Prompts", [["a"], ("b",)])
    check_same_number("Prompts", [(), ()])
    with pytest.raises(ValueError, match="Prompts have 1, 2 source images, and those of a batch must have as many"):
        check_same_number("Prompts", [["a"], ["b", "c"]])


@pytest.mark.slow
def test_each_round_of_edits_draws_and_trains_with_their_sources(folder, tmp_path):
    rewards = {"rewards": [f"{folder / 'reward.py'}:nearness"], "held_out_rewards": [f"{folder / 'reward.py'}:farness"]}
    settings = RoundsConfig(
        str(folder / "model"), str(folder / "prompts.jsonl"), num_rounds=1, num_images_per_prompt=2,
        num_inference_steps=1, held_out_images_per_prompt=2, **rewards,
    )  # fmt: skip
    sizes = {"resolution": 16, "max_sequence_length": 16}
    args = config(tmp_path, max_steps=1, threshold_type="prompt_mean", **sizes)
    report = rounds(settings, args)
    rows = load_dataset(str(tmp_path / "out" / "round-1" / "scored"), split="train")
    assert rows["score"] == pytest.approx([nearness(it["image"], it["source_image"]) for it in rows])
    record = json.loads((tmp_path / "out" / "round-1" / "adapter" / "tgo_config.json").read_text())
    assert record["label_rule"]["num_prompts"] == 3  # the same words for two images are two
    held_out = load_dataset(str(tmp_path / "out" / "held_out" / "models" / "round-1" / "drawn"), split="train")
    farness = [-nearness(it["image"], it["source_image"]) for it in held_out]
    assert report.rounds[0].measurement.rewards["farness"].value == pytest.approx(np.mean(farness))
    assert all(value > 0 for value in report.rounds[0].measurement.drift)
    with pytest.raises(ValueError, match="`source_column` is 'before', and the columns of what rounds draw are known"):
        rounds(settings, config(tmp_path / "other", source_column="before", **sizes))


# ---- From prompts to an adapter that other programs read, by the commands ----


@pytest.mark.slow
def test_edits_go_from_prompts_to_an_exported_adapter(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    out = {name: str(tmp_path / name) for name in ("drawn", "scored", "report", "run", "compared", "exported")}
    model, prompts, reward = (str(folder / name) for name in ("model", "prompts.jsonl", "reward.py:nearness"))
    sampling = [word for name, value in CALL.items() for word in (f"--{name}", str(value))]

    def run(command, *arguments):
        assert main([command, *arguments]) == 0

    def rows(name):
        return load_dataset(str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))

    # Six edits of three sources.
    run("generate", "--model_name_or_path", model, "--prompts", prompts, "--output_dir", out["drawn"],
        "--rows_per_shard", "4", "--disable_tqdm", "true", *sampling)  # fmt: skip
    card = (tmp_path / "drawn" / "README.md").read_text()
    assert "6 images drawn with `model` from source images" in card
    assert "| `source_image` | Image | what it was made from" in card
    assert "The source images are those of `prompts.jsonl`" in card

    # Their scores, by a reward that looks at both.
    run("score", "--dataset_name", out["drawn"], "--output_dir", out["scored"], "--rewards", reward, "--disable_tqdm",
        "true")  # fmt: skip
    scored = rows("scored")
    expected = [nearness(image, tiny.picture(i // 2)) for i, image in enumerate(scored["image"])]
    assert scored["score"] == pytest.approx(expected)
    assert "what it was made from" in (tmp_path / "scored" / "README.md").read_text()

    # What the scores would do: three prompts with their sources, of two wordings.
    run("inspect", "--dataset_name", out["scored"], "--output_dir", out["report"], "--disable_tqdm", "true")
    report = json.loads((tmp_path / "report" / "inspection.json").read_text())
    assert (report["num_prompts"], report["num_tasks"], report["prompts"]["images"]) == (2, 3, [2, 2.0, 2])
    assert report["scores"]["mean"] == pytest.approx(np.mean(expected))
    deviations = [(expected[i] - expected[i + 1]) ** 2 / 2 for i in (0, 2, 4)]
    assert report["prompts"]["within_std"] == pytest.approx(np.mean(deviations) ** 0.5)

    # An adapter, with a threshold for each prompt and source.
    run("train", "--model_name_or_path", model, "--dataset_name", out["scored"], "--output_dir", out["run"],
        "--threshold_type", "prompt_mean", "--max_steps", "2", "--per_device_train_batch_size", "3", "--lora_r", "4",
        "--learning_rate", "1e-2", "--resolution", "16", "--max_sequence_length", "16", "--use_cpu", "true",
        "--report_to", "none", "--disable_tqdm", "true", "--encoding_cache_dir", str(tmp_path / "encodings"),
        "--sample_prompts", "make it red", "--sample_sources", str(folder / "0.png"), "--sample_num_inference_steps",
        "1")  # fmt: skip
    rule = json.loads((tmp_path / "run" / "tgo_config.json").read_text())["label_rule"]
    assert (rule["num_rows"], rule["num_prompts"], rule["num_positive"]) == (6, 3, 3)
    assert rule["threshold"] == pytest.approx(np.mean(expected))  # of pairs, the mean of their means
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-000002.png"]

    # Base and adapter on the same edits, and the adapter is what diffusers loads.
    run("evaluate", "--models", f"base={model}", f"tgo={model}+{out['run']}", "--prompts", prompts, "--rewards", reward,
        "--output_dir", out["compared"], "--num_resamples", "100", "--disable_tqdm", "true", *sampling)  # fmt: skip
    results = json.loads((tmp_path / "compared" / "evaluation.json").read_text())
    drawn = rows("compared/models/tgo/drawn")
    after = [nearness(it["image"], it["source_image"]) for it in drawn]
    means = results["overall"]["rewards"]["nearness"]["means"]
    assert (means["base"]["value"], means["tgo"]["value"]) == pytest.approx((np.mean(expected), np.mean(after)))
    assert means["base"]["value"] != means["tgo"]["value"]
    stock = flux_kontext.build()
    stock.load_lora_weights(out["run"])
    assert_drawn(stock, drawn[5], tiny.picture(2))

    # The same samples from the names that ComfyUI has for the weights, which diffusers reads too.
    run("export", "--adapter_name_or_path", out["run"], "--output_dir", out["exported"], "--model_name_or_path", model)
    [exported] = (tmp_path / "exported").glob("*.safetensors")
    stock = flux_kontext.build()
    stock.load_lora_weights(str(exported))
    assert_drawn(stock, drawn[5], tiny.picture(2))
    assert "Written" in capsys.readouterr().out


# ---- Several sources of a prompt of grids and evaluations ----


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        tiny.picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


SEVERAL = [["0.png", "1.png"], "2.png"]


def test_several_sources_of_a_prompt_are_set_in_python_in_yaml_and_on_a_command_line(files):
    def parsed(*arguments):
        [args] = SettingsParser([TGOConfig]).parse_args_and_config(["--output_dir", "out", "--use_cpu", *arguments])
        return args.sample_sources, args.eval_sources

    prompts = ["--sample_prompts", "a", "b"]
    assert parsed(*prompts, "--sample_sources", '["0.png", "1.png"]', "2.png") == (SEVERAL, None)
    (files / "run.yaml").write_text("sample_prompts: [a, b]\nsample_sources: [[0.png, 1.png], 2.png]\n")
    assert parsed("--config", "run.yaml")[0] == SEVERAL
    assert (
        config(files, sample_prompts=["a", "b"], sample_sources=(("0.png", "1.png"), "2.png")).sample_sources == SEVERAL
    )
    (files / "[0].png").touch()
    assert parsed("--sample_prompts", "a", "--sample_sources", "[0].png")[0] == ["[0].png"]
    (files / "run.yaml").write_text("sample_prompts: [[a, b]]\n")  # of which nothing takes several
    with pytest.raises(ValueError, match=r"run.yaml, line 1: .*\['a', 'b'\] in it must be a single value"):
        parsed("--config", "run.yaml")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([[]], r"`sample_sources` is \[\[\]\]; it must be a list with a file for each prompt"),
        (
            [["0.png", 3]],
            "it must be a list with a file for each prompt, its source image, or, of a pipeline that takes s",
        ),
        ([[["0.png"]]], "it must be a list with a file for each prompt"),
        ("0.png", "it must be a list with a file for each prompt"),
        (["0.png", "1.png"], "`sample_sources` has 2 files, and `sample_prompts` has 1 prompts.*or of several, a list"),
    ],
)
def test_sources_that_are_not_of_each_prompt_are_refused(files, sources, message):
    with pytest.raises(ValueError, match=message):
        config(files, sample_prompts=["a"], sample_sources=sources)


def test_sources_of_samples_are_those_that_a_family_takes(files, monkeypatch):
    read = []
    monkeypatch.setattr("tgo_trl.trainer.sources.load_image", lambda path: read.append(path) or load_image(path))
    settings = {"sample_prompts": ["a", "b"], "eval_prompts": ["c"], "eval_strategy": "steps", "eval_steps": 1}
    args = config(files, sample_sources=SEVERAL, eval_sources=[["2.png", "0.png"]], **settings)
    found = read_sample_sources(args, QwenImageEditPlusFamily, {})
    assert read == ["0.png", "1.png", "2.png"], "each file is read once"
    expected = {"sample_sources": [[0, 1], [2]], "eval_sources": [[2, 0]]}
    assert {name: [[it.tobytes() for it in images] for images in rows] for name, rows in found.items()} == {
        name: [[tiny.picture(i).tobytes() for i in images] for images in rows] for name, rows in expected.items()
    }
    read.clear()
    with pytest.raises(ValueError, match="has 2 source images for a prompt, and `FluxKontextFamily` takes 1 at most"):
        read_sample_sources(args, FluxKontextFamily, {})
    assert not read


def test_grids_and_the_card_have_all_sources_of_a_prompt(files):
    rows = PLUS.rows()
    args = PLUS.config(files / "run", sample_prompts=["a"], sample_sources=[["0.png", "1.png"]], max_steps=1)
    args.sample_num_inference_steps = 2
    trainer = make_trainer(args, model=PLUS.build(), train_dataset=rows)
    grids = next(it for it in trainer.callback_handler.callbacks if isinstance(it, SampleGridCallback))
    assert "sample_sources" not in public_config(args.to_dict())  # which names files of this machine
    [images] = grids.kwargs["sources"]
    assert [it.tobytes() for it in images] == [tiny.picture(i).tobytes() for i in range(2)]
    stock = PLUS.build()
    fitted = [fit_image(tiny.picture(i), trainer.size) for i in range(2)]
    [sample] = trainer.sample(["a"], [5], sources=[images], num_inference_steps=2)
    expected = stock(
        prompt="a", image=fitted, generator=torch.Generator().manual_seed(5), height=32, width=32,
        num_inference_steps=2, **PLUS.module.SETTINGS,
    ).images[0]  # fmt: skip
    assert np.abs(np.asarray(sample, int) - np.asarray(expected, int)).max() <= 1
    trainer.create_model_card()
    card = (args.output_path / "README.md").read_text()
    assert (
        'image=[ImageOps.fit(load_image("source1.png"), (32, 32)), ImageOps.fit(load_image("source2.png"), (32, 32))]'
        in card
    )
