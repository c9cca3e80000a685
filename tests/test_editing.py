"""Rows with source images, end to end on a tiny FLUX.1 Kontext: generate, score, train."""

import io
import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from tgo_trl.commands.generate import GenerateConfig
from tgo_trl.commands.generate.run import build_sampler, generate, generate_rows, read_tasks
from tgo_trl.commands.score import ScoreConfig
from tgo_trl.commands.score.run import score
from tgo_trl.families import FluxKontextFamily
from tgo_trl.trainer.eval_samples import EvalSamples

from . import tiny
from .runs import config, make_trainer
from .tiny import flux, flux_kontext

pytestmark = [pytest.mark.usefixtures("on_cpu"), pytest.mark.filterwarnings("ignore::UserWarning")]

REWARD = """
import numpy as np

def nearness(prompts, images, sources):
    return [-float(np.abs(np.asarray(a, float) - np.asarray(b[0], float)).mean()) for a, b in zip(images, sources)]
"""


@pytest.fixture
def prompts_file(tmp_path):
    lines = []
    for i, prompt in enumerate(("make it red", "make it red", "make it blue")):
        tiny.picture(i).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"prompt": prompt, "source_image": f"{i}.png"}))
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def drawn(path, folder, **settings):
    given = {"num_inference_steps": 1, "height": 16, "width": 16, "num_images_per_prompt": 2, "max_sequence_length": 16}
    config = GenerateConfig("tiny", str(path), str(folder), **{**given, **settings})
    return generate(config, pipeline=flux_kontext.build())


def test_rows_go_from_prompts_to_a_trained_adapter(prompts_file, tmp_path):
    rows = load_dataset(str(drawn(prompts_file, tmp_path / "drawn")), split="train")
    assert rows["prompt"] == ["make it red"] * 4 + ["make it blue"] * 2  # of two sources each drawn by itself
    for i, row in enumerate(rows):
        assert np.array_equal(np.asarray(row["source_image"]), np.asarray(tiny.picture(i // 2)))
    assert len(set(rows["seed"])) == 6

    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)
    scored = score(ScoreConfig(str(tmp_path / "drawn"), str(tmp_path / "scored"), [f"{reward}:nearness"]))
    rows = load_dataset(str(scored), split="train")
    first = rows[0]
    by_hand = -np.abs(np.asarray(first["image"], float) - np.asarray(tiny.picture(0), float)).mean()
    assert first["score"] == pytest.approx(by_hand)

    args = config(
        tmp_path / "run", max_steps=1, resolution=16, max_sequence_length=16, sample_prompts=["make it red"],
        sample_sources=[str(tmp_path / "0.png")], sample_num_inference_steps=1, eval_rewards=[f"{reward}:nearness"],
        eval_strategy="steps", eval_steps=1, eval_samples_per_prompt=1,
    )  # fmt: skip
    trainer = make_trainer(args, model=flux_kontext.build(), train_dataset=rows, eval_dataset=rows)
    trainer.train()
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
    with pytest.raises(ValueError, match="here are prompts alone"):
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
    files = []
    for color in ("red", "blue"):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), color).save(stream, "PNG")
        files.append((stream.getvalue(),))
    pipeline, options = flux_kontext.build(), {"num_inference_steps": 1, "size": (16, 16), "max_sequence_length": 16}
    rows = list(generate_rows(pipeline, FluxKontextFamily(), ["a", "a", "a"], sources=[*files, files[0]], **options))
    assert [row["prompt"] for row in rows] == ["a", "a"]
    assert rows[0]["seed"] != rows[1]["seed"]
    with pytest.raises(ValueError, match="There are 2 prompts and sources of 1"):
        list(generate_rows(pipeline, FluxKontextFamily(), ["a", "b"], sources=files[:1], **options))


def test_a_source_that_cannot_be_decoded_is_named_before_anything_is_drawn(prompts_file, tmp_path):
    path = prompts_file.parent / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Row 0 of .* cannot be used"):
        read_tasks(GenerateConfig("tiny", str(prompts_file), str(tmp_path / "drawn")), flux_kontext.build())


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
