"""Qwen-Image-Edit and FLUX.2, with one and two sources, and Wan from first frames: `evaluate`, `strength`, `rounds`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import DiffusionPipeline, WanImageToVideoPipeline

from tgo_trl.cli import main
from tgo_trl.commands.generate.sampling import image_seed
from tgo_trl.families import (
    Flux2KleinEditFamily,
    QwenImage21EditFamily,
    QwenImageEditFamily,
    QwenImageEditPlusFamily,
    WanImageToVideoFamily,
)
from tgo_trl.media.images import load_image
from tgo_trl.policy.pipeline_class import recorded_class
from tgo_trl.storage.fingerprints import fingerprint, task_of

from .test_generation import save_adapter
from .tiny import (
    flux2_edit,
    picture,
    qwen_image21,
    qwen_image21_edit,
    qwen_image_edit,
    qwen_image_edit_plus,
    wan,
    wan_image_to_video,
)

pytestmark = [
    pytest.mark.slow, pytest.mark.usefixtures("on_cpu"), pytest.mark.filterwarnings("ignore::UserWarning"),
]  # fmt: skip

SIDE = 32
PROMPTS = ("it turns", "it turns", "it falls")
REWARDS = """
import numpy as np

def last(sample):
    return np.asarray(sample[-1] if isinstance(sample, list) else sample, float)

def nearness(prompts, samples, sources):
    return [-float(np.abs(last(it) - np.asarray(images[-1], float)).mean()) for it, images in zip(samples, sources)]

def farness(prompts, samples, sources):
    return [-score for score in nearness(prompts, samples, sources)]
"""


@dataclass(frozen=True)
class Kind:
    """A pipeline in a folder, with an adapter, prompts and rewards.

    Attributes:
        folder: with `model`, `adapter`, `prompts.jsonl` and `rewards.py`.
        num_sources: of each prompt.
        num_steps: of each sample.
        num_rounds: of the command.
        call: of the stock pipeline.
        settings: of the commands that sample.
        training: of those that train.
        loaded_by: stock class.
    """

    folder: Path
    num_sources: int
    num_steps: int
    num_rounds: int
    call: dict
    settings: dict
    training: dict
    loaded_by: type

    @property
    def medium(self):
        return "video" if "num_frames" in self.settings else "image"

    @property
    def side(self):
        return self.call["height"]

    def sources(self, prompt):
        return [picture(10 * prompt + i, (self.side, self.side)) for i in range(self.num_sources)]

    def assert_drawn(self, row, prompt, adapter=None):
        """A row is what diffusers draws of its prompt and sources from its seed, with the adapter or without."""
        stock = self.loaded_by.from_pretrained(self.folder / "model")
        if adapter is not None:
            stock.load_lora_weights(adapter)
        stock.set_progress_bar_config(disable=True)
        sources = self.sources(prompt)
        found = stock(
            prompt=row["prompt"],
            image=sources if self.num_sources > 1 else sources[0],
            num_inference_steps=self.num_steps,
            generator=torch.Generator().manual_seed(row["seed"]),
            **self.call,
        )
        expected = found.frames[0] if self.medium == "video" else [found.images[0]]
        given = row[self.medium] if self.medium == "video" else [row[self.medium]]
        for ours, theirs in zip(given, expected, strict=True):
            theirs = load_image(theirs)  # over white, where it is transparent
            assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1

    def nearness(self, row, prompt):
        sample = row[self.medium][-1] if self.medium == "video" else row[self.medium]
        return -np.abs(np.asarray(sample, float) - np.asarray(self.sources(prompt)[-1], float)).mean()


def build_kind(folder, pipeline, family, numbers, call, settings, training, loaded_by=DiffusionPipeline):
    pipeline.save_pretrained(folder / "model")
    save_adapter(pipeline, folder / "adapter", family)
    (folder / "rewards.py").write_text(REWARDS)
    kind = Kind(folder, *numbers, call, settings, training, loaded_by)
    lines = []
    for i, prompt in enumerate(PROMPTS):
        names = [f"{i}-{j}.png" for j in range(kind.num_sources)]
        for name, image in zip(names, kind.sources(i), strict=True):
            image.save(folder / name)
        lines.append(json.dumps({"prompt": prompt, "source_image": names if kind.num_sources > 1 else names[0]}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return kind


def qwen(folder, module, family, num_sources, num_rounds):
    settings, numbers = module.SETTINGS, (num_sources, 2, num_rounds)
    call = {"height": SIDE, "width": SIDE, **settings}
    kind = build_kind(folder, module.build(), family, numbers, call, settings, settings)
    name_processor(folder, "Qwen2VLProcessor")
    return kind


def name_processor(folder, name):
    index = json.loads((folder / "model" / "model_index.json").read_text())
    index["processor"] = ["transformers", name]
    (folder / "model" / "model_index.json").write_text(json.dumps(index))


def build_edit(folder):
    return qwen(folder, qwen_image_edit, QwenImageEditFamily(), 1, 2)


def build_plus(folder):
    return qwen(folder, qwen_image_edit_plus, QwenImageEditPlusFamily(), 2, 1)


def build_klein(folder):
    """Whose index says nothing of source images, as it makes images from prompts alone too."""
    side = {"height": flux2_edit.RESOLUTION, "width": flux2_edit.RESOLUTION}
    settings = flux2_edit.SETTINGS
    call, family = {**side, **settings}, Flux2KleinEditFamily(**settings)
    return build_kind(folder, flux2_edit.build(), family, (2, 2, 1), call, settings, settings)


def build_qwen21(folder):
    """Likewise; the pipeline is told to leave sources as large as they are."""
    side = qwen_image21_edit.RESOLUTION
    settings, family = qwen_image21_edit.SETTINGS, QwenImage21EditFamily(**qwen_image21_edit.SETTINGS)
    call = {"height": side, "width": side, "output_resolution": side}
    kind = build_kind(folder, qwen_image21_edit.build(), family, (2, 2, 1), call, settings, settings)
    name_processor(folder, "Qwen3VLProcessor")
    return kind


def build_wan(folder):
    """As the published TI2V-5B, whose index says text to video."""
    frames = {"num_frames": wan.NUM_FRAMES}
    call = {"height": SIDE, "width": SIDE, "output_type": "pil", **frames}
    under = {"pipeline_class": "WanImageToVideoPipeline", **frames}
    kind = build_kind(
        folder, wan_image_to_video.build_ti2v(), WanImageToVideoFamily(**frames), (1, 1, 1), call, under, under,
        WanImageToVideoPipeline,
    )  # fmt: skip
    index = json.loads((folder / "model" / "model_index.json").read_text())
    (folder / "model" / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanPipeline"}))
    return kind


@pytest.fixture(
    scope="module",
    params=[build_edit, build_plus, build_klein, build_qwen21, build_wan],
    ids=lambda build: build.__name__[6:],
)
def kind(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # that of videos needs torchvision
        lazy = sys.modules["transformers"]  # which takes the place of the module that was imported first
        patch.setattr(lazy, "Qwen2VLProcessor", qwen_image_edit.PictureProcessor)
        patch.setattr(lazy, "Qwen3VLProcessor", qwen_image21.PromptProcessor)
        yield request.param(tmp_path_factory.mktemp("kind"))


def run(command, folder, **settings):
    words = ["--output_dir", str(folder), "--disable_tqdm", "true"]
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert main([command, *words]) == 0


def rows_of(folder, cache):
    return load_dataset(str(folder), split="train", cache_dir=str(cache))


def sampling(kind, **settings):
    common = {
        "height": kind.side,
        "width": kind.side,
        "num_inference_steps": kind.num_steps,
        "num_images_per_prompt": 2,
        "rows_per_shard": 4,
    }
    return {"prompts": kind.folder / "prompts.jsonl", **common, **kind.settings, **settings}


def test_base_and_adapter_are_compared(kind, tmp_path):
    model, adapter = kind.folder / "model", kind.folder / "adapter"
    run(
        "evaluate", tmp_path, models=[f"base={model}", f"tgo={model}+{adapter}"], num_resamples=100,
        rewards=f"{kind.folder / 'rewards.py'}:nearness", **sampling(kind),
    )  # fmt: skip
    means = json.loads((tmp_path / "evaluation.json").read_text())["overall"]["rewards"]["nearness"]["means"]
    for label, weights in (("base", None), ("tgo", adapter)):
        rows = rows_of(tmp_path / "models" / label / "drawn", tmp_path / "cache")
        for i, row in enumerate(rows):
            keys = [fingerprint((kind.folder / f"{i // 2}-{j}.png").read_bytes()) for j in range(kind.num_sources)]
            assert row["seed"] == image_seed(42, task_of(row["prompt"], keys), i % 2)
        kind.assert_drawn(rows[3], 1, weights)
        assert means[label]["value"] == pytest.approx(np.mean([kind.nearness(it, i // 2) for i, it in enumerate(rows)]))
    assert means["base"] != means["tgo"]


def test_an_adapter_is_measured_over_its_scales(kind, tmp_path):
    run(
        "strength", tmp_path, adapter_name_or_path=kind.folder / "adapter", model_name_or_path=kind.folder / "model",
        scales=["1"], num_drift_rows=3, write_card="false", rewards=f"{kind.folder / 'rewards.py'}:nearness",
        **sampling(kind),
    )  # fmt: skip
    for row in json.loads((tmp_path / "strength.json").read_text())["rows"]:
        rows = rows_of(tmp_path / f"scale-{row['scale']:g}" / "scored", tmp_path / "cache")
        expected = [kind.nearness(it, i // 2) for i, it in enumerate(rows)]
        assert rows["score"] == pytest.approx(expected)
        assert row["reward"] == pytest.approx(np.mean(expected))
        assert all((value == 1) == (row["scale"] == 0) for value in row["drift"])


def test_each_round_draws_from_the_policy_of_the_one_before(kind, tmp_path):
    rewards = {name: f"{kind.folder / 'rewards.py'}:{name}" for name in ("nearness", "farness")}
    run(
        "rounds", tmp_path, model_name_or_path=kind.folder / "model", prompts=kind.folder / "prompts.jsonl",
        rewards=rewards["nearness"], held_out_rewards=rewards["farness"], num_rounds=kind.num_rounds,
        num_images_per_prompt=2, num_inference_steps=kind.num_steps, held_out_images_per_prompt=2, max_steps=1,
        resolution=kind.side, learning_rate=1e-2, threshold_type="prompt_mean", use_cpu="true", report_to="none",
        lora_r=4, encoding_cache_dir=tmp_path / "encodings", **kind.training,
    )  # fmt: skip
    report = json.loads((tmp_path / "rounds.json").read_text())["report"]
    for number in range(1, kind.num_rounds + 1):
        rows = rows_of(tmp_path / f"round-{number}" / "scored", tmp_path / "cache")
        assert rows["score"] == pytest.approx([kind.nearness(it, i // 2) for i, it in enumerate(rows)])
        kind.assert_drawn(rows[5], 2, None if number == 1 else tmp_path / "round-1" / "adapter")
        measured = report["rounds"][number - 1]["measurement"]
        held_out = rows_of(tmp_path / "held_out" / "models" / f"round-{number}" / "drawn", tmp_path / "cache")
        farness = [-kind.nearness(it, i // 2) for i, it in enumerate(held_out)]
        assert measured["rewards"]["farness"]["value"] == pytest.approx(np.mean(farness))
        assert all(value > 0 for value in measured["drift"])
    rule = json.loads((tmp_path / f"round-{kind.num_rounds}" / "adapter" / "tgo_config.json").read_text())["label_rule"]
    assert (rule["num_rows"], rule["num_prompts"]) == (6, 3)  # the same words for two images are two
    adapter = tmp_path / f"round-{kind.num_rounds}" / "adapter"
    assert recorded_class(str(adapter)) == kind.training.get("pipeline_class")
    loaded_by = type(kind.loaded_by.from_pretrained(kind.folder / "model")).__name__
    assert f"pipeline = {loaded_by}.from_pretrained(" in (adapter / "README.md").read_text()
