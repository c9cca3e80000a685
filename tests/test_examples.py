"""The recipes from end to end, as a user of the example script runs them, with tiny models and without a network."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tgo_trl.cli import main
from tgo_trl.settings import read_settings

from .cases import CASES
from .tiny import stable_diffusion
from .tiny.data import scored_rows

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "examples" / "train.py")
OWN = "the data set of --dataset_name"
IMAGES = "Rapidata/text-2-image-Rich-Human-Feedback (17.9 GB)"
PUBLISHED = {
    "flux": ("flux", f"black-forest-labs/FLUX.1-dev (33.7 GB in bfloat16) and {IMAGES}"),
    "flux2_klein": ("flux2", f"black-forest-labs/FLUX.2-klein-base-4B (16.0 GB in bfloat16) and {IMAGES}"),
    "flux_kontext": (
        "flux_kontext",
        f"black-forest-labs/FLUX.1-Kontext-dev (33.7 GB in bfloat16) and {OWN}",
    ),
    "meissonic": ("meissonic", f"MeissonFlow/Meissonic (6.0 GB in float32) and {IMAGES}"),
    "qwen_image": ("qwen_image", f"Qwen/Qwen-Image (57.7 GB in bfloat16) and {IMAGES}"),
    "sd15": ("stable_diffusion", f"stable-diffusion-v1-5/stable-diffusion-v1-5 (5.5 GB in float32) and {IMAGES}"),
    "sd15_diffusion_dpo": (
        "stable_diffusion",
        f"stable-diffusion-v1-5/stable-diffusion-v1-5 (5.5 GB in float32) and {OWN}",
    ),
    "sd15_dspo": ("stable_diffusion", f"stable-diffusion-v1-5/stable-diffusion-v1-5 (5.5 GB in float32) and {OWN}"),
    "sd3": ("stable_diffusion_3", f"stabilityai/stable-diffusion-3.5-medium (16.3 GB in 16 bits) and {IMAGES}"),
    "sdxl": ("stable_diffusion_xl", f"stabilityai/stable-diffusion-xl-base-1.0 (13.9 GB in float32) and {IMAGES}"),
    "sdxl_dspo": ("stable_diffusion_xl", f"stabilityai/stable-diffusion-xl-base-1.0 (13.9 GB in float32) and {OWN}"),
    "wan": ("wan", f"Wan-AI/Wan2.1-T2V-1.3B-Diffusers (28.9 GB in float32) and {OWN}"),
    "wan22_ti2v": (
        "wan_image_to_video-ti2v",
        f"Wan-AI/Wan2.2-TI2V-5B-Diffusers (34.2 GB, float32 but for the text encoder) and {OWN}",
    ),
}
"""Of each recipe, the case of its tiny pipeline, and what the script says that it would download."""
PAIRS = {"sd15_diffusion_dpo": 5000.0, "sd15_dspo": 0.001, "sdxl_dspo": 5000.0}
"""Of the recipes for pairs, `beta`."""


def recipe(name: str) -> str:
    """The path of a recipe."""
    return str(ROOT / "recipes" / f"{name}.yaml")


def run(folder: Path, *arguments: str) -> str:
    """What the script printed, run in a folder."""
    home = folder / "home"  # what a script writes to caches is found here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, SCRIPT, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settings_of(folder: Path) -> dict:
    """The settings of a run, from its record."""
    return json.loads((folder / "tgo_config.json").read_text())["config"]


def test_all_recipes_are_tried():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == {*PUBLISHED}  # `recipes/paper`: test_paper.py


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe(name, tmp_path):
    kind, downloads = PUBLISHED[name]
    printed = run(tmp_path, "--config", recipe(name), "--tiny", "--lora_r", "3", "--use_peft", "true")
    assert printed.startswith(f"Without --tiny, this downloads {downloads}.\n")

    out = tmp_path / "outputs" / f"{name}-tiny"
    settings = settings_of(out)
    assert (settings["lora_r"], settings["max_steps"]) == (3, 2)  # the command line's, and those of `--tiny`
    assert (settings["confidence_coef"], settings["temperature"]) == (5.0, "auto")
    objective = ("balanced", "absolute", 1.0) if name == "meissonic" else ("balanced", "relative", 0.3)
    if name in PAIRS:
        objective = (1.0, "absolute", PAIRS[name])
    assert (settings["negative_weight"], settings["error_scale"], settings["beta"]) == objective
    assert list((out / "samples").glob("*.png"))
    assert not (tmp_path / "home").exists()

    weights = load_file(out / "pytorch_lora_weights.safetensors")
    assert {tensor.shape[0] for key, tensor in weights.items() if "lora_A" in key or "lora.down" in key} == {3}
    assert all(tensor.abs().max() > 0 for tensor in weights.values())
    case = next(case for case in CASES if case.name == kind)
    pipeline = case.build()
    exec(case.family(pipeline).loading_code(pipeline, str(out)), {"pipeline": pipeline})
    assert_loaded(pipeline, weights)


def assert_loaded(pipeline: DiffusionPipeline, weights: dict) -> None:
    """The pipeline has every weight of an adapter."""
    network = pipeline.transformer if "transformer" in pipeline.components else pipeline.unet
    loaded = {name: weight for name, weight in network.named_parameters() if "lora_" in name}
    assert len(loaded) == len(weights) > 0
    total = sum(weight.double().abs().sum() for weight in weights.values())
    assert sum(weight.detach().double().abs().sum() for weight in loaded.values()) == pytest.approx(float(total))


def test_a_recipe_of_ones_own(monkeypatch, tmp_path):
    """`--tiny` overrides of it what makes a run long; the command line overrides both."""
    text = Path(recipe("sd15")).read_text().replace("recipe: robust", "beta: 2.5").replace("lora_r: 16", "lora_r: 3")
    (tmp_path / "mine.yaml").write_text(text.replace("sample_prompts: [", "sample_prompts: [a cat]  # ["))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    own = ["--max_steps", "1", "--lora_r", "5", "--output_dir", "mine", "--encoding_cache_dir", "cache"]
    run_here(monkeypatch, "--config", "mine.yaml", "--tiny", *own)
    settings = settings_of(tmp_path / "mine")
    assert [settings[name] for name in ("max_steps", "beta", "lora_r", "sample_prompts")] == [1, 2.5, 5, ["a cat"]]
    assert [settings[name] for name in ("resolution", "confidence_coef")] == [16, 5.0]


@pytest.mark.slow
def test_a_recipe_of_ones_own_for_edits(tmp_path):
    """The data have source images where a recipe names their column, of a size that the pipeline takes."""
    text = (
        Path(recipe("flux2_klein")).read_text().replace("score_column: alignment_score", "source_column: source_image")
    )
    (tmp_path / "mine.yaml").write_text(text.replace("sample_prompts: [", "# ["))
    run(tmp_path, "--config", "mine.yaml", "--tiny", "--max_steps", "1", "--output_dir", "mine")
    settings = settings_of(tmp_path / "mine")
    assert [settings[name] for name in ("resolution", "source_column", "sample_prompts")] == [
        64, "source_image", ["a red cat"],
    ]  # fmt: skip
    assert list((tmp_path / "mine" / "samples").glob("*.png"))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "`--config recipes/sd15.yaml --tiny`"), ("model_name_or_path: mine\n", "model 'mine'")]
)
def test_only_a_published_recipe_is_made_small(text, message, monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text(text or "")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(ValueError, match=message):
        run_here(monkeypatch, "--tiny", *(["--config", str(tmp_path / "mine.yaml")] if text else []))


@pytest.mark.parametrize("name", PUBLISHED)
def test_help(name, monkeypatch, capsys):
    """It shows the recipe's settings."""
    with pytest.raises(SystemExit, match=r"^0$"):
        run_here(monkeypatch, "--config", recipe(name), "--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--tiny" in printed
    steps = float(read_settings(Path(recipe(name)))["logging_steps"].value)
    assert f"Log every X update steps, or ratio if below 1. (default: {steps})" in printed
    assert f"(default: {PUBLISHED[name][1].partition(' ')[0]})" in printed


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_program_reads_a_recipe_whole(name, monkeypatch):
    """`tgo-trl train` takes every setting of it, and as it is written."""
    taken = []
    monkeypatch.setattr("tgo_trl.commands.train.run.train", lambda *settings: taken.append(settings))
    data = ["--dataset_name", "rows"] if PUBLISHED[name][1].endswith(OWN) else []
    assert main(["train", "--config", recipe(name), "--use_cpu", *data]) == 0
    ((arguments, args),) = taken
    for setting, written in read_settings(Path(recipe(name))).items():
        assert getattr(arguments if hasattr(arguments, setting) else args, setting) == written.value, setting


def test_the_video_recipe_asks_for_data(monkeypatch):
    with pytest.raises(ValueError, match="`--dataset_name` is missing"):
        run_here(monkeypatch, "--config", recipe("wan"), "--use_cpu", "--bf16", "false")


def run_here(monkeypatch, *arguments: str) -> None:
    """Runs the script in this process, which has imported what it needs."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells in order, without the one that installs, and with a tiny model and data for its parameters."""
    stable_diffusion().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    scored_rows().to_parquet(tmp_path / "data" / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = {}
    cells = json.loads((ROOT / "examples" / "quick_start.ipynb").read_text())["cells"]
    for cell in cells:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "install" not in tags:
            exec("".join(cell["source"]), names)
        if "parameters" in tags:
            assert names["num_rows"] == 512
            names |= {"model": "model", "dataset_name": "data", "score_column": "score", "num_rows": 6}
            names["settings"] |= {"max_steps": 2, "sample_num_inference_steps": 2, "report_to": "none"}
    assert len(names["dataset"]) == 6
    assert names["args"].recipe == "robust"
    assert Path("sd15-tgo/samples/step-000002.png").is_file()
    assert any(
        tensor.any()
        for name, tensor in load_file("sd15-tgo/pytorch_lora_weights.safetensors").items()
        if "lora_B" in name or "lora.up" in name
    )
