"""The model card: its front matter, its tables, and a snippet that runs."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from tgo_trl.cards import model_card
from tgo_trl.cli import main
from tgo_trl.media.images import load_image
from tgo_trl.policy.draws import stable_seed

from . import tiny
from .cases import CASES, RELATIVES
from .runs import config, make_trainer

ROOT = Path(__file__).parent.parent
DRAWN_FROM_PROMPTS = [case.name for case in CASES if case.name in RELATIVES and case.sources is None]


def card_of(trainer, **arguments):
    trainer.create_model_card(**arguments)
    return (Path(trainer.args.output_dir) / "README.md").read_text()


def front_matter(card):
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def table(card, title):
    """The rows of the first table under a heading, as lists of cells."""
    section = card.split(f"{title}\n", 1)[1]
    lines = section.strip().split("\n\n")[0].splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def snippet(card):
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


@pytest.fixture
def base(tmp_path):
    """A pipeline in a local folder, with a card that states its license."""
    folder = tmp_path / "base"
    tiny.stable_diffusion().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n# Base\n")
    return folder


def test_front_matter_of_an_adapter_on_a_local_folder(tmp_path, base):
    card = card_of(make_trainer(config(tmp_path), model=str(base)))
    assert front_matter(card) == {
        "library_name": "diffusers",
        "license": "openrail",
        "pipeline_tag": "text-to-image",
        "tags": ["trl", "tgo", "lora", "diffusers"],
    }
    assert str(tmp_path) not in card, "a folder names a machine"
    assert card.split("---\n", 2)[2].startswith(
        "\n# out\n\nA LoRA adapter for `base` with Threshold-Guided Optimization"
    )


@pytest.mark.parametrize(("use_peft", "relation"), [(True, "adapter"), (False, "finetune")])
def test_front_matter_of_a_model_on_the_hub(tmp_path, use_peft, relation):
    pipeline = tiny.stable_diffusion()
    pipeline.register_to_config(_name_or_path="them/their-model")
    trainer = make_trainer(config(tmp_path, use_peft=use_peft), model=pipeline)
    card = card_of(trainer, dataset_name="me/scores", tags=["cats", "tgo"], license="mit", model_name="Cats")
    front = front_matter(card)
    assert front["base_model"] == "them/their-model"
    assert front["base_model_relation"] == relation
    assert front["license"] == "mit"
    assert front["datasets"] in ("me/scores", ["me/scores"])
    assert front["tags"] == ["trl", "tgo", *(["lora"] if use_peft else []), "diffusers", "cats"]
    assert "[them/their-model](https://huggingface.co/them/their-model)" in card
    assert "\n# Cats\n" in card


def test_one_tag_is_not_taken_for_its_letters(tmp_path):
    assert front_matter(card_of(make_trainer(config(tmp_path)), tags="cats"))["tags"][-1] == "cats"


def test_the_license_is_left_out_where_it_is_not_known_and_the_card_says_so(tmp_path, base):
    note = "No license is claimed: the base model's card states none, or could not be read."
    (base / "README.md").unlink()
    for text in (None, "# Base\n"):
        if text is not None:
            (base / "README.md").write_text(text)
        card = card_of(make_trainer(config(tmp_path), model=str(base)))
        assert "license" not in front_matter(card)
        assert f"\n\n{note} Its terms hold for this adapter too.\n\n" in card
    card = card_of(make_trainer(config(tmp_path), model=str(base)), license="mit")
    assert front_matter(card)["license"] == "mit"
    assert note not in card


def test_a_card_without_a_grid_says_whose_the_settings_of_its_snippet_are(tmp_path, base):
    assert "steps and guidance are the pipeline's own." in card_of(make_trainer(config(tmp_path), model=str(base)))


def test_an_unreachable_base_model_makes_no_error(tmp_path):
    assert model_card.base_license("them/their-model") is None
    assert model_card.base_license("") is None
    assert model_card.base_license("no valid id!") is None


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_card_says_what_was_not_looked_at(tmp_path, use_peft):
    limits = card_of(make_trainer(config(tmp_path, use_peft=use_peft))).split("## Limits\n\n")[1].split("\n")[0]
    assert limits.startswith("It was trained for these scores, and what they do not see may have become worse")
    assert ("`tgo-trl strength`" in limits) == use_peft


def test_sft_is_not_called_tgo(tmp_path):
    card = card_of(make_trainer(config(tmp_path, loss_type="sft")))
    assert front_matter(card)["tags"][:2] == ["trl", "sft"]
    introduction = card.split("## Quick start")[0]
    assert "supervised fine-tuning on the images that scored above a threshold" in introduction
    assert "Threshold-Guided" not in introduction


def test_the_table_of_scores_holds_the_rules_numbers(tmp_path):
    args = config(tmp_path, threshold_type="value", threshold_value=5.5)
    assert table(card_of(make_trainer(args)), "## Scores") == [
        ["", ""],
        ["---", "---"],
        ["rows", "8"],
        ["prompts", "4"],
        # 0 to 7: mean 3.5, variance (8^2 - 1) / 12
        ["score, mean ± standard deviation", "3.5 ± 2.291"],
        ["threshold", "5.5 (given value)"],
        ["positive rows", "2 (25.0 %)"],
    ]


def test_the_table_of_hyperparameters_holds_what_was_run(tmp_path):
    args = config(tmp_path, beta=0.5, learning_rate=2e-4, gradient_accumulation_steps=2, bf16=True, lora_r=3, seed=7)
    trainer = make_trainer(args)
    trainer.train()
    rows = dict(table(card_of(trainer), "## Training procedure")[2:])
    assert rows == {name: str(value) for name, value in trainer.hyperparameters().items()}
    expected = {"loss": "tgo", "beta": "0.5", "temperature": "0.064", "confidence coefficient": "5.0", "updates": "2",
                "batch size": "8", "learning rate": "0.0002", "schedule": "linear", "seed": "7", "precision": "bf16",
                "LoRA rank, alpha": "3, 8", "resolution": "16 x 16"}  # fmt: skip
    assert expected.items() <= rows.items()
    full = make_trainer(config(tmp_path, use_peft=False))
    assert "LoRA rank, alpha" not in dict(table(card_of(full), "## Training procedure")[2:])


def test_no_table_or_list_has_a_blank_line_inside(tmp_path):
    trainer = make_trainer(config(tmp_path, sample_prompts=["a cat"], sample_num_inference_steps=1))
    trainer.train()
    card = card_of(trainer, dataset_name="me/scores")
    assert not re.search(r"\|\n\n+\|", card)
    assert not re.search(r"^- .*\n\n+- ", card, re.MULTILINE)
    assert "\n\n\n" not in card
    assert "{%" not in card
    assert "{{ " not in card, "no template is left over"


def test_the_card_shows_the_pictures_that_there_are(tmp_path):
    trainer = make_trainer(config(tmp_path))
    assert "![" not in card_of(trainer)
    trainer.train()
    assert re.findall(r"!\[.*?\]\((.*?)\)", card_of(trainer)) == ["score_histogram.png"]
    args = config(tmp_path, sample_prompts=["a cat"], sample_num_inference_steps=1, sample_steps=1)
    trainer = make_trainer(args)
    trainer.train()
    assert re.findall(r"!\[.*?\]\((.*?)\)", card_of(trainer)) == ["samples/step-000002.png", "score_histogram.png"]


def test_paper_and_versions_are_named(tmp_path):
    card = card_of(make_trainer(config(tmp_path)))
    assert "https://huggingface.co/papers/2605.04653" in card
    assert "title     = {{Threshold-Guided Optimization for Visual Generative Models}}" in card
    assert "title   = {{TRL: Transformers Reinforcement Learning}}" in card
    versions = re.findall(r"^- (\S+): (\S+)$", card, re.MULTILINE)
    assert [name for name, _ in versions] == list(model_card.PACKAGES)


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("prompt", ["a red cat", 'a "red" cat\'s\nhat \\ <é>'])
def test_the_snippet_runs_and_draws(tmp_path, base, monkeypatch, use_peft, prompt):
    """Run beside the output directory, as someone would who has both folders."""
    data = tiny.scored_rows(8).map(lambda row: {"prompt": prompt})
    trainer = make_trainer(config(tmp_path, use_peft=use_peft), model=str(base), train_dataset=data)
    trainer.train()
    trainer.save_model()
    code = snippet(card_of(trainer))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "snippet", "exec"), names)
    with Image.open(tmp_path / "sample.png") as image:
        assert image.size == (16, 16)
    if use_peft:
        assert names["pipeline"].get_list_adapters() == {"unet": ["default_0"]}
    calls = []
    [call] = re.findall(r"^image = (pipeline\(\n.*?^\))", code, re.DOTALL | re.MULTILINE)
    exec(call, {"pipeline": lambda **kwargs: calls.append(kwargs), "torch": torch})
    assert [given["prompt"] for given in calls] == [prompt]


def test_the_snippet_draws_the_first_sample_of_the_grid(tmp_path, base, monkeypatch):
    """Its steps, guidance, size and seed: with the defaults of a pipeline a comparison may come out otherwise."""
    prompts = ["a blue dog", "a red cat"]
    args = config(tmp_path, sample_prompts=prompts, sample_num_inference_steps=3, sample_guidance_scale=1.5)
    trainer = make_trainer(args, model=str(base))
    trainer.train()
    trainer.save_model()
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(card_of(trainer)), "snippet", "exec"), {})
    seeds = [stable_seed(args.seed, i) for i in range(2)]
    drawn = trainer.sample(prompts, seeds, num_inference_steps=3, guidance_scale=1.5)[0]
    with Image.open(tmp_path / "sample.png") as image:
        assert np.abs(np.asarray(image, int) - np.asarray(drawn, int)).max() <= 1


@pytest.mark.parametrize(
    "name", ["qwen_image", "sana", *(pytest.param(name, marks=pytest.mark.slow) for name in DRAWN_FROM_PROMPTS)]
)
def test_the_snippet_calls_a_pipeline_as_its_family_does(tmp_path, monkeypatch, name):
    """Where guidance has another name, and where a size would be brought to another one."""
    (case,) = (case for case in CASES if case.name == name)
    case.build().save_pretrained(tmp_path / "base")
    args = case.config(tmp_path, sample_prompts=["a cat"], sample_num_inference_steps=2, sample_guidance_scale=3.0)
    trainer = make_trainer(args, model=str(tmp_path / "base"), train_dataset=case.rows(4))
    trainer.save_model()
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(card_of(trainer)), "snippet", "exec"), {})
    [drawn] = trainer.sample(["a cat"], [stable_seed(args.seed, 0)], num_inference_steps=2, guidance_scale=3.0)
    with Image.open(tmp_path / "sample.png") as image:
        assert np.abs(np.asarray(load_image(image), int) - np.asarray(drawn, int)).max() <= 1


@pytest.mark.parametrize(("setting", "dtype"), [("bf16", "torch.bfloat16"), ("fp16", "torch.float16")])
def test_the_snippet_loads_what_was_trained_in(tmp_path, base, setting, dtype):
    trainer = make_trainer(config(tmp_path), model=str(base))
    setattr(trainer.args, setting, True)
    card = card_of(trainer)
    assert f'from_pretrained("base", dtype={dtype})' in card
    assert '# "base" was on the machine that trained this: write where yours is' in card


@pytest.mark.parametrize(
    "name", ["flux2_dev_edit", "flux2_edit", "flux_kontext", "qwen_image21_edit", "qwen_image_edit_plus"]
)
def test_the_snippet_of_an_editing_pipeline_edits(tmp_path, monkeypatch, name):
    (case,) = (case for case in CASES if case.name == name)
    case.build().save_pretrained(tmp_path / "base")
    trainer = make_trainer(case.config(tmp_path), model=str(tmp_path / "base"), train_dataset=case.rows(4))
    trainer.save_model()
    names = {1: ["source.png"], 2: ["source1.png", "source2.png"]}[len(case.sources[0])]  # as many as rows have
    for file in names:
        Image.new("RGB", (50, 30), "red").save(tmp_path / file)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(card_of(trainer)), "snippet", "exec"), {})
    height, width = trainer.size
    with Image.open(tmp_path / "sample.png") as image:
        assert image.size == (width, height)


def test_a_pipeline_without_a_name_makes_no_empty_link(tmp_path):
    """A pipeline put together in a script has no name to load it by."""
    card = card_of(make_trainer(config(tmp_path)))
    assert 'from_pretrained("")' not in card
    assert "``" not in card.split("## Quick start")[0]


# ---- Where the template lies ----


def test_the_template_is_found_in_a_source_tree():
    assert model_card.template_path() == ROOT / "model_card_template.md"


@pytest.mark.slow
def test_the_template_is_found_in_a_wheel(tmp_path):
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT)]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr[-2000:]
    [wheel] = tmp_path.glob("tgo_trl-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(installed)
    assert "tgo_trl/model_card_template.md" in names
    assert "tgo_trl/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "tgo_trl",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    code = "import tgo_trl.cards.model_card as card; print(card.template_path())"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == str(installed / "tgo_trl" / "model_card_template.md"), found.stderr[-2000:]


# ---- Of other families ----


def test_a_part_that_the_pipeline_lacks_is_left_out_of_the_snippet(tmp_path):
    (case,) = (case for case in CASES if case.name == "stable_diffusion_3-without_t5")
    case.build().save_pretrained(tmp_path / "base")
    base = StableDiffusion3Pipeline.from_pretrained(tmp_path / "base", text_encoder_3=None, tokenizer_3=None)
    trainer = make_trainer(case.config(tmp_path), model=base, train_dataset=case.rows(4))
    line = f'pipeline = StableDiffusion3Pipeline.from_pretrained("{tmp_path / "base"}"'
    card = card_of(trainer).replace('from_pretrained("base"', f'from_pretrained("{tmp_path / "base"}"')
    assert f"{line}, text_encoder_3=None, tokenizer_3=None)" in card
    snippet = card.split("```python\n")[1].split("pipeline.load_lora_weights")[0]
    names = {}
    exec(snippet, names)
    assert names["pipeline"].text_encoder_3 is None


def test_a_card_of_videos_speaks_of_videos(tmp_path):
    (case,) = (case for case in CASES if case.name == "wan")
    trainer = make_trainer(case.config(tmp_path), model=case.build(), train_dataset=case.rows(4))
    card = card_of(trainer)
    assert front_matter(card)["pipeline_tag"] == "text-to-video"
    assert "on scored videos: those above a threshold" in card
    assert "from diffusers.utils import export_to_video" in card
    assert "    num_frames=5,\n" in card
    assert ").frames[0]\n" in card
    assert 'export_to_video(frames, "sample.mp4", fps=16)' in card
    assert dict(table(card, "## Training procedure")[2:])["frames"] == "5 at 16 per second"


def test_a_card_of_a_pipeline_of_ours_imports_it_from_here(tmp_path):
    (case,) = (case for case in CASES if case.name == "meissonic")
    trainer = make_trainer(case.config(tmp_path), model=case.build(), train_dataset=case.rows(4))
    card = card_of(trainer)
    line = next(line for line in card.splitlines() if line.startswith("from "))
    assert line == "from tgo_trl import MeissonicPipeline"
    exec(line, {})


def weight_change(pipeline):
    """What an adapter adds to one layer."""
    layer = pipeline.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_out[0]
    return layer.get_delta_weight(next(iter(layer.scaling)))


def test_the_card_says_where_alpha_stands_and_its_way_to_other_programs_is_right(tmp_path, monkeypatch):
    trainer = make_trainer(config(tmp_path, lora_r=4, lora_alpha=16, max_steps=2))
    trainer.train()
    trainer.save_model()
    tiny.stable_diffusion().save_pretrained(tmp_path / "base")
    card = card_of(trainer)
    assert "scaled by alpha / rank, 16 / 4 = 4." in card
    assert "applies 0.25 times the change" in card
    command = shlex.split(re.search(r"`tgo-trl (export .*?)`", card)[1])
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--model_name_or_path", str(tmp_path / "base")]) == 0
    without_header = {
        key: value.clone() for key, value in load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors").items()
    }
    save_file(without_header, tmp_path / "plain.safetensors")
    shares = []
    for path in (tmp_path / "plain.safetensors", tmp_path / "exported" / "out.safetensors"):
        other = tiny.stable_diffusion()
        other.load_lora_weights(path)
        shares.append(float(weight_change(other).detach().norm() / weight_change(trainer.pipeline).detach().norm()))
    assert shares == pytest.approx([0.25, 1.0], rel=1e-5)


def test_an_alpha_that_is_the_rank_needs_no_word(tmp_path):
    assert "alpha / rank" not in card_of(make_trainer(config(tmp_path, lora_r=4, lora_alpha=4)))
    assert "alpha / rank" not in card_of(make_trainer(config(tmp_path / "full", use_peft=False)))


def test_a_folder_is_named_as_it_is_found_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_card.path_in_card(str(tmp_path / "models" / "base")) == "models/base"
    assert model_card.path_in_card("/srv/someone/base") == "base"
    assert model_card.path_in_card("owner/name") == "owner/name"
